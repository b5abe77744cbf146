// Models that no codebook can be made for: refused before anything is allocated or trained.
#include <gtest/gtest.h>

#include "tests/unit/engine_fixture.h"
#include "tiers/codebook_format.h"

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

// A codebook's file is named as damaged where it is, and where it was read.
TEST_F(EngineCalibration, AProblemIsOneOfTheFile) {
  auto chat = client->create(space, {}, "chat");
  ASSERT_TRUE(
      client
          ->control(Json{
              {"op", "abstract_want"}, {"handle", chat->handle}, {"abstract", "codes:4/tokens"}})
          .ok());
  StoredSpace& stored = *find_space(state(), SpaceId{space});
  const AbstractSpec spec = *parse_abstract_spec("codes:4/tokens");
  const SpaceCodebook& entry = codebook_of(state(), stored, spec);
  const auto listed = [&] { return client->control(Json{{"op", "codebooks"}}).body["codebooks"]; };
  // In memory alone, where it found no room.
  stored.row.codebooks = {{spec.packed(), 7}};
  stored.codebooks_in_memory = {7};
  ASSERT_EQ(listed().size(), 1u);
  EXPECT_FALSE(listed()[0].contains("problem")) << listed().dump();
  EXPECT_EQ(entry.problem, nullptr);
  load_codebook(state(), stored, spec, [](const auto&) {});
  EXPECT_EQ(codebook_id(stored, spec), 0u) << "the next calibration makes another";
  EXPECT_EQ(entry.problem, nullptr);
  // A disk that fails says nothing of what was found before.
  stored.row.codebooks = {{spec.packed(), 9}};
  const std::string path = codebook_path(stored.row.id, 9);
  ASSERT_TRUE(world.disk().create(path, true));
  ASSERT_TRUE(world.disk().write(path, 0, std::vector<std::byte>(8192, std::byte{1})));
  EXPECT_EQ(listed()[0]["problem"], "is damaged");
  EXPECT_STREQ(entry.problem, "is damaged");
  world.disk().set_error_rates(1, 0);
  EXPECT_NE(listed()[0]["problem"], "is damaged");
  world.disk().set_error_rates(0, 0);
  EXPECT_STREQ(entry.problem, "is damaged");
}

}  // namespace
}  // namespace kvtier
