// Export file, format version 1: one sequence, whole, in one file that another store can import.
//
//   [head 4096][frame]*     frame = [frame header 64 bytes][payload]
//   frames: description, then for each run of tokens: segment (tokens, text, snapshot), its chunks
//   in plane order; end
//
// Every payload has a checksum, every frame header covers it, its place and all that came before (a
// chain of checksums), and the last frame closes the chain: a frame that is changed, missing, twice
// or from another file is found. Segments have no ids here, only their order: the store that
// imports gives its own. Only tokens that the sequence shows are written. A writer or reader
// belongs to one thread and blocks as its sink or source does.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/result.h"
#include "base/token_texts.h"
#include "kernels/geometry.h"
#include "kernels/layout.h"
#include "tiers/codec.h"

namespace kvtier {

inline constexpr std::uint32_t kExportVersion = 1;
inline constexpr std::uint64_t kExportHeadBytes = 4096;
inline constexpr std::uint64_t kExportFrameHeaderBytes = 64;
inline constexpr std::uint32_t kExportTextBytesMax = 64 * 1024;  // model, runtime and detail, each

struct ExportDescription {
  Fingerprint fingerprint;  // of the space: whoever imports makes the same space from it
  std::string name;         // of the sequence; may be empty
  std::vector<std::uint32_t> abstracts;  // AbstractSpec::packed: those of the space
  std::uint64_t tokens = 0;              // of the sequence
  std::uint32_t segments = 0;            // the tail counts as one or two
  std::uint64_t created_unix_ns = 0;     // of this file
};

// One run of tokens as it is exported and imported.
struct ExportSegment {
  std::uint64_t start_token = 0;
  std::vector<TokenRecord> tokens;  // 1 .. kSegmentTokensMax, only visible ones
  TokenTexts texts;                 // of all tokens, or empty
  std::vector<std::byte>
      snapshot;  // may be empty; only where the run ends where the snapshot was taken
};

// Takes the next bytes of the file. Called with pieces of any size, also small ones: buffer where
// that is dear.
using ExportSink = std::function<Result<void>(ByteSpan)>;

// begin, then for each segment begin_segment and all its chunks, then finish. kInvalid for calls in
// another order and for contents that do not add up to the description; errors of the sink as they
// are. After an error nothing more is written.
class ExportWriter {
 public:
  // `codec` for chunks, where it saves something.
  ExportWriter(ExportSink sink, CodecId codec);

  [[nodiscard]] Result<void> begin(const ExportDescription& description);
  [[nodiscard]] Result<void> begin_segment(const ExportSegment& segment);
  // The next chunk in plane order of PlaneLayout(geometry, tokens), decoded: exactly its layer's
  // chunk_bytes. Rows behind the last token are written as zeros, whatever they hold.
  [[nodiscard]] Result<void> add_chunk(ByteSpan raw);
  [[nodiscard]] Result<void> finish();
  [[nodiscard]] std::uint64_t written_bytes() const noexcept { return written_bytes_; }

 private:
  enum class State { kNew, kOpen, kDone, kFailed };
  [[nodiscard]] Result<void> write(ByteSpan bytes);
  [[nodiscard]] Result<void> write_frame(std::uint32_t kind, std::uint32_t codec,
                                         std::uint32_t index, ByteSpan payload);

  ExportSink sink_;
  CodecId codec_;
  State state_ = State::kNew;
  ExportDescription description_;
  std::uint64_t written_bytes_ = 0;
  std::uint64_t order_ = 0;     // of the next frame
  std::uint64_t chain_ = 0;     // over everything written
  std::uint64_t tokens_ = 0;    // so far
  std::uint32_t segments_ = 0;  // so far
  std::uint32_t segment_tokens_ = 0;
  std::uint32_t next_chunk_ = 0;  // of the segment that is being written
  std::uint32_t chunks_ = 0;      // of it
  std::vector<std::byte> scratch_;
};

struct ExportSource {
  std::uint64_t size_bytes = 0;
  // Fills the target from `offset` on, or fails.
  std::function<Result<void>(std::uint64_t offset, MutableByteSpan target)> read;
};

// What open() says of a file that does not begin as an export does.
inline constexpr const char* kNoExport = "this is no export of kvtier";

class ExportReader {
 public:
  // Reads the whole file once and checks all of it, decoding every chunk, before it gives anything
  // away. kCorrupt, kVersion, or the source's errors. `progress` (may be empty) gets bytes done;
  // false cancels with kCancelled.
  [[nodiscard]] static Result<ExportReader> open(
      ExportSource source, const std::function<bool(std::uint64_t done_bytes)>& progress = {});

  [[nodiscard]] const ExportDescription& description() const noexcept { return description_; }
  [[nodiscard]] std::uint32_t segments() const noexcept {
    return static_cast<std::uint32_t>(offsets_.size());
  }
  // Checks again what it reads: the source may have changed since.
  [[nodiscard]] Result<ExportSegment> read_segment(std::uint32_t index);
  // Visits the chunks of a segment in plane order, decoded. The bytes are valid inside the call. An
  // error of `visit` ends it.
  using ChunkVisitor = std::function<Result<void>(std::uint32_t chunk_index, ByteSpan raw)>;
  [[nodiscard]] Result<void> read_chunks(std::uint32_t index, const ChunkVisitor& visit);

 private:
  struct Frame;
  struct Place {
    std::uint64_t offset = 0;  // of the segment's frame
    std::uint64_t order = 0;
    std::uint64_t chain = 0;
    std::uint64_t start_token = 0;
  };
  ExportReader() = default;
  [[nodiscard]] Result<Frame> read_frame(const Place& at, std::uint32_t kind,
                                         std::uint64_t bytes_max);
  [[nodiscard]] Result<void> read_description(Place* at);
  [[nodiscard]] Result<ExportSegment> read_segment_at(std::uint32_t index, Place* at);
  [[nodiscard]] Result<void> read_chunks_at(Place* at, std::uint32_t tokens,
                                            const ChunkVisitor& visit);
  [[nodiscard]] Result<void> read_end(const Place& at);

  ExportSource source_;
  ExportDescription description_;
  std::vector<Place> offsets_;
};

}  // namespace kvtier
