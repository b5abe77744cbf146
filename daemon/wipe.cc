#include "daemon/wipe.h"

#include <algorithm>

#include "daemon/engine_state.h"

namespace kvtier {

namespace {

struct Wipe {
  std::vector<std::string> paths;
  std::size_t next = 0;
  FileId file;
  std::uint64_t file_bytes = 0;
  Result<void> result;
  MetaDone done;
  AlignedBuffer zeros{kReadBytesMax};
};

void wipe_next(EngineState& engine, const std::shared_ptr<Wipe>& wipe);

void note(Wipe& wipe, const Result<void>& result) {
  if (!result && wipe.result) wipe.result = result;
}

void write_zeros(EngineState& engine, const std::shared_ptr<Wipe>& wipe, std::uint64_t at) {
  IoRequest request;
  request.priority = IoPriority::kBackground;
  request.file = wipe->file;
  request.op = IoOp::kSync;
  const std::uint64_t bytes = std::min(kReadBytesMax, wipe->file_bytes - at);
  if (bytes != 0) {
    request.op = IoOp::kWrite;
    request.offset = at;
    request.pieces.push_back({wipe->zeros.data(), bytes});
  }
  request.done = [&engine, wipe, at, bytes](Result<void> result) {
    if (result && bytes != 0) return write_zeros(engine, wipe, at + bytes);
    note(*wipe, result);
    engine.io->io().close(wipe->file);
    note(*wipe, engine.io->io().unlink(wipe->paths[wipe->next++]));
    wipe_next(engine, wipe);
  };
  engine.io->submit(std::move(request));
}

void wipe_next(EngineState& engine, const std::shared_ptr<Wipe>& wipe) {
  Io& io = engine.io->io();
  for (; wipe->next < wipe->paths.size(); ++wipe->next) {
    const Result<FileId> file = io.open(
        wipe->paths[wipe->next], {.mode = OpenMode::kWrite, .direct = engine.options.direct_io});
    if (!file && file.error().code == Code::kNotFound) continue;
    const Result<std::uint64_t> size =
        file ? io.size_bytes(*file) : Result<std::uint64_t>(error(file.error()));
    if (!size) {
      note(*wipe, error(size.error()));
      if (file) io.close(*file);
      continue;
    }
    wipe->file = *file;
    wipe->file_bytes = align_up(*size, kDiskAlign);
    return write_zeros(engine, wipe, 0);
  }
  wipe->done(wipe->result);
}

}  // namespace

std::vector<SegmentId> unused_with_descendants(EngineState& engine,
                                               const std::vector<SegmentId>& segments) {
  std::vector<SegmentId> unused;
  for (const SegmentId id : segments) {
    const Segment* segment = find_segment(engine, id);
    if (segment != nullptr && !segment->condemned && !segment->referenced()) unused.push_back(id);
  }
  for (std::size_t i = 0; i < unused.size(); ++i) {
    for (const SegmentId child : find_segment(engine, unused[i])->children) {
      const Segment* found = find_segment(engine, child);
      const bool known = std::find(unused.begin(), unused.end(), child) != unused.end();
      if (found != nullptr && !found->referenced() && !known) unused.push_back(child);
    }
  }
  return unused;
}

void wipe_files(EngineState& engine, std::vector<std::string> paths, MetaDone done) {
  auto wipe = std::make_shared<Wipe>();
  wipe->paths = std::move(paths);
  wipe->done = std::move(done);
  wipe_next(engine, wipe);
}

}  // namespace kvtier
