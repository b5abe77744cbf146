// The scalar kernels against plain formulas in double precision. Everything else is compared with
// the scalar kernels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/registry.h"
#include "tests/unit/kernels_fixtures.h"

namespace kvtier {
namespace {

using namespace testing;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class ScalarKernels : public ::testing::Test {
 protected:
  const KernelTable& scalar = **select_kernels("scalar");
  Random random{11};
};

// The value of f16 bits by its definition.
double f16_value(std::uint32_t half) {
  const double sign = (half & 0x8000u) != 0 ? -1.0 : 1.0;
  const int exponent = static_cast<int>((half >> 10) & 31u);
  const double mantissa = half & 1023u;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  if (exponent == 31) return mantissa == 0.0 ? sign * HUGE_VAL : std::nan("");
  return sign * std::ldexp(1024.0 + mantissa, exponent - 25);
}

TEST(Float16, EveryHalfWidensToItsValue) {
  for (std::uint32_t half = 0; half < 65536; ++half) {
    const float value = f16_to_f32(static_cast<std::uint16_t>(half));
    const double wanted = f16_value(half);
    if (std::isnan(wanted)) {
      EXPECT_TRUE(std::isnan(value)) << half;
      EXPECT_NE(std::bit_cast<std::uint32_t>(value) & 0x00400000u, 0u)
          << "signalling NaN from " << half;
      EXPECT_EQ(std::bit_cast<std::uint32_t>(value) >> 31, half >> 15);
    } else {
      EXPECT_EQ(static_cast<double>(value), wanted) << half;
      EXPECT_EQ(std::signbit(value), (half & 0x8000u) != 0);
      EXPECT_EQ(f32_to_f16(value), half);
    }
  }
}

// Between each two neighbours: exactly half way goes to the even one, anything else to the nearer
// one.
TEST(Float16, NarrowingRoundsToNearestEven) {
  for (std::uint32_t half = 0; half < 0x7BFF; ++half) {
    const double low = f16_value(half);
    const double high = f16_value(half + 1);
    const float middle = static_cast<float>((low + high) / 2);
    const std::uint16_t even = static_cast<std::uint16_t>(half % 2 == 0 ? half : half + 1);
    ASSERT_EQ(f32_to_f16(middle), even);
    ASSERT_EQ(f32_to_f16(-middle), even | 0x8000u);
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 0.0f)), half);
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, kInfinity)), half + 1);
    ASSERT_EQ(f32_to_f16_down(middle), half);
    ASSERT_EQ(f32_to_f16_up(middle), half + 1);
    ASSERT_EQ(f32_to_f16_up(-middle), half | 0x8000u);
    ASSERT_EQ(f32_to_f16_down(-middle), (half + 1) | 0x8000u);
  }
  EXPECT_EQ(f32_to_f16(65519.996f), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(f32_to_f16(-1e30f), 0xFC00);
  EXPECT_EQ(f32_to_f16_down(1e30f), 0x7BFF);
  EXPECT_EQ(f32_to_f16_up(65505.0f), 0x7C00);
  EXPECT_EQ(f32_to_f16_down(1e-30f), 0);
  EXPECT_EQ(f32_to_f16_down(-1e-30f), 0x8001);
  EXPECT_EQ(f32_to_f16_up(1e-30f), 1);
  EXPECT_EQ(f32_to_f16(std::bit_cast<float>(0xFF812345u)), 0xFE00u | (0x012345u >> 13));
}

TEST(Float16, Bf16RoundsToNearestEven) {
  for (std::uint32_t half = 0; half < 0x7F80; ++half) {
    const std::uint32_t low = half << 16;
    const std::uint16_t up = static_cast<std::uint16_t>(half + 1);
    ASSERT_EQ(f32_to_bf16(std::bit_cast<float>(low)), half);
    ASSERT_EQ(f32_to_bf16(std::bit_cast<float>(low + 0x7FFF)), half);
    ASSERT_EQ(f32_to_bf16(std::bit_cast<float>(low + 0x8000)), half % 2 == 0 ? half : up);
    ASSERT_EQ(f32_to_bf16(std::bit_cast<float>(low + 0x8001)), up);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(bf16_to_f32(static_cast<std::uint16_t>(half))), low);
  }
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7F800001u)))));
  EXPECT_EQ(std::bit_cast<std::uint32_t>(bf16_to_f32(0xFF81)), 0xFFC10000u);
}

