// Sidecars: the files that abstracts come from and go to. Checksums, copies and encoding are
// workers' work: a base rendition has a third of the bytes of its segment.
#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "daemon/abstracts.h"
#include "daemon/codebooks.h"
#include "daemon/engine_state.h"
#include "daemon/file_reads.h"
#include "daemon/reclaim.h"
#include "tiers/sidecar_format.h"

namespace kvtier {
namespace {

SidecarHeader header_of(const Segment& segment, std::uint32_t lane) {
  SidecarHeader header;
  header.segment = segment.row.id;
  header.fingerprint = segment.space->row.digest;
  header.kind = segment.space->row.abstracts[lane];
  header.version = kAbstractVersion;
  header.tokens = segment.row.tokens;
  return header;
}

// ---- load ----

struct SidecarRead {
  SegmentId segment;
  std::uint32_t lane = 0;
  FileId file;
  AlignedBuffer bytes;
  bool failed = false;
  bool base = false;
  std::uint64_t arena_bytes = 0;
  // What the file must say, and what lies in it then.
  SidecarHeader wanted;
  std::uint64_t codebook = 0;
  AbstractSpec spec;
  const Geometry* geometry = nullptr;
  Result<ByteSpan> payload = error(Code::kIo);
};
using ReadPtr = std::shared_ptr<SidecarRead>;

Result<ByteSpan> parse_sidecar(const SidecarRead& read) {
  const ByteSpan bytes = read.bytes.span();
  const SidecarHeader& wanted = read.wanted;
  KVT_TRY(const SidecarHeader header, parse_sidecar_header(bytes));
  if (header.segment != wanted.segment || header.fingerprint != wanted.fingerprint ||
      header.kind != wanted.kind || header.version != wanted.version ||
      header.tokens != wanted.tokens || header.units == 0 || header.units > header.tokens)
    return error(Code::kCorrupt, "the sidecar is of another segment");
  const AbstractLayout layout(*read.geometry, read.spec, header.tokens, header.units);
  if ((!read.spec.by_tokens() && header.units != read.spec.units_of(header.tokens)) ||
      header.payload_bytes != layout.size_bytes() ||
      layout.size_bytes() > bytes.size() - kSidecarHeaderBytes)
    return error(Code::kCorrupt, "the sidecar has another length than its segment says");
  const ByteSpan payload = bytes.subspan(static_cast<std::size_t>(kSidecarHeaderBytes),
                                         static_cast<std::size_t>(layout.size_bytes()));
  KVT_TRY_VOID(check_sidecar_payload(header, payload));
  AbstractHeader inside;
  std::memcpy(&inside, payload.data(), sizeof(inside));
  if (inside.spec != wanted.kind || inside.tokens != header.tokens ||
      inside.units != header.units || inside.version != kAbstractVersion ||
      inside.codebook != read.codebook)
    return error(Code::kCorrupt, "the sidecar is of another codebook or version");
  return payload;
}

std::uint64_t wanted_codebook(const Segment& segment, AbstractSpec spec) {
  return spec.abstract == AbstractKind::kCodes ? codebook_id(*segment.space, spec) : 0;
}

// One that is there and cannot be used.
void build_instead(EngineState& engine, Segment& segment, std::uint32_t lane, const char* why) {
  KVT_LOG(kInfo, "%s: %s; its abstracts are built again",
          sidecar_path(segment.row.id, segment.space->row.abstracts[lane]).c_str(), why);
  queue_build(engine, segment, lane);
}

void next_loads(EngineState& engine);

AbstractTable::Loads& loads_of(EngineState& engine, bool base) {
  return base ? engine.abstract_table.base_loads : engine.abstract_table.loads;
}

void sidecar_parsed(EngineState& engine, const ReadPtr& read) {
  Segment* segment = find_segment(engine, read->segment);
  KVT_CHECK(segment != nullptr);  // busy
  --segment->busy;
  AbstractTable::Loads& loads = loads_of(engine, read->base);
  --loads.under_way;
  loads.bytes -= read->bytes.size_bytes();
  loads.arena_bytes -= read->arena_bytes;
  if (read->payload && read->codebook == wanted_codebook(*segment, read->spec)) {
    ++engine.metrics.abstracts_loaded;
    install_abstract(engine, *segment, read->lane, {read, *read->payload});
  } else {
    build_instead(engine, *segment, read->lane,
                  read->payload  ? "of another codebook"
                  : read->failed ? "cannot be read"
                                 : read->payload.error().message());
  }
  next_loads(engine);
}

void sidecar_read(EngineState& engine, const ReadPtr& read) {
  engine.io->io().close(read->file);
  if (read->failed) return sidecar_parsed(engine, read);
  const Segment* segment = find_segment(engine, read->segment);
  KVT_CHECK(segment != nullptr);  // busy
  read->wanted = header_of(*segment, read->lane);
  read->spec = segment->space->lane_spec(read->lane);
  read->codebook = wanted_codebook(*segment, read->spec);
  read->geometry = &segment->space->row.geometry;
  run_on_worker(
      engine, [read] { read->payload = parse_sidecar(*read); },
      [&engine, read] { sidecar_parsed(engine, read); });
}

// Of the arena. Where the units depend on the tokens, the least that it can be.
std::uint64_t arena_bytes_of(const Segment& segment, std::uint32_t lane) {
  const AbstractSpec spec = segment.space->lane_spec(lane);
  const std::uint32_t units = spec.by_tokens() ? 1 : spec.units_of(segment.row.tokens);
  return AbstractLayout(segment.space->row.geometry, spec, segment.row.tokens, units).size_bytes();
}

void load_sidecar(EngineState& engine, Segment& segment, std::uint32_t lane) {
  if (segment.state != SegmentState::kOnDisk) return queue_build(engine, segment, lane);
  const bool base = is_rendition(segment, lane);
  AbstractTable::Loads& loads = loads_of(engine, base);
  const std::uint64_t arena_bytes = arena_bytes_of(segment, lane);
  // Not read in vain: what is under way takes its room first. Base renditions were promised theirs.
  if (!base && engine.abstracts->used_bytes() + loads.arena_bytes + arena_bytes >
                   engine.abstracts->size_bytes()) {
    refuse_abstract(engine, segment, lane);
    return settle_lane(engine, segment.row.id, lane);
  }
  Io& io = engine.io->io();
  const Result<FileId> file =
      io.open(sidecar_path(segment.row.id, segment.space->row.abstracts[lane]),
              {.mode = OpenMode::kRead, .direct = engine.options.direct_io});
  if (!file && file.error().code == Code::kNotFound) return queue_build(engine, segment, lane);
  if (!file) return build_instead(engine, segment, lane, file.error().message());
  const Result<std::uint64_t> size = io.size_bytes(*file);
  if (!size || *size < kSidecarHeaderBytes || *size % kDiskAlign != 0 ||
      *size > kSidecarHeaderBytes + kSidecarPayloadBytesMax) {
    io.close(*file);
    return build_instead(engine, segment, lane, "of a wrong length");
  }
  note_file(engine, segment, lane);
  auto read = std::make_shared<SidecarRead>();
  read->segment = segment.row.id;
  read->lane = lane;
  read->file = *file;
  read->bytes = AlignedBuffer::unfilled(*size);
  read->base = base;
  read->arena_bytes = arena_bytes;
  ++loads.under_way;
  loads.bytes += read->bytes.size_bytes();
  loads.arena_bytes += arena_bytes;
  ++segment.busy;
  read_in_pieces(engine, read->file, base ? IoPriority::kPrefetch : IoPriority::kDemand,
                 read->bytes.span(), [&engine, read](Result<void> result) {
                   read->failed = !result;
                   sidecar_read(engine, read);
                 });
}

// Base renditions wait for all others.
AbstractTable::Loads* loads_to_begin(AbstractTable& table) {
  AbstractTable::Loads& loads = table.loads;
  if (!loads.waiting.empty())
    return loads.under_way < kSidecarLoadsMax && loads.bytes < kSidecarLoadBytesMax ? &loads
                                                                                    : nullptr;
  AbstractTable::Loads& base = table.base_loads;
  return !base.waiting.empty() && base.under_way < kBaseLoadsMax ? &base : nullptr;
}

// What waits, where it is still wanted.
void next_loads(EngineState& engine) {
  AbstractTable& table = engine.abstract_table;
  if (engine.draining || table.starting_loads) return;  // the loop below goes on by itself
  table.starting_loads = true;
  while (AbstractTable::Loads* loads = loads_to_begin(table)) {
    const auto [id, lane] = loads->waiting.front();
    loads->waiting.pop_front();
    Segment* segment = find_segment(engine, id);
    if (segment != nullptr && !segment->condemned && lane_of(*segment, lane).wants != 0) {
      load_sidecar(engine, *segment, lane);
      continue;
    }
    if (segment != nullptr) lane_of(*segment, lane).state = AbstractState::kAbsent;
    settle_lane(engine, id, lane);
  }
  table.starting_loads = false;
}

}  // namespace

void queue_load(EngineState& engine, Segment& segment, std::uint32_t lane) {
  lane_of(segment, lane).state = AbstractState::kWorking;
  loads_of(engine, is_rendition(segment, lane)).waiting.emplace_back(segment.row.id, lane);
  next_loads(engine);
}

// ---- write ----

namespace {

struct SidecarWrite {
  SegmentId segment;
  std::uint32_t lane = 0;
  SidecarHeader header;
  KeptBytes payload;  // until it is encoded
  std::string path, part;
  FileId file;
  AlignedBuffer bytes;
  std::size_t left = 0;
  bool failed = false;
  std::function<void(bool)> done;
};
using WritePtr = std::shared_ptr<SidecarWrite>;

void end_write(EngineState& engine, const SidecarWrite& write, bool written) {
  if (Segment* segment = find_segment(engine, write.segment); segment != nullptr)
    --lane_of(*segment, write.lane).writes;
  if (write.done) write.done(written);
}

// Whole, it takes the place of the one before; a part of one would count as damage.
void close_write(EngineState& engine, const SidecarWrite& write) {
  Io& io = engine.io->io();
  io.close(write.file);
  Segment* segment = find_segment(engine, write.segment);
  const bool wanted = !write.failed && segment != nullptr && !segment->condemned;
  const bool written = wanted && io.rename(write.part, write.path);
  if (written)
    note_file(engine, *segment, write.lane);
  else
    static_cast<void>(io.unlink(write.part));
  end_write(engine, write, written);
}

// Worker.
void encode(SidecarWrite& write) {
  AbstractHeader inside;
  std::memcpy(&inside, write.payload.bytes.data(), sizeof(inside));
  write.header.units = inside.units;
  const std::vector<std::byte> bytes = encode_sidecar(write.header, write.payload.bytes);
  write.bytes = AlignedBuffer(bytes.size());
  std::memcpy(write.bytes.data(), bytes.data(), bytes.size());
}

void begin_write(EngineState& engine, const WritePtr& write) {
  write->payload = {};
  const Segment* segment = find_segment(engine, write->segment);
  if (segment == nullptr || segment->condemned) return end_write(engine, *write, false);
  Io& io = engine.io->io();
  const Result<FileId> file =
      io.open(write->part, {.mode = OpenMode::kCreateNew, .direct = engine.options.direct_io});
  if (!file) return end_write(engine, *write, false);
  write->file = *file;
  const std::uint64_t size = write->bytes.size_bytes();
  engine.metrics.sidecar_bytes += size;
  std::vector<IoRequest> requests;
  for (std::uint64_t at = 0; at < size; at += kReadBytesMax) {
    IoRequest request;
    request.op = IoOp::kWrite;
    request.priority = IoPriority::kBackground;
    request.file = *file;
    request.offset = at;
    request.pieces.push_back(
        {write->bytes.data() + at, std::min<std::uint64_t>(kReadBytesMax, size - at)});
    request.done = [&engine, write](Result<void> written) {
      write->failed = write->failed || !written;
      if (--write->left == 0) close_write(engine, *write);
    };
    requests.push_back(std::move(request));
  }
  write->left = requests.size();
  for (IoRequest& request : requests) engine.io->submit(std::move(request));
}

// Base renditions are large, and quickly made again: they never take the room of anything exact.
bool has_disk_room(const EngineState& engine, const Segment& segment, std::uint32_t lane,
                   std::uint64_t bytes) {
  return !is_rendition(segment, lane) ||
         store_bytes(engine) + bytes <= engine.options.disk_bytes_max;
}

}  // namespace

void write_sidecar(EngineState& engine, Segment& segment, std::uint32_t lane, KeptBytes payload,
                   std::function<void(bool)> done) {
  const std::uint64_t bytes = payload.bytes.size();
  AbstractHeader header;
  std::memcpy(&header, payload.bytes.data(), sizeof(header));
  // Left out, it is built again when it is wanted.
  if (segment.state != SegmentState::kOnDisk || engine.read_only ||
      segment.space->in_memory_only(header.codebook) || bytes > kSidecarPayloadBytesMax ||
      !has_disk_room(engine, segment, lane, bytes) || !may_write_optional(engine, bytes)) {
    if (done) done(false);
    return;
  }
  auto write = std::make_shared<SidecarWrite>();
  write->segment = segment.row.id;
  write->lane = lane;
  write->header = header_of(segment, lane);
  write->payload = std::move(payload);
  write->path = sidecar_path(segment.row.id, segment.space->row.abstracts[lane]);
  write->part = sidecar_part_path(write->path, engine.abstract_table.next_part++);
  write->done = std::move(done);
  ++lane_of(segment, lane).writes;
  run_on_worker(
      engine, [write] { encode(*write); }, [&engine, write] { begin_write(engine, write); });
}

// ---- room ----

void drop_file(EngineState& engine, Segment& segment, std::uint32_t lane) {
  static_cast<void>(
      engine.io->io().unlink(sidecar_path(segment.row.id, segment.space->row.abstracts[lane])));
  SegmentAbstract& abstract = lane_of(segment, lane);
  if (abstract.has_file) engine.segments.sidecar_bytes -= file_bytes_of(segment, lane);
  abstract.has_file = false;
}

bool drop_coldest_base(EngineState& engine) {
  Segment* coldest = nullptr;
  std::uint32_t coldest_lane = 0;
  for (const auto& [id, segment] : engine.segments.all)
    for (std::uint32_t lane = 0; lane < segment->abstracts.size(); ++lane) {
      const SegmentAbstract& abstract = segment->abstracts[lane];
      if (!abstract.has_file || abstract.wants != 0 || abstract.state == AbstractState::kWorking ||
          !is_rendition(*segment, lane))
        continue;
      const auto order = [](const Segment& one) {
        return std::pair(one.row.last_used_unix_ns, ~one.row.id.value);
      };
      if (coldest != nullptr && order(*coldest) <= order(*segment)) continue;
      coldest = segment.get();
      coldest_lane = lane;
    }
  if (coldest != nullptr) drop_file(engine, *coldest, coldest_lane);
  return coldest != nullptr;
}

}  // namespace kvtier
