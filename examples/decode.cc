// A runtime in miniature: stores the KV of a context, decodes over it on a budget, and has it back
// by name.
//
//   decode NAME [TOKENS]
//
// The first run with a name fills the sequence; later ones, also after a restart of the machine,
// find it stored. The "model" here is a formula: a real runtime puts its own keys, values and
// queries in the same places.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kvtier/kvtier.hpp"

namespace {

constexpr std::uint32_t kLayers = 2, kHeads = 2, kQueryHeads = 4, kDim = 32;

// [head][token][dim] of tokens [first, first + count): what a forward pass would leave.
std::vector<float> make_rows(std::uint32_t layer, std::uint64_t first, std::uint32_t count,
                             float phase) {
  std::vector<float> rows;
  for (std::uint32_t head = 0; head < kHeads; ++head)
    for (std::uint64_t token = first; token < first + count; ++token)
      for (std::uint32_t d = 0; d < kDim; ++d)
        rows.push_back(std::sin(
            phase + 0.01f * static_cast<float>(token) * std::sqrt(static_cast<float>(d + 1)) +
            static_cast<float>(layer + head)));
  return rows;
}

// [query head][dim]: those that look for one token. A budget finds it and its neighbours; for
// queries that look nowhere, as random ones do, every row counts the same and none can be left.
std::vector<float> make_queries(std::uint32_t layer, std::uint64_t token) {
  const std::vector<float> k = make_rows(layer, token, 1, 0.0f);
  std::vector<float> q;
  for (std::uint32_t head = 0; head < kQueryHeads; ++head)
    for (std::uint32_t d = 0; d < kDim; ++d)
      q.push_back(6.0f * k[head / (kQueryHeads / kHeads) * kDim + d]);
  return q;
}

// One piece: tokens, then K and V layer by layer as they are computed. Returns a number of what
// attention gives in the last layer, for each view.
std::vector<float> forward(kvtier::Sequence& sequence, std::uint32_t count,
                           const std::vector<kvtier::View*>& views = {}) {
  const std::uint64_t first = sequence.length();
  std::vector<kvt_token> tokens;
  for (std::uint32_t i = 0; i < count; ++i)
    tokens.push_back({static_cast<std::uint32_t>((first + i) % 997),
                      static_cast<std::uint32_t>(first + i), 0, 0});
  sequence.append(tokens);
  std::vector<float> gives(views.size());
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    const std::vector<float> k = make_rows(layer, first, count, 0.0f),
                             v = make_rows(layer, first, count, 1.0f);
    const std::uint64_t row = kDim * sizeof(float);
    sequence.write(layer, 0, count, {k.data(), count * row, row}, {v.data(), count * row, row});
    const std::vector<float> q = make_queries(layer, first / 2);
    std::vector<float> out(q.size());
    for (std::size_t i = 0; i < views.size(); ++i) {
      views[i]->attend(layer, 1, q.data(), 1.0f / std::sqrt(static_cast<float>(kDim)), out.data());
      gives[i] = out[0];
    }
  }
  sequence.finish_piece();
  return gives;
}

kvtier::Sequence open_or_create(kvtier::Space& space, const std::string& name) {
  try {
    return space.open(name, true);
  } catch (const kvtier::Error& error) {
    if (error.status() != KVT_ERROR_NOT_FOUND) throw;
    return space.create(name);
  }
}

int run(const std::string& name, std::uint64_t context) {
  kvtier::Client client;  // starts kvtierd if nobody listens

  kvt_layer layer{};
  layer.dtype = KVT_DTYPE_F32;
  layer.kv_heads = kHeads;
  layer.query_heads = kQueryHeads;
  layer.k_row_bytes = layer.v_row_bytes = kDim * sizeof(float);
  const std::vector<kvt_layer> layers(kLayers, layer);
  kvt_space_options options = kvtier::defaults(kvt_space_options_init);
  options.model = "example-formula";
  options.runtime = "kvtier-example/1";
  options.layers = layers.data();
  options.layer_count = kLayers;
  kvtier::Space space = client.open_space(options);

  kvtier::Sequence sequence = open_or_create(space, name);
  std::printf("%llu tokens are stored\n", static_cast<unsigned long long>(sequence.length()));
  while (sequence.length() < context) {
    const std::uint64_t left = context - sequence.length();
    forward(sequence, static_cast<std::uint32_t>(left < 1024 ? left : 1024));
  }
  sequence.commit();  // from here on it survives kill -9 and power loss
  // Opened anew, so that the first run decodes as later ones do: the tokens of a tail are always
  // attended, beside the budget, and a sequence that was just filled has many of them.
  sequence.close();  // seals what is in the tail, and says if that failed
  sequence = space.open(name, true);

  kvt_view_options budget = kvtier::defaults(kvt_view_options_init);
  budget.budget = 256;  // rows per KV head and layer; 0 would be everything
  kvtier::View view = sequence.view(budget);
  kvtier::View every = sequence.view(kvtier::defaults(kvt_view_options_init));
  for (int i = 0; i < 4; ++i) {
    const std::vector<float> gives = forward(sequence, 1, {&view, &every});
    std::printf("token %llu: attention gives %.6f, exactly %.6f\n",
                static_cast<unsigned long long>(sequence.length() - 1), gives[0], gives[1]);
  }
  const kvt_view_stats stats = view.stats();
  std::printf("the difference is the weight of the rows that the budget leaves out\n");
  std::printf(
      "%llu rows attended (4 steps, %u layers, %u heads), %llu of them fetched; "
      "exactly: %llu\n",
      static_cast<unsigned long long>(stats.rows_attended), kLayers, kHeads,
      static_cast<unsigned long long>(stats.rows_fetched),
      static_cast<unsigned long long>(every.stats().rows_attended));
  sequence.close();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  char* end = nullptr;
  const std::uint64_t tokens = argc == 3 ? std::strtoull(argv[2], &end, 10) : 5000;
  const bool is_number = end == nullptr || *end == '\0';
  if (argc < 2 || argc > 3 || !is_number || tokens < 1 || tokens > 1000000) {
    std::fprintf(stderr, "usage: %s NAME [TOKENS], of 1 to 1000000\n", argv[0]);
    return 2;
  }
  try {
    return run(argv[1], tokens);
  } catch (const kvtier::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
