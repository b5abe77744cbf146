// Codebooks: what the key codes of a space refer to, one per space and kind of codes.
//
// Made once, from keys of stored segments and queries that a client saw (calibrate), written to a
// file of its own, synced, then named by the space's catalogue row; immutable from then on, so that
// codes stay valid. In memory, and in the abstracts arena for clients, from its first use until the
// daemon ends. A private space's codebook is never written. Engine's thread; a Codebook is constant
// and shared with workers.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "daemon/spaces.h"
#include "tiers/abstract_builder.h"
#include "tiers/codebook_train.h"

namespace kvtier {

struct OpenSequence;

// Segments that a codebook is trained on at most, and keys per head.
inline constexpr std::uint32_t kCalibrationSegmentsMax = 8;
inline constexpr std::uint32_t kCalibrationRows = 4096;
inline constexpr std::uint64_t kCalibrationBytesMax = 256ull << 20;  // of sampled keys
inline constexpr std::uint32_t kCalibrationQueriesMax = 256;         // tokens

enum class CodebookState : std::uint8_t { kAbsent, kLoading, kTraining, kReady, kFailed };

struct SpaceCodebook {
  CodebookState state = CodebookState::kAbsent;
  std::shared_ptr<const Codebook> codebook;
  std::uint64_t offset = UINT64_MAX;  // in the abstracts arena
  const char* problem = nullptr;      // of its file, as somebody met it; until there is one again
  std::vector<std::function<void(std::shared_ptr<const Codebook>)>> waiting;
};

struct CodebookTable {
  std::map<std::pair<std::uint64_t, std::uint32_t>, SpaceCodebook> all;  // by space, kind of codes
};

[[nodiscard]] SpaceCodebook& codebook_of(EngineState& engine, const StoredSpace& space,
                                         AbstractSpec spec);
// The id that codes must refer to; 0: the space has none yet.
[[nodiscard]] std::uint64_t codebook_id(const StoredSpace& space, AbstractSpec spec);
// Reads and checks a codebook's file and leaves everything as it is. kNotFound, kCorrupt, or what
// the disk says; the text goes on "its codebook ...".
void read_codebook(EngineState& engine, const StoredSpace& space, AbstractSpec spec,
                   std::uint64_t id,
                   std::function<void(Result<std::shared_ptr<const Codebook>>)> done);
// Gives the codebook, now or after it was read or trained; null where there is none.
void load_codebook(EngineState& engine, const StoredSpace& space, AbstractSpec spec,
                   std::function<void(std::shared_ptr<const Codebook>)> done);

// Queries that a client saw, and how it rotates them.
struct CalibrationInput {
  AbstractSpec spec;
  RopeSpec rope;
  struct LayerQueries {
    std::vector<std::uint32_t> positions;  // of the query tokens
    std::vector<float> vectors;            // [tokens][query_heads][dim]
  };
  std::vector<LayerQueries> queries;  // by layer; may be empty
};
// Trains the space's codebook from what the open sequence and the space have stored. At once where
// it has one already. kMiss where nothing is stored yet.
void calibrate(EngineState& engine, OpenSequence& open, CalibrationInput input,
               std::function<void(Result<void>)> done);

}  // namespace kvtier
