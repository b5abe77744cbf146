#include "tiers/low_rank.h"

#include <Eigen/Dense>
#include <algorithm>
#include <limits>

#include "base/random.h"
#include "kernels/float16.h"

namespace kvtier {
namespace {

constexpr int kRounds = 8;

std::uint16_t half_of(double value) {
  constexpr float kMost = 65504.0f;  // infinity would be no key
  return f32_to_f16(std::clamp(static_cast<float>(value), -kMost, kMost));
}

// The eigenvectors of the `rank` largest values of a symmetric matrix, whose lower half is read;
// the largest first. False where the solver gives up.
bool largest(const Eigen::MatrixXd& matrix, Eigen::Index rank, Eigen::MatrixXd* out) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(matrix);
  *out = solver.eigenvectors().rightCols(rank).rowwise().reverse();
  return solver.info() == Eigen::Success;
}

// The same, nearly: a subspace somewhat larger than wanted is multiplied by the matrix again and
// again (Halko, Martinsson, Tropp 2011, algorithm 4.4), then turned to its own eigenvectors.
bool nearly_largest(const Eigen::MatrixXd& matrix, Eigen::Index rank, Eigen::MatrixXd* out) {
  const Eigen::MatrixXf single = matrix.cast<float>();
  const auto symmetric = single.selfadjointView<Eigen::Lower>();
  const Eigen::Index beside = std::max<Eigen::Index>(16, rank / 4);
  Eigen::MatrixXf space(single.rows(), std::min(single.rows(), rank + beside));
  Random random(1);
  for (Eigen::Index i = 0; i < space.size(); ++i)
    space.data()[i] = static_cast<float>(random.unit()) - 0.5f;
  const Eigen::MatrixXf wide = Eigen::MatrixXf::Identity(space.rows(), space.cols());
  for (int i = 0; i < kRounds; ++i)
    space = Eigen::HouseholderQR<Eigen::MatrixXf>(symmetric * space).householderQ() * wide;
  const Eigen::MatrixXf small = space.transpose() * (symmetric * space);
  Eigen::MatrixXd within;
  if (!largest(small.cast<double>(), rank, &within)) return false;
  *out = space.cast<double>() * within;
  return true;
}

}  // namespace

bool factorise_keys(const LowRankShape& shape, std::span<const float> keys,
                    const LowRankPlaces& out) {
  using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const auto width = static_cast<Eigen::Index>(shape.width());
  const auto rank = static_cast<Eigen::Index>(shape.rank);
  const auto tokens = static_cast<Eigen::Index>(keys.size()) / width;
  const Eigen::MatrixXd rows = Eigen::Map<const Rows>(keys.data(), tokens, width).cast<double>();
  Eigen::MatrixXd moment = Eigen::MatrixXd::Zero(width, width);
  moment.selfadjointView<Eigen::Lower>().rankUpdate(rows.transpose());
  // So that single precision holds it, however large keys are.
  moment /= std::max(moment.trace(), std::numeric_limits<double>::min());
  Eigen::MatrixXd basis;
  if (!(shape.width() <= kLowRankDirectWidth ? largest(moment, rank, &basis)
                                             : nearly_largest(moment, rank, &basis)))
    return false;
  const Eigen::MatrixXd coefficients = rows * basis;
  for (Eigen::Index t = 0; t < tokens; ++t)
    for (Eigen::Index r = 0; r < rank; ++r)
      out.coefficients[t * rank + r] = half_of(coefficients(t, r));
  const auto dim = static_cast<Eigen::Index>(shape.dim);
  for (std::size_t head = 0; head < out.bases.size(); ++head)
    for (Eigen::Index r = 0; r < rank; ++r)
      for (Eigen::Index d = 0; d < dim; ++d)
        out.bases[head][r * dim + d] = half_of(basis(static_cast<Eigen::Index>(head) * dim + d, r));
  return true;
}

}  // namespace kvtier
