#include "tools/bench/replay_trace.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "base/json.h"
#include "base/limits.h"

namespace kvtier::bench {
namespace {

constexpr std::uint64_t kVersion = 1;
constexpr std::size_t kHeaderBytesMax = 4096;
constexpr std::uint64_t kFileBytesMax = 8ull << 30;

Result<std::uint32_t> field(const Json& header, const char* key) {
  KVT_TRY(const std::uint64_t value, json_uint(header, key, 0, UINT32_MAX));
  return static_cast<std::uint32_t>(value);
}

Result<TraceShape> shape_of(const Json& header) {
  TraceShape shape;
  KVT_TRY(shape.tokens, field(header, "tokens"));
  KVT_TRY(shape.layers, field(header, "layers"));
  KVT_TRY(shape.kv_heads, field(header, "kv_heads"));
  KVT_TRY(shape.row_bytes, field(header, "row_bytes"));
  KVT_TRY(shape.steps, field(header, "steps"));
  KVT_TRY(shape.budget, field(header, "budget"));
  KVT_TRY(shape.source, json_string(header, "source", ""));
  if (!header.contains("granules") || !header["granules"].is_array() ||
      header["granules"].size() > kTraceLanesMax)
    return error(Code::kInvalid, "granules: a list of at most 4 numbers");
  shape.granules.clear();
  for (const Json& granule : header["granules"]) {
    if (!granule.is_number_unsigned() || granule.get<std::uint64_t>() > kChunkTokensMax)
      return error(Code::kInvalid, "granules: each 1 to 64");
    shape.granules.push_back(static_cast<std::uint32_t>(granule.get<std::uint64_t>()));
  }
  KVT_TRY_VOID(shape.validate());
  return shape;
}

// A list of the file, checked: units ascend, and lie inside the context and the budget.
Result<void> read_units(ByteReader* reader, const TraceShape& shape, std::uint32_t granule,
                        std::vector<std::uint32_t>* units) {
  const auto count = reader->read<std::uint32_t>();
  const std::uint32_t count_max = (shape.budget + granule - 1) / granule;
  if (!reader->ok()) return error(Code::kCorrupt, "the file ends before its last step");
  if (count > count_max) return error(Code::kCorrupt, "more rows than the budget");
  const ByteSpan bytes = reader->read_bytes(std::uint64_t{count} * sizeof(std::uint32_t));
  if (!reader->ok()) return error(Code::kCorrupt, "the file ends before its last step");
  units->resize(count);
  if (count > 0) std::memcpy(units->data(), bytes.data(), bytes.size());
  const std::uint32_t units_max = (shape.tokens + granule - 1) / granule;
  for (std::size_t i = 0; i < units->size(); ++i) {
    const std::uint32_t unit = (*units)[i] & ~kHotRow;
    if (unit >= units_max) return error(Code::kCorrupt, "a row beyond the stored tokens");
    if (granule > 1 && unit != (*units)[i]) return error(Code::kCorrupt, "a hot run of rows");
    if (i > 0 && unit <= ((*units)[i - 1] & ~kHotRow))
      return error(Code::kCorrupt, "rows that do not ascend");
  }
  return {};
}

}  // namespace

Result<void> TraceShape::validate() const noexcept {
  if (tokens == 0 || tokens > kSequenceTokensMax)
    return error(Code::kInvalid, "tokens: 1 to 16 Mi");
  if (layers == 0 || layers > kLayersMax) return error(Code::kInvalid, "layers: 1 to 256");
  if (kv_heads == 0 || kv_heads > kHeadsMax) return error(Code::kInvalid, "kv_heads: 1 to 256");
  if (row_bytes == 0 || row_bytes > 2 * kRowBytesMax || row_bytes % 4 != 0)
    return error(Code::kInvalid, "row_bytes: a multiple of 4, at most 32 KiB");
  if (steps == 0 || steps > kTraceStepsMax) return error(Code::kInvalid, "steps: 1 to 65536");
  if (budget == 0 || budget > tokens) return error(Code::kInvalid, "budget: 1 to the tokens");
  if (granules.empty() || granules.size() > kTraceLanesMax || granules.front() != 1)
    return error(Code::kInvalid, "granules: 1, and at most 3 others");
  for (std::size_t i = 1; i < granules.size(); ++i)
    if (granules[i] <= granules[i - 1] || granules[i] > kChunkTokensMax ||
        !std::has_single_bit(granules[i]))
      return error(Code::kInvalid, "granules: ascending powers of two, at most 64");
  return {};
}

std::size_t TraceShape::lane_of(std::uint32_t granule) const noexcept {
  return static_cast<std::size_t>(std::find(granules.begin(), granules.end(), granule) -
                                  granules.begin());
}

void HeadTrace::add(std::span<const std::uint32_t> units) {
  words_.insert(words_.end(), units.begin(), units.end());
  ends_.push_back(words_.size());
}

Result<Trace> parse_trace(ByteSpan bytes, std::string* problem) {
  const auto fail = [problem](Status status) {
    *problem = status.message();
    return error(status);
  };
  const std::size_t line_max = std::min(bytes.size(), kHeaderBytesMax);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), line_max);
  const std::size_t end = text.find('\n');
  if (end == std::string_view::npos)
    return fail({Code::kCorrupt, 0, "no trace: its first line is not there"});
  const auto header = parse_json(text.substr(0, end));
  if (!header || !header->is_object() || !header->contains("kvtier_trace"))
    return fail({Code::kCorrupt, 0, "no trace: its first line is not of one"});
  const auto version = json_uint(*header, "kvtier_trace", 0);
  if (!version || *version != kVersion)
    return fail({Code::kVersion, 0, "a trace of another version"});
  const auto shape = shape_of(*header);
  if (!shape) return fail(shape.error());

  Trace trace;
  trace.shape = *shape;
  ByteReader reader(bytes.subspan(end + 1));
  std::vector<std::uint32_t> units;
  for (std::uint32_t head = 0; head < shape->heads(); ++head) {
    trace.heads.emplace_back();
    for (std::uint32_t step = 0; step < shape->steps; ++step) {
      for (const std::uint32_t granule : shape->granules) {
        const auto read = read_units(&reader, *shape, granule, &units);
        if (!read) return fail(read.error());
        trace.heads.back().add(units);
      }
    }
  }
  if (reader.remaining() != 0) return fail({Code::kCorrupt, 0, "bytes behind the last step"});
  return trace;
}

