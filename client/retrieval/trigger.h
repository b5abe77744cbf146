// Trigger and query: when a layer chooses anew, and with which vectors. State of one layer of one
// view, and what passes from layer to layer; all query heads. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/retrieval/preset.h"

namespace kvtier {

// Queries of the layer below, for presets that score with them. Of one view.
class LayerBefore {
 public:
  struct Step {
    std::uint32_t layer = 0;
    std::uint64_t tokens = 0;  // that the step sees: another number is another step
    std::uint32_t query_heads = 0;
    std::uint32_t dim = 0;
  };
  // When a layer begins a step; again for the same one changes no answer. `q` is copied.
  void observe(const Step& step, const float* q);
  // [query_heads][dim] of the nearest layer below that this step has seen, where its shape is the
  // same; else null. Valid until the next observe().
  [[nodiscard]] const float* queries() const noexcept;
  [[nodiscard]] std::uint64_t memory_bytes() const noexcept;

 private:
  struct Seen {
    Step step;
    std::vector<float> q;
  };
  Seen before_, now_;
};

class LayerQuery {
 public:
  struct Step {
    const float* q = nullptr;  // [query_heads][dim]
    std::uint32_t kv_heads = 0;
    std::uint32_t group = 0;  // query heads per KV head: query_heads = kv_heads * group
    std::uint32_t dim = 0;
    bool boundary = false;                // its token ends a sentence
    std::uint64_t stored_tokens = 0;      // with another number than before every head chooses anew
    const float* layer_before = nullptr;  // as q, of the layer below; null: none, or not wanted
    // Tokens that it sees. Where it does not follow the step before (a truncate, or several queries
    // in one call in between), nothing of those before counts.
    std::uint64_t visible = 0;
  };
  // Once per step and layer, before the others.
  void observe(const Preset& preset, const Step& step);
  // In place of observe() for several queries that choose together, of which `q` is the first:
  // every head chooses, and again at the next step, which has nothing of this choice.
  void begin_block(const float* q, std::uint32_t kv_heads);
  // The KV head chooses anew at this step; always so where it never has. What other heads choose
  // meanwhile changes nothing.
  [[nodiscard]] bool due(std::uint32_t kv_head) const noexcept { return due_[kv_head]; }
  // The step's queries made the trigger fire in at least half of the KV heads, whether they would
  // have chosen anyway or not. Never so for triggers that look at no queries of their own.
  [[nodiscard]] bool fired() const noexcept { return fired_; }
  // It has chosen before, and nothing made that void.
  [[nodiscard]] bool has_chosen(std::uint32_t kv_head) const noexcept {
    return chosen_[kv_head] != 0;
  }
  // Vectors to score with, [query_heads][dim]; valid until the next observe().
  [[nodiscard]] const float* vectors() const noexcept { return vectors_; }
  // The head has chosen: its queries are the anchor of the cosine triggers.
  void chosen(std::uint32_t kv_head);
  // What was chosen is void (other tokens are stored now, or rows did not come): every head chooses
  // anew, also at this step.
  void forget() noexcept {
    chosen_.assign(chosen_.size(), 0);
    due_.assign(due_.size(), true);
  }
  // The next step does not go on from the last one: nothing of any before it counts. Not amid a
  // step.
  void reset() noexcept {
    forget();
    sum_count_ = 0;
    boundary_ = false;
    has_before_ = false;
  }
  [[nodiscard]] std::uint64_t memory_bytes() const noexcept;

 private:
  [[nodiscard]] bool fires(const Preset& preset, std::uint32_t kv_head) const;
  // Mean over query heads [first, last) of the cosine between q and `other`.
  [[nodiscard]] double cosine(const std::vector<float>& other, std::uint32_t first,
                              std::uint32_t last) const;
  void take_step_before(const Preset& preset);

  const float* q_ = nullptr;
  const float* vectors_ = nullptr;
  std::uint32_t kv_heads_ = 0;
  std::uint32_t group_ = 0;
  std::uint32_t dim_ = 0;
  std::uint64_t stored_tokens_ = 0;
  std::uint64_t visible_ = 0;
  bool block_ = false;
  bool boundary_ = false;
  bool after_boundary_ = false;    // the step before ended a sentence
  std::uint32_t sum_count_ = 0;    // steps in sum_
  std::vector<float> sum_, mean_;  // since the last boundary
  std::vector<float> anchor_;      // queries of the last choice, per head
  bool has_before_ = false;
  std::vector<float> before_;          // queries of the step before, where a part wants them
  std::vector<std::uint64_t> chosen_;  // steps since each KV head chose, + 1; 0: never
  std::vector<bool> due_;              // of this step, per KV head
  bool fired_ = false;
};

}  // namespace kvtier