TEST_F(ScalarKernels, BoxHoldsItsKeysAndIsTight) {
  for (const Dtype dtype : kDtypes) {
    const PagedRows keys(&random, dtype, 83, 32, 24, 8, awkward_float);
    const std::uint64_t tokens = 83;
    std::vector<std::uint16_t> out(6 * 2 * 24);
    BuildAbstractArgs args{keys.rows, &tokens, 16, 24, AbstractKind::kBox, out.data()};
    ASSERT_TRUE(scalar.build_abstract(args, nullptr));
    for (std::uint64_t unit = 0; unit < 6; ++unit) {
      for (std::uint32_t d = 0; d < 24; ++d) {
        double low = HUGE_VAL;
        double high = -HUGE_VAL;
        for (std::uint64_t t = unit * 16; t < std::min<std::uint64_t>(tokens, unit * 16 + 16);
             ++t) {
          low = std::min(low, keys.k(t, d));
          high = std::max(high, keys.k(t, d));
        }
        const std::uint16_t stored_low = out[unit * 48 + d];
        const std::uint16_t stored_high = out[unit * 48 + 24 + d];
        ASSERT_LE(f16_value(stored_low), low);
        ASSERT_GE(f16_value(stored_high), high);
        // The next f16 towards the keys would cut one off.
        const double inner_low =
            f16_value((stored_low & 0x8000u) != 0 ? stored_low - 1u : stored_low + 1u);
        const double inner_high =
            f16_value((stored_high & 0x8000u) != 0 ? stored_high + 1u : stored_high - 1u);
        ASSERT_TRUE(stored_low == 0x8000 || inner_low > low);
        ASSERT_TRUE(stored_high == 0 || inner_high < high);
      }
    }
  }
}

TEST_F(ScalarKernels, MeanIsTheMean) {
  const PagedRows keys(&random, Dtype::kF32, 50, 8, 16, 8);
  const std::uint64_t tokens = 50;
  std::vector<std::uint16_t> out(4 * 16);
  BuildAbstractArgs args{keys.rows, &tokens, 16, 16, AbstractKind::kMean, out.data()};
  ASSERT_TRUE(scalar.build_abstract(args, nullptr));
  for (std::uint64_t unit = 0; unit < 4; ++unit)
    for (std::uint32_t d = 0; d < 16; ++d) {
      double sum = 0.0;
      const std::uint64_t last = std::min<std::uint64_t>(tokens, unit * 16 + 16);
      for (std::uint64_t t = unit * 16; t < last; ++t) sum += keys.k(t, d);
      const double mean = sum / static_cast<double>(last - unit * 16);
      EXPECT_NEAR(f16_value(out[unit * 16 + d]), mean,
                  std::max(std::abs(mean) * 0x1.0p-11, 0x1.0p-24) * 1.01);
    }
}

TEST_F(ScalarKernels, MeanSaturates) {
  float keys[8] = {1e9f, -1e9f, 65520.0f, 65519.0f, 1.0f, 0.0f, -0.0f, 2.0f};
  const std::uint64_t page = 0;
  const std::uint64_t tokens = 1;
  std::uint16_t out[8];
  RowPages rows{reinterpret_cast<const std::byte*>(keys), &page, 1, 32, 0, 0, Dtype::kF32};
  BuildAbstractArgs args{rows, &tokens, 16, 8, AbstractKind::kMean, out};
  ASSERT_TRUE(scalar.build_abstract(args, nullptr));
  EXPECT_EQ(std::vector<std::uint16_t>(out, out + 8),
            (std::vector<std::uint16_t>{0x7BFF, 0xFBFF, 0x7BFF, 0x7BFF, 0x3C00, 0, 0, 0x4000}));
}

