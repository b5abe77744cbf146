// Odd documents through every preset, against a real daemon: one token, equal keys, very many
// sentences or one that does not end; and rows that are refused.
#include <cmath>
#include <cstring>

#include "client/retrieval/preset.h"
#include "tests/unit/client_view_fixture.h"

namespace kvtier {
namespace {

using namespace testing;

class OddInput : public ViewTest {
 protected:
  // Rows of `piece` more tokens that are all alike, in every head: F32.
  void append_alike(kvt_sequence* sequence, const TestShape& shape, std::uint32_t piece, float key,
                    float value) {
    const std::uint64_t first = kvt_sequence_length(sequence);
    std::vector<kvt_token> records;
    for (std::uint32_t i = 0; i < piece; ++i)
      records.push_back({i, static_cast<std::uint32_t>(first) + i, 0, 0});
    KVT_ASSERT_OK(kvt_sequence_append(sequence, records.data(), piece));
    const std::uint64_t head = std::uint64_t{piece} * shape.row_bytes();
    const std::vector<float> k(shape.kv_heads * piece * shape.dim, key), v(k.size(), value);
    const kvt_rows k_rows{k.data(), head, shape.row_bytes()},
        v_rows{v.data(), head, shape.row_bytes()};
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
      KVT_ASSERT_OK(kvt_sequence_write(sequence, layer, 0, piece, &k_rows, &v_rows));
    KVT_ASSERT_OK(kvt_sequence_finish_piece(sequence));
  }
};

TEST_F(OddInput, ADocumentOfOneToken) {
  const TestShape shape{3, 2, 4, 16, KVT_DTYPE_F32, 1};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "one");
  Model model(shape);
  model.append(sequence, 77, 1);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  sequence = open_sequence(space, "one", false);
  const std::vector<float> q = random_queries(shape, 1, 5);
  std::vector<float> out(q.size()), lse(shape.query_heads);
  for (const Preset& preset : all_presets())
    for (const std::uint32_t kept : {16u, 0u}) {
      SCOPED_TRACE(preset.name + ", kept " + std::to_string(kept));
      if (preset.name == "window" && kept == 0) continue;  // has nothing to read
      kvt_view* view = open_view(sequence, 64, preset.name.c_str(), kept, kept);
      for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
        KVT_ASSERT_OK(kvt_view_attend(view, layer, 1, q.data(), 0.25f, out.data(), lse.data()));
        const Attention want = reference(model, layer, q.data(), 0.25f, {shape.kv_heads, {0}});
        if (stats(view).rows_base == 0) {
          expect_near(want, out.data(), lse.data(), "layer " + std::to_string(layer));
        } else {  // a row of 4 bits
          for (std::size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], want.out[i], 0.15) << i;
        }
      }
      EXPECT_EQ(stats(view).rows_attended, shape.layers * shape.kv_heads);
      kvt_view_close(view);
    }
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// Whatever is chosen of rows that are all alike, the result is such a row, and the logarithm of the
// sum says how many there were.
TEST_F(OddInput, KeysThatAreAllEqual) {
  const TestShape shape{3, 2, 4, 16, KVT_DTYPE_F32, 1};
  for (const float key : {0.75f, 0.0f}) {
    const char* name = key == 0.0f ? "zero" : "equal";
    kvt_space* space = open_space(shape, name);
    kvt_sequence* sequence = create_sequence(space, name);
    for (const std::uint32_t piece : {1024u, 1024u, 500u})
      append_alike(sequence, shape, piece, key, 0.5f);
    KVT_ASSERT_OK(kvt_sequence_close(sequence));
    sequence = open_sequence(space, name, false);
    const std::vector<float> q = random_queries(shape, 1, 5);
    std::vector<float> out(q.size()), lse(shape.query_heads);
    for (const Preset& preset : all_presets())
      for (const std::uint64_t budget : {128u, 8000u}) {
        SCOPED_TRACE(std::string(name) + ", " + preset.name + ", " + std::to_string(budget));
        kvt_view* view = open_view(sequence, budget, preset.name.c_str());
        for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
          const std::uint64_t before = stats(view).rows_attended;
          KVT_ASSERT_OK(kvt_view_attend(view, layer, 1, q.data(), 0.25f, out.data(), lse.data()));
          const std::uint64_t rows = stats(view).rows_attended - before;
          const bool all = preset.name == "full" || (budget == 8000 && preset.name != "window");
          EXPECT_LE(rows, (all ? 2548 : 128 + 16 + 64) * std::uint64_t{shape.kv_heads});
          EXPECT_GE(rows, (all ? 2548 : 16 + 64) * std::uint64_t{shape.kv_heads});
          for (const float x : out) ASSERT_NEAR(x, 0.5f, 1e-5);
          double said = 0.0;
          for (std::uint32_t h = 0; h < shape.query_heads; ++h) {
            double dot = 0.0;
            for (std::uint32_t d = 0; d < shape.dim; ++d)
              dot += static_cast<double>(q[h * shape.dim + d]) * static_cast<double>(key);
            said += std::exp(static_cast<double>(lse[h]) - 0.25 * dot) * shape.kv_heads /
                    shape.query_heads;
          }
          EXPECT_NEAR(said, static_cast<double>(rows), 1e-3 * static_cast<double>(rows));
        }
        kvt_view_close(view);
      }
    KVT_EXPECT_OK(kvt_sequence_close(sequence));
    kvt_space_close(space);
  }
}

