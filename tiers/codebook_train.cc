#include "tiers/codebook_train.h"

#include <Eigen/Dense>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/random.h"

namespace kvtier {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMap = Eigen::Map<const Matrix>;

constexpr int kIterations = 10;
constexpr float kMetricFloor = 1e-3f;  // of the mean eigenvalue: no direction counts for nothing

// The symmetric root of the queries' second moment, and its inverse.
struct Metric {
  Matrix root, inverse;
};
Metric metric_of(const TrainingSet& set) {
  const auto dim = static_cast<Eigen::Index>(set.dim);
  if (set.queries.empty()) return {Matrix::Identity(dim, dim), Matrix::Identity(dim, dim)};
  const RowMap queries(set.queries.data(), static_cast<Eigen::Index>(set.queries.size() / set.dim),
                       dim);
  const Matrix moment =
      queries.transpose() * queries / static_cast<float>(std::max<Eigen::Index>(queries.rows(), 1));
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(moment);
  Eigen::VectorXf values = solver.eigenvalues().cwiseMax(0.0f);
  values.array() += kMetricFloor * std::max(values.mean(), std::numeric_limits<float>::min());
  const Matrix& vectors = solver.eigenvectors();
  return {vectors * values.cwiseSqrt().asDiagonal() * vectors.transpose(),
          vectors * values.cwiseSqrt().cwiseInverse().asDiagonal() * vectors.transpose()};
}

// Axes, by falling variance, to sub-spaces of equal size whose products of variances are alike.
std::vector<std::vector<std::uint16_t>> deal_out(const Eigen::VectorXf& variances,
                                                 std::uint32_t subspaces) {
  const auto dim = static_cast<std::uint32_t>(variances.size());
  std::vector<std::uint16_t> order(dim);
  std::iota(order.begin(), order.end(), std::uint16_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint16_t a, std::uint16_t b) { return variances[a] > variances[b]; });
  const std::size_t room = (dim + subspaces - 1) / subspaces;
  constexpr double kSmallest = 1e-9;
  std::vector<std::vector<std::uint16_t>> groups(subspaces);
  std::vector<double> load(subspaces, 0.0);
  for (const std::uint16_t axis : order) {
    std::size_t best = subspaces;
    for (std::size_t g = 0; g < subspaces; ++g) {
      if (groups[g].size() >= room) continue;
      if (best == subspaces || load[g] < load[best] ||
          (load[g] == load[best] && groups[g].size() < groups[best].size()))
        best = g;
    }
    groups[best].push_back(axis);
    load[best] += std::log(std::max(static_cast<double>(variances[axis]), kSmallest) / kSmallest);
  }
  return groups;
}

// k-means with kCodeEntries centroids over points [n][size]; k-means++ to begin with.
class KMeans {
 public:
  KMeans(std::vector<float> points, std::size_t size, Random* random)
      : points_(std::move(points)),
        size_(size),
        count_(size == 0 ? 0 : points_.size() / size),
        random_(random),
        centroids_(kCodeEntries * size, 0.0f) {}

  const std::vector<float>& run() {
    if (size_ == 0) return centroids_;
    seed();
    for (int i = 0; i < kIterations; ++i) step();
    return centroids_;
  }

 private:
  const float* point(std::size_t i) const { return points_.data() + i * size_; }
  float* centroid(std::size_t j) { return centroids_.data() + j * size_; }

  float distance(const float* a, const float* b) const {
    float sum = 0.0f;
    for (std::size_t d = 0; d < size_; ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
    return sum;
  }

  void seed() {
    std::vector<float> nearest(count_, std::numeric_limits<float>::max());
    std::size_t chosen = random_->below(count_);
    for (std::size_t j = 0; j < kCodeEntries; ++j) {
      std::copy_n(point(chosen), size_, centroid(j));
      double total = 0.0;
      for (std::size_t i = 0; i < count_; ++i) {
        nearest[i] = std::min(nearest[i], distance(point(i), centroid(j)));
        total += static_cast<double>(nearest[i]);
      }
      double at = random_->unit() * total;
      chosen = 0;
      while (chosen + 1 < count_ && (at -= static_cast<double>(nearest[chosen])) > 0.0) ++chosen;
    }
  }

  // Distances to all centroids at once, centroid by centroid in the inner loop.
  void step() {
    std::vector<float> turned(size_ * kCodeEntries);
    for (std::size_t j = 0; j < kCodeEntries; ++j)
      for (std::size_t d = 0; d < size_; ++d) turned[d * kCodeEntries + j] = centroid(j)[d];
    std::vector<double> sums(kCodeEntries * size_, 0.0);
    std::array<std::uint64_t, kCodeEntries> members{};
    for (std::size_t i = 0; i < count_; ++i) {
      std::array<float, kCodeEntries> far{};
      for (std::size_t d = 0; d < size_; ++d)
        for (std::size_t j = 0; j < kCodeEntries; ++j) {
          const float gap = point(i)[d] - turned[d * kCodeEntries + j];
          far[j] += gap * gap;
        }
      const auto best =
          static_cast<std::size_t>(std::min_element(far.begin(), far.end()) - far.begin());
      ++members[best];
      for (std::size_t d = 0; d < size_; ++d)
        sums[best * size_ + d] += static_cast<double>(point(i)[d]);
    }
    for (std::size_t j = 0; j < kCodeEntries; ++j)
      for (std::size_t d = 0; d < size_ && members[j] != 0; ++d)
        centroid(j)[d] = static_cast<float>(sums[j * size_ + d] / static_cast<double>(members[j]));
  }

  std::vector<float> points_;
  std::size_t size_, count_;
  Random* random_;
  std::vector<float> centroids_;
};

// What a HeadCodebook points to is ours to write here.
template <class T>
T* writable(const T* place) {
  return const_cast<T*>(place);
}

void store(const Matrix& matrix, const float* place) {
  std::copy_n(matrix.data(), matrix.size(), writable(place));
}

}  // namespace