// No key of a unit scores above its box; a unit of one key scores as that key.
TEST_F(ScalarKernels, BoxScoreIsAnUpperBound) {
  const std::uint32_t dim = 64;
  const PagedRows keys(&random, Dtype::kF16, 96, 32, dim, 8);
  const std::uint64_t tokens = 96;
  for (const std::uint32_t unit_tokens : {1u, 16u}) {
    const std::uint64_t units = tokens / unit_tokens;
    std::vector<std::uint16_t> boxes(units * 2 * dim);
    ASSERT_TRUE(scalar.build_abstract(
        {keys.rows, &tokens, unit_tokens, dim, AbstractKind::kBox, boxes.data()}, nullptr));
    const std::vector<float> q = random_floats(&random, dim * 3);
    std::vector<float> scores(units * 3);
    ASSERT_TRUE(scalar.score_box(
        {boxes.data(), &units, q.data(), dim, 3, dim, scores.data(), units}, nullptr));
    for (std::size_t i = 0; i < 3; ++i)
      for (std::uint64_t t = 0; t < tokens; ++t) {
        double dot = 0.0;
        for (std::uint32_t d = 0; d < dim; ++d)
          dot += static_cast<double>(q[i * dim + d]) * keys.k(t, d);
        const double score = static_cast<double>(scores[i * units + t / unit_tokens]);
        EXPECT_GE(score, dot - 1e-5);
        if (unit_tokens == 1) {
          EXPECT_NEAR(score, dot, 1e-5);
        }
      }
  }
}

// A ball holds its keys, those of clusters too, and is hardly larger than it must be.
TEST_F(ScalarKernels, BallScoreIsAnUpperBound) {
  const std::uint32_t dim = 64;
  const PagedRows keys(&random, Dtype::kF32, 96, 32, dim, 8);
  const std::vector<std::uint32_t> starts = {0, 5, 5, 40, 90};  // one of them empty
  std::vector<std::uint32_t> members(90);
  for (std::size_t i = 0; i < 90; ++i) members[i] = static_cast<std::uint32_t>(i * 37 % 96);
  const std::uint64_t units = 4;
  const std::uint32_t elements = abstract_elements(AbstractKind::kBall, dim);
  std::vector<std::uint16_t> balls(units * elements, 0xFFFF);
  BuildAbstractArgs build;
  build.rows = keys.rows;
  build.dim = dim;
  build.kind = AbstractKind::kBall;
  build.out = balls.data();
  build.starts = starts.data();
  build.unit_count = &units;
  build.members = members.data();
  ASSERT_TRUE(scalar.build_abstract(build, nullptr));
  const std::vector<float> q = random_floats(&random, dim);
  std::vector<float> scores(units);
  ASSERT_TRUE(scalar.score_ball(
      {balls.data(), &units, q.data(), dim, 1, dim, scores.data(), units, nullptr}, nullptr));
  for (std::size_t u = 0; u < units; ++u) {
    double largest = 0.0;
    for (std::uint32_t p = starts[u]; p < starts[u + 1]; ++p) {
      double dot = 0.0;
      double square = 0.0;
      for (std::uint32_t d = 0; d < dim; ++d) {
        const double key = keys.k(members[p], d);
        const double distance = key - f16_value(balls[u * elements + d]);
        dot += static_cast<double>(q[d]) * key;
        square += distance * distance;
      }
      EXPECT_GE(static_cast<double>(scores[u]), dot);
      largest = std::max(largest, std::sqrt(square));
    }
    EXPECT_GE(f16_value(balls[u * elements + dim]), largest);
    EXPECT_LE(f16_value(balls[u * elements + dim]), largest * 1.001);
    for (std::uint32_t d = dim + 1; d < elements; ++d) EXPECT_EQ(balls[u * elements + d], 0);
  }
  EXPECT_EQ(std::vector<std::uint16_t>(&balls[elements], &balls[2 * elements]),
            std::vector<std::uint16_t>(elements, 0));
  // Chosen units score as they do among all.
  const std::vector<std::uint32_t> list = {3, 0, 3};
  const std::uint64_t chosen = 3;
  std::vector<float> some(3);
  ASSERT_TRUE(scalar.score_ball(
      {balls.data(), &chosen, q.data(), dim, 1, dim, some.data(), 3, list.data()}, nullptr));
  EXPECT_EQ(some, (std::vector<float>{scores[3], scores[0], scores[3]}));
}

TEST_F(ScalarKernels, MeanScoreIsTheDotProduct) {
  const std::uint32_t dim = 40;
  const std::uint64_t units = 5;
  std::vector<std::uint16_t> means(units * dim);
  for (auto& half : means) half = f32_to_f16(random_float(&random));
  const std::vector<float> q = random_floats(&random, dim);
  std::vector<float> scores(units);
  ASSERT_TRUE(scalar.score_mean({means.data(), &units, q.data(), dim, 1, dim, scores.data(), units},
                                nullptr));
  for (std::uint64_t u = 0; u < units; ++u) {
    double dot = 0.0;
    for (std::uint32_t d = 0; d < dim; ++d)
      dot += static_cast<double>(q[d]) * f16_value(means[u * dim + d]);
    EXPECT_NEAR(static_cast<double>(scores[u]), dot, 1e-5);
  }
}

