// ReadCounter: the disk reads of a trace's steps, counted and not done, where rows lie on disk in
// orders of their own.
//
// Slot caches, batches and the arena with its order of eviction are those that a replay through the
// daemon uses; only the bytes are left out. Which rows a step chooses does not depend on where they
// lie, so single rows and hot ones are counted in any order; runs of 16 are chosen by the mass of
// 16 neighbours, which a trace has in the order of tokens only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "tools/bench/replay_bound.h"
#include "tools/bench/replay_layout.h"
#include "tools/bench/replay_trace.h"

namespace kvtier::bench {

enum class Ask {
  kRows,  // the chosen rows, singly, from slot caches of twice the budget
  kRuns,  // the same in runs of 16
  kHot,   // the hot rows only, from slot caches of half the budget
};

// Means over the steps that count.
struct CountedReads {
  double asked = 0;  // chunks that hold a row which the slot caches lack
  double read = 0;   // of these, not in the arena
  double runs = 0;   // of adjoining ones of these, which are one read
  References references;
  std::uint64_t arena_chunks = 0;
};

class ReadCounter {
 public:
  // The trace outlives the counter, and has a lane of 16 for kRuns.
  [[nodiscard]] static Result<ReadCounter> make(const Trace& trace, Ask ask,
                                                std::uint64_t arena_bytes);

  // What the slot caches lacked in the steps from `first` to `last`, in tokens.
  [[nodiscard]] StepRows missing(std::uint32_t head, std::uint32_t first, std::uint32_t last) const;

  // The whole trace with the rows of each layer and KV head at `places`; the steps from
  // `first_step` on count.
  [[nodiscard]] Result<CountedReads> count(const std::vector<Places>& places,
                                           std::uint32_t first_step) const;

 private:
  class Arena;
  ReadCounter(const Trace& trace, Ask ask, std::uint64_t arena_bytes)
      : trace_(&trace), ask_(ask), arena_bytes_(arena_bytes) {}
  void choose(std::uint32_t step, std::uint32_t head, std::vector<std::uint32_t>* tokens) const;
  [[nodiscard]] std::uint64_t slot_rows() const noexcept;

  const Trace* trace_;
  Ask ask_;
  std::uint64_t arena_bytes_;
  std::vector<HeadTrace> missing_;  // [layers][kv_heads], a list per step
};

}  // namespace kvtier::bench
