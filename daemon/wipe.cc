#include "daemon/wipe.h"

#include <algorithm>

#include "daemon/engine_state.h"

namespace kvtier {

namespace {

struct Wipe {
  std::vector<SegmentId> segments;
  std::size_t next = 0;
  Result<void> result;
  MetaDone done;
  AlignedBuffer zeros{kReadBytesMax};
};

void wipe_next(EngineState& engine, const std::shared_ptr<Wipe>& wipe);

void wiped(EngineState& engine, const std::shared_ptr<Wipe>& wipe, Segment& segment, FileId file,
           Result<void> result) {
  engine.io->io().close(file);
  --segment.busy;
  if (!result && wipe->result) wipe->result = result;
  wipe_next(engine, wipe);
}

void write_zeros(EngineState& engine, const std::shared_ptr<Wipe>& wipe, Segment& segment,
                 FileId file, std::uint64_t at) {
  IoRequest request;
  request.priority = IoPriority::kBackground;
  request.file = file;
  Segment* target = &segment;
  if (at >= segment.row.file_bytes) {
    request.op = IoOp::kSync;
    request.done = [&engine, wipe, target, file](Result<void> result) {
      wiped(engine, wipe, *target, file, result);
    };
    return engine.io->submit(std::move(request));
  }
  const std::uint64_t bytes = std::min(kReadBytesMax, segment.row.file_bytes - at);
  request.op = IoOp::kWrite;
  request.offset = at;
  request.pieces.push_back({wipe->zeros.data(), bytes});
  request.done = [&engine, wipe, target, file, at, bytes](Result<void> result) {
    if (!result) return wiped(engine, wipe, *target, file, result);
    write_zeros(engine, wipe, *target, file, at + bytes);
  };
  engine.io->submit(std::move(request));
}

void wipe_next(EngineState& engine, const std::shared_ptr<Wipe>& wipe) {
  while (wipe->next < wipe->segments.size()) {
    Segment* segment = find_segment(engine, wipe->segments[wipe->next++]);
    if (segment == nullptr || segment->state != SegmentState::kOnDisk || segment->referenced())
      continue;
    unindex_with_descendants(engine, *segment);  // nobody finds what is being overwritten
    const Result<FileId> file =
        engine.io->io().open(segment_path(segment->row.id),
                             {.mode = OpenMode::kWrite, .direct = engine.options.direct_io});
    if (!file) {
      if (wipe->result) wipe->result = error(file.error());
      continue;
    }
    ++segment->busy;
    return write_zeros(engine, wipe, *segment, *file, 0);
  }
  wipe->done(wipe->result);
}

}  // namespace

void wipe_segments(EngineState& engine, std::vector<SegmentId> segments, MetaDone done) {
  auto wipe = std::make_shared<Wipe>();
  wipe->segments = std::move(segments);
  wipe->done = std::move(done);
  wipe_next(engine, wipe);
}

}  // namespace kvtier
