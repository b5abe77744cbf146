#include "client/retrieval/query_sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/bytes.h"

namespace kvtier {

std::size_t QuerySample::width(std::uint32_t layer) const noexcept {
  const LayerGeometry& shape = geometry_.layers[layer];
  if (shape.kind != LayerKind::kFull || shape.dtype == Dtype::kOpaque || shape.kv_heads == 0 ||
      shape.query_heads % shape.kv_heads != 0)
    return 0;
  return std::size_t{shape.query_heads} * (shape.k_row_bytes / dtype_bytes(shape.dtype));
}

void QuerySample::observe(std::uint32_t layer, const std::vector<std::uint32_t>& positions,
                          const float* q) {
  const std::size_t floats = width(layer);
  if (floats == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (stopped_) return;
  Layer& at = layers_[layer];
  for (std::size_t i = 0; i < positions.size(); ++i) {
    if (positions[i] % kQuerySampleStride != 0) continue;
    const float* row = q + i * floats;
    if (!std::all_of(row, row + floats, [](float x) { return std::isfinite(x); })) continue;
    const std::size_t place = static_cast<std::size_t>(at.seen++ % kQuerySampleTokens);
    if (at.positions.size() <= place) {
      at.positions.resize(place + 1);
      at.vectors.resize((place + 1) * floats);
    }
    at.positions[place] = positions[i];
    std::copy_n(row, floats, at.vectors.begin() + static_cast<std::ptrdiff_t>(place * floats));
  }
}

void QuerySample::stop() {
  std::lock_guard<std::mutex> lock(mutex_);
  stopped_ = true;
  layers_.assign(layers_.size(), {});
}

std::uint32_t QuerySample::take(std::vector<std::byte>* payload) const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::size_t tokens = kQuerySampleTokens;
  for (std::uint32_t layer = 0; layer < layers_.size(); ++layer)
    if (width(layer) != 0) tokens = std::min(tokens, layers_[layer].positions.size());
  const auto append = [payload](const void* data, std::size_t bytes) {
    const auto* first = static_cast<const std::byte*>(data);
    payload->insert(payload->end(), first, first + bytes);
  };
  for (std::uint32_t layer = 0; layer < layers_.size() && tokens != 0; ++layer) {
    if (width(layer) == 0) continue;
    append(layers_[layer].positions.data(), tokens * sizeof(std::uint32_t));
    append(layers_[layer].vectors.data(), tokens * width(layer) * sizeof(float));
  }
  return static_cast<std::uint32_t>(tokens);
}

}  // namespace kvtier
