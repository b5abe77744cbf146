#include "daemon/log_reader.h"

#include <algorithm>
#include <cinttypes>

#include "base/log.h"
#include "daemon/engine_state.h"
#include "daemon/file_reads.h"

namespace kvtier {

TailLogHeader log_header_of(const StoredSequence& sequence, std::uint64_t generation) {
  TailLogHeader header;
  header.sequence = sequence.row.id;
  header.space = sequence.row.space;
  header.generation = generation;
  header.base_token = sequence.tokens_sealed;
  header.fingerprint = sequence.space->row.digest;
  return header;
}

namespace {

struct LogRead : std::enable_shared_from_this<LogRead> {
  SequenceId sequence;
  std::shared_ptr<TailMemory> tail;
  FileId file;
  AlignedBuffer bytes;
  std::uint64_t file_bytes = 0;  // whole pages
  bool cut_in_page = false;      // and a part of one: we write whole ones only
  TailLogHeader expected;
  Result<TailReplay> replay = error(Code::kInternal);
  std::function<void(Result<void>)> finished;  // read and replayed, or why not; `busy` is back
};
using LogReadPtr = std::shared_ptr<LogRead>;

// Opens the log and replays it into the tail. False where `finished` will not be called.
Result<void> begin_log_read(EngineState& engine, StoredSequence& sequence, OpenMode mode,
                            const LogReadPtr& read) {
  Io& io = engine.io->io();
  const std::uint64_t generation = sequence.log.generation;
  KVT_TRY(read->file, io.open(tail_log_path(sequence.row.id, generation),
                              {.mode = mode, .direct = engine.options.direct_io}));
  const Result<std::uint64_t> size = io.size_bytes(read->file);
  if (!size || *size > tail_log_bytes_max(sequence.space->row.geometry)) {
    io.close(read->file);
    return error(size ? Status{Code::kTooLarge, 0, "a tail log is larger than any can be"}
                      : size.error());
  }
  read->sequence = sequence.row.id;
  read->file_bytes = *size / kDiskAlign * kDiskAlign;
  read->cut_in_page = *size % kDiskAlign != 0;
  read->bytes = AlignedBuffer(std::max<std::uint64_t>(read->file_bytes, kDiskAlign));
  read->expected = log_header_of(sequence, generation);
  ++sequence.busy;
  const auto finish = [&engine, read](Result<void> result) {
    --engine.sequences.all.at(read->sequence)->busy;
    if (!result) engine.io->io().close(read->file);
    read->finished(result);
  };
  const auto replay = [&engine, read, finish, space = sequence.space](Result<void> result) {
    if (!result) return finish(result);
    run_on_worker(
        engine,
        [read, space] {
          read->replay = replay_tail_log(
              read->bytes.span().first(static_cast<std::size_t>(read->file_bytes)), read->expected,
              space->row.geometry, space->tail.plane,
              reinterpret_cast<TokenRecord*>(read->tail->tokens(0)), read->tail->plane(0));
        },
        [finish] { finish({}); });
  };
  read_in_pieces(engine, read->file, IoPriority::kDemand,
                 read->bytes.span().first(static_cast<std::size_t>(read->file_bytes)), replay);
  return {};
}

void log_replayed(EngineState& engine, const LogReadPtr& read, const MetaDone& done) {
  StoredSequence& sequence = *engine.sequences.all.at(read->sequence);
  if (!read->replay && read->replay.error().code == Code::kVersion) {  // not ours to replace
    ++engine.metrics.misses[static_cast<std::size_t>(MissReason::kNewer)];
    engine.io->io().close(read->file);
    return done(error(read->replay.error()));
  }
  if (!read->replay) {
    KVT_LOG(kWarn,
            "sequence %" PRIx64 ": its tail log cannot be read (%s): the committed tail is lost",
            read->sequence.value, read->replay.error().message());
    ++engine.metrics.logs_torn;
    ++engine.metrics.misses[static_cast<std::size_t>(MissReason::kChecksum)];
    engine.io->io().close(read->file);
    if (sequence.log.file.value != 0) engine.io->io().close(sequence.log.file);
    sequence.log.file = {};
    sequence.log.tokens = 0;
    sequence.log.suspect = true;
    sequence.log.loaded = true;
    return done({});
  }
  read->tail->texts[0] = std::move(read->replay->texts);
  TailLog& log = sequence.log;
  if (log.file.value != 0) engine.io->io().close(log.file);
  log.file = read->file;
  log.tokens = read->replay->tokens;
  log.end_offset = read->replay->end_offset;
  log.file_bytes = read->file_bytes;
  log.next_order = read->replay->next_order;
  log.half = 0;
  const bool torn = read->replay->torn || read->cut_in_page;
  // A row in doubt stays so, however well the file reads. From the page cache it reads well also
  // where a sync has failed, and no later one brings it to the disk: it is written anew. So
  // where the file system refuses direct I/O.
  const bool cached =
      !engine.options.direct_io || engine.io->io().note().find("direct I/O") != std::string::npos;
  log.suspect = log.suspect || torn || cached;
  log.loaded = true;
  if (torn) ++engine.metrics.logs_torn;
  // A daemon that was killed may have left records that nobody synced: what is told now must stay.
  IoRequest sync;
  sync.op = IoOp::kSync;
  sync.priority = IoPriority::kDemand;
  sync.file = log.file;
  ++sequence.busy;
  sync.done = [&engine, read, done](Result<void> synced) {
    StoredSequence& found = *engine.sequences.all.at(read->sequence);
    --found.busy;
    if (!synced) found.log.suspect = true;
    done({});
  };
  engine.io->submit(std::move(sync));
}

}  // namespace

void load_log(EngineState& engine, StoredSequence& sequence, std::shared_ptr<TailMemory> tail,
              MetaDone done) {
  TailLog& log = sequence.log;
  if (log.generation == 0) {
    log.loaded = true;
    return done({});
  }
  auto read = std::make_shared<LogRead>();
  read->tail = std::move(tail);
  read->finished = [&engine, read = read.get(), done](Result<void> result) {
    if (!result) return done(result);
    log_replayed(engine, read->shared_from_this(), done);
  };
  const Result<void> begun = begin_log_read(engine, sequence, OpenMode::kWrite, read);
  if (begun) return;
  if (begun.error().code != Code::kNotFound) return done(begun);
  KVT_LOG(kWarn, "sequence %" PRIx64 ": its tail log is gone: the committed tail is lost",
          sequence.row.id.value);
  ++engine.metrics.logs_torn;
  log.suspect = log.loaded = true;
  log.tokens = 0;
  log.end_offset = log.file_bytes = 0;
  done({});
}

void read_log(EngineState& engine, StoredSequence& sequence, std::shared_ptr<TailMemory> tail,
              std::function<void(Result<std::uint32_t>)> done) {
  auto read = std::make_shared<LogRead>();
  read->tail = std::move(tail);
  read->finished = [&engine, read = read.get(), done](Result<void> result) {
    if (!result) return done(error(result.error()));
    engine.io->io().close(read->file);
    if (read->replay) read->tail->texts[0] = std::move(read->replay->texts);
    done(read->replay ? Result<std::uint32_t>(read->replay->tokens) : error(read->replay.error()));
  };
  const Result<void> begun = begin_log_read(engine, sequence, OpenMode::kRead, read);
  if (!begun) done(error(begun.error()));
}

}  // namespace kvtier
