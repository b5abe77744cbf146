// Store rebuild: a new catalogue from what a store's files say of themselves, after the old one was
// damaged beyond RocksDB's own means. For `kvtier repair --store`, without a daemon.
//
// The new one is made as catalogue.new. When it is whole the old one is moved aside, never removed,
// and the new one takes its name: a rebuild that ends at any step has lost no row. What the old
// rows still say is kept: spaces, sequences, names. Of the rest, segments are found again by their
// tokens (each file names space, parent and tokens; the block hashes are computed anew), and a tail
// log that begins at token 0 becomes a sequence of its own. Nothing is guessed: a log behind sealed
// tokens whose sequence is unknown stays out. A whole file that stays out is marked as kept
// (kKeptLeftOut): the daemon does not remove it. Blocks; one thread.
#pragma once

#include <cstdint>
#include <string>

#include "tiers/catalogue.h"
#include "tiers/io.h"

namespace kvtier {

struct RebuildReport {
  std::string moved_to;         // of the old catalogue, below the store; empty: there was none
  std::uint64_t rows_kept = 0;  // of the old catalogue
  std::uint64_t spaces = 0, segments = 0, sequences = 0, objects = 0;  // in the new one
  std::uint64_t sequences_from_logs = 0;  // of them, made from a log alone
  std::uint64_t segments_left_out = 0;    // a damaged one is removed at the next start
  std::uint64_t logs_left_out = 0;
};

// kBusy where a daemon serves the store; kExists where the catalogue is sound, kVersion where a
// newer kvtier wrote it, another code where it cannot be read now: nothing is done.
[[nodiscard]] Result<RebuildReport> rebuild_catalogue(const std::string& store_path);

// What a rebuild left that was cut: a catalogue.new takes the name where nothing has it, and goes
// where a catalogue is there. The caller has the store's lock.
[[nodiscard]] Result<void> settle_catalogue(Io& io, const std::string& store_path);

}  // namespace kvtier
