// Random codebooks and codes for the tests of kernels.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/code_args.h"
#include "tests/unit/kernels_fixtures.h"

namespace kvtier::testing {

// A codebook of `subspaces` over `dim` dims in random order, `stages` times over, cut at random
// places (some sub-quantisers may see no dim). Entries lie off a vector's alignment.
struct BookParts {
  BookParts(Random* random, std::uint32_t key_dim, std::uint32_t count, Dtype dtype_of_entries,
            std::uint32_t stages = 1)
      : dtype(dtype_of_entries), subspaces(count), dim(key_dim) {
    const std::uint32_t per_stage = subspaces / stages;
    for (std::uint32_t stage = 0; stage < stages; ++stage) {
      std::vector<std::uint16_t> order(dim);
      std::iota(order.begin(), order.end(), std::uint16_t{0});
      for (std::size_t i = dim; i > 1; --i) std::swap(order[i - 1], order[random->below(i)]);
      dims.insert(dims.end(), order.begin(), order.end());
      std::vector<std::uint16_t> cuts(stage + 1 == stages ? subspaces - stage * per_stage
                                                          : per_stage);
      for (auto& cut : cuts) cut = static_cast<std::uint16_t>(stage * dim + random->below(dim + 1));
      cuts[0] = static_cast<std::uint16_t>(stage * dim);
      std::sort(cuts.begin(), cuts.end());
      first.insert(first.end(), cuts.begin(), cuts.end());
    }
    first.push_back(static_cast<std::uint16_t>(dims.size()));
    entries.resize(16 * dims.size() * dtype_bytes(dtype) + kOff);
    for (std::size_t i = 0; i < 16 * dims.size(); ++i)
      store_element(entries.data() + kOff, dtype, i, random_float(random));
  }
  CodeBook book() const {
    return {entries.data() + kOff, dtype, dims.data(), first.data(), subspaces, dim};
  }
  std::byte* entry_bytes() { return entries.data() + kOff; }
  double entry(std::uint32_t m, std::uint32_t j, std::uint32_t d) const {
    const std::uint32_t count = first[m + 1] - first[m];
    return static_cast<double>(
        load_element(entries.data() + kOff, dtype, 16u * first[m] + j * count + d));
  }

  static constexpr std::size_t kOff = 4;
  Dtype dtype;
  std::uint32_t subspaces;
  std::uint32_t dim;
  std::vector<std::uint16_t> dims;
  std::vector<std::uint16_t> first;
  std::vector<std::byte> entries;
};

// Random codes of pieces with the given numbers of tokens, the last piece first in memory, at odd
// addresses, padded with zeros, and no longer than they must be.
struct Codes {
  Codes(Random* random, const std::vector<std::uint64_t>& tokens, std::uint32_t count,
        std::uint64_t start = 0)
      : subspaces(count), piece_count(tokens.size()) {
    starts.push_back(start);
    for (const std::uint64_t n : tokens) starts.push_back(starts.back() + n);
    std::uint64_t at = kOff;
    offsets.resize(tokens.size());
    for (std::size_t p = tokens.size(); p-- > 0;) {  // the last piece first
      offsets[p] = at;
      at += code_bytes(tokens[p], subspaces);
    }
    bytes.resize(at);
    for (std::size_t p = 0; p < tokens.size(); ++p)
      for (std::uint64_t t = 0; t < tokens[p]; ++t)
        for (std::uint32_t m = 0; m < subspaces; ++m) {
          const CodePlace place = code_place(t, subspaces, m);
          std::uint8_t& byte = bytes[offsets[p] + place.byte];
          byte = static_cast<std::uint8_t>(byte | random->below(16) << place.shift);
        }
  }
  CodePieces pieces() const {
    return {reinterpret_cast<const std::byte*>(bytes.data()), offsets.data(), starts.data(),
            &piece_count, subspaces};
  }
  // Code of a token of the first piece.
  std::uint8_t at(std::uint64_t token, std::uint32_t m) const {
    return code_at(bytes.data() + offsets[0], token, subspaces, m);
  }

  static constexpr std::size_t kOff = 1;
  std::uint32_t subspaces;
  std::uint64_t piece_count;
  std::vector<std::uint8_t> bytes;
  std::vector<std::uint64_t> offsets;
  std::vector<std::uint64_t> starts;
};

}  // namespace kvtier::testing
