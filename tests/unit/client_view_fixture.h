// Views against attention in double precision, and against a brute-force selection: what the tests
// of views share.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/unit/client_fixture.h"

namespace kvtier::testing {

struct Attention {
  std::vector<double> out;  // [query_heads][dim]
  std::vector<double> lse;
};

// Attention of one query over the given tokens per KV head, straight from the definition.
inline Attention reference(const Model& model, std::uint32_t layer, const float* q, float scale,
                           const std::vector<std::vector<std::uint64_t>>& tokens_by_head) {
  const TestShape& shape = model.shape();
  const std::uint32_t group = shape.query_heads / shape.kv_heads;
  Attention result{std::vector<double>(shape.query_heads * shape.dim),
                   std::vector<double>(shape.query_heads)};
  for (std::uint32_t h = 0; h < shape.query_heads; ++h) {
    const std::uint32_t head = h / group;
    std::vector<double> scores;
    double largest = -INFINITY, sum = 0;
    for (const std::uint64_t t : tokens_by_head[head]) {
      double dot = 0;
      for (std::uint32_t d = 0; d < shape.dim; ++d)
        dot += static_cast<double>(q[h * shape.dim + d]) *
               static_cast<double>(element(model.tokens()[t], layer, head, 0, d));
      scores.push_back(dot * static_cast<double>(scale));
      largest = std::max(largest, scores.back());
    }
    for (double& score : scores) sum += score = std::exp(score - largest);
    for (std::size_t i = 0; i < scores.size(); ++i)
      for (std::uint32_t d = 0; d < shape.dim; ++d)
        result.out[h * shape.dim + d] +=
            scores[i] / sum *
            static_cast<double>(
                element(model.tokens()[tokens_by_head[head][i]], layer, head, 1, d));
    result.lse[h] = largest + std::log(sum);
  }
  return result;
}

inline std::vector<std::uint64_t> first_tokens(std::uint64_t count) {
  std::vector<std::uint64_t> out(count);
  for (std::uint64_t i = 0; i < count; ++i) out[i] = i;
  return out;
}

inline std::vector<float> random_queries(const TestShape& shape, std::uint32_t queries,
                                         std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.6f);
  std::vector<float> q(static_cast<std::size_t>(queries) * shape.query_heads * shape.dim);
  for (float& x : q) x = normal(random);
  return q;
}

inline void expect_near(const Attention& want, const float* out, const float* lse,
                        const std::string& where) {
  for (std::size_t i = 0; i < want.out.size(); ++i)
    ASSERT_NEAR(out[i], want.out[i], 2e-5) << where << ", element " << i;
  for (std::size_t i = 0; i < want.lse.size(); ++i)
    ASSERT_NEAR(lse[i], want.lse[i], 1e-4) << where << ", head " << i;
}

// What the preset quest chooses: whole units of 16 tokens by the mean over the group of softmax
// over units of box bounds.
inline std::vector<std::uint64_t> chosen_tokens(const Model& model, std::uint32_t layer,
                                                std::uint32_t head, const float* q, float scale,
                                                std::uint64_t sealed, std::uint64_t budget,
                                                std::uint64_t sinks, std::uint64_t window,
                                                const std::vector<std::uint64_t>& segment_ends) {
  const TestShape& shape = model.shape();
  const std::uint32_t group = shape.query_heads / shape.kv_heads;
  struct Unit {
    std::uint64_t first, last;
    double score = 0;
  };
  std::vector<Unit> units;
  std::uint64_t begin = 0;
  for (const std::uint64_t end : segment_ends) {
    for (std::uint64_t t = begin; t < end; t += 16) units.push_back({t, std::min(t + 16, end)});
    begin = end;
  }
  for (std::uint32_t g = 0; g < group; ++g) {
    const float* query = q + (head * group + g) * shape.dim;
    std::vector<double> bounds;
    for (const Unit& unit : units) {
      double bound = 0;
      for (std::uint32_t d = 0; d < shape.dim; ++d) {
        double low = INFINITY, high = -INFINITY;
        for (std::uint64_t t = unit.first; t < unit.last; ++t) {
          const double x = element(model.tokens()[t], layer, head, 0, d);
          low = std::min(low, x);
          high = std::max(high, x);
        }
        bound += std::max(query[d] * low, query[d] * high);
      }
      bounds.push_back(bound * scale);
    }
    const double largest = *std::max_element(bounds.begin(), bounds.end());
    double sum = 0;
    for (const double bound : bounds) sum += std::exp(bound - largest);
    for (std::size_t u = 0; u < units.size(); ++u)
      units[u].score += std::exp(bounds[u] - largest) / sum;
  }
  std::set<std::uint64_t> tokens;
  for (std::uint64_t t = 0; t < std::min(sinks, sealed); ++t) tokens.insert(t);
  for (std::uint64_t t = sealed - std::min(window, sealed); t < sealed; ++t) tokens.insert(t);
  std::stable_sort(units.begin(), units.end(),
                   [](const Unit& a, const Unit& b) { return a.score > b.score; });
  std::uint64_t left = budget;
  const std::set<std::uint64_t> kept = tokens;
  for (const Unit& unit : units) {
    std::uint64_t cost = 0;
    for (std::uint64_t t = unit.first; t < unit.last; ++t) cost += kept.contains(t) ? 0 : 1;
    if (cost == 0) continue;
    if (cost > left) break;
    left -= cost;
    for (std::uint64_t t = unit.first; t < unit.last; ++t) tokens.insert(t);
  }
  for (std::uint64_t t = sealed; t < model.tokens().size(); ++t) tokens.insert(t);
  return {tokens.begin(), tokens.end()};
}

