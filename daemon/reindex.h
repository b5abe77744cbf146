// Reindexing: abstracts of stored segments are built anew from their keys, without the model: where
// sidecars were lost, or are doubted.
//
// One job at a time, and of it one lane of one segment after the other, on the workers that build
// what views want. It goes on when whoever asked has gone, and ends with the daemon. Engine's
// thread.
#pragma once

#include <cstdint>
#include <deque>
#include <span>

#include "daemon/control_ops.h"
#include "tiers/catalogue.h"

namespace kvtier {

// Of the job under way, or the last one.
struct ReindexTable {
  struct Item {
    SegmentId segment;
    std::uint32_t lane = 0;
  };
  std::deque<Item> waiting;
  bool running = false;
  bool at_work = false;   // on an item
  bool stepping = false;  // the loop over items goes on by itself: no recursion
  std::uint64_t segments = 0;
  std::uint64_t abstracts = 0;  // items
  std::uint64_t built = 0;
  std::uint64_t unwritten = 0;  // of them, without a sidecar: the day's write budget, the disk
  std::uint64_t failed = 0;     // keys or codebook cannot be read
  std::uint64_t gone = 0;       // their segment went meanwhile
};

[[nodiscard]] std::span<const ControlOp> reindex_ops();  // reindex, reindex_state

}  // namespace kvtier
