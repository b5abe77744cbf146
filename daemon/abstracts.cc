#include "daemon/abstracts.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "daemon/directory.h"
#include "daemon/engine_state.h"
#include "tiers/codec.h"
#include "tiers/sidecar_format.h"

namespace kvtier {

std::vector<std::byte> build_abstracts(const AbstractSource& source) {
  const Space& space = *source.space;
  if (space.abstract_kind() == AbstractKind::kNone) return {};
  std::vector<std::byte> payload(
      static_cast<std::size_t>(space.abstract_layout(source.tokens).size_bytes()));
  const auto layers = static_cast<std::uint32_t>(space.row.geometry.layers.size());
  if (!build_layer_abstracts(source, 0, layers, payload)) return {};
  return payload;
}

bool build_layer_abstracts(const AbstractSource& source, std::uint32_t first, std::uint32_t last,
                           MutableByteSpan payload) {
  const Space& space = *source.space;
  const Geometry& geometry = space.row.geometry;
  const AbstractLayout layout = space.abstract_layout(source.tokens);
  KVT_CHECK(payload.size() == layout.size_bytes());
  std::vector<std::uint64_t> pages(source.layout->chunks_per_layer());
  const std::uint64_t tokens = source.tokens;
  for (std::uint32_t layer = first; layer < last; ++layer) {
    if (layout.unit_bytes(layer) == 0) continue;
    const LayerGeometry& shape = geometry.layers[layer];
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
      const std::uint32_t group = head / geometry.heads_in_group(layer),
                          inside = head % geometry.heads_in_group(layer);
      for (std::uint32_t chunk = 0; chunk < pages.size(); ++chunk) {
        const std::byte* bytes = source.chunks[source.layout->chunk_index(layer, chunk, group)];
        pages[chunk] =
            reinterpret_cast<std::uint64_t>(bytes) + k_row_offset(geometry, shape, inside, 0);
      }
      BuildAbstractArgs args;
      args.rows.pages = pages.data();
      args.rows.page_tokens = geometry.chunk_tokens;
      args.rows.k_stride = shape.k_row_bytes;
      args.rows.v_offset = std::uint64_t{geometry.chunk_tokens} * shape.k_row_bytes;
      args.rows.v_stride = shape.v_row_bytes;
      args.rows.dtype = shape.dtype;
      args.token_count = &tokens;
      args.unit_tokens = space.row.unit_tokens;
      args.dim = shape.k_row_bytes / dtype_bytes(shape.dtype);
      args.kind = space.abstract_kind();
      args.out = reinterpret_cast<std::uint16_t*>(payload.data() + layout.head_offset(layer, head));
      if (!source.kernels->build_abstract(args, nullptr)) return false;
    }
  }
  return true;
}

