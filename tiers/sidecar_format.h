// Sidecar file, format version 1: something derived from one segment, of one kind and version;
// attachable and removable at any time. Kinds now: abstracts (kernels/abstract_spec.h). [header
// 4096 bytes][payload, AbstractLayout order, padded to 4096]. The header names segment,
// fingerprint, kind, parameters and the payload's xxh3-64.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "kernels/abstract_layout.h"

namespace kvtier {

inline constexpr std::uint32_t kSidecarVersion = 1;
inline constexpr std::uint64_t kSidecarHeaderBytes = 4096;
inline constexpr std::uint64_t kSidecarPayloadBytesMax = 1ull << 30;

struct SidecarHeader {
  SegmentId segment;
  BlockHash fingerprint;
  std::uint32_t kind = 0;     // AbstractSpec::packed
  std::uint32_t version = 1;  // of the algorithm that made it
  std::uint32_t units = 0;    // of the abstracts
  std::uint32_t tokens = 0;   // of the segment
  std::uint64_t payload_bytes = 0;
  std::uint64_t payload_checksum = 0;
};

// The whole file; fills payload_bytes and payload_checksum of the header it writes.
[[nodiscard]] std::vector<std::byte> encode_sidecar(SidecarHeader header, ByteSpan payload);
[[nodiscard]] Result<SidecarHeader> parse_sidecar_header(ByteSpan first_bytes);
// Compares the payload, with or without its padding, with the header's checksum and length.
[[nodiscard]] Result<void> check_sidecar_payload(const SidecarHeader& header, ByteSpan payload);

// "sidecars/<segment>-<kind>.kva", hexadecimal segment, decimal kind.
[[nodiscard]] std::string sidecar_path(SegmentId segment, std::uint32_t kind);
// Where it is written before it takes its name; what a crash leaves of it is removed at the next
// start.
// `number` tells writes of one sidecar that overlap apart.
[[nodiscard]] std::string sidecar_part_path(const std::string& path, std::uint64_t number);
[[nodiscard]] bool is_sidecar_part(std::string_view file_name) noexcept;
struct SidecarName {
  SegmentId segment;
  std::uint32_t kind = 0;
};
[[nodiscard]] Result<SidecarName> sidecar_name_of(std::string_view file_name);

}  // namespace kvtier
