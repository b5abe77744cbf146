// Models that no codebook can be made for: refused before anything is allocated or trained.
#include <gtest/gtest.h>

#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

class EngineCalibration : public EngineFixture {
 protected:
  // Eight tokens of a model with one layer of f16 keys are stored; the calibration's answer.
  Status calibrate(std::uint16_t heads, std::uint32_t dim, const char* codes) {
    return client->wait(start(heads, dim, codes)).status;
  }
  sim::SimClient::Answer start(std::uint16_t heads, std::uint32_t dim, const char* codes) {
    LayerGeometry layer;
    layer.dtype = Dtype::kF16;
    layer.kv_heads = layer.query_heads = heads;
    layer.k_row_bytes = 2 * dim;
    layer.v_row_bytes = 32;
    geometry.layers = {layer};
    space = client->open_space(geometry, "model of " + std::to_string(dim));
    auto stored = client->create(space, {}, "of " + std::to_string(dim));
    seal(*stored, make_ids(8), 8);
    return client->start_control(
        Json{{"op", "calibrate"}, {"handle", stored->handle}, {"abstract", codes}});
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

TEST_F(EngineCalibration, EndsEarlyWhenTheDaemonStops) {
  const sim::SimClient::Answer answer = start(2, 64, "codes:4/tokens");
  bool drained = false;
  world.engine().drain([&] { drained = true; });
  ASSERT_TRUE(world.run_until([&] { return drained; }));
  ASSERT_NE(*answer, nullptr);
  EXPECT_EQ((*answer)->status.code, Code::kCancelled);
}
}  // namespace
}  // namespace kvtier
