// Small, deterministic files of every format: the same bytes in every run and on every machine. The
// golden files are made from these, so a change here is a change of them.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/bytes.h"
#include "base/random.h"
#include "kernels/layout.h"
#include "tiers/codebook_format.h"
#include "tiers/export_format.h"
#include "tiers/object_format.h"
#include "tiers/segment_format.h"
#include "tiers/sidecar_format.h"
#include "tiers/tail_log_format.h"

namespace kvtier::samples {

inline constexpr SpaceId kSpace{0x5ACE5ACE5ACE5ACEull};
inline constexpr BlockHash kFingerprint{0x5ACE5ACE5ACE5ACEull, 0x0123456789ABCDEFull};

// Three layers: full bf16 with 2 heads, sliding window, full f32 with 1 head and longer V. Chunks
// of 8 tokens.
Geometry small_geometry();

TokenRecord token_of(std::uint64_t token, std::uint64_t seed);
// Row bytes that depend on everything which says what row it is, so that a row in a wrong place
// never compares equal.
void fill_row(std::uint64_t seed, std::uint64_t token, std::uint32_t layer, std::uint32_t head,
              bool v, MutableByteSpan row);
// Visits rows of tokens [first, first + count) of a plane; `token` is the index in the plane.
struct RowPlace {
  std::uint64_t offset = 0;
  std::uint32_t size_bytes = 0;
  std::uint32_t token = 0, layer = 0, head = 0;
  bool v = false;
};
void visit_rows(const Geometry& geometry, const PlaneLayout& layout, std::uint32_t first,
                std::uint32_t count, const std::function<void(const RowPlace&)>& visit);
// Fills tokens and rows of a plane as tokens start + index of the stream `seed`.
void fill_plane(const Geometry& geometry, const PlaneLayout& layout, std::uint64_t seed,
                std::uint64_t start, std::uint32_t first, std::uint32_t count, TokenRecord* tokens,
                std::byte* plane);

// Of one of a few words each, parts of a character among them.
TokenTexts texts_of(std::uint32_t tokens);
// A segment's metadata with everything optional present; chunks not placed yet.
SegmentMeta make_meta(SegmentId id, std::uint32_t tokens, std::uint64_t start_token,
                      std::uint64_t seed);
// Places and encodes the chunks (those that zstd helps, where asked) and returns the whole file.
std::vector<std::byte> make_segment_file(SegmentMeta* meta, std::uint64_t seed,
                                         CodecId codec = CodecId::kRaw);

std::vector<std::byte> make_sidecar(SegmentId segment, const Geometry& geometry,
                                    std::uint32_t tokens, std::uint64_t seed);

// A codebook file of codes:4/tokens: keys of 8 dims, four heads in two layers.
Geometry codebook_geometry();
std::vector<std::byte> make_codebook();

// An object file whose value are `value_bytes` of the stream `seed`.
std::vector<std::byte> make_object(std::uint64_t file, const std::string& key,
                                   std::uint32_t value_bytes, std::uint64_t seed);

// A log of the stream `seed`: a record each for `counts`, one after the other from base_token on.
TailLogHeader make_log_header(SequenceId sequence, std::uint64_t generation,
                              std::uint64_t base_token);
std::vector<std::byte> make_log(const TailLogHeader& header, const Geometry& geometry,
                                std::uint64_t seed, const std::vector<std::uint32_t>& counts);

// An export file of `counts` runs of tokens of the stream `seed`.
std::vector<std::byte> make_export(const std::vector<std::uint32_t>& counts, std::uint64_t seed,
                                   CodecId codec);

}  // namespace kvtier::samples
