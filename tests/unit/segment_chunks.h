// The raw chunks of a segment, filled with whatever a test says its elements are.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <vector>

#include "kernels/layout.h"
#include "kernels/registry.h"

namespace kvtier::testing {

// Element d of K (which 0) or V (1) of one token and KV head.
using ElementOf = std::function<float(std::uint32_t layer, std::uint32_t head, std::uint32_t token,
                                      std::uint32_t which, std::uint32_t d)>;

// K or V of one head, [token][bytes of a row].
inline std::vector<std::byte> rows_of(const LayerGeometry& shape, std::uint32_t tokens,
                                      std::uint32_t layer, std::uint32_t head, std::uint32_t which,
                                      const ElementOf& element) {
  const std::uint32_t row_bytes = which == 0 ? shape.k_row_bytes : shape.v_row_bytes;
  std::vector<float> values;
  for (std::uint32_t t = 0; t < tokens; ++t)
    for (std::uint32_t d = 0; d < row_bytes / dtype_bytes(shape.dtype); ++d)
      values.push_back(element(layer, head, t, which, d));
  const std::uint64_t count = values.size();
  std::vector<std::byte> out(std::size_t{tokens} * row_bytes);
  ConvertArgs args;
  args.source = reinterpret_cast<const std::byte*>(values.data());
  args.count = &count;
  args.target = out.data();
  args.target_dtype = shape.dtype;
  EXPECT_TRUE(all_kernels().back()->convert(args, nullptr));
  return out;
}

struct SegmentChunks {
  SegmentChunks(const Geometry& geometry, std::uint32_t token_count, const ElementOf& element)
      : plane(geometry, token_count), tokens(token_count) {
    bytes.resize(plane.chunks_total());
    for (std::uint32_t layer = 0; layer < geometry.layers.size(); ++layer)
      for (std::uint32_t head = 0; head < geometry.layers[layer].kv_heads; ++head)
        fill(geometry, layer, head, element);
    for (std::vector<std::byte>& chunk : bytes) pointers.push_back(chunk.data());
  }
  void fill(const Geometry& geometry, std::uint32_t layer, std::uint32_t head,
            const ElementOf& element) {
    const LayerGeometry& shape = geometry.layers[layer];
    const std::uint32_t heads = geometry.heads_in_group(layer);
    const std::vector<std::byte> k = rows_of(shape, tokens, layer, head, 0, element),
                                 v = rows_of(shape, tokens, layer, head, 1, element);
    for (std::uint32_t t = 0; t < tokens; ++t) {
      std::vector<std::byte>& chunk =
          bytes[plane.chunk_index(layer, t / geometry.chunk_tokens, head / heads)];
      chunk.resize(static_cast<std::size_t>(geometry.chunk_bytes(layer)), std::byte{0x7F});
      const std::uint32_t place = t % geometry.chunk_tokens;
      std::memcpy(&chunk[k_row_offset(geometry, shape, head % heads, place)],
                  &k[std::size_t{t} * shape.k_row_bytes], shape.k_row_bytes);
      std::memcpy(&chunk[v_row_offset(geometry, shape, head % heads, place)],
                  &v[std::size_t{t} * shape.v_row_bytes], shape.v_row_bytes);
    }
  }
  PlaneLayout plane;
  std::uint32_t tokens;
  std::vector<std::vector<std::byte>> bytes;
  std::vector<std::byte*> pointers;
};

}  // namespace kvtier::testing
