// View: exact attention over what lies in the arena and in the tail, piece by piece.
#include <algorithm>
#include <cstring>

#include "client/chunk_range.h"
#include "client/view.h"

namespace kvtier {
namespace {

// Queries that go through the kernel together: enough to read a row once for many.
constexpr std::uint32_t kQueryBlock = 32;

RowPages chunk_pages(const Geometry& geometry, const LayerGeometry& shape, const std::byte* base,
                     const std::uint64_t* pages) {
  RowPages rows;
  rows.base = base;
  rows.pages = pages;
  rows.page_tokens = geometry.chunk_tokens;
  rows.k_stride = shape.k_row_bytes;
  rows.v_offset = static_cast<std::uint64_t>(geometry.chunk_tokens) * shape.k_row_bytes;
  rows.v_stride = shape.v_row_bytes;
  rows.dtype = shape.dtype;
  return rows;
}

}  // namespace

Result<void> View::attend_sealed(const AttendStep& step) {
  const Geometry& geometry = sequence_->space().geometry();
  const LayerGeometry& shape = geometry.layers[step.layer];
  const std::uint64_t end = std::min(sequence_->tail_first(), step.limit(step.queries - 1));
  const ChunkRange range(sequence_->directory().segments(), geometry, step.layer, 0, end);
  ChunkStreamOptions options;
  options.total = range.entries();
  options.granule = range.groups();
  options.slot_bytes = geometry.slot_bytes(step.layer);
  const std::uint32_t group_heads = geometry.heads_in_group(step.layer);

  // Chunks of one segment lie side by side in token order; a new segment starts new pages.
  const auto use = [&](std::uint64_t first, std::uint64_t entries,
                       const Fetch& fetch) -> Result<void> {
    for (std::uint64_t i = 0; i < entries;) {
      const ChunkRange::Place begin = range.place(first + i);
      std::uint64_t after = i, tokens = 0;
      for (; after < entries; after += range.groups()) {
        const ChunkRange::Place place = range.place(first + after);
        if (place.segment != begin.segment) break;
        tokens += std::min<std::uint64_t>(place.tokens, end - place.first_token);
      }
      const std::uint64_t chunks = (after - i) / range.groups();
      pages_.resize(static_cast<std::size_t>(chunks));
      for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
        const std::uint64_t in_chunk = k_row_offset(geometry, shape, head % group_heads, 0);
        for (std::uint64_t c = 0; c < chunks; ++c) {
          const std::byte* chunk =
              fetch.chunk(i + c * range.groups() + head / group_heads, options.slot_bytes);
          pages_[static_cast<std::size_t>(c)] = reinterpret_cast<std::uintptr_t>(chunk) + in_chunk;
        }
        KVT_TRY_VOID(attend_run(step, head, chunk_pages(geometry, shape, nullptr, pages_.data()),
                                begin.first_token, tokens));
      }
      i = after;
    }
    return {};
  };
  FetchTally tally;
  const auto done = sequence_->chunk_stream(&tally).run(
      options, [&](std::uint64_t i) { return range.entry(i); }, use);
  stats_.chunks_fetched += tally.chunks;
  stats_.bytes_disk += tally.bytes_disk;
  stats_.wait_ns += tally.wait_ns;
  return done;
}

Result<void> View::attend_tail(const AttendStep& step) {
  const Tail* tail = sequence_->tail();
  const std::uint64_t first = sequence_->tail_first();
  if (tail == nullptr || step.visible <= first) return {};
  const Geometry& geometry = sequence_->space().geometry();
  const LayerGeometry& shape = geometry.layers[step.layer];
  std::array<Tail::Run, 3> runs;
  const std::uint32_t run_count = tail->runs(first, step.visible, &runs);
  for (std::uint32_t r = 0; r < run_count; ++r) {  // each begins its half
    const std::uint32_t chunks =
        (runs[r].count + geometry.chunk_tokens - 1) / geometry.chunk_tokens;
    pages_.resize(chunks);
    for (std::uint32_t head = 0; head < step.kv_heads; ++head) {
      for (std::uint32_t c = 0; c < chunks; ++c)
        pages_[c] = tail->head_page(runs[r].half, step.layer, head, c);
      KVT_TRY_VOID(attend_run(step, head, chunk_pages(geometry, shape, tail->data(), pages_.data()),
                              runs[r].first_token, runs[r].count));
    }
  }
  return {};
}