void turn_to_positions(const RopeSpec& rope, std::span<const std::uint32_t> positions,
                       std::uint32_t dim, std::uint64_t seed, std::span<float> rows) {
  const std::uint32_t pairs =
      turned_pairs(static_cast<std::uint32_t>(rope.frequencies.size()), dim);
  if (rope.pairing == RopeSpec::Pairing::kNone || rope.positions == 0 || pairs == 0) return;
  Random random(seed);
  std::vector<float> turns(2 * rope.frequencies.size());
  for (std::size_t i = 0; i < positions.size(); ++i) {
    turns_of(rope.frequencies,
             static_cast<double>(random.below(rope.positions)) - static_cast<double>(positions[i]),
             turns.data());
    turn_row(rope.pairing, pairs, turns.data(), false, rows.data() + i * dim);
  }
}

void move_keys(const HeadCodebook& codebook, std::uint32_t dim, std::span<const float> keys,
               std::span<float> out) {
  const auto width = static_cast<Eigen::Index>(dim);
  const auto rows = static_cast<Eigen::Index>(keys.size() / dim);
  const Eigen::Map<const Eigen::RowVectorXf> mean(codebook.mean, width);
  const Matrix centred = RowMap(keys.data(), rows, width).rowwise() - mean;
  Eigen::Map<Matrix>(out.data(), rows, width).noalias() =
      centred * RowMap(codebook.encode, width, width);
}

Result<void> train_head(const TrainingSet& set, const HeadCodebook& out) {
  const std::size_t rows = set.keys.size() / set.dim;
  if (rows < kCodeEntries) return error(Code::kInvalid, "too few keys to train a codebook on");
  const auto finite = [](float x) { return std::isfinite(x); };
  if (!std::all_of(set.keys.begin(), set.keys.end(), finite) ||
      !std::all_of(set.queries.begin(), set.queries.end(), finite))
    return error(Code::kInvalid, "a key or query to train on is not finite");
  const auto dim = static_cast<Eigen::Index>(set.dim);
  const RowMap keys(set.keys.data(), static_cast<Eigen::Index>(rows), dim);
  const Eigen::RowVectorXf mean = keys.colwise().mean();
  const Matrix centred = keys.rowwise() - mean;
  const Matrix covariance = centred.transpose() * centred / static_cast<float>(rows);
  const Metric metric = metric_of(set);
  const Eigen::SelfAdjointEigenSolver<Matrix> axes(metric.root * covariance * metric.root);
  const Matrix encode = metric.root * axes.eigenvectors();
  const Matrix query_map = metric.inverse * axes.eigenvectors();
  const Matrix moved = centred * encode;

  std::copy_n(mean.data(), set.dim, writable(out.mean));
  store(encode, out.encode);
  store(query_map, out.query_map);
  const auto groups = deal_out(axes.eigenvalues(), set.subspaces);
  auto* entries = reinterpret_cast<float*>(const_cast<std::byte*>(out.book.entries));
  auto* first = writable(out.book.first);
  auto* dims = writable(out.book.dims);
  Random random(set.seed);
  std::uint16_t at = 0;
  for (std::size_t m = 0; m < set.subspaces; ++m) {
    const std::vector<std::uint16_t>& group = groups[m];
    first[m] = at;
    std::vector<float> points(rows * group.size());
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t d = 0; d < group.size(); ++d)
        points[i * group.size() + d] = moved(static_cast<Eigen::Index>(i), group[d]);
    KMeans means(std::move(points), group.size(), &random);
    const std::vector<float>& found = means.run();
    std::copy(found.begin(), found.end(), entries + std::size_t{kCodeEntries} * at);
    std::copy(group.begin(), group.end(), dims + at);
    at = static_cast<std::uint16_t>(at + group.size());
  }
  first[set.subspaces] = at;
  return {};
}

}  // namespace kvtier
