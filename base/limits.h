// Every bound of the product in one place; the constants assert each other. Sizes in bytes, counts
// in items.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtier {

// Model geometry.
inline constexpr std::uint32_t kLayersMax = 256;
inline constexpr std::uint32_t kHeadsMax = 256;  // KV heads of a layer
inline constexpr std::uint32_t kHeadDimMax = 1024;
inline constexpr std::uint32_t kRowBytesMax = 16 * 1024;     // K or V of one token and head
inline constexpr std::uint64_t kTokenBytesMax = 4ull << 20;  // K and V, all layers

// Tokens.
inline constexpr std::uint32_t kBlockTokens = 64;  // unit of prefix reuse
inline constexpr std::uint32_t kSegmentTokensMax =
    2048;                                             // tokens of one segment, and of half a tail
inline constexpr std::uint32_t kChunkTokensMax = 64;  // one row mask covers a chunk
inline constexpr std::uint32_t kChunkTokensDefault = 32;
inline constexpr std::uint64_t kSequenceTokensMax = 16ull << 20;
inline constexpr std::uint32_t kTokenTextBytesMax = 1024;   // text of one token
inline constexpr std::uint32_t kTextTokensMax = 64 * 1024;  // whose texts one request may ask for
inline constexpr std::uint32_t kSequenceSegmentsMax = 16384;
// How often tokens were read (kvtier explain): memory of all sequences together, and whose counts
// one request may ask for.
inline constexpr std::uint64_t kReadCountBytesMax = 16ull << 20;
inline constexpr std::uint32_t kReadCountTokensMax = 16 * 1024;
// Kinds of abstracts that a space may have at once.
inline constexpr std::uint32_t kSpaceAbstractsMax = 16;
inline constexpr std::uint32_t kPieceTokensMax =
    1024;  // adapters prefill in pieces of at most this

// Storage.
inline constexpr std::uint64_t kDiskAlign = 4096;  // file offsets, lengths and memory of direct I/O
inline constexpr std::uint64_t kSlotBytesMax = 2ull << 20;  // one chunk in an arena
inline constexpr std::uint64_t kArenaPageBytes = 2ull
                                                 << 20;     // an arena page holds slots of one size
inline constexpr std::uint64_t kReadBytesMax = 1ull << 20;  // a merged read
inline constexpr std::uint32_t kIoVecsMax = 256;            // pieces of one read or write
inline constexpr std::uint32_t kIoDepthMax = 256;           // operations in flight at the disk
inline constexpr std::uint64_t kTailLogRecordBytesMax = 1ull << 30;
inline constexpr std::uint64_t kObjectBytesMax = 64ull << 20;  // one opaque key's value
inline constexpr std::uint32_t kObjectKeyBytesMax = 1024;

// Clients.
inline constexpr std::uint32_t kClientsMax = 64;
inline constexpr std::uint32_t kOpenSequencesMax = 256;  // per client
inline constexpr std::uint32_t kFetchEntriesMax = 4096;  // per request
inline constexpr std::uint32_t kSubmissionEntries = 1024;
inline constexpr std::uint32_t kCompletionEntries = 2048;
inline constexpr std::uint64_t kArgumentBytes = 4ull << 20;
inline constexpr std::uint64_t kControlFrameBytesMax = 80ull << 20;
inline constexpr std::uint32_t kNameBytesMax = 256;

static_assert(kSegmentTokensMax % kBlockTokens == 0, "a full segment ends at a block");
static_assert(kBlockTokens % kChunkTokensDefault == 0, "a block holds whole chunks");
static_assert(kChunkTokensMax <= 64, "a row mask is one 64-bit word");
static_assert(kCompletionEntries >= 2 * kSubmissionEntries,
              "completions of everything in flight must fit");
static_assert(kSlotBytesMax <= kArenaPageBytes, "a slot lies inside one arena page");
static_assert(std::uint64_t{kTextTokensMax} * (kTokenTextBytesMax + 2) < kControlFrameBytesMax,
              "the texts of a request fit in one control frame");
static_assert(kSequenceTokensMax * 4 < kControlFrameBytesMax,
              "a sequence's token ids fit in one control frame");

}  // namespace kvtier
