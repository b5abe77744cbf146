#include "daemon/seal_copy.h"

#include <algorithm>
#include <cstring>

#include "client/ipc/shared_copy.h"
#include "daemon/abstracts.h"

namespace kvtier {

namespace {

// One chunk out of client memory. Rows behind the last token are zero, whatever the client left
// there.
void copy_chunk(const SealJob& job, const PlaneLayout::ChunkPlace& place, const std::byte* source,
                std::byte* target) {
  const Geometry& geometry = job.space->row.geometry;
  const std::uint64_t bytes = geometry.chunk_bytes(place.layer);
  const std::uint64_t slot_bytes = geometry.slot_bytes(place.layer);
  std::memcpy(target, source, static_cast<std::size_t>(bytes));
  std::memset(target + bytes, 0, static_cast<std::size_t>(slot_bytes - bytes));
  const std::uint32_t first = place.chunk * geometry.chunk_tokens;
  const std::uint32_t rows = std::min<std::uint32_t>(job.count - first, geometry.chunk_tokens);
  if (rows == geometry.chunk_tokens) return;
  const LayerGeometry& layer = geometry.layers[place.layer];
  for (std::uint32_t head = 0; head < geometry.heads_in_group(place.layer); ++head) {
    const std::uint64_t k = k_row_offset(geometry, layer, head, rows),
                        v = v_row_offset(geometry, layer, head, rows);
    const std::size_t empty = geometry.chunk_tokens - rows;
    std::memset(target + k, 0, empty * layer.k_row_bytes);
    std::memset(target + v, 0, empty * layer.v_row_bytes);
  }
}

// Hashes of the blocks that end in this segment; leaves the chain as it is behind it.
void extend_chain(SealJob& job) {
  for (const TokenRecord& token : job.meta.tokens) {
    job.open_ids.push_back(token.id);
    if (job.open_ids.size() < kBlockTokens) continue;
    job.chain = job.space->index.extend(job.chain, job.open_ids);
    job.row.blocks.push_back(job.chain);
    job.open_ids.clear();
  }
}

}  // namespace

void copy_seal_tokens(SealJob& job) {
  job.meta.tokens.resize(job.count);
  copy_from_shared(job.meta.tokens.data(), job.tail->tokens(job.half),
                   job.count * sizeof(TokenRecord));
  job.meta.previous_chain = job.chain;
  extend_chain(job);
  job.meta.chunks.resize(job.layout->chunks_total());
  place_raw_chunks(&job.meta);
  job.row.file_bytes = job.meta.file_bytes();
  for (const SealLane& wanted : job.lanes) {
    AbstractPlan plan = plan_abstract(job.space->row.geometry, wanted.spec, job.meta.tokens);
    if (plan.layout.size_bytes() == 0) continue;  // no layer has any
    std::vector<std::byte> payload(static_cast<std::size_t>(plan.layout.size_bytes()));
    begin_abstract(plan, wanted.codebook != nullptr ? wanted.codebook->id : 0, payload);
    job.abstracts.push_back(
        {wanted.lane, std::move(plan), std::move(payload), wanted.codebook, false});
  }
}

void copy_seal_slice(SealJob& job, SealSlice* slice) {
  const TailLayout& tail = *job.tail->layout;
  for (std::uint32_t i = slice->first_chunk; i < slice->last_chunk; ++i) {
    const PlaneLayout::ChunkPlace place = job.layout->place_of(i);
    copy_chunk(
        job, place,
        job.tail->plane(job.half) + tail.plane.chunk_offset(place.layer, place.chunk, place.group),
        job.chunks[i]);
    job.meta.chunks[i].checksum =
        chunk_checksum(job.meta.id, i, {job.chunks[i], job.meta.chunks[i].stored_bytes});
  }
  AbstractSource source{job.kernels, &job.space->row.geometry, job.layout, job.chunks, nullptr};
  for (std::size_t i = 0; i < job.abstracts.size(); ++i) {
    source.codebook = job.abstracts[i].codebook.get();
    if (!build_abstract_layers(source, job.abstracts[i].plan, slice->first_layer, slice->last_layer,
                               job.abstracts[i].payload))
      slice->failed.push_back(i);
  }
}

void encode_seal_meta(SealJob& job) {
  const std::vector<std::byte> meta = encode_segment_meta(job.meta);
  job.meta_buffer = AlignedBuffer(meta.size());
  std::memcpy(job.meta_buffer.data(), meta.data(), meta.size());
}

}  // namespace kvtier
