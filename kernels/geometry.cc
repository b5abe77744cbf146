#include "kernels/geometry.h"

#include "base/hash.h"

namespace kvtier {
namespace {

constexpr bool is_power_of_two(std::uint32_t value) {
  return value != 0 && (value & (value - 1)) == 0;
}

void write_text(const std::string& text, ByteWriter* writer) {
  writer->write<std::uint32_t>(static_cast<std::uint32_t>(text.size()));
  writer->write_bytes(as_bytes(text));
}

Result<void> validate_layer(const LayerGeometry& layer) {
  if (layer.kv_heads == 0 || layer.kv_heads > kHeadsMax)
    return error(Code::kInvalid, "a layer needs 1 to 256 KV heads");
  if (layer.query_heads % layer.kv_heads != 0)
    return error(Code::kInvalid, "query heads must be a multiple of KV heads");
  if (layer.k_row_bytes == 0 || layer.k_row_bytes > kRowBytesMax ||
      layer.v_row_bytes > kRowBytesMax)
    return error(Code::kTooLarge, "a row of K or V has 1 to 16384 bytes");
  const std::uint32_t element = dtype_bytes(layer.dtype);
  if (layer.k_row_bytes % element != 0 || layer.v_row_bytes % element != 0)
    return error(Code::kInvalid, "row bytes must be a multiple of the element size");
  return {};
}

}  // namespace

std::uint32_t dtype_bytes(Dtype dtype) noexcept {
  switch (dtype) {
    case Dtype::kF32:
      return 4;
    case Dtype::kF16:
    case Dtype::kBf16:
      return 2;
    case Dtype::kOpaque:
      return 1;
  }
  return 1;
}

const char* dtype_name(Dtype dtype) noexcept {
  switch (dtype) {
    case Dtype::kF32:
      return "f32";
    case Dtype::kF16:
      return "f16";
    case Dtype::kBf16:
      return "bf16";
    case Dtype::kOpaque:
      return "opaque";
  }
  return "unknown";
}

Result<void> Geometry::validate() const {
  if (layers.empty() || layers.size() > kLayersMax)
    return error(Code::kInvalid, "a model needs 1 to 256 layers");
  if (!is_power_of_two(chunk_tokens) || chunk_tokens < 8 || chunk_tokens > kChunkTokensMax)
    return error(Code::kInvalid, "chunk_tokens must be 8, 16, 32 or 64");
  if (heads_per_chunk > 1)
    return error(Code::kInvalid, "heads_per_chunk must be 1, or 0 for all heads");
  if (positions_per_token == 0 || positions_per_token > 4)
    return error(Code::kInvalid, "positions_per_token must be 1 to 4");
  for (std::uint32_t i = 0; i < layers.size(); ++i) {
    KVT_TRY_VOID(validate_layer(layers[i]));
    if (slot_bytes(i) > kSlotBytesMax)
      return error(Code::kTooLarge, "a chunk is above 2 MiB: lower chunk_tokens");
  }
  if (token_bytes() > kTokenBytesMax)
    return error(Code::kTooLarge, "K and V of one token of all layers are above 4 MiB");
  return {};
}

std::uint32_t Geometry::heads_in_group(std::uint32_t layer) const noexcept {
  return heads_per_chunk == 0 ? layers[layer].kv_heads : 1u;
}

std::uint32_t Geometry::groups(std::uint32_t layer) const noexcept {
  if (layers[layer].kind != LayerKind::kFull) return 0;
  return layers[layer].kv_heads / heads_in_group(layer);
}

std::uint64_t Geometry::chunk_bytes(std::uint32_t layer) const noexcept {
  const LayerGeometry& one = layers[layer];
  return static_cast<std::uint64_t>(heads_in_group(layer)) * chunk_tokens *
         (one.k_row_bytes + one.v_row_bytes);
}

std::uint64_t Geometry::slot_bytes(std::uint32_t layer) const noexcept {
  return align_up<std::uint64_t>(chunk_bytes(layer), kDiskAlign);
}

std::uint64_t Geometry::token_bytes() const noexcept {
  std::uint64_t sum = 0;
  for (const LayerGeometry& layer : layers)
    if (layer.kind == LayerKind::kFull)
      sum += static_cast<std::uint64_t>(layer.kv_heads) * (layer.k_row_bytes + layer.v_row_bytes);
  return sum;
}

void encode_geometry(const Geometry& geometry, ByteWriter* writer) {
  writer->write(geometry.chunk_tokens);
  writer->write(geometry.heads_per_chunk);
  writer->write(geometry.positions_per_token);
  writer->write<std::uint16_t>(static_cast<std::uint16_t>(geometry.layers.size()));
  for (const LayerGeometry& layer : geometry.layers) {
    writer->write(layer.kind);
    writer->write(layer.rope);
    writer->write<std::uint8_t>(layer.v_transposed ? 1 : 0);
    writer->write(layer.dtype);
    writer->write(layer.kv_heads);
    writer->write(layer.query_heads);
    writer->write(layer.k_row_bytes);
    writer->write(layer.v_row_bytes);
  }
}

Result<Geometry> decode_geometry(ByteReader* reader) {
  Geometry geometry;
  geometry.chunk_tokens = reader->read<std::uint16_t>();
  geometry.heads_per_chunk = reader->read<std::uint16_t>();
  geometry.positions_per_token = reader->read<std::uint16_t>();
  const auto layers = reader->read<std::uint16_t>();
  if (!reader->ok() || layers > kLayersMax)
    return error(Code::kCorrupt, "geometry is cut short or has too many layers");
  for (std::uint32_t i = 0; i < layers; ++i) {
    LayerGeometry layer;
    const auto kind = reader->read<std::uint8_t>();
    const auto rope = reader->read<std::uint8_t>();
    layer.v_transposed = reader->read<std::uint8_t>() != 0;
    const auto dtype = reader->read<std::uint8_t>();
    if (kind > 2 || rope > 2 || dtype > 3)
      return error(Code::kCorrupt, "geometry has an unknown layer kind or dtype");
    layer.kind = static_cast<LayerKind>(kind);
    layer.rope = static_cast<RopeState>(rope);
    layer.dtype = static_cast<Dtype>(dtype);
    layer.kv_heads = reader->read<std::uint16_t>();
    layer.query_heads = reader->read<std::uint16_t>();
    layer.k_row_bytes = reader->read<std::uint32_t>();
    layer.v_row_bytes = reader->read<std::uint32_t>();
    geometry.layers.push_back(layer);
  }
  if (!reader->ok()) return error(Code::kCorrupt, "geometry is cut short");
  KVT_TRY_VOID(geometry.validate());
  return geometry;
}

BlockHash fingerprint_digest(const Fingerprint& fingerprint) {
  ByteWriter writer;
  write_text(fingerprint.model, &writer);
  write_text(fingerprint.runtime, &writer);
  write_text(fingerprint.detail, &writer);
  encode_geometry(fingerprint.geometry, &writer);
  return hash128(writer.view());
}

}  // namespace kvtier