TEST_F(ScalarKernels, GroupMeanOfSoftmax) {
  const std::uint64_t units = 33;
  const float scale = 0.25f;
  std::vector<float> scores = random_floats(&random, units * 3);
  for (float& score : scores) score *= 20.0f;
  scores[4] = kInfinity;           // head 0
  scores[units + 9] = kNan;        // head 1
  scores[2 * units + 9] = -50.0f;  // the same unit elsewhere
  std::vector<float> out = scores;
  const GroupScoresArgs args{out.data(), units, &units, 3, GroupMode::kMeanSoftmax, scale};
  ASSERT_TRUE(scalar.group_scores(args, nullptr));
  std::vector<double> wanted(units, 0.0);
  for (std::size_t i = 0; i < 3; ++i) {
    double sum = 0.0;
    for (std::uint64_t u = 0; u < units; ++u)
      if (u != 4 && u != 9) sum += std::exp(static_cast<double>(scale * scores[i * units + u]));
    for (std::uint64_t u = 0; u < units; ++u)
      wanted[u] += std::exp(static_cast<double>(scale * scores[i * units + u])) / sum / 3.0;
  }
  double total = 0.0;
  for (std::uint64_t u = 0; u < units; ++u) {
    if (u == 4 || u == 9) {
      EXPECT_EQ(out[u], kInfinity);
      continue;
    }
    EXPECT_NEAR(static_cast<double>(out[u]), wanted[u], 1e-6);
    total += static_cast<double>(out[u]);
  }
  EXPECT_NEAR(total, 1.0, 1e-5);
}

TEST_F(ScalarKernels, GroupMax) {
  const std::vector<float> scores = {1.0f, -5.0f, kNan, -kInfinity, 2.0f, -7.0f, 3.0f, -kInfinity};
  const std::uint64_t units = 4;
  std::vector<float> out = scores;
  ASSERT_TRUE(scalar.group_scores({out.data(), 4, &units, 2, GroupMode::kMax, 0.5f}, nullptr));
  out.resize(units);
  EXPECT_EQ(out, (std::vector<float>{1.0f, -2.5f, kInfinity, -kInfinity}));
}

TEST_F(ScalarKernels, GroupMaxSoftmax) {
  const float log3 = std::log(3.0f), log7 = std::log(7.0f);
  // Of the units that no head must fetch: 1/4 and 3/4, then 7/8 and 1/8.
  const std::vector<float> scores = {0.0f, kNan, log3, -kInfinity, log7, 0.0f, 0.0f, -kInfinity};
  const std::uint64_t units = 4;
  std::vector<float> out = scores;
  ASSERT_TRUE(
      scalar.group_scores({out.data(), 4, &units, 2, GroupMode::kMaxSoftmax, 1.0f}, nullptr));
  EXPECT_NEAR(out[0], 0.875f, 1e-6f);
  EXPECT_EQ(out[1], kInfinity);
  EXPECT_NEAR(out[2], 0.75f, 1e-6f);
  EXPECT_EQ(out[3], 0.0f);
}

TEST_F(ScalarKernels, GroupEach) {
  const std::vector<float> scores = {
      5.0f, 9.0f, kNan, 7.0f, 7.0f, -1.0f,  //
      2.0f, 1.0f, 8.0f, 3.0f, 4.0f, -9.0f,
  };
  const std::uint64_t units = 6;
  std::vector<float> out = scores;
  std::vector<std::uint32_t> order(units);
  GroupScoresArgs args{out.data(), 6, &units, 2, GroupMode::kEach, 1.0f};
  args.order = order.data();
  args.places = 6;
  ASSERT_TRUE(scalar.group_scores(args, nullptr));
  out.resize(units);
  // Places without unit 2, which must be fetched: 3 0 - 1 2 4 and 2 3 - 1 0 4.
  EXPECT_EQ(out, (std::vector<float>{-2.0f, 0.0f, kInfinity, -1.0f, 0.0f, -4.0f}));
  out = scores;
  args.scores = out.data();
  args.places = 2;  // of each order, the first of both being the unit that has no place
  ASSERT_TRUE(scalar.group_scores(args, nullptr));
  out.resize(units);
  EXPECT_EQ(out, (std::vector<float>{-kInfinity, 0.0f, kInfinity, -kInfinity, 0.0f, -kInfinity}));
}

