// TreeSearch: scores boxes from coarse to fine, so that most of a long sequence is looked at in
// large pieces only (LeoAM, arXiv 2506.20187, section 4.2, as its in-code description has it).
//
// All boxes of the coarsest level are scored. Then, once per finer level: those that the budget
// would take by these scores are split in half and scored anew, and the others compete with them
// as they are. A box bounds the scores of all keys in it, so a coarse score is never too low, and
// a unit that would be among the best is missed only where the bounds around others are loose.
//
// "Cell": a unit of the finest level. Scratch is reused: 10 bytes per cell. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "client/retrieval/select_input.h"
#include "kernels/kernel_table.h"

namespace kvtier {

class TreeSearch {
 public:
  explicit TreeSearch(const KernelTable* kernels) noexcept : kernels_(kernels) {}

  // `spec`: boxes of pages, with levels. `heads`: of one selection, the same segments, differing in
  // data and queries. `rows`: what is to be covered. `scores`: one per cell of all segments: the
  // sum over the heads of their queries' mean score of the smallest box around it that was looked
  // at, times the attention's scale; +infinity where a segment has no boxes.
  [[nodiscard]] Result<void> run(const AbstractSpec& spec, std::span<const SelectInput> heads,
                                 std::uint64_t rows, std::span<float> scores);
  // Of the last run, all heads together.
  [[nodiscard]] std::uint64_t boxes_scored() const noexcept { return boxes_scored_; }
  [[nodiscard]] std::uint64_t units_missing() const noexcept { return units_missing_; }
  [[nodiscard]] std::uint64_t memory_bytes() const noexcept;

 private:
  // Boxes [first, last) of a level of a segment whose cells begin at first_cell.
  struct Run {
    std::size_t segment = 0;
    std::uint64_t first_cell = 0;
    std::uint32_t level = 0;
    std::uint32_t first = 0;
    std::uint32_t last = 0;
  };
  void list_cells(std::span<const SelectInput> heads);
  Result<void> score_coarsest(std::span<const SelectInput> heads, std::span<float> scores);
  // Whether there was any to split.
  Result<bool> mark_best(std::uint64_t rows, std::span<const float> scores);
  Result<void> score_split(std::span<const SelectInput> heads, std::span<float> scores);
  Result<void> score_run(std::span<const SelectInput> heads, const Run& run,
                         std::span<float> scores);

  const KernelTable* kernels_;
  AbstractSpec spec_;
  std::uint64_t boxes_scored_ = 0;
  std::uint64_t units_missing_ = 0;
  std::vector<std::uint8_t> levels_;  // per cell: of the box whose score it has
  std::vector<std::uint8_t> split_;   // per cell: that box is to be split
  std::vector<std::uint16_t> costs_;  // per cell: tokens that are visible and not kept
  std::vector<float> masked_;         // scores of cells with a cost
  std::vector<std::uint32_t> best_;
  std::vector<float> of_queries_, of_boxes_;
};

}  // namespace kvtier
