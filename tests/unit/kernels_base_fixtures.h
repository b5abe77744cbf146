// Base renditions of random rows for the tests of kernels.
#pragma once

#include <vector>

#include "kernels/base_args.h"
#include "kernels/registry.h"
#include "tests/unit/kernels_fixtures.h"

namespace kvtier::testing {

inline constexpr std::uint32_t kBaseBits[] = {8, 6, 5, 4, 3};

// Chunks as the reference encodes them, in reverse order in memory, at odd addresses.
struct BaseChunks {
  BaseChunks(const RowPages& rows, std::uint64_t tokens, const BaseFormat& base_format)
      : format(base_format) {
    const std::uint64_t count = (tokens + kBaseChunkTokens - 1) / kBaseChunkTokens;
    std::vector<std::byte> encoded(count * format.chunk_bytes());
    EncodeBaseArgs args{rows, &tokens, format, encoded.data()};
    EXPECT_TRUE(all_kernels().back()->encode_base(args, nullptr));
    bytes.resize(1 + encoded.size());
    for (std::uint64_t c = 0; c < count; ++c) {
      offsets.push_back(1 + (count - 1 - c) * format.chunk_bytes());
      std::copy_n(&encoded[c * format.chunk_bytes()], format.chunk_bytes(), &bytes[offsets[c]]);
    }
  }
  BasePages pages() const { return {bytes.data(), offsets.data(), format}; }

  BaseFormat format;
  std::vector<std::byte> bytes;
  std::vector<std::uint64_t> offsets;
};

}  // namespace kvtier::testing
