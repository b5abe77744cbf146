#include "daemon/file_reads.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/limits.h"
#include "daemon/engine_state.h"

namespace kvtier {
namespace {

struct PieceReads {
  FileId file;
  IoPriority priority = IoPriority::kDemand;
  MutableByteSpan target;
  std::function<void(Result<void>)> done;
  std::size_t next = 0;  // of the target's bytes
  std::uint32_t under_way = 0;
  Result<void> result;
};

void go_on(EngineState& engine, const std::shared_ptr<PieceReads>& reads) {
  while (reads->result && reads->under_way < kPiecesAtOnce && reads->next < reads->target.size()) {
    const MutableByteSpan piece = reads->target.subspan(
        reads->next, std::min<std::size_t>(kReadBytesMax, reads->target.size() - reads->next));
    IoRequest request;
    request.op = IoOp::kRead;
    request.priority = reads->priority;
    request.file = reads->file;
    request.offset = reads->next;
    request.pieces.push_back({piece.data(), piece.size()});
    request.done = [&engine, reads](Result<void> read) {
      --reads->under_way;
      if (!read && reads->result) reads->result = read;
      go_on(engine, reads);
    };
    reads->next += piece.size();
    ++reads->under_way;
    engine.io->submit(std::move(request));
  }
  if (reads->under_way == 0) reads->done(reads->result);
}

}  // namespace

void read_in_pieces(EngineState& engine, FileId file, IoPriority priority, MutableByteSpan target,
                    std::function<void(Result<void>)> done) {
  auto reads = std::make_shared<PieceReads>();
  reads->file = file;
  reads->priority = priority;
  reads->target = target;
  reads->done = std::move(done);
  go_on(engine, reads);
}

}  // namespace kvtier
