// The product's version, as CMake's project() has it.
#pragma once

namespace kvtier {
inline constexpr const char* kVersion = KVT_VERSION;
}