TEST_F(ScalarKernels, TopKOrder) {
  const std::vector<float> scores = {1.0f, kNan, 3.0f,       -0.0f, kInfinity,
                                     3.0f, 0.0f, -kInfinity, -2.0f};
  const std::uint64_t count = scores.size();
  std::vector<std::uint32_t> out(count);
  std::uint64_t found = 0;
  ASSERT_TRUE(scalar.top_k({scores.data(), &count, 20, true, out.data(), &found}, nullptr));
  EXPECT_EQ(found, count);
  EXPECT_EQ(out, (std::vector<std::uint32_t>{1, 4, 2, 5, 0, 3, 6, 8, 7}));
  ASSERT_TRUE(scalar.top_k({scores.data(), &count, 3, false, out.data(), &found}, nullptr));
  ASSERT_EQ(found, 3u);
  EXPECT_EQ(std::vector<std::uint32_t>(out.begin(), out.begin() + 3),
            (std::vector<std::uint32_t>{1, 2, 4}));
  ASSERT_TRUE(scalar.top_k({scores.data(), &count, 0, true, out.data(), &found}, nullptr));
  EXPECT_EQ(found, 0u);
}

// Attention by its definition.
void check_attention(const PagedRows& keys, const AttendArgs& args) {
  for (std::uint32_t i = 0; i < args.queries; ++i) {
    std::vector<double> weights;
    std::vector<std::uint64_t> tokens;
    for (std::uint64_t t = args.token_range[0]; t < args.token_range[1]; ++t) {
      const std::uint64_t page = t / args.rows.page_tokens;
      if (args.row_masks != nullptr &&
          (args.row_masks[page] >> (t % args.rows.page_tokens) & 1) == 0)
        continue;
      double dot = 0.0;
      for (std::uint32_t d = 0; d < args.dim; ++d)
        dot += static_cast<double>(args.q[i * args.q_stride + d]) * keys.k(t, d);
      weights.push_back(dot * static_cast<double>(args.scale));
      tokens.push_back(t);
    }
    double sum = 0.0;
    for (const double weight : weights) sum += std::exp(weight);
    for (std::uint32_t d = 0; d < args.v_dim; ++d) {
      double value = 0.0;
      for (std::size_t j = 0; j < tokens.size(); ++j)
        value += std::exp(weights[j]) / sum * keys.v(tokens[j], d);
      ASSERT_NEAR(static_cast<double>(args.out[i * args.out_stride + d]), value, 1e-6);
    }
    if (tokens.empty()) {
      EXPECT_EQ(args.lse[i * args.lse_stride], -kInfinity);
    } else {
      ASSERT_NEAR(static_cast<double>(args.lse[i * args.lse_stride]), std::log(sum), 1e-5);
    }
  }
}

TEST_F(ScalarKernels, AttendIsSoftmaxTimesValues) {
  for (const Dtype dtype : kDtypes)
    for (const std::size_t page_tokens : {1u, 16u}) {
      const PagedRows keys(&random, dtype, 70, page_tokens, 32, 48);
      const std::vector<float> q = random_floats(&random, 3 * 40);
      std::vector<float> out(3 * 50);
      std::vector<float> lse(3 * 2);
      std::vector<std::uint64_t> masks(70);
      for (auto& mask : masks) mask = random.next();
      AttendArgs args;
      args.rows = keys.rows;
      args.q = q.data();
      args.q_stride = 40;
      args.queries = 3;
      args.dim = 32;
      args.v_dim = 48;
      args.scale = 0.3f;
      args.out = out.data();
      args.out_stride = 50;
      args.lse = lse.data();
      args.lse_stride = 2;
      for (const auto& range :
           {std::pair<std::uint64_t, std::uint64_t>{0, 70}, {3, 41}, {16, 32}, {69, 70}, {5, 5}}) {
        const std::uint64_t tokens[2] = {range.first, range.second};
        args.token_range = tokens;
        for (const bool masked : {false, true}) {
          args.row_masks = masked ? masks.data() : nullptr;
          ASSERT_TRUE(scalar.attend(args, nullptr));
          check_attention(keys, args);
        }
      }
    }
}

