// The client that dies: a child process of client_crash_test that goes through all calls for ever,
// each beginning with the one that it is told, and says in shared memory what it has done.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "kvtier/kvtier.h"

namespace kvtier::testing {

inline constexpr std::size_t kCallCount = 15;

// What the children of a test tell, in memory that they share with it: how often each call was
// done, how often it failed and why, and which one was under way.
struct Told {
  std::atomic<std::uint32_t> connected{0};
  std::atomic<std::uint32_t> current{kCallCount};  // kCallCount: none
  std::atomic<std::uint32_t> finished[kCallCount]{};
  std::atomic<std::uint32_t> failed[kCallCount]{};
  std::atomic<std::uint32_t> took_us[kCallCount]{};  // when it was done last
  char reason[kCallCount][120]{};
};

// What a child lives on.
struct Life {
  kvt_client* client = nullptr;
  kvt_space* space = nullptr;
  std::string directory;
  std::uint64_t seed = 0;
  std::uint32_t turn = 0;
};

[[nodiscard]] const char* call_name(std::size_t call) noexcept;
// The presets that the calls need, as files of this directory.
void write_presets(const std::string& directory);
// In a child: connects, and calls from the `first` on until it is killed.
[[noreturn]] void live(const std::string& socket, Life life, std::size_t first, Told* told);

}  // namespace kvtier::testing
