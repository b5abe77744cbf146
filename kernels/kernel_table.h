// KernelTable: the operations on rows, abstracts and scores, as one table of function pointers per
// back end.
//
// Arguments are option structs in the shape that a device launch wants: base pointer + table of
// 64-bit byte offsets + 64-bit strides, and every count that may change from step to step behind a
// pointer, so that a captured launch can be replayed. On the CPU all pointers are host memory, an
// operation has finished when it returns, and the stream is ignored. Operations check their
// arguments (validate()), never allocate, never write outside their outputs, and keep nothing.
// Elements must be aligned to their own size, nothing to more.
//
// All back ends give the same bits for build_abstract (but a ball's radius), score_codes,
// rescore_codes, encode_codes, score_own_codes, encode_base, decode_base, top_k, gather_rows,
// all_finite, convert and group_scores in mode kEach; the others agree within rounding
// (tests/conformance has the tolerances). Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "kernels/abstract_spec.h"
#include "kernels/base_args.h"
#include "kernels/code_args.h"
#include "kernels/layout.h"
#include "kernels/low_rank_args.h"
#include "kernels/row_pages.h"

namespace kvtier {

using KernelStream = void*;  // opaque; null on the CPU

// Abstracts of tokens [0, *token_count): unit u covers places [u * unit_tokens, (u + 1) *
// unit_tokens), the last maybe fewer. With `starts` units vary: unit u covers places [starts[u],
// starts[u + 1]), and token_count and unit_tokens are not looked at. Place p is token p, or with
// `members` token members[p]: so sentences have starts, clusters both. A unit without tokens gets
// zeros. Keys must be finite (all_finite); of others only the unit's own abstract suffers.
//   kBox   min[dim] then max[dim], rounded outward to f16: a box always holds its keys (infinity
//          beyond 65504)
//   kMean  mean[dim], summed in f32 in order, rounded to nearest, saturated at +-65504
//   kBall  the same mean, and the largest distance of a key to it, rounded up: a ball always holds
//          its keys (infinity beyond 65504); then zeros
struct BuildAbstractArgs {
  RowPages rows;  // K only
  const std::uint64_t* token_count = nullptr;
  std::uint32_t unit_tokens = 0;
  std::uint32_t dim = 0;
  AbstractKind kind = AbstractKind::kBox;
  std::uint16_t* out = nullptr;               // f16 [units][abstract_elements(kind, dim)]
  const std::uint32_t* starts = nullptr;      // u32 [*unit_count + 1], ascending; null: fixed units
  const std::uint64_t* unit_count = nullptr;  // with starts
  const std::uint32_t* members = nullptr;     // null: place p is token p
  [[nodiscard]] Result<void> validate() const noexcept;
};

// Scores of *unit_count units for each of `queries` vectors: out[q * out_stride + i] is the score
// of unit i, or with `unit_list` of unit unit_list[i].
//   score_box   sum over d of max(q[d] * min[d], q[d] * max[d]): but for rounding, no key of the
//               unit has a larger dot product
//   score_mean  dot product with the mean
//   score_ball  dot product with the mean + |q| * radius: a bound as of a box
// Boxes and balls that reach to infinity may score NaN or +infinity; top_k takes both for "fetch".
struct ScoreArgs {
  const std::uint16_t* abstracts = nullptr;  // as build_abstract writes them
  const std::uint64_t* unit_count = nullptr;
  const float* q = nullptr;    // query i at q + i * q_stride
  std::uint64_t q_stride = 0;  // in floats
  std::uint32_t queries = 0;
  std::uint32_t dim = 0;
  float* out = nullptr;
  std::uint64_t out_stride = 0;              // in floats
  const std::uint32_t* unit_list = nullptr;  // u32 [*unit_count]; null: all
  [[nodiscard]] Result<void> validate() const noexcept;
};

// The same where unit u has `count` keys of f16 [dim], those of unit u from u * count on: the mean
// of their dot products, or the largest.
struct ScoreRepresentativesArgs {
  ScoreArgs units;          // without a unit_list
  std::uint32_t count = 0;  // 1 to kRepresentativesMax
  bool largest = false;
  [[nodiscard]] Result<void> validate() const noexcept;
};

// One score per unit from those of a group of query heads. A unit with NaN or +infinity from any
// head gets +infinity and is left out of the softmax, and of the places.
enum class GroupMode : std::uint8_t {
  kMax = 0,          // largest score of the heads, times scale
  kMeanSoftmax = 1,  // mean over the heads of softmax(scale * score) over units
  kMeanScore = 2,    // mean score of the heads, times scale
  kMaxSoftmax = 3,   // largest over the heads of softmax(scale * score) over units
  // Minus the unit's best place in the orders of the heads, 0 for what is first (ties as in top_k):
  // the best units are those of every head in turn. -infinity beyond `places` of each order.
  kEach = 4,
};
struct GroupScoresArgs {
  // Head i at scores + i * stride. The result takes the place of head 0's; those of the others are
  // of no use afterwards.
  float* scores = nullptr;
  std::uint64_t stride = 0;  // in floats
  const std::uint64_t* unit_count = nullptr;
  std::uint32_t queries = 0;  // 1 or more
  GroupMode mode = GroupMode::kMeanSoftmax;
  float scale = 1.0f;
  std::uint64_t places = 0;        // of kEach
  std::uint32_t* order = nullptr;  // of kEach: scratch, room for min(places, *unit_count)
  [[nodiscard]] Result<void> validate() const noexcept;
};

// The k best of *count scores (all, where k is larger). Ties go to the lower index; NaN counts as
// +infinity, -0 as +0.
struct TopKArgs {
  const float* scores = nullptr;
  const std::uint64_t* count = nullptr;  // below 2^32
  std::uint64_t k = 0;
  bool ordered = false;          // true: best first, ties by index; false: by ascending index
  std::uint32_t* out = nullptr;  // room for min(k, *count)
  std::uint64_t* out_count = nullptr;
  [[nodiscard]] Result<void> validate() const noexcept;
};

// Copies *count pieces of row_bytes: piece i from base + offsets[i] to out + (out_offsets ?
// out_offsets[i] : i * out_stride), bit for bit. Sources and destinations do not overlap. base
// null: offsets are addresses.
struct GatherRowsArgs {
  const std::byte* base = nullptr;
  const std::uint64_t* offsets = nullptr;
  const std::uint64_t* count = nullptr;
  std::uint64_t row_bytes = 0;
  std::byte* out = nullptr;
  std::uint64_t out_stride = 0;                // row_bytes or more
  const std::uint64_t* out_offsets = nullptr;  // null: contiguous by out_stride
  [[nodiscard]] Result<void> validate() const noexcept;
};

// Attention of `queries` vectors (the query heads that share one KV head, or any others that see
// the same tokens) over tokens [token_range[0], token_range[1]) of the pages, less those whose bit
// is 0 in row_masks:
//   out[i] = sum of softmax(scale * q[i] . k[t]) * v[t]
//   lse[i] = log of the sum of exp(scale * q[i] . k[t])
// With no token at all out is 0 and lse -infinity, and merge_attention takes that as nothing. Sums
// in f32.
struct AttendArgs {
  RowPages rows;
  const std::uint64_t* token_range = nullptr;  // two words: first, last (exclusive)
  // Null: all rows; else a word per page, bit i = place i, and page_tokens is at most 64.
  const std::uint64_t* row_masks = nullptr;
  const float* q = nullptr;
  std::uint64_t q_stride = 0;  // in floats, as the other two
  std::uint32_t queries = 0;
  std::uint32_t dim = 0;
  std::uint32_t v_dim = 0;
  float scale = 1.0f;
  float* out = nullptr;
  std::uint64_t out_stride = 0;
  float* lse = nullptr;
  std::uint64_t lse_stride = 1;
  [[nodiscard]] Result<void> validate() const noexcept;
};

// Merges attention over set b into that over set a (disjoint sets, same queries), in place. Where
// one lse is -infinity the other side is taken bit for bit.
struct MergeAttentionArgs {
  float* out_a = nullptr;
  float* lse_a = nullptr;
  const float* out_b = nullptr;
  const float* lse_b = nullptr;
  std::uint64_t out_a_stride = 0;  // in floats, between queries
  std::uint64_t out_b_stride = 0;
  std::uint64_t lse_a_stride = 1;
  std::uint64_t lse_b_stride = 1;
  std::uint32_t queries = 0;
  std::uint32_t v_dim = 0;
  [[nodiscard]] Result<void> validate() const noexcept;
};

// Index of the first NaN or infinity among *count contiguous elements; *count where all are finite.
struct AllFiniteArgs {
  const std::byte* data = nullptr;
  const std::uint64_t* count = nullptr;
  Dtype dtype = Dtype::kF32;
  std::uint64_t* out_index = nullptr;
  [[nodiscard]] Result<void> validate() const noexcept;
};

// *count elements from one dtype to another: f32 to f16 or bf16 (round to nearest even, too large
// becomes infinity), f16 or bf16 to f32 (exact), or the same dtype (copy). A NaN stays a NaN with
// its sign and leading payload, quiet.
struct ConvertArgs {
  const std::byte* source = nullptr;
  Dtype source_dtype = Dtype::kF32;
  const std::uint64_t* count = nullptr;
  std::byte* target = nullptr;
  Dtype target_dtype = Dtype::kF32;
  [[nodiscard]] Result<void> validate() const noexcept;
};

// For each of *row_count rows the best of *centroid_count centroids: the index of the largest row .
// centroid + bias, and that value. Ties go to the lower index; NaN is never best. Where nothing is
// best the index is 0 and the value -infinity. Spherical k-means has no bias, Euclidean has
// -|centroid|^2 / 2. Back ends may differ where values tie within rounding.
struct NearestArgs {
  const float* rows = nullptr;   // row i at rows + i * row_stride
  std::uint64_t row_stride = 0;  // in floats
  const std::uint64_t* row_count = nullptr;
  const float* centroids = nullptr;               // centroid j at centroids + j * centroid_stride
  std::uint64_t centroid_stride = 0;              // in floats
  const std::uint64_t* centroid_count = nullptr;  // below 2^32
  const float* bias = nullptr;                    // f32 [*centroid_count]; null: 0
  std::uint32_t dim = 0;
  std::uint32_t* out_index = nullptr;  // u32 [*row_count]
  float* out_value = nullptr;          // f32 [*row_count]
  [[nodiscard]] Result<void> validate() const noexcept;
};

struct KernelTable {
  const char* name;         // "scalar", "simd": what --kernels=NAME takes
  const char* (*target)();  // what it runs on here: "portable", "AVX2" ...
  bool (*available)();      // probed once by the registry
  Result<void> (*build_abstract)(const BuildAbstractArgs& args, KernelStream stream);
  Result<void> (*score_box)(const ScoreArgs& args, KernelStream stream);
  Result<void> (*score_mean)(const ScoreArgs& args, KernelStream stream);
  Result<void> (*score_ball)(const ScoreArgs& args, KernelStream stream);
  Result<void> (*score_representatives)(const ScoreRepresentativesArgs& args, KernelStream stream);
  Result<void> (*group_scores)(const GroupScoresArgs& args, KernelStream stream);
  Result<void> (*top_k)(const TopKArgs& args, KernelStream stream);
  Result<void> (*gather_rows)(const GatherRowsArgs& args, KernelStream stream);
  Result<void> (*attend)(const AttendArgs& args, KernelStream stream);
  Result<void> (*merge_attention)(const MergeAttentionArgs& args, KernelStream stream);
  Result<void> (*all_finite)(const AllFiniteArgs& args, KernelStream stream);
  Result<void> (*convert)(const ConvertArgs& args, KernelStream stream);
  Result<void> (*code_tables)(const CodeTablesArgs& args, KernelStream stream);
  Result<void> (*score_codes)(const ScoreCodesArgs& args, KernelStream stream);
  Result<void> (*rescore_codes)(const RescoreCodesArgs& args, KernelStream stream);
  Result<void> (*encode_codes)(const EncodeCodesArgs& args, KernelStream stream);
  Result<void> (*score_own_codes)(const ScoreOwnCodesArgs& args, KernelStream stream);
  Result<void> (*nearest)(const NearestArgs& args, KernelStream stream);
  Result<void> (*encode_base)(const EncodeBaseArgs& args, KernelStream stream);
  Result<void> (*decode_base)(const DecodeBaseArgs& args, KernelStream stream);
  Result<void> (*attend_base)(const AttendBaseArgs& args, KernelStream stream);
  Result<void> (*rebuild_keys)(const RebuildKeysArgs& args, KernelStream stream);
};

}  // namespace kvtier
