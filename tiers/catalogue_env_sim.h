// The catalogue on a simulated disk: RocksDB's files lie on a SimDisk, so that a power cut hits
// rows and segments at the same instant. No RocksDB here: tests include this.
//
// Each Catalogue::open() counts as a new process. What an older process still has open fails every
// operation once the disk was cut, so the order of crash() and destruction does not matter. One
// thread, as the disk; `disk` and `clock` outlive the environment.
#pragma once

#include <memory>

#include "base/clock.h"
#include "tiers/catalogue.h"
#include "tiers/sim_disk.h"

namespace kvtier {

[[nodiscard]] std::shared_ptr<CatalogueEnv> make_sim_catalogue_env(SimDisk& disk, Clock& clock);

}  // namespace kvtier
