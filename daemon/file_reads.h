// Large files that are read whole: in pieces of which a few are asked for at a time, so that what
// others wait for goes between them. Engine's thread.
#pragma once

#include <functional>

#include "base/bytes.h"
#include "base/result.h"
#include "tiers/io.h"

namespace kvtier {

struct EngineState;

inline constexpr std::uint32_t kPiecesAtOnce = 4;

// The file's first bytes, as many as `target` has. `target` and the file stay until `done`, which
// gets the first error after the last piece that was asked for has ended.
void read_in_pieces(EngineState& engine, FileId file, IoPriority priority, MutableByteSpan target,
                    std::function<void(Result<void>)> done);

}  // namespace kvtier
