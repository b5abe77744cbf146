// Leases of one session: which slots it may read, until it says so or goes away. Ids are generation
// and place, so that an old id never ends a newer lease. They can be guessed: a lease that is still
// being filled is none of the client's until its id was given out. No allocation once the table has
// grown to what the client keeps open. Engine's thread.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "tiers/host_arena.h"

namespace kvtier {

class LeaseTable {
 public:
  // A new empty lease; never 0.
  [[nodiscard]] std::uint64_t begin();
  // Leases a ready slot in the arena, and counts it in `*counter` (its segment's) until the lease
  // ends.
  void add(std::uint64_t id, HostArena& arena, SlotId slot, std::uint32_t* counter);
  // The client is told the id: nothing more is added, and it may end the lease.
  void give(std::uint64_t id);
  // Gives all slots of a lease back; false where there is no such lease. `*bytes`: what it held.
  [[nodiscard]] bool end(std::uint64_t id, HostArena& arena, std::uint64_t* bytes);
  // The same at a client's word: false, too, where the lease was not given to it.
  [[nodiscard]] bool end_given(std::uint64_t id, HostArena& arena, std::uint64_t* bytes);
  // Ends every lease; the number of them. `*bytes`: what they held.
  std::uint64_t end_all(HostArena& arena, std::uint64_t* bytes);
  [[nodiscard]] std::size_t live() const noexcept { return leases_.size() - free_.size(); }

 private:
  struct Lease {
    std::uint32_t generation = 1;
    bool live = false;
    bool given = false;  // the client knows the id
    std::uint64_t bytes = 0;
    std::vector<std::pair<SlotId, std::uint32_t*>> slots;
  };
  [[nodiscard]] Lease* find(std::uint64_t id);

  std::vector<Lease> leases_;
  std::vector<std::uint32_t> free_;
};

}  // namespace kvtier
