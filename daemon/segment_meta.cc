#include "daemon/segment_meta.h"

#include "base/check.h"
#include "daemon/engine_state.h"

namespace kvtier {

struct MetaRead {
  SegmentId segment;  // its `busy` is counted
  FileId file;
  IoPriority priority = IoPriority::kDemand;
  IoTicket ticket;
  AlignedBuffer buffer;
  std::function<void(Result<SegmentMeta>)> done;
};

namespace {

using MetaReadPtr = std::shared_ptr<MetaRead>;

// What the file says must be what the catalogue says: a file put in another's place is not served.
Result<void> check_meta(const Segment& segment, const SegmentMeta& meta) {
  const SegmentRow& row = segment.row;
  if (meta.id != row.id || meta.space != row.space ||
      meta.fingerprint != segment.space->row.digest || meta.tokens.size() != row.tokens ||
      meta.start_token != row.start_token || meta.parent != row.parent ||
      meta.parent_visible != row.parent_visible || meta.geometry != segment.space->row.geometry)
    return error(Code::kCorrupt, "the segment file is not the one of the catalogue");
  return {};
}

void finish(EngineState& engine, const MetaReadPtr& read, Result<SegmentMeta> meta) {
  Segment* segment = find_segment(engine, read->segment);
  KVT_CHECK(segment != nullptr);
  end_file_use(engine, *segment);
  if (meta) {
    if (Result<void> same = check_meta(*segment, *meta); !same) meta = error(same.error());
  }
  read->done(std::move(meta));
  --segment->busy;
}

void submit(EngineState& engine, const MetaReadPtr& read, std::uint64_t bytes, IoDone done) {
  read->buffer = AlignedBuffer(bytes);
  IoRequest request;
  request.op = IoOp::kRead;
  request.priority = read->priority;
  request.file = read->file;
  request.pieces.push_back({read->buffer.data(), read->buffer.size_bytes()});
  request.done = std::move(done);
  engine.metrics.meta_load_bytes += read->buffer.size_bytes();
  read->ticket = engine.io->submit(std::move(request));
}

// The header says how long header and metadata are; then all of it is read once more from offset 0.
void header_read(EngineState& engine, const MetaReadPtr& read, Result<void> result) {
  if (!result) return finish(engine, read, error(result.error()));
  Result<std::uint64_t> bytes = parse_segment_header(read->buffer.span());
  if (bytes && *bytes > find_segment(engine, read->segment)->row.file_bytes)
    bytes = error(Code::kCorrupt, "metadata longer than the file");
  if (!bytes) return finish(engine, read, error(bytes.error()));
  submit(engine, read, *bytes, [&engine, read](Result<void> got) {
    finish(engine, read,
           got ? parse_segment_meta(read->buffer.span()) : Result<SegmentMeta>(error(got.error())));
  });
}

}  // namespace

std::shared_ptr<MetaRead> read_segment_meta(EngineState& engine, Segment& segment,
                                            IoPriority priority,
                                            std::function<void(Result<SegmentMeta>)> done) {
  Result<FileId> file = begin_file_use(engine, segment);
  if (!file) {
    done(error(file.error()));
    return nullptr;
  }
  ++segment.busy;
  auto read = std::make_shared<MetaRead>();
  read->segment = segment.row.id;
  read->file = *file;
  read->priority = priority;
  read->done = std::move(done);
  submit(engine, read, kSegmentHeaderBytes,
         [&engine, read](Result<void> got) { header_read(engine, read, got); });
  return read;
}

void hasten_meta(EngineState& engine, MetaRead& read, IoPriority priority) {
  if (priority >= read.priority) return;
  read.priority = priority;  // of its second read
  engine.io->hasten(&read.ticket, priority);
}

}  // namespace kvtier
