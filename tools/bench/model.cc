#include "tools/bench/model.h"

#include <algorithm>
#include <cstdio>

#include "base/random.h"
#include "tools/bench/bench.h"

namespace kvtier::bench {
namespace {

constexpr std::uint32_t kPiece = 512;

}  // namespace

Result<void> check(kvt_status status) {
  if (status == KVT_OK) return {};
  std::fprintf(stderr, "kvtier-bench: %s: %s\n", kvt_strerror(status), kvt_last_error());
  return error(static_cast<Code>(status), "a call of the client library failed");
}

Result<ClientPtr> open_client(const std::string& socket) {
  kvt_client_options options;
  kvt_client_options_init(&options);
  options.autostart = 0;
  options.socket_path = socket.c_str();
  options.name = "kvtier-bench";
  kvt_client* client = nullptr;
  KVT_TRY_VOID(check(kvt_client_open(&options, &client)));
  return ClientPtr(client);
}

Result<SpacePtr> open_space(kvt_client* client, std::uint8_t dtype) {
  const std::uint32_t element = dtype == KVT_DTYPE_F32 ? 4 : 2;
  kvt_layer layer{};
  layer.dtype = dtype;
  layer.kv_heads = kKvHeads;
  layer.query_heads = kQueryHeads;
  layer.k_row_bytes = layer.v_row_bytes = kDim * element;
  const std::vector<kvt_layer> layers(kLayers, layer);
  kvt_space_options options;
  kvt_space_options_init(&options);
  options.model = "synthetic SmolLM2-135M";
  options.runtime = "kvtier-bench";
  options.layers = layers.data();
  options.layer_count = kLayers;
  kvt_space* space = nullptr;
  KVT_TRY_VOID(check(kvt_space_open(client, &options, &space)));
  return SpacePtr(space);
}

Result<SequencePtr> create_sequence(kvt_space* space, const char* name) {
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = name;
  kvt_sequence* sequence = nullptr;
  KVT_TRY_VOID(check(kvt_sequence_create(space, &options, nullptr, 0, nullptr, &sequence)));
  return SequencePtr(sequence);
}

Writer::Writer(std::uint8_t dtype) : row_bytes_(kDim * (dtype == KVT_DTYPE_F32 ? 4 : 2)) {
  rows_.resize(static_cast<std::size_t>(kKvHeads) * kPiece * row_bytes_);
  Random random(3);
  // Finite in every dtype: small exponents, random mantissas.
  if (dtype == KVT_DTYPE_F32) {
    auto* values = reinterpret_cast<float*>(rows_.data());
    for (std::size_t i = 0; i < rows_.size() / 4; ++i)
      values[i] = static_cast<float>(random.unit() * 2 - 1);
  } else {
    auto* values = reinterpret_cast<std::uint16_t*>(rows_.data());
    for (std::size_t i = 0; i < rows_.size() / 2; ++i)
      values[i] = static_cast<std::uint16_t>(0x2C00 + (random.next() & 0x8FFF));
  }
}

Result<void> Writer::append(kvt_sequence* sequence, std::uint64_t tokens) {
  std::vector<kvt_token> piece(kPiece);
  for (std::uint64_t done = 0; done < tokens;) {
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(kPiece, tokens - done));
    const std::uint64_t position = kvt_sequence_length(sequence);
    for (std::uint32_t i = 0; i < count; ++i)
      piece[i] = {next_id_++ * 2654435761u % 49152, static_cast<std::uint32_t>(position + i), 0, 0};
    KVT_TRY_VOID(check(kvt_sequence_append(sequence, piece.data(), count)));
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      const std::size_t shift = (layer * 7919 + done) % (kPiece - count + 1) * row_bytes_;
      const kvt_rows rows = {rows_.data() + shift, static_cast<std::uint64_t>(kPiece) * row_bytes_,
                             row_bytes_};
      KVT_TRY_VOID(check(kvt_sequence_write(sequence, layer, 0, count, &rows, &rows)));
    }
    KVT_TRY_VOID(check(kvt_sequence_finish_piece(sequence)));
    done += count;
  }
  return {};
}

}  // namespace kvtier::bench
