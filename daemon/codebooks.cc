#include "daemon/codebooks.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "base/random.h"
#include "daemon/abstracts.h"
#include "daemon/engine_state.h"
#include "daemon/file_reads.h"
#include "daemon/raw_segment.h"
#include "tiers/codebook_format.h"
#include "tiers/format_head.h"

namespace kvtier {

SpaceCodebook& codebook_of(EngineState& engine, const StoredSpace& space, AbstractSpec spec) {
  return engine.codebooks.all[{space.row.id.value, spec.packed()}];
}

std::uint64_t codebook_id(const StoredSpace& space, AbstractSpec spec) {
  for (const SpaceRow::Codebook& row : space.row.codebooks)
    if (row.abstract == spec.packed()) return row.id;
  return 0;
}

namespace {

void answer(SpaceCodebook& entry) {
  const auto waiting = std::move(entry.waiting);
  entry.waiting.clear();
  for (const auto& done : waiting) done(entry.codebook);
}

// Into the arena, where clients read it. Without room there the codes cannot be scored.
void install(EngineState& engine, SpaceCodebook& entry, std::shared_ptr<const Codebook> codebook) {
  const Result<std::uint64_t> offset = engine.abstracts->allocate(codebook->payload.size());
  entry.state = offset ? CodebookState::kReady : CodebookState::kFailed;
  if (offset) {
    std::memcpy(engine.abstracts->data(*offset), codebook->payload.data(),
                codebook->payload.size());
    entry.offset = *offset;
    entry.codebook = std::move(codebook);
    entry.problem = nullptr;
  } else {
    ++engine.metrics.abstracts_full;
  }
  answer(entry);
}

// ---- load ----

struct CodebookRead {
  const StoredSpace* space = nullptr;
  AbstractSpec spec;
  std::uint64_t id = 0;
  FileId file;
  AlignedBuffer bytes;
};

Result<std::shared_ptr<const Codebook>> parse_codebook(const CodebookRead& read) {
  KVT_TRY(const CodebookFileHeader header, parse_codebook_header(read.bytes.span()));
  if (!(header.fingerprint == read.space->row.digest) || header.id != read.id ||
      header.spec != read.spec.packed())
    return error(Code::kCorrupt, "the codebook is of another space");
  KVT_TRY(const ByteSpan payload,
          check_codebook(header, read.space->row.geometry, read.bytes.span()));
  auto made = std::make_shared<Codebook>(
      Codebook{read.id, CodebookLayout(read.space->row.geometry, read.spec),
               std::vector<std::byte>(payload.begin(), payload.end())});
  return std::shared_ptr<const Codebook>(std::move(made));
}

// A disk that fails may give it another time: whoever wants it next has it read again.
void postpone_load(EngineState& engine, const StoredSpace& space, AbstractSpec spec,
                   const Status& status) {
  KVT_LOG(kWarn, "space %" PRIx64 ": its codebook cannot be read now: %s", space.row.id.value,
          status.message());
  SpaceCodebook& entry = codebook_of(engine, space, spec);
  entry.state = CodebookState::kFailed;
  answer(entry);
}

// A codebook that is gone or damaged is given up: codes that refer to it are worthless, and the
// next calibration makes a new one under another id.
void fail_load(EngineState& engine, const StoredSpace& named, AbstractSpec spec, std::uint64_t id,
               const char* why) {
  KVT_LOG(kWarn, "space %" PRIx64 ": its codebook %s; key codes are made anew after a calibration",
          named.row.id.value, why);
  StoredSpace& space = *find_space(engine, named.row.id);
  std::erase_if(space.row.codebooks, [&](const SpaceRow::Codebook& row) { return row.id == id; });
  SpaceCodebook& entry = codebook_of(engine, space, spec);
  entry.state = CodebookState::kAbsent;
  if (!space.in_memory_only(id)) entry.problem = why;
  answer(entry);
}

void start_load(EngineState& engine, const StoredSpace& space, AbstractSpec spec,
                std::uint64_t id) {
  if (space.in_memory_only(id))
    return fail_load(engine, space, spec, id, "has no file, and had no room in memory");
  codebook_of(engine, space, spec).state = CodebookState::kLoading;
  read_codebook(engine, space, spec, id,
                [&engine, &space, spec, id](Result<std::shared_ptr<const Codebook>> read) {
                  if (read) return install(engine, codebook_of(engine, space, spec), *read);
                  const Status& why = read.error();
                  why.code == Code::kNotFound || why.code == Code::kCorrupt
                      ? fail_load(engine, space, spec, id, why.message())
                      : postpone_load(engine, space, spec, why);
                });
}

// ---- calibration ----

struct Calibration {
  StoredSpace* space = nullptr;
  CalibrationInput input;
  bool keep_in_memory = false;
  const KernelTable* kernels = nullptr;
  std::vector<SegmentId> segments;
  std::size_t next = 0;
  std::uint32_t rows_per_segment = 0;
  std::vector<std::vector<float>> keys;                   // by layer and head: [rows][dim]
  std::vector<std::vector<std::uint32_t>> row_positions;  // by layer and head
  std::uint32_t next_layer = 0;
  std::uint32_t keys_per_head = 0;  // trained on
  Status failure;
  std::shared_ptr<Codebook> made;
  std::function<void(Result<void>)> done;
};
using CalibrationPtr = std::shared_ptr<Calibration>;

void end_calibration(EngineState& engine, const CalibrationPtr& job, const Status& status) {
  SpaceCodebook& entry = codebook_of(engine, *job->space, job->input.spec);
  if (!status.ok()) {
    KVT_LOG(kWarn, "space %" PRIx64 ": calibration failed: %s", job->space->row.id.value,
            status.message());
    entry.state = CodebookState::kAbsent;
    answer(entry);
    return job->done(error(status));
  }
  install(engine, entry, job->made);
  retry_lane(engine, *job->space, job->input.spec);
  job->done({});
}

std::size_t place_of(const Calibration& job, std::uint32_t layer, std::uint32_t head) {
  std::size_t place = 0;
  for (std::uint32_t i = 0; i < layer; ++i)
    if (job.made->layout.has_layer(i)) place += job.space->row.geometry.layers[i].kv_heads;
  return place + head;
}

// Worker: an even sample of the segment's keys, less the first tokens of a sequence, which
// attention treats as sinks.
void sample_segment(Calibration& job, const RawSegment& raw) {
  const Geometry& geometry = job.space->row.geometry;
  const AbstractSource source{job.kernels, &geometry, raw.layout, raw.chunks, nullptr};
  constexpr std::uint32_t kSinks = 16;
  const std::uint32_t first =
      raw.meta->tokens.front().position == 0 && raw.tokens > 2 * kSinks ? kSinks : 0;
  const std::uint32_t rows = std::min(job.rows_per_segment, raw.tokens - first);
  for (std::uint32_t layer = 0; layer < geometry.layers.size(); ++layer) {
    if (!job.made->layout.has_layer(layer)) continue;
    const std::uint32_t dim = job.made->layout.dim(layer);
    for (std::uint32_t head = 0; head < geometry.layers[layer].kv_heads; ++head) {
      std::vector<float> all;
      if (!read_keys(source, layer, head, raw.tokens, &all)) {
        job.failure = {Code::kUnsupported, 0, "keys that kernels cannot read"};
        return;
      }
      const std::size_t place = place_of(job, layer, head);
      for (std::uint32_t i = 0; i < rows; ++i) {
        const auto token =
            static_cast<std::uint32_t>(first + std::uint64_t{i} * (raw.tokens - first) / rows);
        const float* row = all.data() + std::size_t{token} * dim;
        job.keys[place].insert(job.keys[place].end(), row, row + dim);
        job.row_positions[place].push_back(raw.meta->tokens[token].position);
      }
    }
  }
}

// Few keys become as many as are wanted by turning each to several positions.
void fill_up(const RopeSpec& rope, std::uint32_t dim, std::size_t wanted, std::vector<float>* rows,
             std::vector<std::uint32_t>* positions) {
  const std::size_t count = positions->size();
  if (rope.pairing == RopeSpec::Pairing::kNone || count == 0) return;
  for (std::size_t i = count; i < wanted; ++i) {
    const std::size_t source = i % count;
    rows->insert(rows->end(), rows->begin() + static_cast<std::ptrdiff_t>(source * dim),
                 rows->begin() + static_cast<std::ptrdiff_t>((source + 1) * dim));
    positions->push_back((*positions)[source]);
  }
}

// The queries of the heads that share this KV head, turned as the keys are.
std::vector<float> queries_of(const Calibration& job, std::uint32_t layer, std::uint32_t head,
                              std::uint32_t dim) {
  std::vector<float> out;
  if (layer >= job.input.queries.size()) return out;
  const CalibrationInput::LayerQueries& given = job.input.queries[layer];
  const LayerGeometry& shape = job.space->row.geometry.layers[layer];
  const std::uint32_t group = shape.query_heads / shape.kv_heads;
  std::vector<std::uint32_t> positions;
  for (std::size_t t = 0; t < given.positions.size(); ++t)
    for (std::uint32_t g = 0; g < group; ++g) {
      const float* row = given.vectors.data() + (t * shape.query_heads + head * group + g) * dim;
      out.insert(out.end(), row, row + dim);
      positions.push_back(given.positions[t]);
    }
  fill_up(job.input.rope, dim, 4 * positions.size(), &out, &positions);
  turn_to_positions(job.input.rope, positions, dim, 1000 + layer * 64 + head, out);
  return out;
}

// Worker: one layer.
void train_layer(Calibration& job, std::uint32_t layer) {
  if (!job.made->layout.has_layer(layer)) return;
  const std::uint32_t dim = job.made->layout.dim(layer);
  for (std::uint32_t head = 0; head < job.space->row.geometry.layers[layer].kv_heads; ++head) {
    const std::size_t place = place_of(job, layer, head);
    std::vector<float> keys = std::move(job.keys[place]);
    std::vector<std::uint32_t>& positions = job.row_positions[place];
    fill_up(job.input.rope, dim, std::size_t{job.rows_per_segment} * job.segments.size(), &keys,
            &positions);
    job.keys_per_head = static_cast<std::uint32_t>(positions.size());
    turn_to_positions(job.input.rope, positions, dim, layer * 64 + head, keys);
    const std::vector<float> queries = queries_of(job, layer, head, dim);
    TrainingSet set;
    set.dim = dim;
    set.keys = keys;
    set.queries = queries;
    set.seed = 1 + layer * 64 + head;
    const HeadCodebook part = job.made->layout.head(job.made->payload.data(), layer, head);
    set.subspaces = part.book.subspaces;
    const Result<void> trained = train_head(set, part);
    if (!trained) job.failure = trained.error();
  }
}

void write_header(const Calibration& job) {
  CodebookHeader header;
  header.spec = job.input.spec.packed();
  header.version = kCodebookVersion;
  header.id = job.made->id;
  header.training_rows = job.keys_per_head;
  header.training_queries =
      job.input.queries.empty()
          ? 0
          : static_cast<std::uint32_t>(job.input.queries.back().positions.size());
  header.positions =
      job.input.rope.pairing == RopeSpec::Pairing::kNone ? 0 : job.input.rope.positions;
  std::memcpy(job.made->payload.data(), &header, sizeof(header));
}

void publish(EngineState& engine, const CalibrationPtr& job) {
  StoredSpace& space = *job->space;
  const std::uint32_t kind = job->input.spec.packed();
  std::erase_if(space.row.codebooks,
                [kind](const SpaceRow::Codebook& row) { return row.abstract == kind; });
  space.row.codebooks.push_back({kind, job->made->id});
  if (job->keep_in_memory) {
    space.codebooks_in_memory.push_back(job->made->id);
    return end_calibration(engine, job, {});
  }
  CatalogueBatch batch;
  batch.put_space(space.stored_row());
  post_batch(engine, std::move(batch), true, [&engine, job](Result<void> stored) {
    if (!stored)
      std::erase_if(job->space->row.codebooks,
                    [&](const SpaceRow::Codebook& row) { return row.id == job->made->id; });
    end_calibration(engine, job, stored ? Status{} : stored.error());
  });
}

// No row names it.
void drop_codebook_file(EngineState& engine, const CalibrationPtr& job, const Result<void>& why) {
  static_cast<void>(engine.io->io().unlink(codebook_path(job->space->row.id, job->made->id)));
  end_calibration(engine, job, why.error());
}

void write_codebook(EngineState& engine, const CalibrationPtr& job) {
  if (job->keep_in_memory || engine.read_only) {
    job->keep_in_memory = true;
    return publish(engine, job);
  }
  Io& io = engine.io->io();
  const StoredSpace& space = *job->space;
  const Result<FileId> file =
      io.open(codebook_path(space.row.id, job->made->id),
              {.mode = OpenMode::kCreateNew, .direct = engine.options.direct_io});
  if (!file) return end_calibration(engine, job, file.error());
  const std::vector<std::byte> bytes = encode_codebook(
      {space.row.id, space.row.digest, job->input.spec.packed(), job->made->id, 0, 0},
      job->made->payload);
  auto buffer = std::make_shared<AlignedBuffer>(bytes.size());
  std::memcpy(buffer->data(), bytes.data(), bytes.size());
  IoRequest write;
  write.op = IoOp::kWrite;
  write.priority = IoPriority::kWriteBack;
  write.file = *file;
  write.pieces.push_back({buffer->data(), buffer->size_bytes()});
  write.done = [&engine, job, buffer, file = *file](Result<void> written) {
    IoRequest sync;
    sync.op = IoOp::kSync;
    sync.priority = IoPriority::kWriteBack;
    sync.file = file;
    sync.done = [&engine, job, file, written](Result<void> synced) {
      engine.io->io().close(file);
      if (!written || !synced) return drop_codebook_file(engine, job, written ? synced : written);
      sync_directory(engine, "codebooks", IoPriority::kWriteBack,
                     [&engine, job](Result<void> named) {
                       named ? publish(engine, job) : drop_codebook_file(engine, job, named);
                     });
    };
    engine.io->submit(std::move(sync));
  };
  engine.io->submit(std::move(write));
}

void step_training(EngineState& engine, const CalibrationPtr& job) {
  if (engine.draining) return end_calibration(engine, job, kStopping);
  if (!job->failure.ok()) return end_calibration(engine, job, job->failure);
  if (job->next_layer == job->space->row.geometry.layers.size()) {
    write_header(*job);
    // Finite keys may still give numbers that are not.
    const Result<void> sound = job->made->layout.check_contents(job->made->payload.data());
    return sound ? write_codebook(engine, job) : end_calibration(engine, job, sound.error());
  }
  const std::uint32_t layer = job->next_layer++;
  run_on_worker(
      engine, [job, layer] { train_layer(*job, layer); },
      [&engine, job] { step_training(engine, job); });
}

void step_sampling(EngineState& engine, const CalibrationPtr& job) {
  if (engine.draining) return end_calibration(engine, job, kStopping);
  if (!job->failure.ok()) return end_calibration(engine, job, job->failure);
  if (job->next == job->segments.size()) return step_training(engine, job);
  Segment* segment = find_segment(engine, job->segments[job->next++]);
  if (segment == nullptr || segment->condemned) return step_sampling(engine, job);
  load_raw(engine, *segment, [&engine, job](Result<std::shared_ptr<const RawSegment>> raw) {
    if (!raw) return step_sampling(engine, job);  // the others may do
    const SegmentId id = (*raw)->segment;
    ++find_segment(engine, id)->busy;
    run_on_worker(
        engine, [job, raw = *raw] { sample_segment(*job, *raw); },
        [&engine, job, id] {
          --find_segment(engine, id)->busy;
          step_sampling(engine, job);
        });
  });
}

// Of the open sequence first, then of the space's others, evenly.
std::vector<SegmentId> choose_segments(const EngineState& engine, const OpenSequence& open) {
  const bool is_private = open.sequence->is_private;
  std::vector<SegmentId> own, others;
  for (const SequencePart& part : open.sequence->parts) own.push_back(part.segment->row.id);
  for (const auto& [id, segment] : engine.segments.all)
    if (segment->space == open.sequence->space && !is_private && !segment->condemned &&
        segment->state == SegmentState::kOnDisk && std::count(own.begin(), own.end(), id) == 0)
      others.push_back(id);
  std::sort(others.begin(), others.end(),
            [](SegmentId a, SegmentId b) { return a.value < b.value; });
  const auto thin_out = [](std::vector<SegmentId>* ids, std::size_t most) {
    if (ids->size() <= most) return;
    for (std::size_t i = 0; i < most; ++i) (*ids)[i] = (*ids)[i * ids->size() / most];
    ids->resize(most);
  };
  thin_out(&own, kCalibrationSegmentsMax -
                     std::min<std::size_t>(others.size(), kCalibrationSegmentsMax / 2));
  thin_out(&others, kCalibrationSegmentsMax - own.size());
  own.insert(own.end(), others.begin(), others.end());
  return own;
}

}  // namespace

void read_codebook(EngineState& engine, const StoredSpace& space, AbstractSpec spec,
                   std::uint64_t id,
                   std::function<void(Result<std::shared_ptr<const Codebook>>)> done) {
  auto read = std::make_shared<CodebookRead>();
  read->space = &space;
  read->spec = spec;
  read->id = id;
  Io& io = engine.io->io();
  const Result<FileId> file =
      io.open(codebook_path(space.row.id, id),
              {.mode = OpenMode::kRead, .direct = engine.options.direct_io});
  if (!file)
    return done(file.error().code == Code::kNotFound ? error(Code::kNotFound, "is not there")
                                                     : error(file.error()));
  const Result<std::uint64_t> size = io.size_bytes(*file);
  if (!size) {
    io.close(*file);
    return done(error(size.error()));
  }
  if (*size <= kHeadBytes || *size > kHeadBytes + kCodebookPayloadBytesMax ||
      *size % kDiskAlign != 0) {
    io.close(*file);
    return done(error(Code::kCorrupt, "has a wrong length"));
  }
  read->file = *file;
  read->bytes = AlignedBuffer(*size);
  read_in_pieces(engine, *file, IoPriority::kDemand, read->bytes.span(),
                 [&engine, read, done = std::move(done)](Result<void> result) {
                   engine.io->io().close(read->file);
                   if (!result) return done(error(result.error()));
                   Result<std::shared_ptr<const Codebook>> codebook = parse_codebook(*read);
                   if (!codebook) return done(error(Code::kCorrupt, "is damaged"));
                   done(std::move(codebook));
                 });
}

void load_codebook(EngineState& engine, const StoredSpace& space, AbstractSpec spec,
                   std::function<void(std::shared_ptr<const Codebook>)> done) {
  SpaceCodebook& entry = codebook_of(engine, space, spec);
  const std::uint64_t id = codebook_id(space, spec);
  const bool under_way =
      entry.state == CodebookState::kLoading || entry.state == CodebookState::kTraining;
  if (entry.state == CodebookState::kReady || (!under_way && id == 0)) return done(entry.codebook);
  entry.waiting.push_back(std::move(done));
  if (!under_way) start_load(engine, space, spec, id);
}

void calibrate(EngineState& engine, OpenSequence& open, CalibrationInput input,
               std::function<void(Result<void>)> done) {
  StoredSpace& space = *open.sequence->space;
  SpaceCodebook& entry = codebook_of(engine, space, input.spec);
  if (entry.state == CodebookState::kReady || codebook_id(space, input.spec) != 0 ||
      entry.state == CodebookState::kTraining)
    return load_codebook(engine, space, input.spec,
                         [done = std::move(done)](const std::shared_ptr<const Codebook>& made) {
                           made != nullptr
                               ? done({})
                               : done(error(Code::kMiss, "the codebook could not be made or read"));
                         });
  auto job = std::make_shared<Calibration>();
  job->space = &space;
  job->segments = choose_segments(engine, open);
  if (job->segments.empty())
    return done(
        error(Code::kMiss, "nothing is stored yet to calibrate on: store a document first"));
  entry.state = CodebookState::kTraining;
  job->input = std::move(input);
  job->keep_in_memory = open.sequence->is_private || space.row.private_only;
  job->kernels = engine.kernels;
  job->done = std::move(done);
  // An id that no other codebook ever had, one that was never written neither: codes name it.
  const std::uint64_t id = engine.world.random->next() | 1;
  job->made = std::make_shared<Codebook>(
      Codebook{id, CodebookLayout(space.row.geometry, job->input.spec), {}});
  const CodebookLayout& layout = job->made->layout;
  if (const Result<void> fits = layout.validate(); !fits)
    return end_calibration(engine, job, fits.error());
  if (layout.size_bytes() > kCodebookPayloadBytesMax)
    return end_calibration(engine, job,
                           {Code::kUnsupported, 0,
                            "the codebook of this model would be above 1 GiB: take the preset "
                            "quest, which needs none"});
  job->made->payload.resize(static_cast<std::size_t>(layout.size_bytes()));
  std::uint64_t heads = 0, dim = 1;
  for (std::uint32_t layer = 0; layer < space.row.geometry.layers.size(); ++layer) {
    if (!layout.has_layer(layer)) continue;
    heads += space.row.geometry.layers[layer].kv_heads;
    dim = std::max<std::uint64_t>(dim, layout.dim(layer));
  }
  if (heads == 0) return end_calibration(engine, job, {Code::kUnsupported, 0, "no layer has keys"});
  const std::uint64_t rows =
      std::min<std::uint64_t>(kCalibrationRows, kCalibrationBytesMax / (heads * dim * 4));
  job->rows_per_segment =
      static_cast<std::uint32_t>(std::max<std::uint64_t>(1, rows / job->segments.size()));
  job->keys.resize(static_cast<std::size_t>(heads));
  job->row_positions.resize(static_cast<std::size_t>(heads));
  step_sampling(engine, job);
}

}  // namespace kvtier
