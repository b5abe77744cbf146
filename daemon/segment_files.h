// SegmentFiles: blocking reads of published segment files, for workers: export, compaction,
// verification. A published segment never changes, so a worker reads it beside the engine with an
// Io of its own. One worker each.
#pragma once

#include <memory>
#include <vector>

#include "base/result.h"
#include "kernels/layout.h"
#include "tiers/io.h"
#include "tiers/segment_format.h"

namespace kvtier {

class SegmentFiles {
 public:
  [[nodiscard]] static Result<SegmentFiles> open(const IoFactory& make);

  // Opens a segment and parses its metadata; closes the one before. kCorrupt, kIo.
  [[nodiscard]] Result<void> begin(SegmentId id);
  [[nodiscard]] const SegmentMeta& meta() const noexcept { return meta_; }
  // Whether the file is long enough to hold the chunk.
  [[nodiscard]] bool reaches(std::uint32_t chunk_index) const;
  // The raw bytes of a chunk, verified and decoded: valid until the next call. kCorrupt where the
  // checksum differs.
  [[nodiscard]] Result<ByteSpan> read_chunk(std::uint32_t chunk_index);
  // Copies K and V rows of tokens [first, first + count) to tokens [target_token, ...) of a plane
  // of another layout of the same geometry.
  [[nodiscard]] Result<void> copy_rows(std::uint32_t first, std::uint32_t count,
                                       const PlaneLayout& target, std::uint32_t target_token,
                                       std::byte* plane);
  [[nodiscard]] Io& io() noexcept { return *io_; }
  [[nodiscard]] std::uint64_t bytes_read() const noexcept { return bytes_read_; }
  void end();

 private:
  [[nodiscard]] Result<void> fill_window(std::uint64_t offset, std::uint64_t size_bytes);

  std::unique_ptr<Io> io_;
  FileId file_;
  std::uint64_t file_bytes_ = 0;
  SegmentMeta meta_;
  AlignedBuffer window_;  // a piece of the file, read ahead
  std::uint64_t window_offset_ = 0, window_bytes_ = 0;
  std::vector<std::byte> decoded_;
  std::uint64_t bytes_read_ = 0;
};

}  // namespace kvtier
