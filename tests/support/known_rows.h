// Known rows: a small model whose every K and V is a function of (seed, layer, head, token), so
// that whatever comes back can be compared without keeping a copy. Through the public C interface.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvtier/kvtier.h"

namespace kvtier::testing {

inline constexpr std::uint32_t kKnownLayers = 2, kKnownHeads = 2, kKnownDim = 8;

float known_value(std::uint64_t seed, std::uint32_t layer, std::uint32_t head, std::uint64_t token,
                  std::uint32_t i, bool is_v);
kvt_token known_token(std::uint64_t seed, std::uint64_t token);
// Of one token; some have none. Those of kMarkupSeed look like HTML with a script.
inline constexpr std::uint64_t kMarkupSeed = 60;
std::string known_text(std::uint64_t seed, std::uint64_t token);

kvt_status open_known_client(const std::string& socket, kvt_client** client);
kvt_status open_known_space(kvt_client* client, kvt_space** space,
                            const char* model = "known rows");
// Appends `count` tokens of `seed` at the end of the sequence, all layers written, with texts.
kvt_status append_known(kvt_sequence* sequence, std::uint64_t seed, std::uint32_t count);
// Reads everything and compares; "" where all is right, else what is wrong. KVT_ERROR_* of a read
// goes to `status`.
std::string check_known(kvt_sequence* sequence, std::uint64_t seed, kvt_status* status);

}  // namespace kvtier::testing
