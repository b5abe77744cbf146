#include "daemon/sealer.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/fault.h"
#include "base/log_limit.h"
#include "client/ipc/shared_copy.h"
#include "daemon/abstracts.h"
#include "daemon/committer.h"
#include "daemon/directory.h"
#include "daemon/engine_state.h"
#include "daemon/reclaim.h"
#include "daemon/seal_copy.h"

namespace kvtier {

namespace {

// A seal keeps at most a quarter of the arena, or what is free.
constexpr std::uint64_t kArenaShareOfSeal = 4;
constexpr std::uint64_t kSliceBytes = 4ull << 20;  // layers that a worker copies at a time
constexpr std::uint32_t kSlicesAtOnce = 2;         // of one seal

using Job = std::shared_ptr<SealJob>;

// ---- engine ----

StoredSequence& sequence_of(EngineState& engine, const Job& job) {
  return *engine.sequences.all.at(job->sequence);
}

void next_seal(EngineState& engine) {
  if (engine.seals.running >= kSealsAtOnce || engine.seals.waiting.empty()) return;
  const std::function<void()> start = std::move(engine.seals.waiting.front());
  engine.seals.waiting.pop_front();
  start();
}

// Slots for as many chunks as the seal may keep, from the front; the others get private memory.
// False where a segment that lives in memory only does not fit.
bool place_chunks(EngineState& engine, SealJob& job) {
  const HostArenaStats stats = engine.arena->stats();
  const std::uint64_t share =
      std::max(stats.size_bytes - stats.used_bytes, stats.size_bytes / kArenaShareOfSeal);
  const std::uint32_t total = job.layout->chunks_total();
  job.slots.assign(total, SlotId{});
  job.chunks.assign(total, nullptr);
  std::uint64_t kept = 0, private_bytes = 0;
  bool full = false;
  SlotId near;
  for (std::uint32_t i = 0; i < total; ++i) {
    const std::uint64_t bytes = job.space->row.geometry.slot_bytes(job.layout->place_of(i).layer);
    full = full || (!job.in_memory && kept + bytes > share);
    Result<SlotId> slot = error(Code::kFull);
    if (!full) slot = engine.arena->allocate(bytes, {job.row.id.value, i}, near);
    if (slot) {
      job.slots[i] = near = *slot;
      kept += bytes;
      continue;
    }
    if (job.in_memory) return false;
    full = true;
    private_bytes += bytes;
  }
  job.overflow = AlignedBuffer(private_bytes);
  std::uint64_t offset = 0;
  for (std::uint32_t i = 0; i < total; ++i) {
    if (job.slots[i].valid()) {
      job.chunks[i] = engine.arena->data(job.slots[i]);
      continue;
    }
    job.chunks[i] = job.overflow.data() + offset;
    offset += job.space->row.geometry.slot_bytes(job.layout->place_of(i).layer);
  }
  return true;
}

void free_slots(EngineState& engine, SealJob& job) {
  for (SlotId& slot : job.slots) {
    if (slot.valid()) engine.arena->free(slot);
    slot = {};
  }
}

void end_seal(EngineState& engine, const Job& job, Result<TailResult> result) {
  --engine.seals.running;
  engine.seals.reserved_bytes -= std::exchange(job->reserved_bytes, 0);
  StoredSequence& sequence = sequence_of(engine, job);
  if (!result) {
    ++engine.metrics.seal_failures;
    static LogLimit limit;
    limit.warn(engine.now_ns(), static_cast<int>(result.error().code),
               "sequence %" PRIx64 ": seal failed: %s", job->sequence.value,
               result.error().message());
  }
  --sequence.busy;
  // What is queued behind a failed seal counted on it.
  const OpenSequence* const writer = sequence.writer;
  const std::uint32_t serial = writer != nullptr ? writer->serial : 0;
  if (job->done) job->done(result);
  if (!result && serial != 0) cancel_work(engine, sequence, serial);
  work_finished(engine, sequence);
  next_seal(engine);
}

// Nothing was published: the half is the client's again. `keep_file`: a row that names it may be on
// the disk.
void fail_seal(EngineState& engine, const Job& job, const Status& status, bool keep_file = false) {
  free_slots(engine, *job);
  if (job->file.value != 0) {
    engine.io->io().close(job->file);
    if (!keep_file) static_cast<void>(engine.io->io().unlink(segment_path(job->row.id)));
  }
  end_seal(engine, job, error(status));
}

// Everything is durable (or may stay in memory): now it may be seen.
void publish_seal(EngineState& engine, const Job& job) {
  StoredSequence& sequence = sequence_of(engine, job);
  const bool same_writer = sequence.chain_known;
  if (!job->in_memory) engine.io->io().close(job->file);
  Segment& segment = add_segment(engine, job->row, *job->space,
                                 job->in_memory ? SegmentState::kInMemory : SegmentState::kOnDisk);
  prepare_residency(segment);
  TokenTexts texts = std::move(job->meta.texts);
  job->meta.snapshot.clear();  // in the file; what stays loaded needs neither
  keep_meta(engine, segment, make_loaded_meta(std::move(job->meta), *job->layout));
  for (std::uint32_t i = static_cast<std::uint32_t>(job->slots.size()); i-- > 0;) {
    const SlotId slot = job->slots[i];
    if (!slot.valid()) continue;
    if (job->in_memory) engine.arena->pin(slot);
    engine.arena->set_ready(slot);  // from the back: the suffix is colder
    set_resident(segment, i, slot, engine.arena->slot_bytes(slot));
  }
  if (!job->in_memory) {
    if (!sequence.log.generations().empty()) drop_log(engine, sequence);
    index_segment(segment);
  }
  if (same_writer) {
    sequence.chain = job->chain;
    sequence.open_ids = job->open_ids;
  }
  if (sequence.writer != nullptr) sequence.writer->tail->texts[job->half] = {};
  if (job->in_memory && !texts.empty())
    engine.private_texts.emplace(segment.row.id, std::move(texts));
  for (const SealedAbstract& built : job->abstracts) install_sealed(engine, segment, built, job);
  append_part(engine, sequence, segment);
  release_unwanted(engine, segment);
  ++(job->in_memory ? engine.metrics.seals_in_memory : engine.metrics.seals);
  engine.metrics.seal_tokens += job->count;
  engine.metrics.seal_bytes += job->in_memory ? 0 : job->row.file_bytes;
  end_seal(engine, job, TailResult{segment.row.id.value, sequence.tokens_sealed});
}

using Next = void (*)(EngineState& engine, const Job& job);

void write_catalogue(EngineState& engine, const Job& job, Next next) {
  StoredSequence& sequence = sequence_of(engine, job);
  if (KVT_FAULT("seal.directory_synced")) return fail_seal(engine, job, {Code::kIo, 0, "injected"});
  const std::uint64_t log_before = sequence.row.log_generation;
  const bool was_in_catalogue = sequence.in_catalogue;
  sequence.row.parts.push_back({job->row.id, job->count});
  sequence.row.log_generation = 0;
  sequence.row.last_used_unix_ns = engine.wall_ns();
  sequence.row.provisional = false;
  sequence.in_catalogue = true;
  CatalogueBatch batch;
  batch.put_segment(job->row);
  batch.put_sequence(sequence.row);
  batch.put_number("next_segment", engine.segments.next_id);
  batch.put_number("next_sequence", engine.sequences.reserved_until);
  post_batch(engine, std::move(batch), true,
             [&engine, job, next, log_before, was_in_catalogue](Result<void> result) {
               if (result && !KVT_FAULT("seal.published")) {
                 sequence_of(engine, job).row_durable = true;
                 return next(engine, job);
               }
               StoredSequence& found = sequence_of(engine, job);
               found.row.parts.pop_back();
               found.row.log_generation = log_before;
               found.in_catalogue = was_in_catalogue;
               // The batch may have reached the disk all the same: take it back before the file
               // goes.
               CatalogueBatch undo;
               undo.remove_segment(job->row.id);
               was_in_catalogue ? undo.put_sequence(found.row) : undo.remove_sequence(found.row.id);
               const Status status = result ? Status{Code::kIo, 0, "injected"} : result.error();
               post_batch(engine, std::move(undo), true,
                          [&engine, job, status](Result<void> undone) {
                            // Not even that: the next commit must say anew in the catalogue which
                            // log counts.
                            StoredSequence& left = sequence_of(engine, job);
                            if (!undone) {
                              left.row_in_doubt = left.log.suspect = true;
                              engine.sequences.segments_left.push_back(job->row.id);
                            }
                            fail_seal(engine, job, status, !undone);
                          });
             });
}

void sync_file(EngineState& engine, const Job& job, Next next) {
  if (KVT_FAULT("seal.written")) return fail_seal(engine, job, {Code::kIo, 0, "injected"});
  IoRequest sync;
  sync.op = IoOp::kSync;
  sync.priority = IoPriority::kWriteBack;
  sync.file = job->file;
  sync.done = [&engine, job, next](Result<void> synced) {
    if (!synced) return fail_seal(engine, job, synced.error());
    if (KVT_FAULT("seal.synced")) return fail_seal(engine, job, {Code::kIo, 0, "injected"});
    sync_directory(engine, "segments", IoPriority::kWriteBack,
                   [&engine, job, next](Result<void> named) {
                     named ? next(engine, job) : fail_seal(engine, job, named.error());
                   });
  };
  engine.io->submit(std::move(sync));
}

// The file and its name are durable before a row names them.
void make_durable(EngineState& engine, const Job& job) {
  if (KVT_FAULT("seal.publish_early"))  // what must never be, tests only: the row comes first
    return write_catalogue(engine, job, [](EngineState& same, const Job& written) {
      sync_file(same, written, publish_seal);
    });
  sync_file(engine, job, [](EngineState& same, const Job& synced) {
    write_catalogue(same, synced, publish_seal);
  });
}

// ---- the file ----

void step_seal(EngineState& engine, const Job& job);

// Gathers what lies one after the other in the file into writes of at most kReadBytesMax.
class WriteGatherer {
 public:
  void add(std::byte* data, std::uint64_t size, std::uint64_t offset) {
    if (!write_.pieces.empty() &&
        (bytes_ + size > kReadBytesMax || write_.pieces.size() == kIoVecsMax))
      cut();
    if (write_.pieces.empty()) {
      write_.op = IoOp::kWrite;
      write_.offset = offset;
    }
    if (!write_.pieces.empty() &&
        write_.pieces.back().data + write_.pieces.back().size_bytes == data)
      write_.pieces.back().size_bytes += size;
    else
      write_.pieces.push_back({data, size});
    bytes_ += size;
  }
  std::vector<IoRequest> take() {
    if (!write_.pieces.empty()) cut();
    return std::move(writes_);
  }

