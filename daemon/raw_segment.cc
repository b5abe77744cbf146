#include "daemon/raw_segment.h"

#include "base/check.h"
#include "daemon/engine_state.h"
#include "tiers/codec.h"

namespace kvtier {
namespace {

struct Load {
  std::shared_ptr<RawSegment> raw = std::make_shared<RawSegment>();
  StoredSpace* space = nullptr;
  std::size_t reads_left = 0;
  Status failure;
  RawDone done;
};
using LoadPtr = std::shared_ptr<Load>;

void end_load(EngineState& engine, const LoadPtr& load) {
  Segment* segment = find_segment(engine, load->raw->segment);
  KVT_CHECK(segment != nullptr);  // busy
  if (load->failure.ok())
    load->done(std::shared_ptr<const RawSegment>(load->raw));
  else
    load->done(error(load->failure));
  --segment->busy;
}

// Worker: finds and checks all chunks of the file.
Status check_chunks(Load& load) {
  RawSegment& raw = *load.raw;
  const Geometry& geometry = load.space->row.geometry;
  const LoadedMeta& meta = *raw.meta;
  const Status damaged{Code::kCorrupt, 0, "a chunk does not hold what it should"};
  raw.chunks.assign(raw.layout->chunks_total(), nullptr);
  for (std::uint32_t i = 0; i < raw.chunks.size(); ++i) {
    const PlaneLayout::ChunkPlace place = raw.layout->place_of(i);
    const std::uint64_t raw_bytes = geometry.chunk_bytes(place.layer);
    const bool plain = meta.entries.empty();
    const std::uint64_t offset =
        plain ? meta.first_offset + raw.layout->chunk_offset(place.layer, place.chunk, place.group)
              : meta.entries[i].offset;
    const std::uint64_t bytes = plain ? raw_bytes : meta.entries[i].stored_bytes;
    if (offset > raw.file.size_bytes() || bytes > raw.file.size_bytes() - offset) return damaged;
    const ByteSpan stored{raw.file.data() + offset, static_cast<std::size_t>(bytes)};
    if (chunk_checksum(raw.segment, i, stored) != meta.checksums[i]) return damaged;
    raw.chunks[i] = raw.file.data() + offset;
    if (plain || meta.entries[i].codec == CodecId::kRaw) continue;
    AlignedBuffer decoded(raw_bytes);
    const std::uint32_t element = dtype_bytes(geometry.layers[place.layer].dtype);
    if (!decode_chunk(meta.entries[i].codec, stored, element,
                      decoded.span().first(static_cast<std::size_t>(raw_bytes))))
      return damaged;
    raw.chunks[i] = decoded.data();
    raw.decoded.push_back(std::move(decoded));
  }
  return {};
}

void read_whole(EngineState& engine, Segment& segment, const LoadPtr& load) {
  const Result<FileId> file = begin_file_use(engine, segment);
  if (!file) {
    load->failure = file.error();
    return end_load(engine, load);
  }
  RawSegment& raw = *load->raw;
  raw.file = AlignedBuffer(segment.row.file_bytes);
  Segment* target = &segment;
  std::vector<IoRequest> reads;
  for (std::uint64_t at = 0; at < raw.file.size_bytes(); at += kReadBytesMax) {
    IoRequest read;
    read.op = IoOp::kRead;
    read.priority = IoPriority::kBackground;
    read.file = *file;
    read.offset = at;
    read.pieces.push_back(
        {raw.file.data() + at, std::min(kReadBytesMax, raw.file.size_bytes() - at)});
    read.done = [&engine, load, target](Result<void> result) {
      if (!result) load->failure = result.error();
      if (--load->reads_left != 0) return;
      end_file_use(engine, *target);
      if (!load->failure.ok()) return end_load(engine, load);
      run_on_worker(
          engine, [load] { load->failure = check_chunks(*load); },
          [&engine, load] { end_load(engine, load); });
    };
    reads.push_back(std::move(read));
  }
  load->reads_left = reads.size();
  for (IoRequest& read : reads) engine.io->submit(std::move(read));
}

}  // namespace

void load_raw(EngineState& engine, Segment& segment, RawDone done) {
  ++segment.busy;
  auto load = std::make_shared<Load>();
  load->space = segment.space;
  load->done = std::move(done);
  load->raw->segment = segment.row.id;
  load->raw->tokens = segment.row.tokens;
  load->raw->layout = &segment.space->layout_of(segment.row.tokens);
  load->raw->arena = engine.arena;
  load_meta(engine, segment, IoPriority::kBackground, [&engine, load](Result<void> loaded) {
    Segment* found = find_segment(engine, load->raw->segment);
    if (!loaded || found->meta == nullptr) {
      load->failure = loaded ? Status{Code::kMiss} : loaded.error();
      return end_load(engine, load);
    }
    load->raw->meta = found->meta;
    if (found->state != SegmentState::kInMemory) return read_whole(engine, *found, load);
    for (const SlotId slot : found->slots) load->raw->chunks.push_back(engine.arena->data(slot));
    end_load(engine, load);
  });
}

}  // namespace kvtier
