// The Highway back end: one source, compiled for several instruction sets, the best one chosen at
// run time.
//
// Highway's headers appear only in this folder. `-inl.h` files are compiled once per instruction
// set (foreach_target).
#pragma once

#include <span>

#include "kernels/kernel_table.h"

namespace kvtier {

extern const KernelTable simd_kernels;

namespace simd {
Result<void> build_abstract(const BuildAbstractArgs& args, KernelStream stream);
Result<void> score_box(const ScoreArgs& args, KernelStream stream);
Result<void> score_mean(const ScoreArgs& args, KernelStream stream);
Result<void> score_ball(const ScoreArgs& args, KernelStream stream);
Result<void> score_representatives(const ScoreRepresentativesArgs& args, KernelStream stream);
Result<void> group_scores(const GroupScoresArgs& args, KernelStream stream);
Result<void> top_k(const TopKArgs& args, KernelStream stream);
Result<void> gather_rows(const GatherRowsArgs& args, KernelStream stream);
Result<void> attend(const AttendArgs& args, KernelStream stream);
Result<void> merge_attention(const MergeAttentionArgs& args, KernelStream stream);
Result<void> all_finite(const AllFiniteArgs& args, KernelStream stream);
Result<void> convert(const ConvertArgs& args, KernelStream stream);
Result<void> code_tables(const CodeTablesArgs& args, KernelStream stream);
Result<void> score_codes(const ScoreCodesArgs& args, KernelStream stream);
Result<void> rescore_codes(const RescoreCodesArgs& args, KernelStream stream);
Result<void> encode_codes(const EncodeCodesArgs& args, KernelStream stream);
Result<void> score_own_codes(const ScoreOwnCodesArgs& args, KernelStream stream);
Result<void> nearest(const NearestArgs& args, KernelStream stream);
Result<void> encode_base(const EncodeBaseArgs& args, KernelStream stream);
Result<void> decode_base(const DecodeBaseArgs& args, KernelStream stream);
Result<void> attend_base(const AttendBaseArgs& args, KernelStream stream);
Result<void> rebuild_keys(const RebuildKeysArgs& args, KernelStream stream);

// Names of the instruction sets that this build has code for and this machine can run, best first.
// Static.
std::span<const char* const> simd_targets() noexcept;
// For tests: from now on all operations run on this one of them (null: the best). Not thread-safe.
void force_simd_target(const char* name) noexcept;
}  // namespace simd

}  // namespace kvtier
