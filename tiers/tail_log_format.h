// Tail log, format version 1: the durable form of a committed tail. One file per sequence and
// generation, appended and synced; replayed at start and on attach; a new generation begins when
// the tail was sealed.
//
//   [file header, 4096 bytes][record]*
//   record = [record header, 64 bytes][tokens][rows, token-major][texts][padding to 4096]
//
// Rows are token-major: for each token, each full layer, each KV head: K row, V row. A record says
// at which token of the sequence it starts; a record that starts before the end of what was
// replayed replaces from there (truncation; count 0 truncates only). Replay stops at the first
// record whose checksum, sequence, generation or order is wrong: what was acknowledged is before
// it. Writes are whole records at multiples of 4096, so a torn one never harms its predecessor.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/token_texts.h"
#include "kernels/geometry.h"
#include "kernels/layout.h"

namespace kvtier {

inline constexpr std::uint32_t kTailLogVersion = 1;
inline constexpr std::uint64_t kTailLogHeaderBytes = 4096;

struct TailLogHeader {
  SequenceId sequence;
  SpaceId space;
  std::uint64_t generation = 0;  // as in the catalogue's sequence row; an older file is garbage
  std::uint64_t base_token = 0;  // tokens of the sequence that were sealed when the file was made
  BlockHash fingerprint;
};

[[nodiscard]] std::vector<std::byte> encode_tail_log_header(const TailLogHeader& header);
[[nodiscard]] Result<TailLogHeader> parse_tail_log_header(ByteSpan bytes);

// One record from `count` tokens that lie in a tail half (`plane`, its layout, first token index in
// the half). The bytes are copied out of `tokens` and `plane` exactly once. `start_token` counts in
// the sequence; `order` 0, 1, 2 ... in the file.
struct TailRecordSource {
  const TailLogHeader* header = nullptr;
  const Geometry* geometry = nullptr;
  const PlaneLayout* layout = nullptr;
  const TokenRecord* tokens = nullptr;  // of the half
  const std::byte* plane = nullptr;
  std::uint32_t first = 0;
  std::uint32_t count = 0;
  std::uint64_t start_token = 0;
  std::uint64_t order = 0;
  const TokenTexts* texts = nullptr;  // of the record's tokens, from its first on; null: none
  bool begins_commit = true;          // what lies before it was durable when it was written
};
[[nodiscard]] std::vector<std::byte> encode_tail_record(const TailRecordSource& source);
// The same into memory of exactly tail_record_bytes(); every byte of it is written.
void encode_tail_record(const TailRecordSource& source, MutableByteSpan record);
[[nodiscard]] std::uint64_t tail_record_bytes(const Geometry& geometry, std::uint32_t count,
                                              std::uint64_t text_bytes = 0);
// No log of this geometry is longer.
[[nodiscard]] std::uint64_t tail_log_bytes_max(const Geometry& geometry);
// Tokens that fit in one record of `record_bytes_max` (at least 1), a multiple of kDiskAlign: a
// commit of more is several records.
[[nodiscard]] std::uint32_t tail_record_tokens_max(
    const Geometry& geometry, std::uint64_t record_bytes_max = kTailLogRecordBytesMax) noexcept;

// The first kTailRecordHeaderBytes of a record, for readers that walk a log without its geometry.
// kCorrupt where their checksum is wrong. The payload (record_bytes less this header, padding
// included) has a checksum of its own.
inline constexpr std::uint64_t kTailRecordHeaderBytes = 64;
struct TailRecordInfo {
  SequenceId sequence;
  std::uint64_t generation = 0;
  std::uint64_t order = 0;
  std::uint64_t start_token = 0;
  std::uint32_t count = 0;
  std::uint64_t record_bytes = 0;
  std::uint64_t payload_checksum = 0;
  bool begins_commit = false;
};
[[nodiscard]] Result<TailRecordInfo> parse_tail_record_header(ByteSpan bytes);

// Replays the log `file` (whole contents) into a tail half: rows and tokens from base_token on.
// Returns the number of tokens, their texts, where the next record goes and its number. Writes
// nothing outside the half's kSegmentTokensMax tokens. Tokens that were replaced by shorter ones
// leave their rows behind `tokens`. kStale: the file is of another generation.
//
// A log that is torn must not be appended to: a record that an earlier loss had cut off could fit
// again behind a new one. Begin a new generation with what was replayed.
struct TailReplay {
  std::uint32_t tokens = 0;
  TokenTexts texts;  // of these tokens
  std::uint64_t end_offset = kTailLogHeaderBytes;
  std::uint64_t next_order = 0;
  bool torn = false;  // something other than zeros follows end_offset, or part of a page
};
[[nodiscard]] Result<TailReplay> replay_tail_log(ByteSpan file, const TailLogHeader& expected,
                                                 const Geometry& geometry,
                                                 const PlaneLayout& layout, TokenRecord* tokens,
                                                 std::byte* plane);

// Whether a later commit of this log begins behind the replay's end: then what is between was
// damaged. Records of one commit are written at once: the loss of one before another says nothing.
[[nodiscard]] bool later_commit_follows(ByteSpan file, const TailLogHeader& header,
                                        const TailReplay& replay);

// "logs/<sequence>-<generation>.kvl", hexadecimal.
[[nodiscard]] std::string tail_log_path(SequenceId sequence, std::uint64_t generation);
struct TailLogName {
  SequenceId sequence;
  std::uint64_t generation = 0;
};
[[nodiscard]] Result<TailLogName> tail_log_name_of(std::string_view file_name);

}  // namespace kvtier