class ViewTest : public ClientTest, public ::testing::WithParamInterface<TestShape> {
 protected:
  kvt_view* open_view(kvt_sequence* sequence, std::uint64_t budget, const char* preset = nullptr,
                      std::uint32_t sinks = 16, std::uint32_t window = 64,
                      std::uint64_t capacity = 0) {
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.budget = budget;
    options.preset = preset;
    options.sinks = sinks;
    options.window = window;
    options.capacity = capacity;
    kvt_view* view = nullptr;
    KVT_EXPECT_OK(kvt_view_open(sequence, &options, &view));
    return view;
  }
  kvt_view_stats stats(const kvt_view* view) {
    kvt_view_stats out{};
    out.struct_size = sizeof out;
    KVT_EXPECT_OK(kvt_view_get_stats(view, &out));
    return out;
  }
  // The stored tokens that steps of layers with one KV head chose beside sinks and window since the
  // last prompt, as the daemon is told of them: `rows`, once it was.
  std::vector<std::uint64_t> told(const char* name, std::uint64_t stored, std::uint64_t rows) {
    std::vector<std::uint64_t> tokens;
    for (int wait = 0; wait < 2000; ++wait) {  // a request may overtake what is told
      tokens.clear();
      for (std::uint64_t first = 0; first < stored; first += 10000) {
        const Json reply = request({{"op", "reads"},
                                    {"target", name},
                                    {"first", first},
                                    {"count", std::min<std::uint64_t>(10000, stored - first)}});
        for (const Json& group : reply["groups"])
          for (std::size_t i = 0; i < group["counts"].size(); ++i)
            tokens.insert(tokens.end(), group["counts"][i].get<std::size_t>(), first + i);
      }
      if (tokens.size() == rows) return tokens;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ADD_FAILURE() << "told of " << tokens.size() << " rows, not of " << rows;
    return tokens;
  }
  // Exact attention of the newest `queries` tokens over `tokens`.
  void expect_exact(kvt_view* view, const Model& model, std::uint32_t layer, std::uint32_t queries,
                    std::uint32_t seed) {
    const TestShape& shape = model.shape();
    const std::vector<float> q = random_queries(shape, queries, seed);
    const std::size_t per_query = shape.query_heads * shape.dim;
    std::vector<float> out(queries * per_query, NAN), lse(queries * shape.query_heads, NAN);
    KVT_ASSERT_OK(attend_again(view, layer, queries, q.data(), 0.25f, out.data(), lse.data()));
    for (std::uint32_t i = 0; i < queries; i += std::max(1u, queries / 7)) {
      const std::vector<std::uint64_t> seen =
          first_tokens(model.tokens().size() - (queries - 1 - i));
      const Attention want =
          reference(model, layer, q.data() + i * per_query, 0.25f, {shape.kv_heads, seen});
      expect_near(want, out.data() + i * per_query, lse.data() + i * shape.query_heads,
                  "query " + std::to_string(i));
    }
  }
};

}  // namespace kvtier::testing
