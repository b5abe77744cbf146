#include "daemon/committer.h"

#include <cinttypes>
#include <cstring>

#include "base/check.h"
#include "base/fault.h"
#include "base/log_limit.h"
#include "daemon/engine_state.h"
#include "daemon/log_reader.h"
#include "daemon/reclaim.h"
#include "tiers/tail_log_format.h"

namespace kvtier {

namespace {

constexpr std::uint64_t kBufferBytes = 1ull << 20;  // a record is as many tokens as fit into it
constexpr std::uint32_t kRecordsAtOnce = 3;         // of one commit: encoded or being written
constexpr std::size_t kSpareBuffers = 4;            // kept: fresh memory costs as much as the copy
// A commit up to this is encoded by the engine itself, in records that take it less time than the
// way to a worker and back.
constexpr std::uint64_t kAtOnceBytes = 2ull << 20;
constexpr std::uint64_t kAtOnceRecordBytes = 256ull << 10;

// One commit. The worker reads what is constant; the engine's thread has the rest.
struct CommitJob {
  // constant once it runs
  SequenceId sequence;
  std::shared_ptr<TailMemory> tail;
  StoredSpace* space = nullptr;
  TailLogHeader header;
  bool new_file = false;
  std::uint32_t half = 0;
  std::uint32_t first = 0;  // tokens of the half that the log has
  std::uint32_t count = 0;  // tokens of the half that it will have
  std::uint64_t offset = 0;
  std::uint64_t order = 0;
  std::uint32_t step = 0;  // tokens of one record at most
  TokenTexts texts;        // of tokens from `first` on
  std::uint64_t reserved_bytes = 0;
  bool began = false;      // something may have reached the disk
  bool by_engine = false;  // encoded by the engine's thread
  // engine's
  FileId file;
  std::uint64_t records = 0;   // begun
  std::uint64_t bytes = 0;     // handed to the disk
  std::uint32_t at_once = 0;   // records encoded or being written
  bool encoding = false;       // one of them: they go to the disk in order
  std::uint32_t next = 0;      // first token of the next record
  bool done_encoding = false;  // no further record
  Status failure;
  TailDone done;
};

using Job = std::shared_ptr<CommitJob>;

// Some of a commit's tokens on their way into the log.
struct Record {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
  std::uint64_t order = 0;
  bool begins_file = false;  // the file's header goes in front
  TokenTexts texts;
  AlignedBuffer buffer;
  std::uint64_t bytes = 0;
};

// Worker.
void encode(const CommitJob& job, Record& record) {
  const MutableByteSpan room = record.buffer.span();
  if (record.begins_file) {
    const std::vector<std::byte> header = encode_tail_log_header(job.header);
    std::memcpy(room.data(), header.data(), header.size());
    record.bytes = header.size();
    if (record.count == 0) return;
  }
  TailRecordSource source;
  source.header = &job.header;
  source.geometry = &job.space->row.geometry;
  source.layout = &job.tail->layout->plane;
  source.tokens = reinterpret_cast<const TokenRecord*>(job.tail->tokens(job.half));
  source.plane = job.tail->plane(job.half);
  source.first = record.first;
  source.count = record.count;
  source.start_token = job.header.base_token + record.first;
  source.order = record.order;
  source.begins_commit = record.order == job.order;
  source.texts = &record.texts;
  const std::uint64_t bytes =
      tail_record_bytes(*source.geometry, source.count, record.texts.encoded_bytes());
  encode_tail_record(source, room.subspan(static_cast<std::size_t>(record.bytes),
                                          static_cast<std::size_t>(bytes)));
  record.bytes += bytes;
}

void finish(EngineState& engine, const Job& job, Result<void> result) {
  StoredSequence& sequence = *engine.sequences.all.at(job->sequence);
  TailLog& log = sequence.log;
  engine.sequences.commit_bytes_reserved -= job->reserved_bytes;
  if (result) {
    engine.metrics.commits += 1;
    engine.metrics.commit_tokens += job->count - std::min(job->first, job->count);
    engine.metrics.commit_bytes += job->bytes;
    log.end_offset = job->offset + job->bytes;
    log.file_bytes = job->new_file ? log.end_offset : std::max(log.file_bytes, log.end_offset);
    log.next_order = job->order + job->records;
    log.tokens = job->count;
    log.half = job->half;
    log.suspect = false;
  } else {
    log.suspect = log.suspect || job->began;
    // What it left there counts until the next commit's file takes the place.
    if (job->began && !job->new_file)
      log.file_bytes = std::max(log.file_bytes, engine.io->io().size_bytes(job->file).value_or(0));
    ++engine.metrics.commit_failures;
    static LogLimit limit;
    limit.warn(engine.now_ns(), static_cast<int>(result.error().code),
               "sequence %" PRIx64 ": commit failed: %s", job->sequence.value,
               result.error().message());
  }
  --sequence.busy;
  if (job->done)
    job->done(result ? Result<TailResult>(TailResult{0, sequence.tokens()})
                     : error(result.error()));
  work_finished(engine, sequence);
}

// A log that did not come to be: nothing names it.
void abandon_file(EngineState& engine, CommitJob& job) {
  if (job.file.value == 0) return;
  engine.io->io().close(job.file);
  static_cast<void>(engine.io->io().unlink(tail_log_path(job.sequence, job.header.generation)));
}

void remove_log_files(EngineState& engine, SequenceId sequence, TailLog& log, LogFile file) {
  if (log.file.value != 0) engine.io->io().close(log.file);
  if (file == LogFile::kUnlink) {
    for (const std::uint64_t generation : log.generations())
      static_cast<void>(engine.io->io().unlink(tail_log_path(sequence, generation)));
  }
  log.unnamed.clear();
  log.file = {};
}

// New generation: the row that names it must be durable before the commit is acknowledged.
void publish_new_log(EngineState& engine, const Job& job) {
  StoredSequence& sequence = *engine.sequences.all.at(job->sequence);
  const std::uint64_t before = sequence.row.log_generation;
  sequence.row.log_generation = job->header.generation;
  sequence.row.last_used_unix_ns = engine.wall_ns();
  sequence.row.provisional = false;
  sequence.in_catalogue = true;
  CatalogueBatch batch;
  batch.put_sequence(sequence.row);
  batch.put_number("next_log", engine.sequences.next_log);
  batch.put_number("next_sequence", engine.sequences.reserved_until);
  post_batch(engine, std::move(batch), true, [&engine, job, before](Result<void> result) {
    StoredSequence& found = *engine.sequences.all.at(job->sequence);
    if (!result) {
      found.row.log_generation = before;
      found.row_in_doubt = true;
      found.log.unnamed.push_back({job->header.generation, job->bytes});
      engine.io->io().close(job->file);
      return finish(engine, job, result);
    }
    found.row_durable = true;
    remove_log_files(engine, job->sequence, found.log, LogFile::kUnlink);
    found.log.generation = job->header.generation;
    found.log.file = job->file;
    finish(engine, job, {});
  });
}

// And its name before the row.
void name_new_log(EngineState& engine, const Job& job) {
  const auto named = [&engine, job](Result<void> result) {
    if (result) return publish_new_log(engine, job);
    abandon_file(engine, *job);
    finish(engine, job, result);
  };
  if (KVT_FAULT("log.created")) return named(error(Code::kIo, "injected"));
  sync_directory(engine, "logs", IoPriority::kCommit, named);
}

void sync_commit(EngineState& engine, const Job& job, Result<void> written) {
  if (written && KVT_FAULT("commit.appended")) written = error(Code::kIo, "injected");
  if (!written) {
    if (job->new_file) abandon_file(engine, *job);
    return finish(engine, job, written);
  }
  IoRequest sync;
  sync.op = IoOp::kSync;
  sync.priority = IoPriority::kCommit;
  sync.file = job->file;
  sync.done = [&engine, job](Result<void> synced) {
    if (synced && KVT_FAULT("commit.synced")) synced = error(Code::kIo, "injected");
    if (synced && job->new_file) return name_new_log(engine, job);
    if (!synced && job->new_file) abandon_file(engine, *job);
    finish(engine, job, synced);
  };
  engine.io->submit(std::move(sync));
}

// ---- records: one is encoded while those before it are written ----

void go_on(EngineState& engine, const Job& job);

AlignedBuffer take_buffer(EngineState& engine, std::uint64_t bytes) {
  std::vector<AlignedBuffer>& spare = engine.sequences.commit_buffers;
  if (bytes > kBufferBytes || spare.empty())
    return AlignedBuffer(std::max<std::uint64_t>(bytes, kBufferBytes));
  AlignedBuffer buffer = std::move(spare.back());
  spare.pop_back();
  return buffer;
}

void give_buffer_back(EngineState& engine, AlignedBuffer buffer) {
  std::vector<AlignedBuffer>& spare = engine.sequences.commit_buffers;
  if (buffer.size_bytes() == kBufferBytes && spare.size() < kSpareBuffers)
    spare.push_back(std::move(buffer));
}

void write_record(EngineState& engine, const Job& job, const std::shared_ptr<Record>& record) {
  job->encoding = false;
  IoRequest write;
  write.op = IoOp::kWrite;
  write.priority = IoPriority::kCommit;
  write.file = job->file;
  write.offset = job->offset + job->bytes;
  write.pieces.push_back({record->buffer.data(), record->bytes});
  job->bytes += record->bytes;
  write.done = [&engine, job, record](Result<void> written) {
    give_buffer_back(engine, std::move(record->buffer));
    if (!written && job->failure.ok()) job->failure = written.error();
    --job->at_once;
    go_on(engine, job);
  };
  engine.io->submit(std::move(write));
  go_on(engine, job);
}

void begin_record(EngineState& engine, const Job& job) {
  auto record = std::make_shared<Record>();
  record->first = job->next;
  record->count = std::min(job->step, job->count - job->next);
  record->order = job->order + job->records;
  record->begins_file = job->new_file && job->bytes == 0;
  if (!job->texts.empty())
    record->texts.append(job->texts, record->first - job->first, record->count);
  const std::uint64_t head_bytes = record->begins_file ? kTailLogHeaderBytes : 0;
  const std::uint64_t bytes =
      head_bytes +
      tail_record_bytes(job->space->row.geometry, record->count, record->texts.encoded_bytes());
  record->buffer = take_buffer(engine, bytes);
  job->next += record->count;
  job->records += record->begins_file && record->count == 0 ? 0 : 1;
  job->done_encoding = job->next == job->count;
  ++job->at_once;
  job->encoding = true;
  if (job->by_engine) {
    encode(*job, *record);
    return write_record(engine, job, record);
  }
  run_on_worker(
      engine, [job, record] { encode(*job, *record); },
      [&engine, job, record] { write_record(engine, job, record); });
}

void go_on(EngineState& engine, const Job& job) {
  while (!job->encoding && !job->done_encoding && job->failure.ok() &&
         job->at_once < kRecordsAtOnce)
    begin_record(engine, job);
  if (job->at_once != 0) return;
  sync_commit(engine, job, job->failure.ok() ? Result<void>() : error(job->failure));
}

std::shared_ptr<CommitJob> make_job(EngineState& engine, StoredSequence& sequence,
                                    std::shared_ptr<TailMemory> tail, std::uint32_t half,
                                    std::uint32_t first, std::uint32_t count) {
  auto job = std::make_shared<CommitJob>();
  const TailLog& log = sequence.log;
  job->sequence = sequence.row.id;
  job->space = sequence.space;
  job->half = half;
  job->new_file = log.generation == 0 || log.suspect || log.file.value == 0;
  job->first = job->new_file ? 0 : first;
  job->count = count;
  job->header =
      log_header_of(sequence, job->new_file ? engine.sequences.next_log++ : log.generation);
  job->offset = job->new_file ? 0 : log.end_offset;
  job->order = job->new_file ? 0 : log.next_order;
  job->next = job->first;
  if (!tail->texts[half].empty())
    job->texts.append(tail->texts[half], job->first, job->count - job->first);
  job->tail = std::move(tail);
  const Geometry& geometry = job->space->row.geometry;
  job->by_engine = tail_record_bytes(geometry, count - job->first) <= kAtOnceBytes;
  job->step = tail_record_tokens_max(
      geometry, (job->by_engine ? kAtOnceRecordBytes : kBufferBytes) - kTailLogHeaderBytes);
  ++sequence.busy;
  return job;
}

// Each record is padded for itself.
std::uint64_t bytes_of_records(const CommitJob& job) {
  std::uint64_t bytes = 0;
  for (std::uint32_t first = job.first; first < job.count; first += job.step) {
    const std::uint32_t count = std::min(job.step, job.count - first);
    TokenTexts texts;
    if (!job.texts.empty()) texts.append(job.texts, first - job.first, count);
    bytes += tail_record_bytes(job.space->row.geometry, count, texts.encoded_bytes());
  }
  return bytes;
}

// Of many records, or each would wait for the one before to make the file longer. Counts as one.
void allocate_records(EngineState& engine, const Job& job, std::uint64_t end) {
  ++job->at_once;
  IoRequest room;
  room.op = IoOp::kAllocate;
  room.priority = IoPriority::kCommit;
  room.file = job->file;
  room.offset = end;
  room.done = [&engine, job](Result<void> allocated) {
    if (!allocated && job->failure.ok()) job->failure = allocated.error();
    --job->at_once;
    go_on(engine, job);
  };
  engine.io->submit(std::move(room));
}

void run_commit(EngineState& engine, const Job& job) {
  std::uint64_t bytes = bytes_of_records(*job);
  const std::uint64_t end = job->offset + (job->new_file ? kTailLogHeaderBytes : 0) + bytes;
  // A new file takes the place of those before: what cuts a log fits under the limit, unless rows
  // keep failing: each failure leaves a file.
  const TailLog& log = engine.sequences.all.at(job->sequence)->log;
  const std::uint64_t before = log.unnamed.size() < 2 ? log.all_bytes() : 0;
  if (job->new_file) bytes += kTailLogHeaderBytes;
  const std::uint64_t written = bytes;
  if (job->new_file) bytes -= std::min(before, bytes);
  const Result<void> room = reserve_disk(engine, bytes, written);
  if (!room) return finish(engine, job, error(room.error()));
  job->reserved_bytes = bytes;
  engine.sequences.commit_bytes_reserved += bytes;
  if (job->new_file) {
    const Result<FileId> file =
        engine.io->io().open(tail_log_path(job->sequence, job->header.generation),
                             {.mode = OpenMode::kCreateNew, .direct = engine.options.direct_io});
    if (!file) return finish(engine, job, error(file.error()));
    job->file = *file;
  } else {
    job->file = engine.sequences.all.at(job->sequence)->log.file;
  }
  job->began = true;
  if (!job->by_engine) allocate_records(engine, job, end);
  begin_record(engine, job);
}

}  // namespace

void start_commit(EngineState& engine, StoredSequence& sequence, const TailWork& work) {
  const auto refuse = [&](Code code, const char* text) {
    if (work.done) work.done(error(code, text));
    work_finished(engine, sequence);
  };
  const TailLog& log = sequence.log;
  if (engine.read_only) return refuse(Code::kReadOnly, "the store takes no writes");
  if (const auto continues = check_continues(sequence, work); !continues)
    return refuse(continues.error().code, continues.error().text);
  if (work.count < log.tokens || (log.tokens != 0 && work.half != log.half))
    return refuse(Code::kInvalid, "a commit names fewer tokens than are committed");
  const bool nothing_new = work.count == log.tokens && !log.suspect;
  if (nothing_new && sequence.row_durable && !sequence.row.provisional) {
    if (work.done) work.done(TailResult{0, sequence.tokens()});
    return work_finished(engine, sequence);
  }
  if (nothing_new) {
    ++sequence.busy;
    const SequenceId id = sequence.row.id;
    TailDone done = work.done;
    return post_sequence_row(engine, sequence, true,
                             [&engine, id, done = std::move(done)](Result<void> result) {
                               StoredSequence& found = *engine.sequences.all.at(id);
                               --found.busy;
                               if (done)
                                 done(result ? Result<TailResult>(TailResult{0, found.tokens()})
                                             : error(result.error()));
                               work_finished(engine, found);
                             });
  }
  std::shared_ptr<CommitJob> job =
      make_job(engine, sequence, work.tail, work.half, log.tokens, work.count);
  job->done = work.done;
  run_commit(engine, job);
}

void drop_log(EngineState& engine, StoredSequence& sequence, LogFile file) {
  remove_log_files(engine, sequence.row.id, sequence.log, file);
  sequence.log = TailLog{};
  sequence.log.loaded = true;
}

void cut_log(EngineState& engine, StoredSequence& sequence, std::uint32_t tokens, MetaDone done) {
  // A suspect log is cut even where nothing of it goes: the catalogue may name tokens that are cut
  // off.
  if (!sequence.log.suspect && (sequence.log.generation == 0 || tokens >= sequence.log.tokens))
    return done({});
  tokens = std::min(tokens, sequence.log.tokens);
  // A new generation with what is kept, instead of a record that cuts: damage to that record would
  // bring back what was cut off.
  TailWork work;
  work.kind = TailWork::Kind::kOther;
  const SequenceId id = sequence.row.id;
  work.run = [&engine, id, tokens, done = std::move(done)] {
    StoredSequence& found = *engine.sequences.all.at(id);
    if (found.writer == nullptr) {
      done(error(Code::kCancelled, "the sequence was closed"));
      return work_finished(engine, found);
    }
    if (engine.read_only) {
      done(error(Code::kReadOnly, "the store takes no writes"));
      return work_finished(engine, found);
    }
    found.log.suspect = true;
    const std::shared_ptr<TailMemory> tail = found.writer->tail;
    const std::uint32_t half = found.log.half;
    std::shared_ptr<CommitJob> job = make_job(engine, found, tail, half, tokens, tokens);
    job->done = [tail, half, tokens, done](Result<TailResult> result) {
      TokenTexts& texts = tail->texts[half];
      if (result && texts.tokens() > tokens) texts.resize(tokens);  // the next are others'
      done(result ? Result<void>() : error(result.error()));
    };
    run_commit(engine, job);
  };
  add_work(engine, sequence, std::move(work));
}

}  // namespace kvtier