Result<Trace> load_trace(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) {
    std::fprintf(stderr, "kvtier-bench: %s: %s\n", path.c_str(), std::strerror(errno));
    return error(Code::kNotFound, "cannot open the trace");
  }
  const auto size = static_cast<std::uint64_t>(file.tellg());
  if (size > kFileBytesMax) return error(Code::kTooLarge, "a trace of more than 8 GiB");
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size)))
    return error(Code::kIo, "cannot read the trace");
  std::string problem;
  Result<Trace> trace = parse_trace(bytes, &problem);
  if (!trace) std::fprintf(stderr, "kvtier-bench: %s: %s\n", path.c_str(), problem.c_str());
  return trace;
}

std::vector<std::byte> encode_trace(const Trace& trace) {
  const TraceShape& shape = trace.shape;
  const Json header = {
      {"kvtier_trace", kVersion},   {"tokens", shape.tokens},       {"layers", shape.layers},
      {"kv_heads", shape.kv_heads}, {"row_bytes", shape.row_bytes}, {"steps", shape.steps},
      {"budget", shape.budget},     {"granules", shape.granules},   {"source", shape.source}};
  ByteWriter writer;
  writer.write_bytes(as_bytes(dump_json(header) + "\n"));
  for (const HeadTrace& head : trace.heads) {
    for (std::size_t i = 0; i < head.count(); ++i) {
      const auto units = head.units(i);
      writer.write(static_cast<std::uint32_t>(units.size()));
      writer.write_bytes(std::as_bytes(units));
    }
  }
  return writer.take();
}

Result<void> save_trace(const Trace& trace, const std::string& path) {
  const std::vector<std::byte> bytes = encode_trace(trace);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) return error(Code::kIo, "cannot write the trace");
  return {};
}

}  // namespace kvtier::bench
