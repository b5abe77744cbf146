// The shared-memory layout between a client and the daemon: frozen. Any change moves the golden
// test in the same commit and, once 0.1 is released, kProtocolVersion: until then client and daemon
// are of one build. No pointers, fixed widths, no implicit padding, trivially copyable.
//
// Who writes what:
//   control memfd   client and daemon   the two rings and the argument area (one per connection)
//   tail memfd      client              new tokens of one sequence (kernels/layout.h, TailLayout)
//   staging memfd   client and daemon   values of opaque keys
//   directory memfd daemon, sealed      the segments of one open sequence and where their abstracts
//   lie arena memfd     daemon, sealed      slots with chunks, read under a lease abstracts memfd
//   daemon, sealed      abstracts, named by directory entries
//
// What the client may write is copied once, then validated, then used (ring.h). Publication of an
// entry is one 8-byte release store of the tail index. Both sides sleep on event descriptors; the
// need-wake flags say when to ring them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/limits.h"

namespace kvtier {

inline constexpr std::uint32_t kProtocolVersion = 1;
inline constexpr std::uint32_t kControlMagic = 0x4354564B;  // "KVTC", first word of a control frame

enum class Op : std::uint16_t {
  kNop = 0,  // completes at once
  kFetch =
      1,  // argument: FetchEntry[count]; completes with a lease when every entry has its status
  kRelease = 2,   // value0: lease id; no completion unless it fails
  kPrefetch = 3,  // as kFetch, lower priority, no lease, completes when done
  kTouch = 4,  // argument: FetchEntry[count]: rows that a selection took, wherever they lie; value0
               // 1: the first after a prompt
  kCancel =
      5,  // value0: user_data of a fetch or prefetch that waits; that one completes with kCancelled
  kSeal = 6,  // sequence, half, count = tokens in it, value1 = index of its first token in the
              // sequence: make a segment; completes when readable and durable. kCancelled where the
              // stored tokens do not end there. value0 1: at close; may complete with segment 0,
              // left out by admission
  kCommit = 7,  // sequence, half, count, value1 as kSeal: completes when all tokens up to there are
                // durable
  kObjectSet = 8,  // argument: key of `count` bytes; value0, value1: staging offset and length
  kObjectGet = 9,  // the same; value1 is the room; completes with the length in value0
  kObjectExists = 10,
  kObjectDelete = 11,
};

enum class Priority : std::uint8_t {
  kCommit = 0,
  kDemand = 1,
  kPrefetch = 2,
  kWriteBack = 3,
  kBackground = 4
};

struct Submission {
  std::uint64_t user_data;        // given back in the completion
  std::uint16_t op;               // Op
  std::uint8_t priority;          // Priority; kDemand or kPrefetch from clients
  std::uint8_t flags;             // 0
  std::uint32_t sequence;         // handle from create / attach, or 0
  std::uint64_t argument_offset;  // into the argument area
  std::uint32_t count;
  std::uint32_t half;  // 0 or 1
  std::uint64_t value0;
  std::uint64_t value1;
  std::uint64_t reserved0;  // must be 0
  std::uint64_t stamp;      // the ring's: index + 1, written last
};
static_assert(sizeof(Submission) == 64,
              "a submission is one cache line: a torn one cannot span two");
static_assert(std::is_trivially_copyable_v<Submission>);

struct Completion {
  std::uint64_t user_data;
  std::int32_t status;       // Code
  std::uint32_t count;       // kFetch: entries that are ok
  std::uint64_t value0;      // kFetch: lease id; kSeal: segment id; kObjectGet: length
  std::uint64_t value1;      // kSeal and kCommit: tokens of the sequence that are durable
  std::uint64_t bytes_disk;  // read from disk for this request
  std::uint64_t reserved[2];
  std::uint64_t stamp;  // the ring's: index + 1, written last
};
static_assert(sizeof(Completion) == 64);
static_assert(std::is_trivially_copyable_v<Completion>);

// One wanted chunk. The client fills the first four fields; the daemon fills `slot_offset` and
// `status` before the completion is published.
struct FetchEntry {
  std::uint64_t segment;  // SegmentId of a directory entry
  std::uint64_t
      row_mask;  // rows that the client wants, bit = token in chunk; for statistics and hints
  std::uint64_t slot_offset;  // out: where the chunk lies in the arena, while the lease lasts
  std::uint16_t layer;
  std::uint16_t chunk;  // in the segment
  std::uint16_t group;  // head group
  std::int16_t status;  // out: Code
};
static_assert(sizeof(FetchEntry) == 32);
static_assert(std::is_trivially_copyable_v<FetchEntry>);

// One direction of a ring. Indices count entries for ever (64 bit, never wrap); head is the
// reader's, tail the writer's, each on its own pair of cache lines. `reader_sleeps` is 1 while the
// reader waits for its descriptor.
struct RingIndices {
  alignas(128) std::atomic<std::uint64_t> tail;
  alignas(128) std::atomic<std::uint64_t> head;
  alignas(128) std::atomic<std::uint32_t> reader_sleeps;
};
static_assert(sizeof(RingIndices) == 384);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free,
              "a lock in shared memory dies with its holder");

struct ControlLayout {
  RingIndices submission;
  RingIndices completion;
  alignas(4096) Submission submissions[kSubmissionEntries];
  alignas(4096) Completion completions[kCompletionEntries];
  alignas(4096) std::byte arguments[kArgumentBytes];
};
static_assert(offsetof(ControlLayout, completion) == 384);
static_assert(offsetof(ControlLayout, submissions) == 4096);
static_assert(offsetof(ControlLayout, completions) == 4096 + 64 * kSubmissionEntries);
static_assert(offsetof(ControlLayout, arguments) ==
              4096 + 64 * (kSubmissionEntries + kCompletionEntries));

// Directory of one open sequence. Read it like a seqlock: version (even), entries, version again.
struct DirectoryHeader {
  std::atomic<std::uint64_t> version;  // odd while the daemon writes
  std::uint64_t tokens;                // sum of visible tokens of the entries
  std::uint32_t segments;
  std::uint32_t reserved0;
  std::uint64_t reserved[5];
};
static_assert(sizeof(DirectoryHeader) == 64);

struct DirectoryEntry {
  std::uint64_t segment;
  std::uint64_t first_token;  // index in the sequence of the segment's first token
  std::uint32_t
      visible_tokens;    // tokens of the segment that belong to this sequence (a prefix of it)
  std::uint32_t tokens;  // all tokens of the segment: what AbstractLayout was made for
  // By lane, into the abstracts memfd; kNoAbstract: not there (yet), or not wanted.
  std::uint64_t abstract_offsets[kSpaceAbstractsMax];
  std::uint64_t reserved;
};
static_assert(sizeof(DirectoryEntry) == 160);
inline constexpr std::uint64_t kNoAbstract = UINT64_MAX;
inline constexpr std::size_t kDirectoryBytes =
    (sizeof(DirectoryHeader) + sizeof(DirectoryEntry) * kSequenceSegmentsMax + 4095) / 4096 * 4096;

// First bytes of every control message on the socket; then `json_bytes` of JSON, then
// `payload_bytes`. File descriptors travel with the first byte of the header.
struct ControlFrameHeader {
  std::uint32_t magic;
  std::uint32_t json_bytes;
  std::uint32_t payload_bytes;
  std::uint32_t fd_count;
};
static_assert(sizeof(ControlFrameHeader) == 16);

}  // namespace kvtier
