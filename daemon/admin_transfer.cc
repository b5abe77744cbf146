// export, import: a sequence as one verified file. Files are read and written by a worker; an
// import goes through the sealer like any other new tokens, so that nothing of it is trusted more
// than a client's.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>

#include "base/unique_fd.h"
#include "daemon/admin.h"
#include "daemon/control_ops.h"
#include "daemon/engine_state.h"
#include "daemon/log_reader.h"
#include "daemon/segment_files.h"
#include "tiers/export_format.h"

namespace kvtier {
namespace {

constexpr std::size_t kBufferBytes = 4u << 20;

Status with_file(const Status& status, const std::string& path) {
  Status named = refusal(status.code, status.message(), ": " + path);
  named.os_error = status.os_error;
  return named;
}

// Buffers small writes of the export's writer; the file is synced at the end.
class FileSink {
 public:
  [[nodiscard]] Result<void> create(const std::string& path) {
    fd_ = UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (fd_.valid()) return {};
    const int why = errno;
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored))
      return error(Code::kExists, "it is a directory: give the name of a file in it");
    if (why == EEXIST)
      return error(Code::kExists, "the file exists: choose another name, or remove it");
    return error(Code::kIo, "cannot make the file", why);
  }
  [[nodiscard]] Result<void> write(ByteSpan bytes) {
    if (buffer_.size() + bytes.size() > kBufferBytes) KVT_TRY_VOID(flush());
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    return {};
  }
  [[nodiscard]] Result<void> finish() {
    KVT_TRY_VOID(flush());
    if (::fsync(fd_.get()) != 0) return error(Code::kIo, "cannot sync the file", errno);
    return {};
  }

 private:
  [[nodiscard]] Result<void> flush() {
    for (std::size_t done = 0; done < buffer_.size();) {
      const ssize_t wrote = ::write(fd_.get(), buffer_.data() + done, buffer_.size() - done);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0)
        return error(errno == ENOSPC ? Code::kNoSpace : Code::kIo, "cannot write the file", errno);
      done += static_cast<std::size_t>(wrote);
    }
    buffer_.clear();
    return {};
  }
  UniqueFd fd_;
  std::vector<std::byte> buffer_;
};

// ---- export ----

struct Export {
  const std::atomic<bool>* draining = nullptr;
  IoFactory make_io;
  std::string file_path;
  CodecId codec = CodecId::kZstd;
  ExportDescription description;
  struct Part {
    SegmentId segment;
    std::uint64_t first_token = 0;
    std::uint32_t visible_tokens = 0;
  };
  std::vector<Part> parts;
  std::shared_ptr<TailMemory> tail;  // the committed tail, in half 0
  std::uint32_t tail_tokens = 0;
  std::uint64_t bytes = 0;
  SegmentId failed;       // where it ended
  bool own_file = false;  // the file written is at fault
  Result<void> result;
};
using ExportPtr = std::shared_ptr<Export>;

Result<void> write_part(SegmentFiles& files, const Export::Part& part, ExportWriter& writer) {
  KVT_TRY_VOID(files.begin(part.segment));
  const SegmentMeta& meta = files.meta();
  if (part.visible_tokens > meta.tokens.size())
    return error(Code::kCorrupt, "a segment is shorter than it should be");
  ExportSegment segment;
  segment.start_token = part.first_token;
  segment.tokens.assign(meta.tokens.begin(), meta.tokens.begin() + part.visible_tokens);
  if (!meta.texts.empty()) segment.texts.append(meta.texts, 0, part.visible_tokens);
  if (part.visible_tokens == meta.tokens.size()) segment.snapshot = meta.snapshot;
  KVT_TRY_VOID(writer.begin_segment(segment));
  const PlaneLayout whole(meta.geometry, static_cast<std::uint32_t>(meta.tokens.size()));
  const PlaneLayout visible(meta.geometry, part.visible_tokens);
  for (std::uint32_t i = 0; i < visible.chunks_total(); ++i) {
    const PlaneLayout::ChunkPlace place = visible.place_of(i);
    KVT_TRY(const ByteSpan raw,
            files.read_chunk(whole.chunk_index(place.layer, place.chunk, place.group)));
    KVT_TRY_VOID(writer.add_chunk(raw));
  }
  return {};
}

