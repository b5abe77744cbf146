#include "daemon/upkeep.h"

#include <algorithm>
#include <cinttypes>

#include "base/log.h"
#include "daemon/engine_state.h"
#include "daemon/segment_files.h"
#include "daemon/stored_tail.h"

namespace kvtier {

namespace {

constexpr std::uint64_t kSecond = 1'000'000'000ull;
constexpr std::uint64_t kCheckEvery = 5 * kSecond;  // a look at every sequence

// ---- idle seal ----

bool may_seal(const EngineState& engine, const StoredSequence& sequence) {
  const std::uint64_t idle_ns = engine.options.idle_seal_s * kSecond;
  // Known to be whole: a log that is damaged stays for verify and repair to name.
  if (!sequence.log.loaded || sequence.log.suspect || sequence.log.tokens == 0) return false;
  return sequence.row.log_generation != 0 && !sequence.is_private && !sequence.removed &&
         !sequence.internal && sequence.open.empty() && !sequence.working && sequence.busy == 0 &&
         !sequence.writer_coming && sequence.row.last_used_unix_ns + idle_ns <= engine.wall_ns();
}

void end_seal(EngineState& engine, SequenceId id, bool sealed) {
  engine.upkeep.sealing = {};
  engine.upkeep.idle_seals += sealed ? 1 : 0;
  if (sealed) engine.upkeep.next_check_ns = engine.now_ns();  // there may be more
  StoredSequence* sequence = find_sequence(engine, id);
  if (sequence == nullptr) return;
  if (sequence->writer == nullptr) sequence->chain_known = false;
  // Not again at once where it failed.
  sequence->row.last_used_unix_ns = std::max(sequence->row.last_used_unix_ns, engine.wall_ns());
}

std::size_t start_idle_seal(EngineState& engine) {
  if (engine.upkeep.sealing.valid() || engine.read_only || engine.options.idle_seal_s == 0 ||
      engine.now_ns() < engine.upkeep.next_check_ns)
    return 0;
  engine.upkeep.next_check_ns = engine.now_ns() + kCheckEvery;
  for (auto& [id, sequence] : engine.sequences.all) {
    if (!may_seal(engine, *sequence)) continue;
    engine.upkeep.sealing = id;
    TailWork work;
    work.kind = TailWork::Kind::kOther;
    work.run = [&engine, id = id] {
      seal_stored_tail(engine, id, [&engine, id](Result<void> sealed) {
        end_seal(engine, id, sealed.has_value());
      });
    };
    add_work(engine, *sequence, std::move(work));
    return 1;
  }
  return 0;
}

// ---- scrub ----

struct Scrub {
  SegmentId segment;
  IoFactory make_io;
  std::uint64_t bytes = 0;
  Result<void> result;
};

// Worker: every chunk of one segment.
Result<void> read_segment(Scrub& scrub) {
  KVT_TRY(SegmentFiles files, SegmentFiles::open(scrub.make_io));
  KVT_TRY_VOID(files.begin(scrub.segment));
  const std::size_t chunks = files.meta().chunks.size();
  Result<void> result;
  for (std::uint32_t i = 0; i < chunks && result; ++i) {
    const Result<ByteSpan> chunk = files.read_chunk(i);
    if (!chunk) result = error(chunk.error());
  }
  scrub.bytes = files.bytes_read();
  files.end();
  return result;
}

void scrubbed(EngineState& engine, const Scrub& scrub) {
  UpkeepState& upkeep = engine.upkeep;
  upkeep.scrubbing = false;
  ++upkeep.scrubbed_segments;
  upkeep.scrubbed_bytes += scrub.bytes;
  if (engine.options.scrub_mb_per_s != 0)
    upkeep.scrub_due_ns = engine.now_ns() + scrub.bytes * 1000 / engine.options.scrub_mb_per_s;
  Segment* segment = find_segment(engine, scrub.segment);
  if (segment == nullptr) return;
  --segment->busy;
  if (!scrub.result && scrub.result.error().code == Code::kCorrupt)
    mark_bad(engine, *segment, "found by background verification: something in it");
}

// The segment with the smallest id from scrub_next on.
Segment* next_to_scrub(EngineState& engine) {
  Segment* next = nullptr;
  for (auto& [id, segment] : engine.segments.all) {
    if (id < engine.upkeep.scrub_next || segment->state != SegmentState::kOnDisk ||
        segment->condemned || segment->row.bad)
      continue;
    if (next == nullptr || id < next->row.id) next = segment.get();
  }
  return next;
}

std::size_t start_scrub(EngineState& engine) {
  UpkeepState& upkeep = engine.upkeep;
  if (engine.options.scrub_mb_per_s == 0 || upkeep.scrubbing ||
      engine.now_ns() < upkeep.scrub_due_ns)
    return 0;
  Segment* segment = next_to_scrub(engine);
  if (segment == nullptr) {  // a round is complete
    upkeep.scrub_rounds += upkeep.scrub_next.valid() ? 1 : 0;
    upkeep.scrub_next = {};
    upkeep.scrub_due_ns = engine.now_ns() + 60 * kSecond;
    return 0;
  }
  auto scrub = std::make_shared<Scrub>();
  scrub->segment = segment->row.id;
  scrub->make_io = engine.world.worker_io;
  ++segment->busy;
  upkeep.scrubbing = true;
  upkeep.scrub_next = SegmentId{segment->row.id.value + 1};
  run_on_worker(
      engine, [scrub] { scrub->result = read_segment(*scrub); },
      [&engine, scrub] { scrubbed(engine, *scrub); });
  return 1;
}

}  // namespace

std::size_t run_upkeep(EngineState& engine) {
  return start_idle_seal(engine) + start_scrub(engine);
}

std::uint64_t next_upkeep(const EngineState& engine) {
  std::uint64_t next = UINT64_MAX;
  if (engine.draining) return next;
  if (engine.options.scrub_mb_per_s != 0 && !engine.upkeep.scrubbing)
    next = engine.upkeep.scrub_due_ns;
  if (engine.options.idle_seal_s != 0 && !engine.sequences.all.empty() && !engine.read_only &&
      !engine.upkeep.sealing.valid())
    next = std::min(next, engine.upkeep.next_check_ns);
  return next;
}

}  // namespace kvtier
