#include "daemon/segments.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "daemon/abstracts.h"
#include "daemon/engine_state.h"
#include "daemon/segment_meta.h"
#include "tiers/sidecar_format.h"

namespace kvtier {

namespace {

// Counts its files in, or out again.
void count_disk(EngineState& engine, const Segment& segment, bool in) {
  SegmentTable& table = engine.segments;
  const std::uint64_t sidecar = sidecar_bytes_of(segment);
  in ? table.disk_bytes += segment.row.file_bytes : table.disk_bytes -= segment.row.file_bytes;
  in ? table.sidecar_bytes += sidecar : table.sidecar_bytes -= sidecar;
}

}  // namespace

Segment* find_segment(EngineState& engine, SegmentId id) {
  const auto place = engine.segments.all.find(id);
  return place == engine.segments.all.end() ? nullptr : place->second.get();
}

Segment& add_segment(EngineState& engine, SegmentRow row, StoredSpace& space, SegmentState state) {
  std::unique_ptr<Segment>& made = engine.segments.all[row.id];
  KVT_CHECK(made == nullptr);
  made = std::make_unique<Segment>();
  made->row = std::move(row);
  made->space = &space;
  made->state = state;
  ++space.segments;
  if (state != SegmentState::kInMemory) count_disk(engine, *made, true);
  if (Segment* parent = find_segment(engine, made->row.parent); parent != nullptr)
    parent->children.push_back(made->row.id);
  else if (!made->row.parent.valid() && state != SegmentState::kInMemory)
    space.roots.push_back(made->row.id);
  return *made;
}

void index_segment(Segment& segment) {
  for (std::size_t i = 0; i < segment.row.blocks.size(); ++i) {
    const std::uint64_t end = (segment.row.start_token / kBlockTokens + i + 1) * kBlockTokens;
    segment.space->index.insert(
        segment.row.blocks[i],
        {segment.row.id, static_cast<std::uint32_t>(end - segment.row.start_token)});
  }
  segment.indexed = true;
}

bool may_be_indexed(EngineState& engine, const Segment& segment) {
  const Segment* parent = find_segment(engine, segment.row.parent);
  return !segment.row.bad && !segment.condemned && segment.state == SegmentState::kOnDisk &&
         (!segment.row.parent.valid() || (parent != nullptr && parent->indexed));
}

void unindex_with_descendants(EngineState& engine, Segment& segment) {
  std::vector<Segment*> todo{&segment};
  while (!todo.empty()) {
    Segment& next = *todo.back();
    todo.pop_back();
    if (next.indexed) {
      for (const BlockHash& hash : next.row.blocks) next.space->index.erase(hash, next.row.id);
      next.indexed = false;
    }
    for (const SegmentId child : next.children) {
      if (Segment* found = find_segment(engine, child); found != nullptr) todo.push_back(found);
    }
  }
}

void prepare_residency(Segment& segment) {
  if (segment.layout != nullptr) return;
  segment.layout = &segment.space->layout_of(segment.row.tokens);
  segment.slots.assign(segment.layout->chunks_total(), SlotId{});
}

void set_resident(Segment& segment, std::uint32_t chunk, SlotId slot, std::uint64_t slot_bytes) {
  KVT_DCHECK(!segment.slots[chunk].valid());
  segment.slots[chunk] = slot;
  ++segment.resident;
  segment.resident_bytes += slot_bytes;
}

void chunk_evicted(EngineState& engine, SlotOwner owner, SlotId slot) {
  Segment* segment = find_segment(engine, SegmentId{owner.segment});
  if (segment == nullptr || owner.chunk_index >= segment->slots.size()) return;
  if (segment->slots[owner.chunk_index] != slot) return;
  segment->slots[owner.chunk_index] = SlotId{};
  --segment->resident;
  segment->resident_bytes -=
      segment->space->row.geometry.slot_bytes(segment->layout->place_of(owner.chunk_index).layer);
  if (segment->resident == 0 && segment->busy == 0) {
    segment->slots = {};
    segment->layout = nullptr;
  }
}

std::shared_ptr<const LoadedMeta> make_loaded_meta(SegmentMeta&& meta, const PlaneLayout& layout) {
  auto loaded = std::make_shared<LoadedMeta>();
  loaded->tokens = std::move(meta.tokens);
  loaded->previous_chain = meta.previous_chain;
  loaded->checksums.reserve(meta.chunks.size());
  bool plain = true;
  loaded->first_offset = meta.chunks.empty() ? 0 : meta.chunks[0].offset;
  for (std::uint32_t i = 0; i < meta.chunks.size(); ++i) {
    const ChunkEntry& entry = meta.chunks[i];
    loaded->checksums.push_back(entry.checksum);
    const PlaneLayout::ChunkPlace place = layout.place_of(i);
    plain = plain && entry.codec == CodecId::kRaw &&
            entry.offset ==
                loaded->first_offset + layout.chunk_offset(place.layer, place.chunk, place.group);
  }
  if (!plain) loaded->entries = std::move(meta.chunks);
  return loaded;
}

void keep_meta(EngineState& engine, Segment& segment, std::shared_ptr<const LoadedMeta> meta) {
  SegmentTable& table = engine.segments;
  KVT_CHECK(segment.meta == nullptr);
  segment.meta = std::move(meta);
  if (segment.state == SegmentState::kInMemory) return;  // there is no other copy
  table.meta_bytes += segment.meta->memory_bytes();
  table.meta_order.push_front(&segment);
  segment.meta_place = table.meta_order.begin();
  segment.meta_listed = true;
  while (table.meta_bytes > table.meta_bytes_max && table.meta_order.back() != &segment) {
    Segment& cold = *table.meta_order.back();
    table.meta_bytes -= cold.meta->memory_bytes();
    table.meta_order.pop_back();
    cold.meta_listed = false;
    cold.meta.reset();
  }
}

namespace {

void drop_meta(EngineState& engine, Segment& segment) {
  if (segment.meta_listed) {
    engine.segments.meta_bytes -= segment.meta->memory_bytes();
    engine.segments.meta_order.erase(segment.meta_place);
    segment.meta_listed = false;
  }
  segment.meta.reset();
}

void mark_newer(EngineState& engine, Segment& segment) {
  ++engine.metrics.misses[static_cast<std::size_t>(MissReason::kNewer)];
  KVT_LOG(kWarn, "segment %" PRIx64 ": written by a newer kvtier; it is a miss for this one",
          segment.row.id.value);
  unindex_with_descendants(engine, segment);
}

void finish_meta(EngineState& engine, Segment& segment, Result<void> result) {
  segment.meta_loading = false;
  segment.meta_read.reset();
  --segment.busy;
  // A newer file is sound to whoever wrote it: never marked, so that it is served after an upgrade.
  if (!result && result.error().code == Code::kVersion)
    mark_newer(engine, segment);
  else if (!result && result.error().code == Code::kCorrupt)
    mark_bad(engine, segment, "metadata");
  std::vector<MetaDone> waiters = std::move(segment.meta_waiters);
  segment.meta_waiters.clear();
  ++segment.busy;  // the waiters may let go of it
  for (MetaDone& waiter : waiters) waiter(result);
  --segment.busy;
}

}  // namespace

void load_meta(EngineState& engine, Segment& segment, IoPriority priority, MetaDone done) {
  if (segment.meta != nullptr) {
    if (segment.meta_listed)
      engine.segments.meta_order.splice(engine.segments.meta_order.begin(),
                                        engine.segments.meta_order, segment.meta_place);
    return done({});
  }
  if (segment.state == SegmentState::kLost)
    return done(error(Code::kMiss, "the segment's file is lost"));
  if (segment.state != SegmentState::kOnDisk)
    return done(error(Code::kMiss, "the segment is not stored"));
  segment.meta_waiters.push_back(std::move(done));
  if (segment.meta_loading) {
    if (segment.meta_read != nullptr) hasten_meta(engine, *segment.meta_read, priority);
    return;
  }
  segment.meta_loading = true;
  ++segment.busy;
  ++engine.metrics.meta_loads;
  segment.meta_read = read_segment_meta(
      engine, segment, priority, [&engine, id = segment.row.id](Result<SegmentMeta> meta) {
        Segment& found = *find_segment(engine, id);  // busy
        if (!meta) return finish_meta(engine, found, error(meta.error()));
        // A fill that ended meanwhile may have brought its own copy back.
        if (found.meta == nullptr)
          keep_meta(engine, found,
                    make_loaded_meta(*std::move(meta), found.space->layout_of(found.row.tokens)));
        finish_meta(engine, found, {});
      });
}

void load_metas(EngineState& engine, const std::vector<SegmentId>& segments, IoPriority priority,
                MetasDone done) {
  struct Gather {
    std::size_t left = 0;
    Result<void> result;
    LoadedMetas metas;
    MetasDone done;
  };
  auto gather = std::make_shared<Gather>();
  gather->left = segments.size() + 1;
  gather->metas.resize(segments.size());
  gather->done = std::move(done);
  const auto one = [gather](Result<void> result) {
    if (!result && gather->result) gather->result = result;
    if (--gather->left == 0) gather->done(gather->result, gather->metas);
  };
  for (std::size_t i = 0; i < segments.size(); ++i) {
    Segment* segment = find_segment(engine, segments[i]);
    if (segment == nullptr)
      one(error(Code::kMiss, "the segment is gone"));
    else
      load_meta(engine, *segment, priority, [gather, one, segment, i](Result<void> result) {
        gather->metas[i] = segment->meta;
        one(result);
      });
  }
  one({});
}

Result<FileId> begin_file_use(EngineState& engine, Segment& segment) {
  SegmentTable& table = engine.segments;
  if (segment.file.value != 0) {
    table.file_order.splice(table.file_order.begin(), table.file_order, segment.file_place);
    ++segment.file_uses;
    return segment.file;
  }
  if (segment.state != SegmentState::kOnDisk)
    return error(Code::kMiss, "the segment's file is lost");
  Io& io = engine.io->io();
  Result<FileId> file = io.open(segment_path(segment.row.id),
                                {.mode = OpenMode::kRead, .direct = engine.options.direct_io});
  if (!file) {
    if (file.error().code == Code::kNotFound) mark_lost(engine, segment, "its file is gone");
    return file;
  }
  const Result<std::uint64_t> size = io.size_bytes(*file);
  if (!size || *size != segment.row.file_bytes) {
    io.close(*file);
    if (!size) return error(size.error());
    mark_lost(engine, segment, "its file has another size than it was written with");
    return error(Code::kCorrupt, "the segment file has the wrong size");
  }
  segment.file = *file;
  segment.file_uses = 1;
  table.file_order.push_front(&segment);
  segment.file_place = table.file_order.begin();
  for (auto cold = table.file_order.end(); table.file_order.size() > kOpenSegmentFilesMax;) {
    if (cold == table.file_order.begin()) break;
    --cold;
    if ((*cold)->file_uses != 0) continue;
    Segment& victim = **cold;
    ++cold;
    close_segment_file(engine, victim);
  }
  return *file;
}

void end_file_use(EngineState& engine, Segment& segment) {
  static_cast<void>(engine);
  KVT_CHECK(segment.file_uses > 0);
  --segment.file_uses;
}

void close_segment_file(EngineState& engine, Segment& segment) {
  if (segment.file.value == 0) return;
  KVT_CHECK(segment.file_uses == 0);
  engine.io->io().close(segment.file);
  engine.segments.file_order.erase(segment.file_place);
  segment.file = {};
}

void mark_bad(EngineState& engine, Segment& segment, const char* what) {
  ++engine.metrics.misses[static_cast<std::size_t>(MissReason::kChecksum)];
  if (segment.row.bad || segment.condemned) return;  // its file may be wiped
  KVT_LOG(kWarn, "segment %" PRIx64 ": %s is damaged; it is not served (run kvtier verify)",
          segment.row.id.value, what);
  segment.row.bad = true;
  ++engine.metrics.segments_bad;
  unindex_with_descendants(engine, segment);  // so that storing the same again heals it
  if (segment.state == SegmentState::kInMemory) return;
  CatalogueBatch batch;
  batch.put_segment(segment.row);
  post_batch(engine, std::move(batch), false, [](Result<void>) {});
}

void mark_lost(EngineState& engine, Segment& segment, const char* why) {
  if (segment.state == SegmentState::kLost) return;
  KVT_LOG(kWarn, "segment %" PRIx64 ": %s; its chunks are misses from now on", segment.row.id.value,
          why);
  segment.state = SegmentState::kLost;
  unindex_with_descendants(engine, segment);
  ++engine.metrics.segments_missing;
}

void serve_again(EngineState& engine, Segment& segment) {
  if (segment.state != SegmentState::kLost) return;
  KVT_LOG(kInfo, "segment %" PRIx64 ": its file is there again; it is served",
          segment.row.id.value);
  segment.state = SegmentState::kOnDisk;
  --engine.metrics.segments_missing;
  std::vector<Segment*> todo{&segment};
  while (!todo.empty()) {
    Segment& next = *todo.back();
    todo.pop_back();
    if (!may_be_indexed(engine, next)) continue;
    index_segment(next);
    for (const SegmentId child : next.children)
      if (Segment* found = find_segment(engine, child); found != nullptr) todo.push_back(found);
  }
}

namespace {

// Where it cannot, the row may still name the file, which stays until the catalogue is open again.
void remove_row(EngineState& engine, SegmentId id) {
  CatalogueBatch batch;
  batch.remove_segment(id);
  post_batch(engine, std::move(batch), true, [&engine, id](Result<void> removed) {
    Segment* segment = find_segment(engine, id);
    if (segment == nullptr) return;
    segment->row_stays = !removed;
    if (removed) --segment->busy;
  });
}

}  // namespace

void condemn_segment(EngineState& engine, Segment& segment) {
  if (segment.condemned) return;
  KVT_CHECK(segment.sequence_refs == 0);
  segment.condemned = true;
  unindex_with_descendants(engine, segment);
  if (Segment* parent = find_segment(engine, segment.row.parent); parent != nullptr)
    std::erase(parent->children, segment.row.id);
  else
    std::erase(segment.space->roots, segment.row.id);
  if (segment.state == SegmentState::kOnDisk || segment.state == SegmentState::kLost) {
    ++segment.busy;  // the file goes after the row
    remove_row(engine, segment.row.id);
  }
  engine.segments.condemned.push_back(segment.row.id);
}

void remove_rows_again(EngineState& engine) {
  for (const SegmentId id : engine.segments.condemned) {
    Segment* segment = find_segment(engine, id);
    if (segment != nullptr && std::exchange(segment->row_stays, false)) remove_row(engine, id);
  }
}

namespace {

bool try_sweep(EngineState& engine, Segment& segment) {
  if (segment.referenced() || segment.busy != 0 || segment.file_uses != 0 || segment.leases != 0)
    return false;
  for (SlotId& slot : segment.slots) {
    if (!slot.valid()) continue;
    if (segment.state == SegmentState::kInMemory)  // private: nobody reads it in freed memory
      std::memset(engine.arena->data(slot), 0, engine.arena->slot_bytes(slot));
    engine.arena->free(slot);
    slot = {};
  }
  drop_abstracts(engine, segment);
  drop_meta(engine, segment);
  engine.private_texts.erase(segment.row.id);
  close_segment_file(engine, segment);
  Io& io = engine.io->io();
  if (segment.state != SegmentState::kInMemory) {
    static_cast<void>(io.unlink(segment_path(segment.row.id)));
    for (const std::string& path : sidecar_paths_of(segment)) static_cast<void>(io.unlink(path));
    count_disk(engine, segment, false);
  }
  --segment.space->segments;
  engine.segments.all.erase(segment.row.id);
  return true;
}

}  // namespace

void sweep_condemned(EngineState& engine) {
  std::vector<SegmentId>& waiting = engine.segments.condemned;
  for (std::size_t i = 0; i < waiting.size();) {
    Segment* segment = find_segment(engine, waiting[i]);
    if (segment != nullptr && !try_sweep(engine, *segment)) {
      ++i;
      continue;
    }
    waiting[i] = waiting.back();
    waiting.pop_back();
  }
}

}  // namespace kvtier