namespace {

SidecarHeader sidecar_header_of(const Segment& segment) {
  SidecarHeader header;
  header.segment = segment.row.id;
  header.fingerprint = segment.space->row.digest;
  header.kind = segment.space->row.abstract_kind;
  header.unit_tokens = segment.space->row.unit_tokens;
  header.tokens = segment.row.tokens;
  return header;
}

// Into the arena, if somebody still wants it. Directories follow.
void install(EngineState& engine, Segment& segment, ByteSpan payload) {
  std::vector<std::function<void()>> waiters = std::move(segment.abstract_waiters);
  segment.abstract_waiters.clear();
  segment.abstract_state = AbstractState::kAbsent;
  const bool wanted = segment.handle_refs != 0 || segment.state == SegmentState::kInMemory;
  if (wanted && !segment.condemned) {
    const Result<std::uint64_t> offset = engine.abstracts->allocate(payload.size());
    if (offset) {
      std::memcpy(engine.abstracts->data(*offset), payload.data(), payload.size());
      segment.abstract_offset = *offset;
      segment.abstract_state = AbstractState::kReady;
      publish_segment(engine, segment);
    } else {
      ++engine.metrics.abstracts_full;
    }
  }
  for (const auto& waiter : waiters) waiter();
}

void write_sidecar(EngineState& engine, const Segment& segment, ByteSpan payload) {
  if (segment.state != SegmentState::kOnDisk || engine.read_only) return;
  if (!may_write_optional(engine, payload.size())) return;  // built again when it is wanted
  Io& io = engine.io->io();
  const std::string path = sidecar_path(segment.row.id, segment.space->row.abstract_kind);
  static_cast<void>(io.unlink(path));
  const Result<FileId> file =
      io.open(path, {.mode = OpenMode::kCreateNew, .direct = engine.options.direct_io});
  if (!file) return;
  const std::vector<std::byte> bytes = encode_sidecar(sidecar_header_of(segment), payload);
  auto buffer = std::make_shared<AlignedBuffer>(bytes.size());
  std::memcpy(buffer->data(), bytes.data(), bytes.size());
  auto left = std::make_shared<std::size_t>(0);
  engine.metrics.sidecar_bytes += buffer->size_bytes();
  for (std::uint64_t at = 0; at < buffer->size_bytes(); at += kReadBytesMax) {
    IoRequest write;
    write.op = IoOp::kWrite;
    write.priority = IoPriority::kBackground;
    write.file = *file;
    write.offset = at;
    write.pieces.push_back(
        {buffer->data() + at, std::min(kReadBytesMax, buffer->size_bytes() - at)});
    ++*left;
    write.done = [&engine, buffer, left, file = *file](Result<void>) {
      if (--*left == 0) engine.io->io().close(file);
    };
    engine.io->submit(std::move(write));
  }
}

// ---- rebuild ----

struct Rebuild {
  SegmentId segment;
  Space* space = nullptr;
  const PlaneLayout* layout = nullptr;
  std::uint32_t tokens = 0;
  std::shared_ptr<const LoadedMeta> meta;
  std::shared_ptr<HostArena> arena;
  AlignedBuffer file;              // the whole segment file; empty for one that lives in memory
  std::vector<std::byte*> chunks;  // raw
  std::vector<AlignedBuffer> decoded;
  std::size_t reads_left = 0;
  bool failed = false;
  const KernelTable* kernels = nullptr;
  std::vector<std::byte> payload;
};

void next_rebuild(EngineState& engine);

void end_rebuild(EngineState& engine, const std::shared_ptr<Rebuild>& rebuild) {
  engine.abstract_table.rebuilding = false;
  Segment* segment = find_segment(engine, rebuild->segment);
  KVT_CHECK(segment != nullptr);  // busy
  --segment->busy;
  if (rebuild->payload.empty()) {
    segment->abstract_state = AbstractState::kFailed;
  } else {
    ++engine.metrics.abstracts_rebuilt;
    write_sidecar(engine, *segment, rebuild->payload);
    install(engine, *segment, rebuild->payload);
  }
  next_rebuild(engine);
}

// Worker: every chunk is checked before its keys are believed.
void rebuild_from_file(Rebuild& rebuild) {
  const Geometry& geometry = rebuild.space->row.geometry;
  const LoadedMeta& meta = *rebuild.meta;
  rebuild.chunks.assign(rebuild.layout->chunks_total(), nullptr);
  for (std::uint32_t i = 0; i < rebuild.chunks.size(); ++i) {
    const PlaneLayout::ChunkPlace place = rebuild.layout->place_of(i);
    const std::uint64_t raw_bytes = geometry.chunk_bytes(place.layer);
    const bool plain = meta.entries.empty();
    const std::uint64_t offset =
        plain ? meta.first_offset +
                    rebuild.layout->chunk_offset(place.layer, place.chunk, place.group)
              : meta.entries[i].offset;
    const std::uint64_t bytes = plain ? raw_bytes : meta.entries[i].stored_bytes;
    if (offset > rebuild.file.size_bytes() || bytes > rebuild.file.size_bytes() - offset) return;
    const ByteSpan stored{rebuild.file.data() + offset, static_cast<std::size_t>(bytes)};
    if (chunk_checksum(rebuild.segment, i, stored) != meta.checksums[i]) return;
    rebuild.chunks[i] = rebuild.file.data() + offset;
    if (plain || meta.entries[i].codec == CodecId::kRaw) continue;
    AlignedBuffer raw(raw_bytes);
    const std::uint32_t element = dtype_bytes(geometry.layers[place.layer].dtype);
    if (!decode_chunk(meta.entries[i].codec, stored, element,
                      raw.span().first(static_cast<std::size_t>(raw_bytes))))
      return;
    rebuild.chunks[i] = raw.data();
    rebuild.decoded.push_back(std::move(raw));
  }
  rebuild.payload = build_abstracts(
      {rebuild.kernels, rebuild.space, rebuild.tokens, rebuild.layout, rebuild.chunks});
}

void read_whole(EngineState& engine, Segment& segment, const std::shared_ptr<Rebuild>& rebuild) {
  const Result<FileId> file = begin_file_use(engine, segment);
  if (!file) return end_rebuild(engine, rebuild);
  rebuild->file = AlignedBuffer(segment.row.file_bytes);
  Segment* target = &segment;
  std::vector<IoRequest> reads;
  for (std::uint64_t at = 0; at < rebuild->file.size_bytes(); at += kReadBytesMax) {
    IoRequest read;
    read.op = IoOp::kRead;
    read.priority = IoPriority::kBackground;
    read.file = *file;
    read.offset = at;
    read.pieces.push_back(
        {rebuild->file.data() + at, std::min(kReadBytesMax, rebuild->file.size_bytes() - at)});
    read.done = [&engine, rebuild, target](Result<void> result) {
      rebuild->failed = rebuild->failed || !result;
      if (--rebuild->reads_left != 0) return;
      end_file_use(engine, *target);
      if (rebuild->failed) return end_rebuild(engine, rebuild);
      run_on_worker(
          engine, [rebuild] { rebuild_from_file(*rebuild); },
          [&engine, rebuild] { end_rebuild(engine, rebuild); });
    };
    reads.push_back(std::move(read));
  }
  rebuild->reads_left = reads.size();
  for (IoRequest& read : reads) engine.io->submit(std::move(read));
}

void start_rebuild(EngineState& engine, Segment& segment) {
  engine.abstract_table.rebuilding = true;
  ++segment.busy;
  auto rebuild = std::make_shared<Rebuild>();
  rebuild->segment = segment.row.id;
  rebuild->space = segment.space;
  rebuild->tokens = segment.row.tokens;
  rebuild->layout = &segment.space->layout_of(segment.row.tokens);
  rebuild->arena = engine.arena;
  rebuild->kernels = engine.kernels;
  if (segment.state == SegmentState::kInMemory) {
    for (const SlotId slot : segment.slots) rebuild->chunks.push_back(engine.arena->data(slot));
    return run_on_worker(
        engine,
        [rebuild] {
          rebuild->payload = build_abstracts({rebuild->kernels, rebuild->space, rebuild->tokens,
                                              rebuild->layout, rebuild->chunks});
        },
        [&engine, rebuild] { end_rebuild(engine, rebuild); });
  }
  load_meta(engine, segment, IoPriority::kBackground, [&engine, rebuild](Result<void> loaded) {
    Segment* found = find_segment(engine, rebuild->segment);
    if (!loaded || found->meta == nullptr) return end_rebuild(engine, rebuild);
    rebuild->meta = found->meta;
    read_whole(engine, *found, rebuild);
  });
}

void next_rebuild(EngineState& engine) {
  AbstractTable& table = engine.abstract_table;
  while (!table.rebuilding && !table.rebuilds.empty()) {
    Segment* segment = find_segment(engine, table.rebuilds.front());
    table.rebuilds.pop_front();
    if (segment == nullptr) continue;
    if (segment->handle_refs == 0 || segment->condemned) {
      segment->abstract_state = AbstractState::kAbsent;
      continue;
    }
    start_rebuild(engine, *segment);
  }
}

// ---- load ----

struct SidecarRead {
  SegmentId segment;
  FileId file;
  AlignedBuffer bytes;
};

Result<ByteSpan> parse_sidecar(const Segment& segment, ByteSpan bytes) {
  KVT_TRY(const SidecarHeader header, parse_sidecar_header(bytes));
  const SidecarHeader wanted = sidecar_header_of(segment);
  const std::uint64_t payload_bytes =
      segment.space->abstract_layout(segment.row.tokens).size_bytes();
  if (header.segment != wanted.segment || header.fingerprint != wanted.fingerprint ||
      header.kind != wanted.kind || header.version != wanted.version ||
      header.unit_tokens != wanted.unit_tokens || header.tokens != wanted.tokens ||
      header.payload_bytes != payload_bytes || payload_bytes > bytes.size() - kSidecarHeaderBytes)
    return error(Code::kCorrupt, "the sidecar is of another segment");
  const ByteSpan payload = bytes.subspan(static_cast<std::size_t>(kSidecarHeaderBytes),
                                         static_cast<std::size_t>(payload_bytes));
  KVT_TRY_VOID(check_sidecar_payload(header, payload));
  return payload;
}

void sidecar_read(EngineState& engine, const std::shared_ptr<SidecarRead>& read,
                  Result<void> result) {
  engine.io->io().close(read->file);
  Segment* segment = find_segment(engine, read->segment);
  KVT_CHECK(segment != nullptr);  // busy
  --segment->busy;
  Result<ByteSpan> payload = error(Code::kIo);
  if (result) payload = parse_sidecar(*segment, read->bytes.span());
  if (payload) {
    ++engine.metrics.abstracts_loaded;
    return install(engine, *segment, *payload);
  }
  KVT_LOG(kInfo, "segment %" PRIx64 ": sidecar is damaged, abstracts are built again",
          read->segment.value);
  engine.abstract_table.rebuilds.push_back(read->segment);
  next_rebuild(engine);
}

void load_sidecar(EngineState& engine, Segment& segment) {
  segment.abstract_state = AbstractState::kWorking;
  Io& io = engine.io->io();
  auto read = std::make_shared<SidecarRead>();
  const auto rebuild = [&] {
    engine.abstract_table.rebuilds.push_back(segment.row.id);
    next_rebuild(engine);
  };
  if (segment.state == SegmentState::kInMemory) return rebuild();
  const Result<FileId> file =
      io.open(sidecar_path(segment.row.id, segment.space->row.abstract_kind),
              {.mode = OpenMode::kRead, .direct = engine.options.direct_io});
  if (!file) return rebuild();
  const std::uint64_t bytes =
      kSidecarHeaderBytes +
      align_up<std::uint64_t>(segment.space->abstract_layout(segment.row.tokens).size_bytes(),
                              kDiskAlign);
  const Result<std::uint64_t> size = io.size_bytes(*file);
  if (!size || *size != bytes) {
    io.close(*file);
    return rebuild();
  }
  read->segment = segment.row.id;
  read->file = *file;
  read->bytes = AlignedBuffer(bytes);
  ++segment.busy;
  IoRequest request;
  request.op = IoOp::kRead;
  request.priority = IoPriority::kDemand;
  request.file = *file;
  request.pieces.push_back({read->bytes.data(), read->bytes.size_bytes()});
  request.done = [&engine, read](Result<void> result) { sidecar_read(engine, read, result); };
  engine.io->submit(std::move(request));
}

}  // namespace

