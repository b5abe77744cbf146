// Tells a forked child from the processes it came from, at the price of one load. Any thread.
#pragma once

#include <cstdint>

namespace kvtier {

// A number that differs from the one that every ancestor of this process got. Handles keep it from
// their making.
[[nodiscard]] std::uint64_t process_stamp() noexcept;

}  // namespace kvtier