Result<void> write_tail(const Export& job, ExportWriter& writer) {
  const Geometry& geometry = job.description.fingerprint.geometry;
  const auto* records = reinterpret_cast<const TokenRecord*>(job.tail->tokens(0));
  ExportSegment segment;
  segment.start_token = job.description.tokens - job.tail_tokens;
  segment.tokens.assign(records, records + job.tail_tokens);
  segment.texts.append(job.tail->texts[0], 0, job.tail_tokens);
  KVT_TRY_VOID(writer.begin_segment(segment));
  const PlaneLayout layout(geometry, job.tail_tokens);
  for (std::uint32_t i = 0; i < layout.chunks_total(); ++i) {
    const PlaneLayout::ChunkPlace place = layout.place_of(i);
    const std::byte* chunk = job.tail->plane(0) + job.tail->layout->plane.chunk_offset(
                                                      place.layer, place.chunk, place.group);
    KVT_TRY_VOID(
        writer.add_chunk({chunk, static_cast<std::size_t>(geometry.chunk_bytes(place.layer))}));
  }
  return {};
}

Result<void> write_export(Export& job) {
  FileSink sink;
  job.own_file = true;
  KVT_TRY_VOID(sink.create(job.file_path));
  const auto write = [&]() -> Result<void> {
    job.own_file = false;
    KVT_TRY(SegmentFiles files, SegmentFiles::open(job.make_io));
    ExportWriter writer(
        [&](ByteSpan bytes) {
          const Result<void> wrote = sink.write(bytes);
          job.own_file = !wrote;
          return wrote;
        },
        job.codec);
    KVT_TRY_VOID(writer.begin(job.description));
    for (const Export::Part& part : job.parts) {
      if (*job.draining) return error(kStopping);
      job.failed = part.segment;
      KVT_TRY_VOID(write_part(files, part, writer));
    }
    job.failed = {};
    if (job.tail_tokens > 0) KVT_TRY_VOID(write_tail(job, writer));
    KVT_TRY_VOID(writer.finish());
    files.end();
    job.bytes = writer.written_bytes();
    job.own_file = true;
    return sink.finish();
  };
  const Result<void> written = write();
  if (!written) ::unlink(job.file_path.c_str());
  return written;
}

// With the file at fault: the export, or the store's own, and what to do then.
Status export_refusal(const Export& job) {
  const Status& status = job.result.error();
  if (job.own_file) return with_file(status, job.file_path);
  const bool damaged = status.code == Code::kCorrupt || status.code == Code::kNotFound;
  if (!job.failed.valid() || !damaged) return status;
  return refusal(status.code, status.message(),
                 ": " + segment_path(job.failed) +
                     "; `kvtier verify` names all that is damaged, `kvtier repair` ends the "
                     "sequence before it");
}

void run_export(EngineState& engine, const ExportPtr& job, ControlDone done) {
  for (const Export::Part& part : job->parts) ++find_segment(engine, part.segment)->busy;
  run_on_worker(
      engine, [job] { job->result = write_export(*job); },
      [&engine, job, done = std::move(done)] {
        for (const Export::Part& part : job->parts) --find_segment(engine, part.segment)->busy;
        if (!job->result) return done(error(export_refusal(*job)));
        done(
            ControlReply{Json{{"bytes", job->bytes}, {"tokens", job->description.tokens}}, {}, {}});
      });
}

Result<std::string> absolute_path(const Json& body) {
  KVT_TRY(std::string path, json_string(body, "path", "", 4096));
  if (path.empty() || path[0] != '/') return error(Code::kInvalid, "path must be absolute");
  return path;
}