Result<void> View::attend_run(const AttendStep& step, std::uint32_t head, const RowPages& rows,
                              std::uint64_t first_token, std::uint64_t count) {
  const auto seen = [&](std::uint32_t query) {
    const std::uint64_t limit = step.limit(query);
    return limit > first_token ? std::min(limit - first_token, count) : 0;
  };
  for (std::uint32_t begin = 0; begin < step.queries; begin += kQueryBlock) {
    const std::uint32_t end = std::min(begin + kQueryBlock, step.queries);
    const std::uint64_t shared = seen(begin);  // what the first sees, all of the block see
    if (shared != 0) {
      KVT_TRY_VOID(attend_block(step, head, rows, begin, end - begin, 0, shared));
    }
    for (std::uint32_t query = begin; query < end; ++query) {
      if (seen(query) > shared) {
        KVT_TRY_VOID(attend_block(step, head, rows, query, 1, shared, seen(query)));
      }
    }
  }
  return {};
}

Result<void> View::attend_block(const AttendStep& step, std::uint32_t head, const RowPages& rows,
                                std::uint32_t first_query, std::uint32_t count, std::uint64_t begin,
                                std::uint64_t end) {
  const std::uint64_t heads = static_cast<std::uint64_t>(step.kv_heads) * step.group;
  const std::uint64_t group_floats = static_cast<std::uint64_t>(step.group) * step.dim;
  const std::uint32_t vectors = count * step.group;
  const auto source = [&](std::uint32_t query) {
    return step.q + (static_cast<std::uint64_t>(first_query + query) * heads +
                     static_cast<std::uint64_t>(head) * step.group) *
                        step.dim;
  };
  const float* q = source(0);
  if (count > 1) {
    q_block_.resize(static_cast<std::size_t>(count * group_floats));
    for (std::uint32_t i = 0; i < count; ++i)
      std::memcpy(q_block_.data() + i * group_floats, source(i),
                  static_cast<std::size_t>(group_floats) * sizeof(float));
    q = q_block_.data();
  }
  out_block_.resize(static_cast<std::size_t>(vectors) * step.v_dim);
  lse_block_.resize(vectors);
  const std::uint64_t token_range[2] = {begin, end};
  AttendArgs args;
  args.rows = rows;
  args.token_range = token_range;
  args.q = q;
  args.q_stride = step.dim;
  args.queries = vectors;
  args.dim = step.dim;
  args.v_dim = step.v_dim;
  args.scale = step.scale;
  args.out = out_block_.data();
  args.out_stride = step.v_dim;
  args.lse = lse_block_.data();
  KVT_TRY_VOID(kernels_->attend(args, nullptr));
  stats_.rows_attended += (end - begin) * count;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint64_t first = static_cast<std::uint64_t>(first_query + i) * heads +
                                static_cast<std::uint64_t>(head) * step.group;
    MergeAttentionArgs merge;
    merge.out_a = step.out + first * step.v_dim;
    merge.lse_a = step.lse + first;
    merge.out_b = out_block_.data() + static_cast<std::uint64_t>(i) * step.group * step.v_dim;
    merge.lse_b = lse_block_.data() + static_cast<std::uint64_t>(i) * step.group;
    merge.out_a_stride = merge.out_b_stride = step.v_dim;
    merge.queries = step.group;
    merge.v_dim = step.v_dim;
    KVT_TRY_VOID(kernels_->merge_attention(merge, nullptr));
  }
  return {};
}

}  // namespace kvtier
