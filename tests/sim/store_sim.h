// StoreSim: random life of a store on one thread, checked against a trivial model.
//
// The model (store_model.h) knows for every name what was acknowledged as durable and what an
// operation that was not acknowledged may have left instead. After a crash a sequence must be
// exactly one of these; every row that is served must be the row of its prefix (sim_client.h).
// Misses are allowed only where the run itself damaged the disk, and not after a repair. A name
// that was given up stays gone, what has expired is gone, and gc changes nothing that a reader
// sees. The seed decides everything: the same seed gives the same run.
#pragma once

#include <cstdint>
#include <string>

namespace kvtier::sim {

struct StoreSimOptions {
  std::uint64_t seed = 1;
  std::uint32_t operations = 150;
  bool power_cuts = true;
  bool disk_faults = true;  // bit rot, EIO, a full disk, a batch of the catalogue that fails
};

struct StoreSimResult {
  std::string failure;  // empty: everything held
  std::string trace;    // what was done, one line each
  std::uint32_t crashes = 0, seals = 0, commits = 0, fetched_chunks = 0, missed_chunks = 0,
                faults = 0, object_writes = 0, objects_compared = 0, collections = 0,
                segments_compacted = 0, repairs = 0, expired = 0, copies = 0, catalogue_faults = 0,
                healed = 0;
  std::uint64_t state_hash = 0;  // of everything observed: equal for equal seeds
};

[[nodiscard]] StoreSimResult run_store_sim(const StoreSimOptions& options);

}  // namespace kvtier::sim
