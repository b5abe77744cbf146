// Trace: which rows a decoder chose of a stored context, step by step, for each layer and KV head.
//
// A choice is made within a budget of rows, sinks and window not counted (they never move), at
// several granules at once: lane 0 holds single rows, the other lanes what the same masses choose
// in aligned runs of so many tokens. Rows of lane 0 that had more than 1 % of the step's mass are
// marked as hot.
//
// The file: one line of JSON, then u32, little-endian, in this order:
//   for each layer, KV head, step and lane: the number of units, then the units, ascending
// A unit is its first token divided by the lane's granule; bit 31 marks hot rows. The line:
//   {"kvtier_trace": 1, "tokens": stored tokens, "layers": n, "kv_heads": n,
//    "row_bytes": K and V of one row at 16 bit, "steps": n, "budget": rows,
//    "granules": [1, 16, 32], "source": "free text"}
// Written by `kvtier-quality --trace` and `kvtier-bench replay --write-trace`. Files are not
// trusted: everything is bounded and checked before it is used.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace kvtier::bench {

inline constexpr std::uint32_t kHotRow = 1u << 31;
inline constexpr std::uint32_t kTraceLanesMax = 4;
inline constexpr std::uint32_t kTraceStepsMax = 1u << 16;

struct TraceShape {
  std::uint32_t tokens = 0;
  std::uint32_t layers = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t row_bytes = 0;
  std::uint32_t steps = 0;
  std::uint32_t budget = 0;
  std::vector<std::uint32_t> granules = {1, 16, 32};
  std::string source;

  // kInvalid with what to change.
  [[nodiscard]] Result<void> validate() const noexcept;
  [[nodiscard]] std::uint32_t heads() const noexcept { return layers * kv_heads; }
  // The lane of this granule, or granules.size().
  [[nodiscard]] std::size_t lane_of(std::uint32_t granule) const noexcept;
  [[nodiscard]] std::uint64_t kv_bytes() const noexcept {
    return std::uint64_t{tokens} * heads() * row_bytes;
  }
};

// The choices of one layer and KV head.
class HeadTrace {
 public:
  // Step by step, lane by lane.
  void add(std::span<const std::uint32_t> units);
  [[nodiscard]] std::span<const std::uint32_t> units(std::size_t index) const noexcept {
    const std::uint64_t begin = index == 0 ? 0 : ends_[index - 1];
    return std::span(words_).subspan(static_cast<std::size_t>(begin),
                                     static_cast<std::size_t>(ends_[index] - begin));
  }
  [[nodiscard]] std::size_t count() const noexcept { return ends_.size(); }

 private:
  std::vector<std::uint32_t> words_;
  std::vector<std::uint64_t> ends_;
};

struct Trace {
  TraceShape shape;
  std::vector<HeadTrace> heads;  // [layers][kv_heads]

  [[nodiscard]] std::span<const std::uint32_t> units(std::uint32_t step, std::uint32_t layer,
                                                     std::uint32_t head,
                                                     std::size_t lane) const noexcept {
    return heads[layer * shape.kv_heads + head].units(step * shape.granules.size() + lane);
  }
};

// kCorrupt or kVersion where the bytes are no such file; `problem` says what is wrong.
[[nodiscard]] Result<Trace> parse_trace(ByteSpan bytes, std::string* problem);
[[nodiscard]] Result<Trace> load_trace(const std::string& path);
[[nodiscard]] std::vector<std::byte> encode_trace(const Trace& trace);
[[nodiscard]] Result<void> save_trace(const Trace& trace, const std::string& path);

// What a cache has to do with a trace: means over heads and over the steps from `first_step` on.
// The same figures are taken from recorded traces and from made ones, so that they can be compared.
struct TraceFigures {
  static constexpr double kCapacities[] = {1, 1.5, 2, 3};
  double rows_new[4] = {};     // that enter a slot cache of so many budgets, over the budget
  double chunks_touched = 0;   // of the chunks of 32 tokens, by the rows chosen
  double chunks_new = 0;       // that enter a cache of twice the chunks of a step, over these
  double newest = 0;           // of the rows chosen, among the newest `budget`
  double in_runs = 0;          // of the rows chosen, in the runs of 16 chosen; 0: no such lane
  double in_pages = 0;         // in the pages of 32
  double pages_new = 0;        // that enter a cache of twice the pages of a step, over these
  double hot_rows = 0;         // per step and head
  double hot_new = 0;          // of them, not hot in the 16 steps before
  double next_head = 0;        // of the rows chosen, also chosen by the layer's next head
};
[[nodiscard]] TraceFigures figures_of(const Trace& trace, std::uint32_t first_step);
// Of one layer alone.
[[nodiscard]] TraceFigures figures_of(const Trace& trace, std::uint32_t first_step,
                                      std::uint32_t layer);

}  // namespace kvtier::bench
