#include "tiers/own_codes.h"

#include <algorithm>
#include <vector>

#include "kernels/float16.h"

namespace kvtier {
namespace {

// k-means in one sub-space, over rows that lie `stride` floats apart.
class SubSpace {
 public:
  SubSpace(const KernelTable& kernels, std::span<const float> keys, std::uint32_t stride,
           std::uint32_t first, std::uint32_t width)
      : kernels_(kernels),
        keys_(keys.data() + first),
        count_(keys.size() / stride),
        stride_(stride),
        width_(width) {}

  // On the rows from `begin` on.
  bool train(std::uint64_t begin) {
    const std::uint64_t rows = count_ - begin;
    centroid_count_ = std::min<std::uint64_t>(rows, kOwnCodeEntries);
    centroids_.resize(static_cast<std::size_t>(centroid_count_ * width_));
    for (std::uint64_t c = 0; c < centroid_count_; ++c)
      std::copy_n(row(begin + c * rows / centroid_count_), width_, centroid(c));
    std::vector<std::uint32_t> before;
    for (int i = 0; i < kOwnCodeIterations; ++i) {
      if (!find(begin)) return false;
      if (nearest_ == before) break;
      before = nearest_;
      move(begin);
    }
    return true;
  }
  // The nearest centroid of every row.
  bool encode() { return find(0); }

  [[nodiscard]] const std::vector<std::uint32_t>& codes() const noexcept { return nearest_; }
  // f16 [centroids][width], as a mean is stored: infinity would be no score.
  void store(std::uint16_t* out) const {
    constexpr float kMost = 65504.0f;
    for (const float value : centroids_) *out++ = f32_to_f16(std::clamp(value, -kMost, kMost));
  }

 private:
  [[nodiscard]] const float* row(std::uint64_t i) const noexcept { return keys_ + i * stride_; }
  float* centroid(std::uint64_t c) noexcept { return centroids_.data() + c * width_; }

  // |row - centroid|^2 is least where row . centroid - |centroid|^2 / 2 is largest.
  bool find(std::uint64_t begin) {
    bias_.assign(static_cast<std::size_t>(centroid_count_), 0.0f);
    for (std::uint64_t c = 0; c < centroid_count_; ++c)
      for (std::uint32_t d = 0; d < width_; ++d)
        bias_[static_cast<std::size_t>(c)] -= centroid(c)[d] * centroid(c)[d] / 2;
    const std::uint64_t rows = count_ - begin;
    nearest_.resize(static_cast<std::size_t>(rows));
    values_.resize(nearest_.size());
    NearestArgs args;
    args.rows = row(begin);
    args.row_stride = stride_;
    args.row_count = &rows;
    args.centroids = centroids_.data();
    args.centroid_stride = width_;
    args.centroid_count = &centroid_count_;
    args.bias = bias_.data();
    args.dim = width_;
    args.out_index = nearest_.data();
    args.out_value = values_.data();
    return kernels_.nearest(args, nullptr).has_value();
  }

  // To the mean of their rows.
  void move(std::uint64_t begin) {
    std::vector<double> sums(centroids_.size(), 0.0);
    std::vector<std::uint32_t> members(static_cast<std::size_t>(centroid_count_), 0);
    for (std::size_t i = 0; i < nearest_.size(); ++i) {
      ++members[nearest_[i]];
      double* sum = sums.data() + std::size_t{nearest_[i]} * width_;
      for (std::uint32_t d = 0; d < width_; ++d) sum[d] += static_cast<double>(row(begin + i)[d]);
    }
    for (std::size_t c = 0; c < members.size(); ++c)
      for (std::uint32_t d = 0; d < width_ && members[c] != 0; ++d)
        centroid(c)[d] = static_cast<float>(sums[c * width_ + d] / members[c]);
  }

  const KernelTable& kernels_;
  const float* keys_;
  std::uint64_t count_;
  std::uint32_t stride_, width_;
  std::uint64_t centroid_count_ = 0;
  std::vector<float> centroids_, bias_, values_;
  std::vector<std::uint32_t> nearest_;
};

}  // namespace

bool build_own_codes(const KernelTable& kernels, const OwnCodeLayout& layout,
                     std::span<const float> keys, std::uint32_t untrained, std::byte* out) {
  if (layout.dim % kKernelDimStep != 0) return false;
  const std::uint64_t count = keys.size() / layout.dim;
  auto* codes = reinterpret_cast<std::uint8_t*>(out + layout.codes_offset());
  for (std::uint32_t m = 0; m < layout.subspaces; ++m) {
    SubSpace space(kernels, keys, layout.dim, layout.first(m), layout.width(m));
    if (!space.train(untrained < count ? untrained : 0) || !space.encode()) return false;
    space.store(reinterpret_cast<std::uint16_t*>(out + layout.entries_offset(m)));
    for (std::uint64_t t = 0; t < count; ++t)
      put_own_code(codes, t, layout.subspaces, m, space.codes()[static_cast<std::size_t>(t)]);
  }
  return true;
}

}  // namespace kvtier
