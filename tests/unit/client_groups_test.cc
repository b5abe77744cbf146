// Groups of 12 query heads and of 1, heads of 64, 128 and 256: a view of everything is attention in
// double precision, and one with a budget is that over exactly the rows that it says it chose.
#include <cmath>
#include <fstream>

#include "tests/unit/client_view_fixture.h"

namespace kvtier::testing {
namespace {

class ViewGroups : public ViewTest {
 protected:
  static constexpr std::uint32_t kLayer = 2;  // behind the two whose boxes leoam does not split
  static constexpr std::uint64_t kStored = 2600, kTail = 40, kSinks = 16, kWindow = 64;
  static constexpr const char* kExact = "exact.toml";  // progressive, its chosen rows all exact

  // Two segments and a tail.
  void store(const TestShape& shape) {
    model_ = std::make_unique<Model>(shape);
    scale_ = 1.0f / std::sqrt(static_cast<float>(shape.dim));
    space_ = open_space(shape, "groups", "codes");
    sequence_ = create_sequence(space_, "groups");
    model_->append_many(sequence_, 1, kStored);
    KVT_ASSERT_OK(kvt_sequence_close(sequence_));
    sequence_ = open_sequence(space_, "groups", true);
    model_->append(sequence_, 90000, kTail);
    std::ofstream(root_ + "/" + kExact) << "base = \"progressive\"\nexact_above = 0\n";
  }
  void TearDown() override {
    KVT_EXPECT_OK(kvt_sequence_close(sequence_));
    kvt_space_close(space_);
    ClientTest::TearDown();
  }
  kvt_view* open(const char* preset, std::uint64_t budget) {
    const std::string path = root_ + "/" + kExact;
    return open_view(sequence_, budget, preset == kExact ? path.c_str() : preset, kSinks, kWindow);
  }
  // Over the same stored tokens in every KV head.
  Attention attention(const float* q, const std::vector<std::uint64_t>& tokens) const {
    return reference(*model_, kLayer, q, scale_, {model_->shape().kv_heads, tokens});
  }
  static double apart(const Attention& a, const std::vector<float>& out) {
    return distance(out, std::vector<float>(a.out.begin(), a.out.end()));
  }