 private:
  void cut() {
    writes_.push_back(std::move(write_));
    write_ = IoRequest{};
    bytes_ = 0;
  }

  std::vector<IoRequest> writes_;
  IoRequest write_;
  std::uint64_t bytes_ = 0;
};

void submit_to_file(EngineState& engine, const Job& job, IoRequest request) {
  ++job->writes_under_way;
  request.priority = IoPriority::kWriteBack;
  request.file = job->file;
  request.done = [&engine, job](Result<void> result) {
    if (!result && job->failure.ok()) job->failure = result.error();
    --job->writes_under_way;
    step_seal(engine, job);
  };
  engine.io->submit(std::move(request));
}

void submit_writes(EngineState& engine, const Job& job, std::vector<IoRequest> writes) {
  for (IoRequest& write : writes) submit_to_file(engine, job, std::move(write));
}

// The file's length is known: writes that make a file longer would wait for each other.
void allocate_file(EngineState& engine, const Job& job) {
  IoRequest room;
  room.op = IoOp::kAllocate;
  room.offset = job->row.file_bytes;
  submit_to_file(engine, job, std::move(room));
}

void write_slice(EngineState& engine, const Job& job, const SealSlice& slice) {
  WriteGatherer writes;
  for (std::uint32_t i = slice.first_chunk; i < slice.last_chunk; ++i)
    writes.add(job->chunks[i], job->space->row.geometry.slot_bytes(job->layout->place_of(i).layer),
               job->meta.chunks[i].offset);
  submit_writes(engine, job, writes.take());
}

void write_meta(EngineState& engine, const Job& job) {
  WriteGatherer writes;
  const AlignedBuffer& meta = job->meta_buffer;
  for (std::uint64_t at = 0; at < meta.size_bytes(); at += kReadBytesMax)
    writes.add(meta.data() + at, std::min(kReadBytesMax, meta.size_bytes() - at), at);
  submit_writes(engine, job, writes.take());
}

// ---- slices ----

// The next layers, as many as kSliceBytes hold and at least one.
SealSlice next_slice(SealJob& job) {
  const Geometry& geometry = job.space->row.geometry;
  SealSlice slice;
  slice.first_layer = slice.last_layer = job.next_layer;
  std::uint64_t bytes = 0;
  const auto layers = static_cast<std::uint32_t>(geometry.layers.size());
  const auto layer_chunks = [&](std::uint32_t layer) {
    return job.layout->chunks_per_layer() * geometry.groups(layer);
  };
  for (std::uint32_t i = 0; i < job.next_layer; ++i) slice.first_chunk += layer_chunks(i);
  slice.last_chunk = slice.first_chunk;
  while (slice.last_layer < layers) {
    const std::uint32_t chunks = layer_chunks(slice.last_layer);
    const std::uint64_t more = std::uint64_t{chunks} * geometry.slot_bytes(slice.last_layer);
    if (bytes != 0 && bytes + more > kSliceBytes) break;
    bytes += more;
    slice.last_chunk += chunks;
    ++slice.last_layer;
  }
  job.next_layer = slice.last_layer;
  return slice;
}

// Runs `work` for this seal on a worker and counts its time.
void work_on_seal(EngineState& engine, const Job& job, std::function<void()> work,
                  std::function<void()> done) {
  auto spent_ns = std::make_shared<std::uint64_t>(0);
  run_on_worker(
      engine,
      [&engine, work = std::move(work), spent_ns] {
        const std::uint64_t begin_ns = engine.now_ns();
        work();
        *spent_ns = engine.now_ns() - begin_ns;
      },
      [job, done = std::move(done), spent_ns] {
        job->work_ns += *spent_ns;
        done();
      });
}

void begin_slice(EngineState& engine, const Job& job) {
  ++job->slices_under_way;
  auto slice = std::make_shared<SealSlice>(next_slice(*job));
  work_on_seal(
      engine, job, [job, slice] { copy_seal_slice(*job, slice.get()); },
      [&engine, job, slice] {
        --job->slices_under_way;
        for (const std::size_t i : slice->failed) job->abstracts[i].failed = true;
        if (!job->in_memory && job->failure.ok()) write_slice(engine, job, *slice);
        step_seal(engine, job);
      });
}

void copied(EngineState& engine, const Job& job) {
  job->tail.reset();
  engine.metrics.seal_work_ns += job->work_ns;
  engine.metrics.seal_work_bytes += job->layout->size_bytes();
  if (job->in_memory) return publish_seal(engine, job);
  if (KVT_FAULT("seal.copied")) job->failure = {Code::kIo, 0, "injected"};
  if (!job->failure.ok()) return step_seal(engine, job);
  ++job->slices_under_way;
  work_on_seal(
      engine, job, [job] { encode_seal_meta(*job); },
      [&engine, job] {
        --job->slices_under_way;
        write_meta(engine, job);
        step_seal(engine, job);
      });
}

// Something of the seal has ended: what comes next?
void step_seal(EngineState& engine, const Job& job) {
  const std::size_t layers = job->space->row.geometry.layers.size();
  while (job->failure.ok() && job->next_layer < layers && job->slices_under_way < kSlicesAtOnce)
    begin_slice(engine, job);
  if (job->slices_under_way != 0) return;
  if (job->failure.ok() && job->tail != nullptr) return copied(engine, job);
  if (job->writes_under_way != 0) return;
  job->failure.ok() ? make_durable(engine, job) : fail_seal(engine, job, job->failure);
}

void make_file(EngineState& engine, const Job& job) {
  if (const Result<void> room = reserve_disk(engine, job->row.file_bytes); !room)
    return fail_seal(engine, job, room.error());
  job->reserved_bytes = job->row.file_bytes;
  engine.seals.reserved_bytes += job->reserved_bytes;
  Result<FileId> file =
      engine.io->io().open(segment_path(job->row.id),
                           {.mode = OpenMode::kCreateNew, .direct = engine.options.direct_io});
  if (!file) return fail_seal(engine, job, file.error());
  job->file = *file;
  allocate_file(engine, job);
  step_seal(engine, job);
}

void run_seal(EngineState& engine, const Job& job) {
  ++engine.seals.running;
  StoredSequence& sequence = sequence_of(engine, job);
  job->row.id = SegmentId{engine.segments.next_id++};
  job->row.start_token = sequence.tokens_sealed;
  if (!sequence.parts.empty()) {
    job->row.parent = sequence.parts.back().segment->row.id;
    job->row.parent_visible = sequence.parts.back().visible_tokens;
  }
  job->row.created_unix_ns = job->row.last_used_unix_ns = engine.wall_ns();
  job->meta.id = job->row.id;
  job->meta.space = job->row.space;
  job->meta.fingerprint = job->space->row.digest;
  job->meta.geometry = job->space->row.geometry;
  job->meta.parent = job->row.parent;
  job->meta.parent_visible = job->row.parent_visible;
  job->meta.start_token = job->row.start_token;
  job->meta.created_unix_ns = job->row.created_unix_ns;
  if (!place_chunks(engine, *job))
    return fail_seal(engine, job,
                     {Code::kFull, 0, "a private sequence does not fit in the host arena"});
  work_on_seal(
      engine, job, [job] { copy_seal_tokens(*job); },
      [&engine, job] { job->in_memory ? step_seal(engine, job) : make_file(engine, job); });
}

// Of the first seal after a truncate.
void learn_chain_first(EngineState& engine, StoredSequence& sequence, const TailWork& work) {
  learn_chain(engine, sequence, [&engine, id = sequence.row.id, work](Result<void> known) {
    StoredSequence& found = *engine.sequences.all.at(id);
    const bool same_writer = found.writer != nullptr && found.writer->serial == work.handle_serial;
    if (known && same_writer) return start_seal(engine, found, work);
    if (found.writer == nullptr) found.chain_known = false;
    if (known) known = error(Code::kStale, "the sequence is not open for writing any more");
    if (work.done) work.done(error(known.error()));
    work_finished(engine, found);
  });
}

}  // namespace

void start_seal(EngineState& engine, StoredSequence& sequence, const TailWork& work) {
  const auto refuse = [&](Code code, const char* text) {
    TailDone done = work.done;
    if (done) done(error(code, text));
    work_finished(engine, sequence);
  };
  if (const auto continues = check_continues(sequence, work); !continues)
    return refuse(continues.error().code, continues.error().text);
  if (work.count < sequence.log.tokens ||
      (sequence.log.tokens != 0 && work.half != sequence.log.half))
    return refuse(Code::kInvalid, "a seal names fewer tokens than are committed");
  if (sequence.tokens_sealed + work.count > kSequenceTokensMax ||
      sequence.parts.size() >= kSequenceSegmentsMax)
    return refuse(Code::kTooLarge, "the sequence has its maximum of tokens or segments");
  if (!sequence.chain_known) return learn_chain_first(engine, sequence, work);
  if (engine.read_only && !sequence.is_private)
    return refuse(Code::kReadOnly, "the store takes no writes");
  if (work.closing && !admit_at_close(engine, sequence, work)) {
    TailDone done = work.done;
    if (done) done(TailResult{0, sequence.tokens_sealed});
    return work_finished(engine, sequence);
  }
  auto job = std::make_shared<SealJob>();
  job->sequence = sequence.row.id;
  job->space = sequence.space;
  job->tail = work.tail;
  job->half = work.half;
  job->count = work.count;
  job->in_memory = sequence.is_private;
  job->layout = &sequence.space->layout_of(work.count);
  job->arena = engine.arena;
  job->done = work.done;
  job->kernels = engine.kernels;
  job->lanes = lanes_at_seal(engine, sequence);
  job->chain = sequence.chain;
  job->open_ids = sequence.open_ids;
  job->row.space = sequence.row.space;
  job->row.tokens = work.count;
  if (!work.tail->texts[work.half].empty())
    job->meta.texts.append(work.tail->texts[work.half], 0, work.count);
  job->meta.snapshot = std::move(work.tail->snapshot);
  ++sequence.busy;
  if (engine.seals.running < kSealsAtOnce) return run_seal(engine, job);
  engine.seals.waiting.push_back([&engine, job] { run_seal(engine, job); });
}

}  // namespace kvtier