// 100,000 sentences of a token each, and one of 100,000 tokens.
TEST_F(OddInput, ManySentencesAndOneThatDoesNotEnd) {
  const TestShape shape{1, 1, 4, 8, KVT_DTYPE_F16, 1};
  constexpr std::uint64_t kTokens = 100'000;
  kvt_space* space = open_space(shape, "sentences", "sentencekv");
  for (const std::uint32_t boundary : {2u, 0u}) {
    const char* name = boundary == 0 ? "one" : "many";
    SCOPED_TRACE(name);
    kvt_sequence* sequence = create_sequence(space, name);
    Model model(shape);
    for (std::uint64_t first = 0; first < kTokens; first = model.tokens().size()) {
      const auto piece = static_cast<std::uint32_t>(std::min<std::uint64_t>(1024, kTokens - first));
      std::vector<kvt_token> records;
      for (std::uint64_t t = first; t < first + piece; ++t) {
        model.tokens().push_back(boundary * kTokens + t);
        records.push_back(
            {Model::id_of(model.tokens().back()), static_cast<std::uint32_t>(t), boundary, 0});
      }
      KVT_ASSERT_OK(kvt_sequence_append(sequence, records.data(), piece));
      model.write(sequence, 0, first, piece);
      KVT_ASSERT_OK(kvt_sequence_finish_piece(sequence));
    }
    KVT_ASSERT_OK(kvt_sequence_close(sequence));
    sequence = open_sequence(space, name, false);
    kvt_view* view = open_view(sequence, 512, "sentencekv");
    const std::vector<float> q = random_queries(shape, 1, 5);
    std::vector<float> out(q.size()), lse(shape.query_heads);
    KVT_ASSERT_OK(kvt_view_attend(view, 0, 1, q.data(), 0.25f, out.data(), lse.data()));
    const kvt_view_stats seen = stats(view);
    EXPECT_EQ(seen.rows_selected, 512u);
    EXPECT_EQ(seen.units_missing, 0u);
    // Units end with their segment of 2048, and at 128 tokens.
    EXPECT_EQ(seen.units_scored, boundary == 2 ? kTokens : kTokens / 2048 * 16 + 14);
    std::vector<std::uint64_t> tokens = told(name, kTokens, 512);
    for (std::uint64_t t = 0; t < 16; ++t) tokens.push_back(t);
    for (std::uint64_t t = kTokens - 64; t < kTokens; ++t) tokens.push_back(t);
    EXPECT_EQ(std::set<std::uint64_t>(tokens.begin(), tokens.end()).size(), 512u + 16 + 64);
    expect_near(reference(model, 0, q.data(), 0.25f, {tokens}), out.data(), lse.data(), name);
    kvt_view_close(view);
    KVT_EXPECT_OK(kvt_sequence_close(sequence));
  }
  kvt_space_close(space);
}

TEST_F(OddInput, KeysAndValuesThatAreNotFinite) {
  for (const bool wide : {true, false}) {
    const TestShape shape{
        2, 2, 4, 16, static_cast<std::uint8_t>(wide ? KVT_DTYPE_F32 : KVT_DTYPE_F16), 1};
    kvt_space* space = open_space(shape, wide ? "f32" : "f16");
    kvt_sequence* sequence = create_sequence(space, nullptr);
    Model model(shape);
    model.append(sequence, 1, 17);
    for (const std::uint32_t which : {0u, 1u})
      for (const float value : {NAN, INFINITY, -INFINITY}) {
        kvt_token tokens[3] = {{1, 17, 0, 0}, {2, 18, 0, 0}, {3, 19, 0, 0}};
        KVT_ASSERT_OK(kvt_sequence_append(sequence, tokens, 3));
        const std::vector<std::byte> good(2 * 3 * shape.row_bytes());
        std::vector<std::byte> bad = good;
        const std::size_t at = (1 * 3 + 2) * shape.dim + 5;
        const std::uint16_t half = std::isnan(value) ? 0x7E00 : value > 0 ? 0x7C00 : 0xFC00;
        std::memcpy(bad.data() + at * shape.row_bytes() / shape.dim,
                    wide ? static_cast<const void*>(&value) : &half, wide ? 4 : 2);
        const kvt_rows rows[2] = {{good.data(), 3ull * shape.row_bytes(), shape.row_bytes()},
                                  {bad.data(), 3ull * shape.row_bytes(), shape.row_bytes()}};
        EXPECT_EQ(kvt_sequence_write(sequence, 1, 0, 3, &rows[which == 0], &rows[which == 1]),
                  KVT_ERROR_NOT_FINITE);
        EXPECT_EQ(std::string(kvt_last_error()),
                  std::string("layer 1, token 19, head 1, element 5 of its ") +
                      (which == 0 ? "key" : "value") + ": NaN or infinity");
        KVT_ASSERT_OK(kvt_sequence_abort_piece(sequence));
      }
    model.expect_equal(sequence);
    KVT_ASSERT_OK(kvt_sequence_close(sequence));
    kvt_space_close(space);
  }
}

}  // namespace
}  // namespace kvtier