// What is durable now, sealed and tail. In the sequence's queue: no seal or commit is under way.
void describe_export(EngineState& engine, const ExportPtr& job, StoredSequence& sequence,
                     const ControlDone& done) {
  const SpaceRow& space = sequence.space->row;
  job->description.fingerprint = {space.model, space.runtime, space.detail, space.geometry};
  job->description.name = sequence.row.name;
  job->description.abstracts = space.abstracts;
  job->description.created_unix_ns = engine.wall_ns();
  for (const SequencePart& part : sequence.parts)
    job->parts.push_back({part.segment->row.id, part.first_token, part.visible_tokens});
  job->description.tokens = sequence.tokens_sealed;
  job->description.segments = static_cast<std::uint32_t>(job->parts.size());
  const auto begin = [&engine, job, id = sequence.row.id, done](Result<std::uint32_t> tail) {
    const TailLog& log = engine.sequences.all.at(id)->log;
    if (tail && log.loaded && *tail < log.tokens)
      tail = error(Code::kCorrupt, "the committed tail cannot be read back: run kvtier verify");
    if (tail && log.loaded) tail = log.tokens;  // what was written beyond was never acknowledged
    if (!tail && tail.error().code == Code::kNotFound)
      tail = error(Code::kNotFound, "the log of the committed tail is gone: run kvtier repair");
    if (tail) {
      job->tail_tokens = *tail;
      job->description.tokens += *tail;
      job->description.segments += *tail > 0 ? 1 : 0;
      run_export(engine, job, done);
    } else {
      done(error(tail.error()));
    }
    work_finished(engine, *engine.sequences.all.at(id));
  };
  if (sequence.row.log_generation == 0) return begin(0);
  Result<std::shared_ptr<TailMemory>> tail = make_tail_memory(engine, *sequence.space);
  if (!tail) return begin(error(tail.error()));
  job->tail = std::move(*tail);
  read_log(engine, sequence, job->tail, begin);
}

void op_export(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<StoredSequence*> target = target_sequence(engine, request.body);
  if (!target) return done(error(target.error()));
  const Result<std::string> path = absolute_path(request.body);
  if (!path) return done(error(path.error()));
  StoredSequence& sequence = **target;
  if (sequence.is_private)
    return done(error(Code::kPermission, "a private sequence is never written to disk"));
  auto job = std::make_shared<Export>();
  job->draining = &engine.draining;
  job->make_io = engine.world.worker_io;
  job->file_path = *path;
  TailWork work;
  work.kind = TailWork::Kind::kOther;
  work.run = [&engine, job, id = sequence.row.id, done = std::move(done)] {
    describe_export(engine, job, *engine.sequences.all.at(id), done);
  };
  add_work(engine, sequence, std::move(work));
}

// ---- import ----

struct Import {
  const std::atomic<bool>* draining = nullptr;
  std::string file_path, name;
  UniqueFd file;
  std::unique_ptr<ExportReader> reader;  // workers, one after the other
  std::uint64_t file_bytes = 0;
  const StoredSpace* space = nullptr;
  SequenceId sequence;
  std::shared_ptr<TailMemory> tail;
  std::uint32_t next = 0;
  std::uint32_t filled = 0;  // tokens in half 0
  Result<void> result;
  ControlDone done;
};
using ImportPtr = std::shared_ptr<Import>;

