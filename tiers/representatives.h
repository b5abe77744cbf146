// Representatives: keys of a unit that stand for all of its keys (InfLLM, arXiv 2402.04617). There
// they are those that the queries of the local window behind a unit attend to most; who stores keys
// has no queries, so these are chosen by the keys alone: first the key nearest to the mean of the
// unit, then always the one farthest from all chosen so far (Gonzalez 1985). So no key lies farther
// from its nearest representative than twice the least that as many keys allow.
//
// Ties go to the older key; a unit with fewer different keys than wanted repeats its oldest.
// Distances add up in a fixed order and in no kernel: the bytes are those of every back end. Time
// grows with keys times representatives. Any thread; allocates.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvtier {

// Units of one head's keys: unit u has the keys members[starts[u]] ... members[starts[u + 1] - 1],
// or without members these numbers themselves.
struct KeyUnits {
  std::span<const float> keys;  // [n][dim]
  std::uint32_t dim = 0;
  std::span<const std::uint32_t> starts;
  std::span<const std::uint32_t> members;
  [[nodiscard]] const float* key(std::uint32_t place) const noexcept {
    return keys.data() + std::size_t{members.empty() ? place : members[place]} * dim;
  }
};

// Places (as in `starts`) of `count` representatives of a unit that has keys.
void choose_representatives(const KeyUnits& units, std::uint32_t unit, std::uint32_t count,
                            std::vector<std::uint32_t>* out);
// Those of all units as f16 [units][count][dim], saturated at +-65504. What belongs to units
// without keys is not written.
void build_representatives(const KeyUnits& units, std::uint32_t count, std::uint16_t* out);

}  // namespace kvtier
