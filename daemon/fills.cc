#include "daemon/fills.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "daemon/engine_state.h"
#include "tiers/codec.h"

namespace kvtier {

// The fills that it serves, in file order.
struct FillRead {
  std::vector<ChunkKey> keys;
  std::shared_ptr<const LoadedMeta> meta;  // keeps the checksums while the read is under way
  IoTicket ticket;
};

namespace {

void end_fill(EngineState& engine, ChunkKey key, Code code) {
  const auto place = engine.fetch.fills.find(key);
  KVT_CHECK(place != engine.fetch.fills.end());
  const std::unique_ptr<Fill> fill = std::move(place->second);
  engine.fetch.fills.erase(place);
  --fill->segment->busy;
  if (fill->hinted) engine.fetch.hinted_bytes -= engine.arena->slot_bytes(fill->slot);
  if (code == Code::kOk) {
    engine.arena->set_ready(fill->slot);
    set_resident(*fill->segment, fill->chunk, fill->slot, engine.arena->slot_bytes(fill->slot));
    ++engine.metrics.chunk_fills;
  } else {
    engine.arena->free(fill->slot);
  }
  answer_waiters(engine, *fill, code);
}

void chunk_is_bad(EngineState& engine, Segment& segment, std::uint32_t chunk) {
  if (std::find(segment.bad_chunks.begin(), segment.bad_chunks.end(), chunk) ==
      segment.bad_chunks.end()) {
    segment.bad_chunks.push_back(chunk);
    ++engine.metrics.chunks_bad;
    const PlaneLayout::ChunkPlace place = segment.layout->place_of(chunk);
    KVT_LOG(kWarn, "segment %" PRIx64 ": chunk %u of layer %u, head group %u fails its checksum",
            segment.row.id.value, place.chunk, place.layer, place.group);
  }
  mark_bad(engine, segment, "a chunk");
}

// A chunk that is not raw: decoded by a worker into its slot.
void decode_fill(EngineState& engine, ChunkKey key, Fill& fill) {
  const ChunkEntry entry = fill.segment->meta->entries[fill.chunk];
  const std::uint32_t layer = fill.segment->layout->place_of(fill.chunk).layer;
  const Geometry& geometry = fill.segment->space->row.geometry;
  struct Work {
    AlignedBuffer stored;
    AlignedBuffer raw;
    Result<void> result;
  };
  auto work = std::make_shared<Work>();
  work->stored = std::move(fill.staging);
  const std::uint64_t bytes = geometry.chunk_bytes(layer);
  const std::uint32_t element = dtype_bytes(geometry.layers[layer].dtype);
  work->raw = AlignedBuffer(bytes);
  run_on_worker(
      engine,
      [work, entry, element, bytes] {
        work->result =
            decode_chunk(entry.codec, work->stored.span().first(entry.stored_bytes), element,
                         work->raw.span().first(static_cast<std::size_t>(bytes)));
      },
      [&engine, work, key, bytes] {
        Fill& found = *engine.fetch.fills.at(key);
        if (work->result) {
          std::byte* target = engine.arena->data(found.slot);
          std::memcpy(target, work->raw.data(), static_cast<std::size_t>(bytes));
          std::memset(target + bytes, 0,
                      static_cast<std::size_t>(engine.arena->slot_bytes(found.slot) - bytes));
        } else {
          chunk_is_bad(engine, *found.segment, found.chunk);
        }
        end_fill(engine, key, work->result ? Code::kOk : Code::kMiss);
      });
}

// The bytes of one chunk have come: checked before anybody may see them.
void chunk_read(EngineState& engine, ChunkKey key, bool ok) {
  Fill& fill = *engine.fetch.fills.at(key);
  if (!ok) return end_fill(engine, key, Code::kIo);
  Segment& segment = *fill.segment;
  const LoadedMeta& meta = *segment.meta;
  const bool raw = meta.entries.empty() || meta.entries[fill.chunk].codec == CodecId::kRaw;
  const std::uint32_t layer = segment.layout->place_of(fill.chunk).layer;
  const std::uint64_t stored = meta.entries.empty() ? segment.space->row.geometry.chunk_bytes(layer)
                                                    : meta.entries[fill.chunk].stored_bytes;
  const std::byte* bytes = raw ? engine.arena->data(fill.slot) : fill.staging.data();
  const std::uint64_t checksum =
      chunk_checksum(segment.row.id, fill.chunk, {bytes, static_cast<std::size_t>(stored)});
  if (checksum != meta.checksums[fill.chunk]) {
    chunk_is_bad(engine, segment, fill.chunk);
    return end_fill(engine, key, Code::kMiss);
  }
  raw ? end_fill(engine, key, Code::kOk) : decode_fill(engine, key, fill);
}

void submit_read(EngineState& engine, Segment& segment, IoPriority priority,
                 const std::vector<Fill*>& fills, std::size_t begin, std::size_t end) {
  auto read = std::make_shared<FillRead>();
  read->meta = segment.meta;
  IoRequest request;
  request.op = IoOp::kRead;
  request.priority = priority;
  request.offset = fills[begin]->file_offset;
  for (std::size_t i = begin; i < end; ++i) {
    Fill& fill = *fills[i];
    fill.read = read;
    read->keys.push_back({segment.row.id.value, fill.chunk});
    std::byte* target =
        fill.staging.data() != nullptr ? fill.staging.data() : engine.arena->data(fill.slot);
    if (!request.pieces.empty() &&
        request.pieces.back().data + request.pieces.back().size_bytes == target)
      request.pieces.back().size_bytes += fill.read_bytes;
    else
      request.pieces.push_back({target, fill.read_bytes});
  }
  const Result<FileId> file = begin_file_use(engine, segment);
  if (!file) {
    for (const ChunkKey key : read->keys)
      end_fill(engine, key, file.error().code == Code::kIo ? Code::kIo : Code::kMiss);
    return;
  }
  request.file = *file;
  Segment* target = &segment;  // busy by its fills
  begin_timed_read(engine);
  request.done = [&engine, read, target, bytes = request.size_bytes()](Result<void> result) {
    end_timed_read(engine, bytes);
    engine.metrics.fill_bytes += bytes;
    ++engine.metrics.reads;
    end_file_use(engine, *target);
    // The table's bound may have dropped the checksums meanwhile: the read kept them.
    if (target->meta == nullptr) keep_meta(engine, *target, read->meta);
    ++target->busy;
    for (const ChunkKey key : read->keys) {
      if (target->meta == nullptr) keep_meta(engine, *target, read->meta);
      chunk_read(engine, key, result.has_value());
    }
    --target->busy;
  };
  read->ticket = engine.io->submit(std::move(request));
}

}  // namespace

Fill& begin_fill(EngineState& engine, Segment& segment, std::uint32_t chunk, SlotId slot) {
  auto fill = std::make_unique<Fill>();
  fill->segment = &segment;
  ++segment.busy;
  fill->chunk = chunk;
  fill->slot = slot;
  const LoadedMeta& meta = *segment.meta;
  if (meta.entries.empty()) {
    const PlaneLayout::ChunkPlace place = segment.layout->place_of(chunk);
    fill->file_offset =
        meta.first_offset + segment.layout->chunk_offset(place.layer, place.chunk, place.group);
    fill->read_bytes = segment.space->row.geometry.slot_bytes(place.layer);
  } else {
    const ChunkEntry& entry = meta.entries[chunk];
    fill->file_offset = entry.offset;
    fill->read_bytes = align_up<std::uint64_t>(entry.stored_bytes, kDiskAlign);
    if (entry.codec != CodecId::kRaw) fill->staging = AlignedBuffer(fill->read_bytes);
  }
  Fill& made = *fill;
  engine.fetch.fills.emplace(ChunkKey{segment.row.id.value, chunk}, std::move(fill));
  return made;
}

void submit_fills(EngineState& engine, Segment& segment, IoPriority priority,
                  std::vector<Fill*> fills) {
  std::sort(fills.begin(), fills.end(),
            [](const Fill* a, const Fill* b) { return a->file_offset < b->file_offset; });
  std::size_t begin = 0;
  while (begin < fills.size()) {
    std::size_t end = begin + 1;
    std::uint64_t bytes = fills[begin]->read_bytes;
    while (end < fills.size() && end - begin < kIoVecsMax &&
           fills[end]->file_offset == fills[end - 1]->file_offset + fills[end - 1]->read_bytes &&
           bytes + fills[end]->read_bytes <= kReadBytesMax) {
      bytes += fills[end]->read_bytes;
      ++end;
    }
    submit_read(engine, segment, priority, fills, begin, end);
    begin = end;
  }
}

void hasten_fill(EngineState& engine, Fill& fill, IoPriority priority) {
  if (fill.read != nullptr) engine.io->hasten(&fill.read->ticket, priority);
}

void leave_fill(EngineState& engine, ChunkKey key, std::uint64_t job) {
  const auto place = engine.fetch.fills.find(key);
  if (place == engine.fetch.fills.end()) return;
  std::vector<Fill::Waiter>& waiters = place->second->waiters;
  waiters.erase(std::remove_if(waiters.begin(), waiters.end(),
                               [job](const Fill::Waiter& waiter) { return waiter.job == job; }),
                waiters.end());
  const std::shared_ptr<FillRead> read = place->second->read;
  if (read == nullptr) return;
  // A job leaves its chunks in the order of the file: the last one is the likeliest still waited
  // for.
  for (auto other = read->keys.rbegin(); other != read->keys.rend(); ++other) {
    const auto fill = engine.fetch.fills.find(*other);
    if (fill == engine.fetch.fills.end() || !fill->second->waiters.empty()) return;
  }
  if (!engine.io->withdraw(read->ticket)) return;
  Segment& segment = *place->second->segment;
  end_timed_read(engine, 0);
  end_file_use(engine, segment);
  for (const ChunkKey other : read->keys) end_fill(engine, other, Code::kCancelled);
}

}  // namespace kvtier