Result<void> open_import(Import& job) {
  job.file = UniqueFd(::open(job.file_path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info {};
  if (!job.file.valid() || ::fstat(job.file.get(), &info) != 0)
    return error(Code::kNotFound, "cannot open the file to import", errno);
  if (!S_ISREG(info.st_mode)) return error(Code::kInvalid, "what is imported is a file");
  job.file_bytes = static_cast<std::uint64_t>(info.st_size);
  const int fd = job.file.get();
  ExportSource source;
  source.size_bytes = job.file_bytes;
  source.read = [fd](std::uint64_t offset, MutableByteSpan target) -> Result<void> {
    for (std::size_t done = 0; done < target.size();) {
      const ssize_t got = ::pread(fd, target.data() + done, target.size() - done,
                                  static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return error(Code::kIo, "cannot read the file", errno);
      if (got == 0) return error(Code::kCorrupt, "the file is cut short");
      done += static_cast<std::size_t>(got);
    }
    return {};
  };
  KVT_TRY(ExportReader reader,
          ExportReader::open(std::move(source), [&job](std::uint64_t) { return !*job.draining; }));
  job.reader = std::make_unique<ExportReader>(std::move(reader));
  return {};
}

// The next run of tokens into half 0.
Result<void> fill_tail(Import& job) {
  const Geometry& geometry = job.reader->description().fingerprint.geometry;
  // The tail is as large as its space says, and its chunks lie where it says.
  if (geometry != job.space->row.geometry)
    return error(Code::kWrongSpace, "the store has another layout for the file's model");
  KVT_TRY(ExportSegment segment, job.reader->read_segment(job.next));
  job.filled = static_cast<std::uint32_t>(segment.tokens.size());
  std::memcpy(job.tail->tokens(0), segment.tokens.data(),
              segment.tokens.size() * sizeof(TokenRecord));
  job.tail->texts[0] = std::move(segment.texts);
  job.tail->snapshot = std::move(segment.snapshot);
  const PlaneLayout layout(geometry, job.filled);
  return job.reader->read_chunks(job.next, [&](std::uint32_t index, ByteSpan raw) -> Result<void> {
    const PlaneLayout::ChunkPlace place = layout.place_of(index);
    std::memcpy(job.tail->plane(0) +
                    job.tail->layout->plane.chunk_offset(place.layer, place.chunk, place.group),
                raw.data(), raw.size());
    return {};
  });
}

// With the file's name, and told apart: no export at all, or a damaged one.
Status import_refusal(const Import& job, const Status& status) {
  if (status.code != Code::kCorrupt) return status;
  const std::string why = status.message();
  if (why == kNoExport) return refusal(status.code, kNoExport, ": " + job.file_path);
  return refusal(status.code, "the file is damaged: copy or export it again",
                 ": " + job.file_path + " (" + why + ")");
}

void fail_import(EngineState& engine, const ImportPtr& job, const Status& status) {
  StoredSequence* sequence = find_sequence(engine, job->sequence);
  if (sequence == nullptr || sequence->working || sequence->busy != 0 || !sequence->open.empty())
    return job->done(error(import_refusal(*job, status)));
  sequence->row.expires_unix_s = engine.wall_ns() / 1'000'000'000 + kLeftoverSeconds;
  remove_sequence(engine, *sequence, LogFile::kUnlink,
                  [&engine, job, status](Result<void> removed) {
                    if (!removed) show_leftover(engine, job->sequence);
                    job->done(error(import_refusal(*job, status)));
                  });
}

void finish_import(EngineState& engine, const ImportPtr& job) {
  StoredSequence* sequence = find_sequence(engine, job->sequence);
  if (sequence == nullptr)
    return job->done(error(Code::kNotFound, "the sequence was removed meanwhile"));
  sequence->row.expires_unix_s = 0;
  if (engine.sequences.names.count(job->name) != 0)
    return fail_import(engine, job,
                       {Code::kExists, 0, "the name is taken: import with another --name"});
  // Rows in doubt are settled first: one of them may have the name.
  if (engine.read_only) return fail_import(engine, job, kNoWrites);
  if (!job->name.empty()) {
    sequence->row.name = job->name;
    engine.sequences.names.emplace(job->name, job->sequence);
  }
  ++sequence->busy;
  post_sequence_row(engine, *sequence, true, [&engine, job](Result<void> posted) {
    StoredSequence& found = *engine.sequences.all.at(job->sequence);
    --found.busy;
    if (!posted) {
      engine.sequences.names.erase(found.row.name);
      found.row.name.clear();
      return fail_import(engine, job, posted.error());
    }
    found.internal = false;
    job->done(ControlReply{Json{{"sequence", job->sequence.value},
                                {"space", found.row.space.value},
                                {"name", found.row.name},
                                {"tokens", found.tokens_sealed},
                                {"bytes", job->file_bytes}},
                           {},
                           {}});
  });
}

void next_import(EngineState& engine, const ImportPtr& job) {
  if (job->next == job->reader->segments()) return finish_import(engine, job);
  if (engine.draining) return fail_import(engine, job, kStopping);
  run_on_worker(
      engine, [job] { job->result = fill_tail(*job); },
      [&engine, job] {
        StoredSequence* sequence = find_sequence(engine, job->sequence);
        if (sequence == nullptr || !job->result)
          return fail_import(engine, job,
                             sequence == nullptr ? Status{Code::kNotFound} : job->result.error());
        TailWork work;
        work.kind = TailWork::Kind::kSeal;
        work.tail = job->tail;
        work.count = job->filled;
        work.done = [&engine, job](Result<TailResult> sealed) {
          ++job->next;
          // Not inside the sealer's call: it still holds the sequence.
          engine.world.mailbox->post([&engine, job, sealed] {
            sealed ? next_import(engine, job) : fail_import(engine, job, sealed.error());
          });
        };
        add_work(engine, *sequence, std::move(work));
      });
}

void make_imported(EngineState& engine, const ImportPtr& job, StoredSpace& space) {
  Result<std::shared_ptr<TailMemory>> tail = make_tail_memory(engine, space);
  if (!tail) return job->done(error(tail.error()));
  job->tail = std::move(*tail);
  job->space = &space;
  if (engine.sequences.names.count(job->name) != 0)
    return job->done(error(Code::kExists, "the name is taken: import with another --name"));
  StoredSequence& sequence = new_sequence(engine, space, false);
  job->sequence = sequence.row.id;
  sequence.in_catalogue = true;
  sequence.internal = true;  // until it is whole
  sequence.row.expires_unix_s = engine.wall_ns() / 1'000'000'000 + kLeftoverSeconds;
  learn_chain(engine, sequence, [&engine, job](Result<void> learned) {
    learned ? next_import(engine, job) : fail_import(engine, job, learned.error());
  });
}

// The file is sound: make its space and sequence, then seal run after run.
void begin_import(EngineState& engine, const ImportPtr& job) {
  const ExportDescription& description = job->reader->description();
  if (job->name.empty()) job->name = description.name;
  if (const Result<void> fine = check_name(job->name); !job->name.empty() && !fine)
    return job->done(error(refusal(Code::kInvalid, fine.error().message(),
                                   ": import with another --name than the file has inside")));
  Result<SpaceRow> row = make_space_row(description.fingerprint, false);
  if (!row) return job->done(error(row.error()));
  row->abstracts = description.abstracts;
  row->created_unix_ns = engine.wall_ns();
  const BlockHash digest = row->digest;
  StoredSpace& space = add_space(engine, std::move(*row));
  // An id is half a digest, which a file can be made to meet.
  if (space.row.digest != digest)
    return job->done(
        error(Code::kWrongSpace, "the store has another model under the id of the file's"));
  space.row.private_only = false;  // what is imported is to stay
  keep_space(engine, space, [&engine, &space, job](Result<void> kept) {
    kept ? make_imported(engine, job, space) : job->done(error(kept.error()));
  });
}

void op_import(EngineState& engine, Session&, ControlRequest request, ControlDone done) {
  const Result<std::string> path = absolute_path(request.body);
  if (!path) return done(error(path.error()));
  const Result<std::string> name = json_string(request.body, "name", "", kNameBytesMax);
  if (!name) return done(error(name.error()));
  if (!name->empty())
    if (const Result<void> fine = check_name(*name); !fine) return done(error(fine.error()));
  auto job = std::make_shared<Import>();
  job->draining = &engine.draining;
  job->file_path = *path;
  job->name = *name;
  job->done = std::move(done);
  run_on_worker(
      engine, [job] { job->result = open_import(*job); },
      [&engine, job] {
        if (!job->result) {
          const Status& status = job->result.error();
          if (status.code == Code::kCancelled) return job->done(error(kStopping));
          return job->done(error(status.code == Code::kCorrupt
                                     ? import_refusal(*job, status)
                                     : with_file(status, job->file_path)));
        }
        begin_import(engine, job);
      });
}

}  // namespace

std::span<const ControlOp> transfer_ops() {
  static constexpr ControlOp kOps[] = {{"export", false, op_export}, {"import", false, op_import}};
  return kOps;
}

}  // namespace kvtier
