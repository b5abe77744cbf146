// The scalar back end: the reference. Plain loops, sums in double where rounding counts, no regard
// for speed.
#pragma once

#include "kernels/kernel_table.h"

namespace kvtier {

extern const KernelTable scalar_kernels;

namespace scalar {
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

// Begins an operation: leaves the trace.
void begin(const char* op) noexcept;
}  // namespace scalar

}  // namespace kvtier