void install_abstracts_of_seal(EngineState& engine, Segment& segment,
                               std::vector<std::byte> payload) {
  if (payload.empty()) return;
  ++engine.metrics.abstracts_built;
  write_sidecar(engine, segment, payload);
  // The directory that names it is published right behind this: count as wanted.
  ++segment.handle_refs;
  install(engine, segment, payload);
  --segment.handle_refs;
}

void want_abstracts(EngineState& engine, Sequence& sequence) {
  if (sequence.space->abstract_kind() == AbstractKind::kNone || sequence.open.empty()) return;
  for (const SequencePart& part : sequence.parts) {
    Segment& segment = *part.segment;
    if (sequence.space->abstract_layout(segment.row.tokens).size_bytes() == 0)
      continue;  // no layer has any
    if (segment.abstract_state == AbstractState::kAbsent &&
        (segment.state == SegmentState::kOnDisk || segment.state == SegmentState::kInMemory))
      load_sidecar(engine, segment);
  }
}

void release_abstracts(EngineState& engine, Segment& segment) {
  if (segment.abstract_state != AbstractState::kReady) return;
  if (segment.state == SegmentState::kInMemory && !segment.condemned) return;
  engine.abstracts->free(segment.abstract_offset);
  segment.abstract_offset = UINT64_MAX;
  segment.abstract_state = AbstractState::kAbsent;
}

}  // namespace kvtier
