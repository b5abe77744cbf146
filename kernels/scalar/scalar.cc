#include "kernels/scalar/scalar.h"

#include "kernels/registry.h"

namespace kvtier {
namespace {
const char* target() { return "portable"; }
bool always() { return true; }
}  // namespace

void scalar::begin(const char* op) noexcept { internal::trace_kernel("scalar", "portable", op); }

const KernelTable scalar_kernels = {
    "scalar",
    target,
    always,
    scalar::build_abstract,
    scalar::score_box,
    scalar::score_mean,
    scalar::score_ball,
    scalar::score_representatives,
    scalar::group_scores,
    scalar::top_k,
    scalar::gather_rows,
    scalar::attend,
    scalar::merge_attention,
    scalar::all_finite,
    scalar::convert,
    scalar::code_tables,
    scalar::score_codes,
    scalar::rescore_codes,
    scalar::encode_codes,
    scalar::score_own_codes,
    scalar::nearest,
    scalar::encode_base,
    scalar::decode_base,
    scalar::attend_base,
    scalar::rebuild_keys,
};

}  // namespace kvtier
