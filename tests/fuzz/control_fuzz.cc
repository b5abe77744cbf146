// Fuzz target: control requests to the engine. Input: 0xFF and the text of a request, behind which
// another 0xFF begins a payload; or up to eight requests that are made from the bytes field by
// field: op, fields of the right and the wrong kind, a payload. Every one is answered, and each op
// says yes to some. Files are exported to and imported from one path.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <set>
#include <string>

#include "tests/fuzz/engine_world.h"

namespace {

using kvtier::ByteReader;
using kvtier::Json;
using kvtier::fuzz::FuzzWorld;

constexpr const char* kOps[] = {"space",
                                "match",
                                "create",
                                "attach",
                                "tokens",
                                "fork",
                                "truncate",
                                "close",
                                "rename",
                                "pin",
                                "expire",
                                "rm",
                                "ls",
                                "show",
                                "stats",
                                "status",
                                "config",
                                "dance",
                                "abstract_want",
                                "abstract_state",
                                "abstract_drop",
                                "calibrate",
                                "staging",
                                "hint",
                                "reads",
                                "texts",
                                "set_texts",
                                "stop",
                                "verify",
                                "repair",
                                "gc",
                                "warm",
                                "export",
                                "import",
                                "reindex",
                                "reindex_state",
                                "codebooks"};
constexpr const char* kKeys[] = {
    "space",  "sequence", "name",    "new_name", "target",    "handle", "tokens", "first",
    "count",  "write",    "private", "pinned",   "at_unix_s", "wipe",   "model",  "runtime",
    "detail", "abstract", "lane",    "extra",    "bytes",     "hint",   "kind",   "half",
    "path",   "deep",     "force",   "objects",  "priority",  "as_text"};
constexpr const char* kTexts[] = {
    "known",    "box",          "mean",           "other",       "",         "a/b",       "17",
    "\xC3\xA9", "box/pages:16", "codes:4/tokens", "will_resume", "finished", "background"};

std::set<std::string> accepted;  // ops

const std::string& file_path() {
  struct File {
    std::string path =
        std::filesystem::temp_directory_path() / ("kvtier_fuzz_" + std::to_string(::getpid()));
    ~File() { ::unlink(path.c_str()); }
  };
  static const File file;
  return file.path;
}

Json value_of(ByteReader* reader, FuzzWorld& world) {
  const auto kind = reader->read<std::uint8_t>();
  switch (kind % 12) {
    case 0:
      return reader->read<std::uint64_t>();
    case 1:
      return kind / 12;
    case 2:
      return world.space();
    case 3:
      return world.known_id();
    case 4:
      return world.own().handle;
    case 5:
      return kind > 127;
    case 6:
      return kTexts[kind / 12 % std::size(kTexts)];
    case 7:
      return std::string(reader->read<std::uint16_t>() % 5000, 'n');
    case 8:
      return -1;
    case 9:
      return nullptr;
    case 10:
      return Json::array({1, "two"});
    default:
      return 0.5;
  }
}

void run(FuzzWorld& world, Json body, std::vector<std::byte> payload) {
  const auto op = body.is_object() ? body.value("op", Json()) : Json();
  if (body.is_object() && body.contains("path")) body["path"] = file_path();
  if (op == "export") ::unlink(file_path().c_str());
  const auto reply = world.hostile().control(std::move(body), std::move(payload));
  kvtier::fuzz::require(reply.status.code != kvtier::Code::kTimeout);
  if (reply.ok()) accepted.insert(op.get<std::string>());
}

void run_made(FuzzWorld& world, ByteReader* reader) {
  for (int i = 0; i < 8 && reader->remaining() > 0; ++i) {
    Json body{{"op", kOps[reader->read<std::uint8_t>() % std::size(kOps)]}};
    for (int fields = reader->read<std::uint8_t>() % 6; fields > 0; --fields) {
      const char* key = kKeys[reader->read<std::uint8_t>() % std::size(kKeys)];
      body[key] = value_of(reader, world);
    }
    const auto length = reader->read<std::uint8_t>();
    std::vector<std::byte> payload;
    if (length == 255) {  // a geometry
      kvtier::ByteWriter writer;
      kvtier::encode_geometry(world.geometry(), &writer);
      payload = writer.take();
    } else {
      const kvtier::ByteSpan bytes =
          reader->read_bytes(std::min<std::size_t>(length, reader->remaining()));
      payload.assign(bytes.begin(), bytes.end());
    }
    run(world, std::move(body), std::move(payload));
  }
}

}  // namespace

extern "C" int kvt_fuzz_reached() {
  bool all = true;
  for (const std::string op : kOps) {
    if (op == "dance" || accepted.count(op) != 0) continue;
    std::fprintf(stderr, "no %s was accepted\n", op.c_str());
    all = false;
  }
  return all;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  FuzzWorld& world = kvtier::fuzz::fuzz_world();
  if (data[0] == 0xFF) {
    const std::uint8_t* const end = data + size;
    const std::uint8_t* const text_end = std::find(data + 1, end, 0xFF);
    const auto body = kvtier::parse_json(
        {reinterpret_cast<const char*>(data + 1), static_cast<std::size_t>(text_end - data - 1)});
    if (!body) return 0;
    std::vector<std::byte> payload;
    for (const std::uint8_t* at = text_end; at != end && ++at != end;)
      payload.push_back(static_cast<std::byte>(*at));
    run(world, *body, std::move(payload));
  } else {
    ByteReader reader({reinterpret_cast<const std::byte*>(data), size});
    run_made(world, &reader);
  }
  static int inputs = 0;
  if (++inputs % 16 != 0) return 0;
  world.drop_hostile();
  world.check();
  return 0;
}
