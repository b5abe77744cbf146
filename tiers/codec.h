// Codecs of chunks: `raw` as they are, `zstd` over split byte planes (for exports; readers of
// segments take it, no segment is written with it: ARCHITECTURE.md, Decisions). The door to zstd is
// codec.cc. Any thread; no state.
#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace kvtier {

enum class CodecId : std::uint16_t { kRaw = 0, kZstd = 1 };
[[nodiscard]] const char* codec_name(CodecId codec) noexcept;

// Encodes `raw`; `element_bytes` (1, 2, 4) says how to split byte planes. Falls back to kRaw in
// `*used` where it saves less than 5 %.
[[nodiscard]] std::vector<std::byte> encode_chunk(CodecId codec, ByteSpan raw,
                                                  std::uint32_t element_bytes, CodecId* used);
// Decodes exactly target.size() bytes; kCorrupt for anything else, never more than target is
// written.
[[nodiscard]] Result<void> decode_chunk(CodecId codec, ByteSpan stored, std::uint32_t element_bytes,
                                        MutableByteSpan target);

}  // namespace kvtier
