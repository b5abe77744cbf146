#include "daemon/abstracts.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "daemon/codebooks.h"
#include "daemon/directory.h"
#include "daemon/engine_state.h"
#include "tiers/sidecar_format.h"

namespace kvtier {

SegmentAbstract& lane_of(Segment& segment, std::uint32_t lane) {
  KVT_CHECK(lane < segment.space->lanes());
  if (segment.abstracts.size() <= lane) segment.abstracts.resize(lane + 1);
  return segment.abstracts[lane];
}

namespace {

// The same for one that is written and one that is removed: units that depend on the tokens are
// taken as 8 tokens long.
std::uint64_t file_bytes_of(const Segment& segment, std::uint32_t lane) {
  const AbstractSpec spec = segment.space->lane_spec(lane);
  const std::uint32_t tokens = segment.row.tokens;
  const std::uint32_t units = spec.by_tokens() ? (tokens + 7) / 8 : spec.units_of(tokens);
  const AbstractLayout layout(segment.space->row.geometry, spec, tokens, units);
  return kSidecarHeaderBytes + align_up<std::uint64_t>(layout.size_bytes(), kDiskAlign);
}

void set_has_file(EngineState& engine, Segment& segment, std::uint32_t lane) {
  SegmentAbstract& abstract = lane_of(segment, lane);
  if (abstract.has_file) return;
  abstract.has_file = true;
  engine.segments.sidecar_bytes += file_bytes_of(segment, lane);
}

void free_abstract(EngineState& engine, SegmentAbstract& abstract) {
  if (abstract.state != AbstractState::kReady) return;
  engine.abstracts->free(abstract.offset);
  abstract.offset = UINT64_MAX;
  abstract.state = AbstractState::kAbsent;
}

bool place_in_arena(EngineState& engine, SegmentAbstract& abstract, ByteSpan payload) {
  const Result<std::uint64_t> offset = engine.abstracts->allocate(payload.size());
  abstract.state = offset ? AbstractState::kReady : AbstractState::kFailed;
  if (!offset) {
    ++engine.metrics.abstracts_full;
    return false;
  }
  std::memcpy(engine.abstracts->data(*offset), payload.data(), payload.size());
  abstract.offset = *offset;
  return true;
}

// ---- load ----

struct SidecarRead {
  SegmentId segment;
  std::uint32_t lane = 0;
  FileId file;
  AlignedBuffer bytes;
};

SidecarHeader header_of(const Segment& segment, std::uint32_t lane) {
  SidecarHeader header;
  header.segment = segment.row.id;
  header.fingerprint = segment.space->row.digest;
  header.kind = segment.space->row.abstracts[lane];
  header.version = kAbstractVersion;
  header.tokens = segment.row.tokens;
  return header;
}

Result<ByteSpan> parse_sidecar(const Segment& segment, std::uint32_t lane, ByteSpan bytes) {
  KVT_TRY(const SidecarHeader header, parse_sidecar_header(bytes));
  const SidecarHeader wanted = header_of(segment, lane);
  const AbstractSpec spec = segment.space->lane_spec(lane);
  if (header.segment != wanted.segment || header.fingerprint != wanted.fingerprint ||
      header.kind != wanted.kind || header.version != wanted.version ||
      header.tokens != wanted.tokens || header.units == 0 || header.units > header.tokens)
    return error(Code::kCorrupt, "the sidecar is of another segment");
  const AbstractLayout layout(segment.space->row.geometry, spec, header.tokens, header.units);
  if ((!spec.by_tokens() && header.units != spec.units_of(header.tokens)) ||
      header.payload_bytes != layout.size_bytes() ||
      layout.size_bytes() > bytes.size() - kSidecarHeaderBytes)
    return error(Code::kCorrupt, "the sidecar has another length than its segment says");
  const ByteSpan payload = bytes.subspan(static_cast<std::size_t>(kSidecarHeaderBytes),
                                         static_cast<std::size_t>(layout.size_bytes()));
  KVT_TRY_VOID(check_sidecar_payload(header, payload));
  AbstractHeader inside;
  std::memcpy(&inside, payload.data(), sizeof(inside));
  const bool codes = spec.abstract == AbstractKind::kCodes;
  if (inside.spec != wanted.kind || inside.tokens != header.tokens ||
      inside.units != header.units || inside.version != kAbstractVersion ||
      inside.codebook != (codes ? codebook_id(*segment.space, spec) : 0))
    return error(Code::kCorrupt, "the sidecar is of another codebook or version");
  return payload;
}

void sidecar_read(EngineState& engine, const std::shared_ptr<SidecarRead>& read,
                  Result<void> result) {
  engine.io->io().close(read->file);
  Segment* segment = find_segment(engine, read->segment);
  KVT_CHECK(segment != nullptr);  // busy
  --segment->busy;
  Result<ByteSpan> payload = error(Code::kIo);
  if (result) payload = parse_sidecar(*segment, read->lane, read->bytes.span());
  if (payload) {
    ++engine.metrics.abstracts_loaded;
    install_abstract(engine, *segment, read->lane, *payload);
    return settle_lanes(engine);
  }
  KVT_LOG(kInfo, "segment %" PRIx64 ": sidecar is damaged, abstracts are built again",
          read->segment.value);
  queue_build(engine, *segment, read->lane);
}

void load_sidecar(EngineState& engine, Segment& segment, std::uint32_t lane) {
  lane_of(segment, lane).state = AbstractState::kWorking;
  if (segment.state != SegmentState::kOnDisk) return queue_build(engine, segment, lane);
  Io& io = engine.io->io();
  const Result<FileId> file =
      io.open(sidecar_path(segment.row.id, segment.space->row.abstracts[lane]),
              {.mode = OpenMode::kRead, .direct = engine.options.direct_io});
  if (!file) return queue_build(engine, segment, lane);
  const Result<std::uint64_t> size = io.size_bytes(*file);
  if (!size || *size < kSidecarHeaderBytes || *size % kDiskAlign != 0 ||
      *size > kSidecarHeaderBytes + kSidecarPayloadBytesMax) {
    io.close(*file);
    return queue_build(engine, segment, lane);
  }
  set_has_file(engine, segment, lane);
  auto read = std::make_shared<SidecarRead>();
  read->segment = segment.row.id;
  read->lane = lane;
  read->file = *file;
  read->bytes = AlignedBuffer(*size);
  ++segment.busy;
  IoRequest request;
  request.op = IoOp::kRead;
  request.priority = IoPriority::kDemand;
  request.file = *file;
  request.pieces.push_back({read->bytes.data(), read->bytes.size_bytes()});
  request.done = [&engine, read](Result<void> result) { sidecar_read(engine, read, result); };
  engine.io->submit(std::move(request));
}

void want(EngineState& engine, Segment& segment, std::uint32_t lane) {
  SegmentAbstract& abstract = lane_of(segment, lane);
  ++abstract.wants;
  const bool readable =
      segment.state == SegmentState::kOnDisk || segment.state == SegmentState::kInMemory;
  if (abstract.state == AbstractState::kFailed && abstract.wants == 1)
    abstract.state = AbstractState::kAbsent;  // somebody new: try again
  if (abstract.state != AbstractState::kAbsent || !readable) return;
  const AbstractLayout layout(segment.space->row.geometry, segment.space->lane_spec(lane),
                              segment.row.tokens, 1);
  if (layout.size_bytes() == 0) return;  // no layer has any
  load_sidecar(engine, segment, lane);
}

void unwant(EngineState& engine, Segment& segment, std::uint32_t lane) {
  SegmentAbstract& abstract = lane_of(segment, lane);
  KVT_CHECK(abstract.wants > 0);
  if (--abstract.wants == 0) free_abstract(engine, abstract);
}

}  // namespace

// ---- wants ----

void want_lane(EngineState& engine, OpenSequence& open, std::uint32_t lane) {
  KVT_CHECK(lane < kSpaceAbstractsMax);
  if (open.lane_views[lane]++ != 0) return;
  for (auto& [id, held] : open.held) want(engine, *held.segment, lane);
  publish_directory(engine, open);
}

void drop_lane(EngineState& engine, OpenSequence& open, std::uint32_t lane) {
  if (lane >= kSpaceAbstractsMax || open.lane_views[lane] == 0 || --open.lane_views[lane] != 0)
    return;
  for (auto& [id, held] : open.held) unwant(engine, *held.segment, lane);
  publish_directory(engine, open);
}

void retry_lane(EngineState& engine, const StoredSpace& space, AbstractSpec spec) {
  const auto& kinds = space.row.abstracts;
  const auto place = std::find(kinds.begin(), kinds.end(), spec.packed());
  if (place == kinds.end()) return;
  const auto lane = static_cast<std::uint32_t>(place - kinds.begin());
  std::vector<Segment*> wanted;
  for (const auto& [id, segment] : engine.segments.all)
    if (segment->space == &space && !segment->condemned && lane_of(*segment, lane).wants != 0)
      wanted.push_back(segment.get());
  std::sort(wanted.begin(), wanted.end(),
            [](const Segment* a, const Segment* b) { return a->row.id.value < b->row.id.value; });
  for (Segment* segment : wanted) {
    SegmentAbstract& abstract = lane_of(*segment, lane);
    if (abstract.state == AbstractState::kReady) {
      AbstractHeader header;
      std::memcpy(&header, engine.abstracts->data(abstract.offset), sizeof(header));
      if (header.codebook == codebook_id(space, spec)) continue;
      free_abstract(engine, abstract);  // codes of a codebook that is gone
      publish_segment(engine, *segment);
    } else if (abstract.state != AbstractState::kFailed) {
      continue;
    }
    load_sidecar(engine, *segment, lane);
  }
}

void hold_abstracts(EngineState& engine, OpenSequence& open, Segment& segment) {
  for (std::uint32_t lane = 0; lane < kSpaceAbstractsMax; ++lane)
    if (open.lane_views[lane] != 0) want(engine, segment, lane);
}

void release_abstracts(EngineState& engine, OpenSequence& open, Segment& segment) {
  for (std::uint32_t lane = 0; lane < kSpaceAbstractsMax; ++lane)
    if (open.lane_views[lane] != 0) unwant(engine, segment, lane);
}

void drop_abstracts(EngineState& engine, Segment& segment) {
  for (SegmentAbstract& abstract : segment.abstracts) free_abstract(engine, abstract);
}

LaneProgress progress_of(const OpenSequence& open, std::uint32_t lane) {
  LaneProgress out;
  for (const auto& [id, held] : open.held) {
    if (held.entry == UINT32_MAX) continue;
    ++out.segments;
    const std::vector<SegmentAbstract>& abstracts = held.segment->abstracts;
    const AbstractState state =
        lane < abstracts.size() ? abstracts[lane].state : AbstractState::kAbsent;
    out.ready += state == AbstractState::kReady ? 1 : 0;
    // kAbsent with a want: nothing to load it from, or no layer has any.
    out.failed += state == AbstractState::kFailed || state == AbstractState::kAbsent ? 1 : 0;
  }
  return out;
}

// ---- sealing ----

std::vector<SealLane> lanes_at_seal(EngineState& engine, const StoredSequence& sequence) {
  std::vector<SealLane> out;
  for (std::uint32_t lane = 0; lane < sequence.space->lanes(); ++lane) {
    const AbstractSpec spec = sequence.space->lane_spec(lane);
    // Dear: after the seal.
    if (spec.partition == PartitionKind::kClusters || spec.abstract == AbstractKind::kOwnCodes)
      continue;
    const bool wanted =
        lane == 0 || std::any_of(sequence.open.begin(), sequence.open.end(),
                                 [&](const auto* open) { return open->lane_views[lane] != 0; });
    if (!wanted) continue;
    SealLane entry{lane, spec, nullptr};
    if (spec.abstract == AbstractKind::kCodes) {
      // Read now, it serves the next seal; this one's codes are built when a view wants them.
      load_codebook(engine, *sequence.space, spec, [](const auto&) {});
      entry.codebook = codebook_of(engine, *sequence.space, spec).codebook;
      if (entry.codebook == nullptr) continue;
    }
    out.push_back(std::move(entry));
  }
  return out;
}

void install_sealed(EngineState& engine, Segment& segment, const SealedAbstract& built) {
  if (built.failed || built.payload.empty()) return;
  ++engine.metrics.abstracts_built;
  write_sidecar(engine, segment, built.lane, built.payload);
  place_in_arena(engine, lane_of(segment, built.lane), built.payload);
}

void release_unwanted(EngineState& engine, Segment& segment) {
  for (SegmentAbstract& abstract : segment.abstracts)
    if (abstract.wants == 0) free_abstract(engine, abstract);
}

// ---- files ----

std::vector<std::string> sidecar_paths_of(const Segment& segment) {
  std::vector<std::string> out;
  for (const std::uint32_t kind : segment.space->row.abstracts)
    out.push_back(sidecar_path(segment.row.id, kind));
  return out;
}

std::uint64_t sidecar_bytes_of(const Segment& segment) {
  std::uint64_t bytes = 0;
  for (std::uint32_t lane = 0; lane < segment.abstracts.size(); ++lane)
    if (segment.abstracts[lane].has_file) bytes += file_bytes_of(segment, lane);
  return bytes;
}

void note_sidecar(EngineState& engine, Segment& segment, std::uint32_t kind) {
  const std::vector<std::uint32_t>& kinds = segment.space->row.abstracts;
  const auto place = std::find(kinds.begin(), kinds.end(), kind);
  if (place != kinds.end())
    set_has_file(engine, segment, static_cast<std::uint32_t>(place - kinds.begin()));
}

void drop_abstract(EngineState& engine, Segment& segment, std::uint32_t lane) {
  SegmentAbstract& abstract = lane_of(segment, lane);
  const bool shown = abstract.state == AbstractState::kReady;
  free_abstract(engine, abstract);
  if (shown) publish_segment(engine, segment);
  static_cast<void>(
      engine.io->io().unlink(sidecar_path(segment.row.id, segment.space->row.abstracts[lane])));
  if (abstract.has_file) engine.segments.sidecar_bytes -= file_bytes_of(segment, lane);
  abstract.has_file = false;
}

void install_abstract(EngineState& engine, Segment& segment, std::uint32_t lane, ByteSpan payload) {
  SegmentAbstract& abstract = lane_of(segment, lane);
  abstract.state = AbstractState::kAbsent;
  if (abstract.wants == 0 || segment.condemned) return;
  if (place_in_arena(engine, abstract, payload)) publish_segment(engine, segment);
}

namespace {

struct SidecarWrite {
  SegmentId segment;
  std::uint32_t lane = 0;
  std::string path, part;
  FileId file;
  AlignedBuffer bytes;
  std::size_t left = 0;
  bool failed = false;
  std::function<void(bool)> done;
};

// Whole, it takes the place of the one before; a part of one would count as damage.
void end_write(EngineState& engine, const SidecarWrite& write) {
  Io& io = engine.io->io();
  io.close(write.file);
  Segment* segment = find_segment(engine, write.segment);
  const bool wanted = !write.failed && segment != nullptr && !segment->condemned;
  const bool written = wanted && io.rename(write.part, write.path);
  if (written)
    set_has_file(engine, *segment, write.lane);
  else
    static_cast<void>(io.unlink(write.part));
  if (write.done) write.done(written);
}

}  // namespace

void write_sidecar(EngineState& engine, Segment& segment, std::uint32_t lane, ByteSpan payload,
                   std::function<void(bool)> done) {
  const auto leave_out = [&done] {
    if (done) done(false);
  };
  if (segment.state != SegmentState::kOnDisk || engine.read_only) return leave_out();
  // Built again when it is wanted.
  if (!may_write_optional(engine, payload.size())) return leave_out();
  Io& io = engine.io->io();
  auto write = std::make_shared<SidecarWrite>();
  write->segment = segment.row.id;
  write->lane = lane;
  write->path = sidecar_path(segment.row.id, segment.space->row.abstracts[lane]);
  write->part = sidecar_part_path(write->path, engine.abstract_table.next_part++);
  const Result<FileId> file =
      io.open(write->part, {.mode = OpenMode::kCreateNew, .direct = engine.options.direct_io});
  if (!file) return leave_out();
  write->file = *file;
  write->done = std::move(done);
  SidecarHeader header = header_of(segment, lane);
  AbstractHeader inside;
  std::memcpy(&inside, payload.data(), sizeof(inside));
  header.units = inside.units;
  const std::vector<std::byte> bytes = encode_sidecar(header, payload);
  write->bytes = AlignedBuffer(bytes.size());
  std::memcpy(write->bytes.data(), bytes.data(), bytes.size());
  engine.metrics.sidecar_bytes += bytes.size();
  std::vector<IoRequest> requests;
  for (std::uint64_t at = 0; at < bytes.size(); at += kReadBytesMax) {
    IoRequest request;
    request.op = IoOp::kWrite;
    request.priority = IoPriority::kBackground;
    request.file = *file;
    request.offset = at;
    request.pieces.push_back(
        {write->bytes.data() + at, std::min<std::uint64_t>(kReadBytesMax, bytes.size() - at)});
    request.done = [&engine, write](Result<void> written) {
      write->failed = write->failed || !written;
      if (--write->left == 0) end_write(engine, *write);
    };
    requests.push_back(std::move(request));
  }
  write->left = requests.size();
  for (IoRequest& request : requests) engine.io->submit(std::move(request));
}

}  // namespace kvtier
