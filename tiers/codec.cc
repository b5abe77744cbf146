// The door to zstd. A zstd chunk is one zstd frame over the chunk's bytes in split planes: byte 0
// of all elements, then byte 1 of all elements, ...; bytes after the last whole element follow as
// they are.
#include "tiers/codec.h"

#include <zstd.h>

#include <cstring>
#include <memory>

#include "base/check.h"

namespace kvtier {
namespace {

// Exponents compress, mantissas hardly do: higher levels cost time and find nothing more.
constexpr int kZstdLevel = 1;

void split_planes(ByteSpan raw, std::size_t element_bytes, std::byte* target) {
  const std::size_t elements = raw.size() / element_bytes;
  for (std::size_t plane = 0; plane < element_bytes; ++plane)
    for (std::size_t i = 0; i < elements; ++i) *target++ = raw[i * element_bytes + plane];
  const std::size_t whole = elements * element_bytes;
  if (whole != raw.size()) std::memcpy(target, raw.data() + whole, raw.size() - whole);
}

void join_planes(ByteSpan planes, std::size_t element_bytes, std::byte* target) {
  const std::size_t elements = planes.size() / element_bytes;
  const std::byte* source = planes.data();
  for (std::size_t plane = 0; plane < element_bytes; ++plane)
    for (std::size_t i = 0; i < elements; ++i) target[i * element_bytes + plane] = *source++;
  const std::size_t whole = elements * element_bytes;
  if (whole != planes.size()) std::memcpy(target + whole, source, planes.size() - whole);
}

bool element_bytes_known(std::uint32_t element_bytes) {
  return element_bytes == 1 || element_bytes == 2 || element_bytes == 4;
}

// Bytes of the frame, or 0 where it would save less than 5 %.
std::size_t compress(ByteSpan planes, std::vector<std::byte>* target) {
  target->resize(planes.size() - (planes.size() + 19) / 20);
  const std::size_t written =
      ZSTD_compress(target->data(), target->size(), planes.data(), planes.size(), kZstdLevel);
  return ZSTD_isError(written) != 0 ? 0 : written;
}

Result<void> decode_zstd(ByteSpan stored, std::uint32_t element_bytes, MutableByteSpan target) {
  const std::size_t frame = ZSTD_findFrameCompressedSize(stored.data(), stored.size());
  if (ZSTD_isError(frame) != 0 || frame != stored.size())
    return error(Code::kCorrupt, "the chunk is not one zstd frame");
  if (element_bytes == 1) {
    const std::size_t written =
        ZSTD_decompress(target.data(), target.size(), stored.data(), stored.size());
    if (ZSTD_isError(written) == 0 && written == target.size()) return {};
    return error(Code::kCorrupt, "the chunk's zstd frame is damaged");
  }
  const auto planes = std::make_unique_for_overwrite<std::byte[]>(target.size());
  const std::size_t written =
      ZSTD_decompress(planes.get(), target.size(), stored.data(), stored.size());
  if (ZSTD_isError(written) != 0 || written != target.size())
    return error(Code::kCorrupt, "the chunk's zstd frame is damaged");
  join_planes({planes.get(), target.size()}, element_bytes, target.data());
  return {};
}

}  // namespace

const char* codec_name(CodecId codec) noexcept {
  switch (codec) {
    case CodecId::kRaw:
      return "raw";
    case CodecId::kZstd:
      return "zstd";
  }
  return "unknown";
}

std::vector<std::byte> encode_chunk(CodecId codec, ByteSpan raw, std::uint32_t element_bytes,
                                    CodecId* used) {
  KVT_CHECK(element_bytes_known(element_bytes));
  *used = CodecId::kRaw;
  if (codec == CodecId::kZstd && !raw.empty()) {
    std::vector<std::byte> planes(raw.size());
    split_planes(raw, element_bytes, planes.data());
    std::vector<std::byte> frame;
    const std::size_t frame_bytes = compress(planes, &frame);
    if (frame_bytes != 0) {
      *used = CodecId::kZstd;
      frame.resize(frame_bytes);
      return frame;
    }
  }
  return {raw.begin(), raw.end()};
}

Result<void> decode_chunk(CodecId codec, ByteSpan stored, std::uint32_t element_bytes,
                          MutableByteSpan target) {
  if (!element_bytes_known(element_bytes))
    return error(Code::kInvalid, "elements have 1, 2 or 4 bytes");
  switch (codec) {
    case CodecId::kRaw:
      if (stored.size() != target.size())
        return error(Code::kCorrupt, "the raw chunk has another length");
      if (!target.empty()) std::memcpy(target.data(), stored.data(), target.size());
      return {};
    case CodecId::kZstd:
      return decode_zstd(stored, element_bytes, target);
  }
  return error(Code::kCorrupt, "the chunk's codec is unknown");
}

}  // namespace kvtier
