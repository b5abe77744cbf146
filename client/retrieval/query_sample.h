// QuerySample: a few query vectors of every layer, which tell the calibration of a codebook in
// which directions errors count. Bounded: the newest kQuerySampleTokens tokens per layer, at most
// one in kQuerySampleStride. Shared by the sequences of a space; any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "kernels/geometry.h"

namespace kvtier {

inline constexpr std::uint32_t kQuerySampleTokens = 64;
inline constexpr std::uint32_t kQuerySampleStride = 8;

class QuerySample {
 public:
  explicit QuerySample(const Geometry& geometry)
      : geometry_(geometry), layers_(geometry.layers.size()) {}

  // `q`: [positions.size()][query_heads][dim] of a full layer. Vectors with a number that is not
  // finite are left out.
  void observe(std::uint32_t layer, const std::vector<std::uint32_t>& positions, const float* q);
  // No more is taken, and the memory is given back.
  void stop();
  // A look before the work of observe(): false after stop().
  [[nodiscard]] bool takes() const noexcept { return !stopped_.load(std::memory_order_relaxed); }

  // Tokens that every layer with keys has; then, per such layer, u32 positions and f32 vectors, as
  // the daemon's "calibrate" wants them, appended to `payload`.
  [[nodiscard]] std::uint32_t take(std::vector<std::byte>* payload) const;

 private:
  struct Layer {
    std::vector<std::uint32_t> positions;
    std::vector<float> vectors;  // a ring of tokens
    std::uint64_t seen = 0;      // tokens taken, ever
  };
  // f32 of one token; 0 for a layer without keys that kernels understand.
  [[nodiscard]] std::size_t width(std::uint32_t layer) const noexcept;

  const Geometry geometry_;
  mutable std::mutex mutex_;
  std::vector<Layer> layers_;  // guarded by mutex_, as the rest
  std::atomic<bool> stopped_{false};
};

}  // namespace kvtier
