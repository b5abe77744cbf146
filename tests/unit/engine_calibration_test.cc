// Models that no codebook can be made for: refused before anything is allocated or trained.
#include <gtest/gtest.h>

#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

class EngineCalibration : public EngineFixture {
 protected:
  // Eight tokens of a model with one layer of f16 keys are stored; the calibration's answer.
  Status calibrate(std::uint16_t heads, std::uint32_t dim, const char* codes) {
    LayerGeometry layer;
    layer.dtype = Dtype::kF16;
    layer.kv_heads = layer.query_heads = heads;
    layer.k_row_bytes = 2 * dim;
    layer.v_row_bytes = 32;
    geometry.layers = {layer};
    space = client->open_space(geometry, "model of " + std::to_string(dim));
    auto stored = client->create(space, {}, "of " + std::to_string(dim));
    seal(*stored, make_ids(8), 8);
    return client
        ->control(Json{{"op", "calibrate"}, {"handle", stored->handle}, {"abstract", codes}})
        .status;
  }
  void expect_refused(const Status& status, const char* why) {
    EXPECT_EQ(status.code, Code::kUnsupported);
    EXPECT_NE(std::string_view(status.message()).find(why), std::string_view::npos)
        << status.message();
  }
};

TEST_F(EngineCalibration, ACodebookAboveTheLimitOfItsFileIsRefused) {
  EXPECT_EQ(calibrate(2, 64, "codes:4/tokens").code, Code::kInvalid) << "too few keys, no more";
  expect_refused(calibrate(128, 1024, "codes:16/tokens"), "above 1 GiB");
}

TEST_F(EngineCalibration, KeysThatKernelsTakeNoCodesOfAreRefused) {
  expect_refused(calibrate(1, 8192, "codes:16/tokens"), "keys of this size");
  expect_refused(calibrate(1, 512, "codes:4/tokens"), "keys of this size");
}

}  // namespace
}  // namespace kvtier
