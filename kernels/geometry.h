// Geometry: the shape of one model's KV, as far as storage and kernels must know it. Part of a
// space's fingerprint.
//
// A chunk is at most `chunk_tokens` tokens of one layer and `heads_per_chunk` KV heads. Its bytes,
// in memory and (raw codec) on disk, are for each head of the group: chunk_tokens K rows, then
// chunk_tokens V rows. Rows are at fixed places whether or not the chunk is full, so one address
// computation serves tail, arena and file (kernels/layout.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/result.h"

namespace kvtier {

enum class Dtype : std::uint8_t {
  kF32 = 0,
  kF16 = 1,
  kBf16 = 2,
  kOpaque =
      3,  // rows of bytes that kernels do not understand (quantised, latent): stored, not scored
};

// Bytes of one element; 1 for kOpaque.
[[nodiscard]] std::uint32_t dtype_bytes(Dtype dtype) noexcept;
[[nodiscard]] const char* dtype_name(Dtype dtype) noexcept;  // "f32", "f16", "bf16", "opaque"

enum class LayerKind : std::uint8_t {
  kFull = 0,           // every position is kept
  kSlidingWindow = 1,  // only snapshots at a segment's end
  kSnapshot = 2,       // recurrent: only snapshots
};

enum class RopeState : std::uint8_t { kAfter = 0, kBefore = 1, kNone = 2 };

struct LayerGeometry {
  LayerKind kind = LayerKind::kFull;
  RopeState rope = RopeState::kAfter;
  bool v_transposed = false;
  Dtype dtype = Dtype::kF32;
  std::uint16_t kv_heads = 0;
  std::uint16_t query_heads = 0;
  std::uint32_t k_row_bytes = 0;  // one token, one head
  std::uint32_t v_row_bytes = 0;
  friend bool operator==(const LayerGeometry&, const LayerGeometry&) = default;
};

struct Geometry {
  std::uint16_t chunk_tokens = kChunkTokensDefault;  // C; a power of two, 8..64
  std::uint16_t heads_per_chunk = 1;                 // 1, or 0 for "all heads of the layer"
  std::uint16_t positions_per_token = 1;             // M-RoPE has several
  std::vector<LayerGeometry> layers;

  // kInvalid or kTooLarge with what to change. Everything below requires that this passed.
  [[nodiscard]] Result<void> validate() const;

  [[nodiscard]] std::uint32_t heads_in_group(std::uint32_t layer) const noexcept;
  [[nodiscard]] std::uint32_t groups(
      std::uint32_t layer) const noexcept;  // chunks that lie side by side
  // Bytes of one chunk of this layer in memory, and in a slot (a multiple of kDiskAlign).
  [[nodiscard]] std::uint64_t chunk_bytes(std::uint32_t layer) const noexcept;
  [[nodiscard]] std::uint64_t slot_bytes(std::uint32_t layer) const noexcept;
  // K and V of one token over all full layers, as stored.
  [[nodiscard]] std::uint64_t token_bytes() const noexcept;

  friend bool operator==(const Geometry&, const Geometry&) = default;
};

// The byte form used in fingerprints, segments and the catalogue. decode_geometry checks and
// validates.
void encode_geometry(const Geometry& geometry, ByteWriter* writer);
[[nodiscard]] Result<Geometry> decode_geometry(ByteReader* reader);

// What a client says a space is. The digest of all fields is the space's identity: KV of different
// spaces never meets.
struct Fingerprint {
  std::string model;  // content hash of weights and tokenizer, or another id that changes with them
  std::string runtime;  // runtime id and layout version, e.g. "transformers-5/1"
  std::string detail;   // RoPE parameters, adapters, whatever else makes KV different
  Geometry geometry;
};

// 128 bits over the byte form of all fields.
[[nodiscard]] BlockHash fingerprint_digest(const Fingerprint& fingerprint);

}  // namespace kvtier
