// Sealer: tail half -> segment.
//
//   engine: slots, id -> worker: tokens, chain -> engine: file made
//   -> slice by slice, worker: copy once, checksums, abstracts; engine: written, while the worker
//   is at the next
//   -> worker: metadata; engine: written -> fdatasync -> directory synced -> catalogue batch synced
//   -> published: parts, directories, prefix index, completion
//
// Nothing is visible before the batch is durable; a crash before leaves a file without a row, which
// recovery removes. At most kSealsAtOnce run; others wait in order. The copied chunks stay in the
// host arena as far as their share of it allows, filled from the front so that the suffix is
// evicted first. A private sequence's segment has no file: all of its chunks are pinned. Engine's
// thread; the worker touches only its SealJob.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "daemon/abstracts.h"
#include "daemon/sequences.h"
#include "kernels/kernel_table.h"

namespace kvtier {

inline constexpr std::uint32_t kSealsAtOnce = 2;

// What a worker needs for the copy, and the copy itself. Constant after the copy; kept until nobody
// reads it any more.
struct SealJob {
  SequenceId sequence;
  StoredSpace* space = nullptr;
  std::shared_ptr<TailMemory> tail;
  std::uint32_t half = 0;
  std::uint32_t count = 0;
  bool in_memory = false;
  const PlaneLayout* layout = nullptr;
  std::shared_ptr<HostArena> arena;  // keeps the slots' memory mapped
  std::vector<SlotId> slots;         // by chunk index; invalid: in `overflow`
  std::vector<std::byte*> chunks;    // where each chunk lies
  AlignedBuffer overflow;
  SegmentMeta meta;
  AlignedBuffer meta_buffer;
  SegmentRow row;
  BlockHash chain;  // before, then after
  std::vector<std::uint32_t> open_ids;

  const KernelTable* kernels = nullptr;
  std::vector<SealLane> lanes;            // to build
  std::vector<SealedAbstract> abstracts;  // each slice fills its layers

  // engine's
  FileId file;
  std::uint64_t reserved_bytes = 0;
  std::uint32_t next_layer = 0;  // of the next slice
  std::uint32_t slices_under_way = 0;
  std::uint32_t writes_under_way = 0;
  Status failure;
  std::uint64_t work_ns = 0;  // of workers
  TailDone done;
};

struct SealTable {
  std::uint32_t running = 0;
  std::uint64_t reserved_bytes = 0;  // of files that are being written
  std::deque<std::function<void()>> waiting;
};

// Runs the work at the head of the sequence's queue.
void start_seal(EngineState& engine, StoredSequence& sequence, const TailWork& work);

}  // namespace kvtier
