// Work for each layer and KV head of a trace, on all cores.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace kvtier::bench {

// Calls work(i) once for each i below `count`, from several threads, in any order; returns after
// the last.
template <class Work>
void each_in_parallel(std::uint32_t count, Work&& work) {
  std::atomic<std::uint32_t> next = 0;
  const auto take = [&] {
    for (std::uint32_t i = 0; (i = next.fetch_add(1)) < count;) work(i);
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < std::min(std::thread::hardware_concurrency(), count); ++i)
    others.emplace_back(take);
  take();
  for (std::thread& other : others) other.join();
}

}  // namespace kvtier::bench
