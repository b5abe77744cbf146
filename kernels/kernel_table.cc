// The checks of arguments that all back ends share. Only fields that are on the host are looked at,
// never what a count pointer points to.
#include "kernels/kernel_table.h"

#include <cmath>

#include "kernels/low_rank_layout.h"
#include "kernels/own_code_layout.h"

namespace kvtier {
namespace {

bool dim_ok(std::uint32_t dim) {
  return dim >= kKernelDimStep && dim % kKernelDimStep == 0 && dim <= kHeadDimMax;
}

tl::unexpected<Status> bad_dim() {
  return error(Code::kUnsupported,
               "kernels take head dimensions that are multiples of 8, from 8 to 1024");
}
tl::unexpected<Status> bad_dtype() {
  return error(Code::kUnsupported, "kernels understand f32, f16 and bf16 only");
}
tl::unexpected<Status> no_count() { return error(Code::kInvalid, "a count pointer is null"); }

}  // namespace

Result<void> BuildAbstractArgs::validate() const noexcept {
  if (rows.dtype == Dtype::kOpaque) return bad_dtype();
  if (!dim_ok(dim)) return bad_dim();
  if ((starts != nullptr ? unit_count : token_count) == nullptr) return no_count();
  if (kind != AbstractKind::kBox && kind != AbstractKind::kMean && kind != AbstractKind::kBall)
    return error(Code::kInvalid, "an abstract is a box, a mean or a ball");
  if ((starts == nullptr && unit_tokens == 0) || rows.page_tokens == 0)
    return error(Code::kInvalid, "units and pages have 1 token or more");
  return {};
}

Result<void> ScoreArgs::validate() const noexcept {
  if (!dim_ok(dim)) return bad_dim();
  if (unit_count == nullptr) return no_count();
  return {};
}

Result<void> ScoreRepresentativesArgs::validate() const noexcept {
  KVT_TRY_VOID(units.validate());
  if (units.unit_list != nullptr) return error(Code::kInvalid, "representatives have no unit list");
  if (count == 0 || count > kRepresentativesMax)
    return error(Code::kInvalid, "a unit has 1 to 16 representatives");
  return {};
}

Result<void> GroupScoresArgs::validate() const noexcept {
  if (unit_count == nullptr) return no_count();
  if (queries == 0) return error(Code::kInvalid, "a group has 1 query head or more");
  if (!(scale > 0.0f) || !std::isfinite(scale))
    return error(Code::kInvalid, "the scale must be above 0");
  if (mode == GroupMode::kEach && order == nullptr)
    return error(Code::kInvalid, "the orders of the heads need room");
  return {};
}

Result<void> TopKArgs::validate() const noexcept {
  if (count == nullptr || out_count == nullptr) return no_count();
  return {};
}

Result<void> GatherRowsArgs::validate() const noexcept {
  if (count == nullptr) return no_count();
  if (out_offsets == nullptr && out_stride < row_bytes)
    return error(Code::kInvalid, "gathered rows would overlap");
  return {};
}

Result<void> AttendArgs::validate() const noexcept {
  if (rows.dtype == Dtype::kOpaque) return bad_dtype();
  if (!dim_ok(dim) || !dim_ok(v_dim)) return bad_dim();
  if (token_range == nullptr) return no_count();
  if (rows.page_tokens == 0) return error(Code::kInvalid, "a page has 1 token or more");
  if (row_masks != nullptr && rows.page_tokens > 64)
    return error(Code::kInvalid, "a row mask covers at most 64 tokens");
  if (queries > 1 && (out_stride < v_dim || lse_stride == 0))
    return error(Code::kInvalid, "outputs of queries would overlap");
  return {};
}

Result<void> MergeAttentionArgs::validate() const noexcept {
  if (queries > 1 && (out_a_stride < v_dim || lse_a_stride == 0))
    return error(Code::kInvalid, "outputs of queries would overlap");
  return {};
}

Result<void> AllFiniteArgs::validate() const noexcept {
  if (dtype == Dtype::kOpaque) return bad_dtype();
  if (count == nullptr || out_index == nullptr) return no_count();
  return {};
}

Result<void> ConvertArgs::validate() const noexcept {
  if (count == nullptr) return no_count();
  if (source_dtype == Dtype::kOpaque || target_dtype == Dtype::kOpaque) return bad_dtype();
  if (source_dtype != target_dtype && source_dtype != Dtype::kF32 && target_dtype != Dtype::kF32)
    return error(Code::kUnsupported, "f16 and bf16 are converted to and from f32 only");
  return {};
}

Result<void> CodeTablesArgs::validate() const noexcept {
  KVT_TRY_VOID(book.validate());
  if (queries > 1 && out_stride < std::uint64_t{book.subspaces} * kCodeEntries)
    return error(Code::kInvalid, "outputs of queries would overlap");
  return {};
}

Result<void> ScoreCodesArgs::validate() const noexcept {
  if (codes.count == nullptr) return no_count();
  return check_code_subspaces(codes.subspaces);
}

Result<void> RescoreCodesArgs::validate() const noexcept {
  if (codes.count == nullptr || token_count == nullptr) return no_count();
  return check_code_subspaces(codes.subspaces);
}

Result<void> ScoreOwnCodesArgs::validate() const noexcept {
  if (token_count == nullptr) return no_count();
  if (subspaces == 0 || subspaces > kOwnCodeSubspacesMax)
    return error(Code::kUnsupported, "own codes have 1 to 16 sub-spaces");
  return {};
}

Result<void> EncodeCodesArgs::validate() const noexcept {
  if (rows.dtype == Dtype::kOpaque) return bad_dtype();
  if (token_count == nullptr) return no_count();
  if (rows.page_tokens == 0) return error(Code::kInvalid, "a page has 1 token or more");
  return book.validate();
}

Result<void> EncodeBaseArgs::validate() const noexcept {
  if (rows.dtype == Dtype::kOpaque) return bad_dtype();
  if (token_count == nullptr) return no_count();
  if (rows.page_tokens == 0) return error(Code::kInvalid, "a page has 1 token or more");
  return format.validate();
}

Result<void> DecodeBaseArgs::validate() const noexcept {
  if (dtype == Dtype::kOpaque) return bad_dtype();
  if (rows.range == nullptr) return no_count();
  KVT_TRY_VOID(pages.format.validate());
  const std::uint64_t element = dtype_bytes(dtype);
  if ((out_k != nullptr && k_stride < pages.format.dim * element) ||
      (out_v != nullptr && v_stride < pages.format.v_dim * element))
    return error(Code::kInvalid, "decoded rows would overlap");
  return {};
}

Result<void> AttendBaseArgs::validate() const noexcept {
  if (rows.range == nullptr) return no_count();
  KVT_TRY_VOID(pages.format.validate());
  if (queries > 1 && (out_stride < pages.format.v_dim || lse_stride == 0))
    return error(Code::kInvalid, "outputs of queries would overlap");
  return {};
}

Result<void> RebuildKeysArgs::validate() const noexcept {
  if (dtype == Dtype::kOpaque) return bad_dtype();
  if (!dim_ok(dim)) return bad_dim();
  if (count == nullptr) return no_count();
  if (rank == 0 || rank > kLowRankMax)
    return error(Code::kUnsupported, "low-rank keys have a rank of 1 to 1024");
  if (pairing != Rotation::Pairing::kNone && pairs > dim / 2)
    return error(Code::kInvalid, "more pairs turn than a key has");
  return {};
}

Result<void> NearestArgs::validate() const noexcept {
  if (!dim_ok(dim)) return bad_dim();
  if (row_count == nullptr || centroid_count == nullptr) return no_count();
  return {};
}

}  // namespace kvtier
