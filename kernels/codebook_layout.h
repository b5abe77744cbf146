// CodebookLayout: where things lie in the codebook of a space, in its file and in the abstracts
// arena alike. One place for the trainer and all readers.
//
// A codebook turns keys of one layer and KV head into 4-bit codes, and queries into tables that
// score them. Both are first moved into coordinates in which errors count alike for the queries
// that were seen and in which dimensions are uncorrelated:
//   y = (key - mean) * encode       the codes are of y (kernels/code_layout.h)
//   z = query * query_map           z . y is query . key, but for a constant of the query
//
//   header  64 bytes (CodebookHeader)
//   then for every layer with keys that kernels understand, for every KV head, 64-byte aligned:
//     mean f32[dim] | encode f32[dim][dim] | query_map f32[dim][dim] | entries f32[16 * dim] |
//     first u16[subspaces + 1] | dims u16[dim]
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/abstract_layout.h"
#include "kernels/code_layout.h"

namespace kvtier {

struct CodebookHeader {
  std::uint32_t spec = 0;  // AbstractSpec::packed of the codes
  std::uint32_t version = 1;
  std::uint64_t id = 0;                // never 0, never given again in the space
  std::uint32_t training_rows = 0;     // keys per head that it was trained on
  std::uint32_t training_queries = 0;  // 0: none were known, errors of all directions count alike
  std::uint32_t positions = 0;         // keys were turned to positions below this; 0: as they were
  std::uint32_t reserved0 = 0;
  std::uint64_t reserved[4] = {};
};
static_assert(sizeof(CodebookHeader) == 64, "codebook headers are written to disk as they are");
inline constexpr std::uint32_t kCodebookVersion = 1;

// One head's part, as it lies in memory.
struct HeadCodebook {
  const float* mean = nullptr;
  const float* encode = nullptr;     // [dim][dim]
  const float* query_map = nullptr;  // [dim][dim]
  CodeBook book;
};

class CodebookLayout {
 public:
  CodebookLayout(const Geometry& geometry, AbstractSpec spec);

  [[nodiscard]] bool has_layer(std::uint32_t layer) const noexcept {
    return layer < layers_.size() && layers_[layer].dim != 0;
  }
  [[nodiscard]] std::uint32_t dim(std::uint32_t layer) const noexcept { return layers_[layer].dim; }
  // The part of a payload that begins at `base`. The layer must have one.
  [[nodiscard]] HeadCodebook head(const std::byte* base, std::uint32_t layer,
                                  std::uint32_t head) const noexcept;
  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return size_bytes_; }
  // kUnsupported where kernels take no codebook for keys of these dims.
  [[nodiscard]] Result<void> validate() const noexcept;
  // kCorrupt unless every head's part is one that kernels may use, and all numbers are finite.
  [[nodiscard]] Result<void> check_contents(const std::byte* base) const;

 private:
  struct Layer {
    std::uint64_t offset_bytes = 0;
    std::uint64_t head_bytes = 0;
    std::uint32_t dim = 0;
    std::uint32_t subspaces = 0;
    std::uint32_t kv_heads = 0;
  };
  std::vector<Layer> layers_;
  std::uint64_t size_bytes_ = 0;
};

}  // namespace kvtier