TEST_F(ScalarKernels, MergeOfPartsIsTheWhole) {
  const PagedRows keys(&random, Dtype::kF32, 64, 8, 16, 16);
  const std::vector<float> q = random_floats(&random, 2 * 16);
  const auto attend = [&](std::uint64_t first, std::uint64_t last, std::vector<float>* out,
                          std::vector<float>* lse) {
    out->assign(32, 7.0f);
    lse->assign(2, 7.0f);
    const std::uint64_t range[2] = {first, last};
    AttendArgs args{keys.rows, range, nullptr,     q.data(), 16,          2, 16,
                    16,        2.0f,  out->data(), 16,       lse->data(), 1};
    ASSERT_TRUE(scalar.attend(args, nullptr));
  };
  const auto merge = [&](std::vector<float>* a, std::vector<float>* la, const std::vector<float>& b,
                         const std::vector<float>& lb) {
    ASSERT_TRUE(scalar.merge_attention(
        {a->data(), la->data(), b.data(), lb.data(), 16, 16, 1, 1, 2, 16}, nullptr));
  };
  std::vector<float> whole, whole_lse, a, la, b, lb, none, none_lse;
  attend(0, 64, &whole, &whole_lse);
  attend(0, 20, &a, &la);
  attend(20, 64, &b, &lb);
  attend(9, 9, &none, &none_lse);
  EXPECT_EQ(none, std::vector<float>(32, 0.0f));
  EXPECT_EQ(none_lse, std::vector<float>(2, -kInfinity));
  const std::vector<float> before = a, before_lse = la;
  merge(&a, &la, none, none_lse);
  EXPECT_EQ(a, before);
  EXPECT_EQ(la, before_lse);
  merge(&none, &none_lse, a, la);
  EXPECT_EQ(none, before);
  EXPECT_EQ(none_lse, before_lse);
  merge(&a, &la, b, lb);
  for (std::size_t i = 0; i < 32; ++i) EXPECT_NEAR(a[i], whole[i], 1e-6f);
  for (std::size_t i = 0; i < 2; ++i) EXPECT_NEAR(la[i], whole_lse[i], 1e-5f);
}

TEST_F(ScalarKernels, AllFiniteFindsTheFirst) {
  std::uint64_t count = 9;
  std::uint64_t index = 0;
  std::vector<std::uint16_t> halves(9, 0x7BFF);
  const auto* data = reinterpret_cast<const std::byte*>(halves.data());
  ASSERT_TRUE(scalar.all_finite({data, &count, Dtype::kF16, &index}, nullptr));
  EXPECT_EQ(index, 9u);
  halves[7] = 0xFC00;
  halves[8] = 0x7C01;
  ASSERT_TRUE(scalar.all_finite({data, &count, Dtype::kF16, &index}, nullptr));
  EXPECT_EQ(index, 7u);
  ASSERT_TRUE(scalar.all_finite({data, &count, Dtype::kBf16, &index}, nullptr));
  EXPECT_EQ(index, 9u) << "0x7C01 and 0xFC00 are numbers in bf16";
  count = 0;
  ASSERT_TRUE(scalar.all_finite({nullptr, &count, Dtype::kF32, &index}, nullptr));
  EXPECT_EQ(index, 0u);
}

TEST_F(ScalarKernels, GatherCopiesRows) {
  std::vector<std::byte> source(100);
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::byte>(i);
  const std::vector<std::uint64_t> offsets = {90, 3, 3};
  const std::vector<std::uint64_t> targets = {20, 0, 10};
  const std::uint64_t count = 3;
  std::vector<std::byte> out(30, std::byte{0xEE});
  ASSERT_TRUE(scalar.gather_rows(
      {source.data(), offsets.data(), &count, 10, out.data(), 10, nullptr}, nullptr));
  for (std::size_t i = 0; i < 30; ++i) EXPECT_EQ(out[i], source[offsets[i / 10] + i % 10]);
  ASSERT_TRUE(scalar.gather_rows(
      {source.data(), offsets.data(), &count, 10, out.data(), 0, targets.data()}, nullptr));
  for (std::size_t i = 0; i < 30; ++i)
    EXPECT_EQ(out[targets[i / 10] + i % 10], source[offsets[i / 10] + i % 10]);
}

}  // namespace
}  // namespace kvtier
