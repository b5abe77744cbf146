#include "tests/support/known_rows.h"

#include <algorithm>
#include <cstdio>

namespace kvtier::testing {

float known_value(std::uint64_t seed, std::uint32_t layer, std::uint32_t head, std::uint64_t token,
                  std::uint32_t i, bool is_v) {
  std::uint64_t z = seed * 0x9E3779B97F4A7C15ull + layer * 1000003 + head * 10007 +
                    token * 2654435761u + i * 31 + (is_v ? 7 : 0);
  z = (z ^ (z >> 29)) * 0xBF58476D1CE4E5B9ull;
  return static_cast<float>(static_cast<double>(z >> 40) / 16777216.0 - 0.5);
}

kvt_token known_token(std::uint64_t seed, std::uint64_t token) {
  return {static_cast<std::uint32_t>((seed * 7919 + token * 104729) % 49152),
          static_cast<std::uint32_t>(token), 0, 0};
}

std::string known_text(std::uint64_t seed, std::uint64_t token) {
  if (token % 5 == 4) return "";
  if (seed == kMarkupSeed)
    return "<script>document.title='" + std::to_string(token) + "'</script>&lt; \"</main>\"\n";
  return "w" + std::to_string((seed * 31 + token) % 1000) + (token % 16 == 15 ? ".\n" : " ");
}

kvt_status open_known_client(const std::string& socket, kvt_client** client) {
  kvt_client_options options;
  kvt_client_options_init(&options);
  options.autostart = 0;
  options.socket_path = socket.c_str();
  options.timeout_ms = 20000;
  return kvt_client_open(&options, client);
}

kvt_status open_known_space(kvt_client* client, kvt_space** space, const char* model) {
  kvt_layer layer{};
  layer.dtype = KVT_DTYPE_F32;
  layer.kv_heads = kKnownHeads;
  layer.query_heads = kKnownHeads * 2;
  layer.k_row_bytes = layer.v_row_bytes = kKnownDim * 4;
  const kvt_layer layers[kKnownLayers] = {layer, layer};
  kvt_space_options options;
  kvt_space_options_init(&options);
  options.preset = "quest";
  options.model = model;
  options.runtime = "tests";
  options.layers = layers;
  options.layer_count = kKnownLayers;
  return kvt_space_open(client, &options, space);
}

kvt_status append_known(kvt_sequence* sequence, std::uint64_t seed, std::uint32_t count) {
  const std::uint64_t first = kvt_sequence_length(sequence);
  std::vector<kvt_token> tokens(count);
  for (std::uint32_t t = 0; t < count; ++t) tokens[t] = known_token(seed, first + t);
  std::vector<std::uint16_t> text_bytes(count);
  std::string texts;
  for (std::uint32_t t = 0; t < count; ++t) {
    const std::string text = known_text(seed, first + t);
    text_bytes[t] = static_cast<std::uint16_t>(text.size());
    texts += text;
  }
  kvt_status status = kvt_sequence_append_with_texts(sequence, tokens.data(), count,
                                                     text_bytes.data(), texts.data());
  if (status != KVT_OK) return status;
  std::vector<float> k(static_cast<std::size_t>(kKnownHeads) * count * kKnownDim), v(k.size());
  for (std::uint32_t layer = 0; layer < kKnownLayers; ++layer) {
    for (std::uint32_t head = 0; head < kKnownHeads; ++head)
      for (std::uint32_t t = 0; t < count; ++t)
        for (std::uint32_t i = 0; i < kKnownDim; ++i) {
          const std::size_t at = (static_cast<std::size_t>(head) * count + t) * kKnownDim + i;
          k[at] = known_value(seed, layer, head, first + t, i, false);
          v[at] = known_value(seed, layer, head, first + t, i, true);
        }
    const kvt_rows k_rows = {k.data(), static_cast<std::uint64_t>(count) * kKnownDim * 4,
                             kKnownDim * 4};
    const kvt_rows v_rows = {v.data(), k_rows.head_stride, k_rows.token_stride};
    status = kvt_sequence_write(sequence, layer, 0, count, &k_rows, &v_rows);
    if (status != KVT_OK) {
      kvt_sequence_abort_piece(sequence);
      return status;
    }
  }
  return kvt_sequence_finish_piece(sequence);
}

namespace {

std::string where(const char* what, std::uint32_t layer, std::uint32_t head, std::uint64_t token) {
  char text[128];
  std::snprintf(text, sizeof text, "%s: layer %u, head %u, token %llu", what, layer, head,
                static_cast<unsigned long long>(token));
  return text;
}

std::string check_texts(kvt_sequence* sequence, std::uint64_t seed, std::uint64_t first,
                        std::uint64_t count, kvt_status* status) {
  std::vector<std::uint16_t> bytes(count);
  std::string all(count * 16, '\0'), expected;
  std::uint64_t total = 0;
  *status =
      kvt_sequence_texts(sequence, first, count, bytes.data(), all.data(), all.size(), &total);
  if (*status != KVT_OK) return std::string("texts: ") + kvt_last_error();
  for (std::uint64_t t = 0; t < count; ++t) {
    expected += known_text(seed, first + t);
    if (bytes[t] != known_text(seed, first + t).size())
      return "wrong text of token " + std::to_string(first + t);
  }
  all.resize(total);
  return all == expected ? "" : "wrong texts from token " + std::to_string(first);
}

}  // namespace

std::string check_known(kvt_sequence* sequence, std::uint64_t seed, kvt_status* status) {
  const std::uint64_t length = kvt_sequence_length(sequence);
  constexpr std::uint64_t kStep = 512;
  std::vector<float> k(kKnownHeads * kStep * kKnownDim), v(k.size());
  *status = KVT_OK;
  for (std::uint64_t first = 0; first < length; first += kStep) {
    const std::uint64_t count = std::min(kStep, length - first);
    for (std::uint32_t layer = 0; layer < kKnownLayers; ++layer) {
      *status = kvt_sequence_read(sequence, layer, first, count, k.data(), v.data());
      if (*status != KVT_OK) return std::string("read: ") + kvt_last_error();
      for (std::uint32_t head = 0; head < kKnownHeads; ++head)
        for (std::uint64_t t = 0; t < count; ++t)
          for (std::uint32_t i = 0; i < kKnownDim; ++i) {
            const std::size_t at = (head * count + t) * kKnownDim + i;
            if (k[at] != known_value(seed, layer, head, first + t, i, false))
              return where("wrong K", layer, head, first + t);
            if (v[at] != known_value(seed, layer, head, first + t, i, true))
              return where("wrong V", layer, head, first + t);
          }
    }
    const std::string wrong = check_texts(sequence, seed, first, count, status);
    if (!wrong.empty()) return wrong;
  }
  return "";
}

}  // namespace kvtier::testing
