// Every back end, and within simd every instruction set, that this machine can run; and the proof
// that it ran.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/registry.h"
#include "kernels/simd/simd.h"
#include "tests/unit/kernels_fixtures.h"

namespace kvtier::testing {

struct Backend {
  const KernelTable* table;
  const char* target;  // null: the only one
};

inline std::vector<Backend> all_backends() {
  std::vector<Backend> backends;
  for (const KernelTable* table : all_kernels()) {
    if (std::string_view(table->name) == "simd") {
      for (const char* target : simd::simd_targets()) backends.push_back({table, target});
    } else {
      backends.push_back({table, nullptr});
    }
  }
  return backends;
}

// For INSTANTIATE_TEST_SUITE_P.
inline std::string backend_name(const ::testing::TestParamInfo<Backend>& info) {
  return std::string(info.param.table->name) +
         (info.param.target != nullptr ? std::string("_") + info.param.target : "");
}

class KernelConformance : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override { simd::force_simd_target(GetParam().target); }
  void TearDown() override { simd::force_simd_target(nullptr); }

  // Runs an operation on the back end under test, then on the reference, and sees to it that these
  // two ran.
  template <class Args>
  ::testing::AssertionResult run(Result<void> (*KernelTable::*op)(const Args&, KernelStream),
                                 const char* name, const Args& tested, const Args& reference) {
    if (const auto done = (GetParam().table->*op)(tested, nullptr); !done)
      return ::testing::AssertionFailure() << "refused: " << done.error().message();
    const KernelTrace trace = kernel_trace();
    const std::string target =
        GetParam().target != nullptr ? GetParam().target : GetParam().table->target();
    if (trace.table == nullptr || std::string(trace.table) != GetParam().table->name ||
        trace.target != target || std::string(trace.op) != name)
      return ::testing::AssertionFailure()
             << "ran " << trace.table << "/" << trace.target << "/" << trace.op << " instead of "
             << GetParam().table->name << "/" << target << "/" << name;
    if (const auto done = (scalar.*op)(reference, nullptr); !done)
      return ::testing::AssertionFailure() << "reference refused: " << done.error().message();
    if (std::string(kernel_trace().table) != "scalar")
      return ::testing::AssertionFailure() << "reference did not run";
    return ::testing::AssertionSuccess();
  }

  const KernelTable& scalar = *all_kernels().back();
  Random random{2024};
};

}  // namespace kvtier::testing
