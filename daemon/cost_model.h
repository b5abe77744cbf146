// CostModel: is a stored prefix worth loading? Compares the time to read it from this disk with the
// time that the runtime needs to compute it again, both measured here and now.
//
// Reading: bytes of chunk reads over the time in which any of them was in flight, smoothed over
// windows of some MiB. Computing: the client library times its runtime between the append of a
// piece and its last row, and tells at close; kept per space. Where one of them is not known yet,
// nothing is declined. Only a prefix that `create` found by its tokens is ever declined: what is
// opened by name or id was asked for. Engine's thread.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "daemon/sequences.h"

namespace kvtier {

struct CostModel {
  double read_bytes_per_s = 0;  // 0: not known
  std::uint64_t windows = 0;    // measurements in it
  std::uint64_t window_bytes = 0, window_ns = 0;
  std::uint32_t reads_in_flight = 0;
  std::uint64_t busy_since_ns = 0;
  std::unordered_map<SpaceId, double> compute_ns_per_token;
  std::uint64_t declined = 0, declined_tokens = 0;
};

struct LoadEstimate {
  std::uint64_t tokens = 0;          // not resident
  std::uint64_t bytes = 0;           // to be read
  double load_s = 0, compute_s = 0;  // 0 where not known
  // Slower by more than a tenth of a second, so that noise decides nothing.
  [[nodiscard]] bool slower() const noexcept {
    return load_s > 0 && compute_s > 0 && load_s > compute_s + 0.1;
  }
};

void begin_timed_read(EngineState& engine);
void end_timed_read(EngineState& engine, std::uint64_t bytes);
// What a client measured; ignored where it makes no sense.
void learn_compute_time(EngineState& engine, const StoredSpace& space, std::uint64_t ns_per_token);
// Of parts [first, parts.size()).
[[nodiscard]] LoadEstimate estimate_load(const EngineState& engine,
                                         const std::vector<PartSpec>& parts, std::size_t first);

}  // namespace kvtier