  std::unique_ptr<Model> model_;
  kvt_space* space_ = nullptr;
  kvt_sequence* sequence_ = nullptr;
  float scale_ = 0.0f;
};

TEST_P(ViewGroups, EverythingIsFullAttention) {
  TestShape shape = GetParam();
  shape.kv_heads = static_cast<std::uint16_t>(2 * shape.kv_heads);
  shape.query_heads = static_cast<std::uint16_t>(2 * shape.query_heads);
  store(shape);
  const std::size_t per_query = shape.query_heads * shape.dim;
  const std::vector<float> q = random_queries(shape, 2, 3);
  std::vector<float> out(2 * per_query), lse(2 * shape.query_heads);
  const float* newest = q.data() + per_query;
  const Attention want = attention(newest, first_tokens(kStored + kTail));
  const Attention before = attention(q.data(), first_tokens(kStored + kTail - 1));
  for (const char* preset : {"", "progressive", "quest", "leoam"}) {
    SCOPED_TRACE(preset);
    kvt_view* view = open(preset, 0);
    KVT_ASSERT_OK(kvt_view_attend(view, kLayer, 1, newest, scale_, out.data(), lse.data()));
    expect_near(want, out.data(), lse.data(), "budget 0");
    kvt_view_close(view);
  }
  for (const char* preset : {"codes", kExact, "quest", "leoam"}) {
    SCOPED_TRACE(preset);
    kvt_view* view = open(preset, 2 * kStored);
    KVT_ASSERT_OK(kvt_view_attend(view, kLayer, 1, newest, scale_, out.data(), lse.data()));
    expect_near(want, out.data(), lse.data(), "more than there is");
    EXPECT_EQ(stats(view).rows_attended, (kStored + kTail) * shape.kv_heads);
    KVT_ASSERT_OK(kvt_view_attend(view, kLayer, 2, q.data(), scale_, out.data(), lse.data()));
    expect_near(before, out.data(), lse.data(), "the query before");
    expect_near(want, out.data() + per_query, lse.data() + shape.query_heads, "the newest of two");
    kvt_view_close(view);
  }
}

TEST_P(ViewGroups, ABudgetIsAttentionOverTheRowsItChose) {
  const TestShape shape = GetParam();
  ASSERT_EQ(shape.kv_heads, 1) << "whose rows are told apart";
  store(shape);
  std::uint64_t budget = 128;  // another one each time: what was told of the last is not taken
  for (const char* preset : {"codes", "", kExact, "quest", "leoam", "progressive"}) {
    SCOPED_TRACE(preset);
    kvt_view* view = open(preset, budget);
    const std::vector<float> q = random_queries(shape, 2, static_cast<std::uint32_t>(budget));
    std::vector<float> both(2 * q.size()), out(shape.query_heads * shape.dim);
    std::vector<float> lse(shape.query_heads);
    // As a prompt: what is told begins anew.
    KVT_ASSERT_OK(kvt_view_attend(view, kLayer, 2, q.data(), scale_, both.data(), nullptr));
    const std::uint64_t before = stats(view).rows_attended;
    KVT_ASSERT_OK(kvt_view_attend(view, kLayer, 1, q.data(), scale_, out.data(), lse.data()));
    const kvt_view_stats seen = stats(view);
    EXPECT_EQ(seen.units_missing, 0u);
    EXPECT_LE(seen.rows_selected, budget);
    EXPECT_GT(seen.rows_selected, budget - 16) << "but for a page";

    std::set<std::uint64_t> rows;
    for (std::uint64_t t = 0; t < kSinks; ++t) rows.insert(t);
    for (std::uint64_t t = kStored - kWindow; t < kStored + kTail; ++t) rows.insert(t);
    const std::vector<std::uint64_t> chosen = told("groups", kStored, seen.rows_selected);
    for (const std::uint64_t t : chosen)
      EXPECT_TRUE(rows.insert(t).second) << t << " is kept, or was chosen twice";
    EXPECT_EQ(seen.rows_attended - before, rows.size());
    const std::vector<std::uint64_t> tokens(rows.begin(), rows.end());
    if (preset == std::string("quest")) {
      EXPECT_EQ(tokens, chosen_tokens(*model_, kLayer, 0, q.data(), scale_, kStored, budget, kSinks,
                                      kWindow, {2048, kStored}));
    }
    const Attention want = attention(q.data(), tokens);
    const double far = apart(attention(q.data(), first_tokens(kStored + kTail)),
                             std::vector<float>(want.out.begin(), want.out.end()));
    EXPECT_GT(far, 0.05) << "what all rows would give";
    if (preset == std::string("progressive")) {
      EXPECT_EQ(seen.rows_base + seen.rows_refined, seen.rows_selected);
      EXPECT_GT(seen.rows_base, seen.rows_refined) << "nearly: of 4 bits";
      EXPECT_LT(apart(want, out), far / 4);
    } else {
      expect_near(want, out.data(), lse.data(), "over the rows that it chose");
    }
    kvt_view_close(view);
    budget += 32;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ViewGroups,
                         ::testing::Values(TestShape{3, 1, 12, 64, KVT_DTYPE_F32, 1},
                                           TestShape{3, 1, 12, 128, KVT_DTYPE_F16, 0},
                                           TestShape{3, 1, 12, 256, KVT_DTYPE_F16, 1},
                                           TestShape{3, 1, 1, 64, KVT_DTYPE_F16, 1},
                                           TestShape{3, 1, 1, 256, KVT_DTYPE_F32, 1}),
                         [](const auto& info) {
                           return std::to_string(info.param.query_heads) + "HeadsOf" +
                                  std::to_string(info.param.dim);
                         });

}  // namespace
}  // namespace kvtier::testing
