// Recovery: from catalogue and directory listings to the tables, at start. Reads no segment file.
//
// Files without rows were never published and go; rows without files are logged, counted and
// dropped, and sequences are cut before the first segment that is missing. Sizes of files are
// compared when they are first opened.
#pragma once

#include "base/result.h"

namespace kvtier {

struct EngineState;
[[nodiscard]] Result<void> recover_engine(EngineState& engine);

}  // namespace kvtier
