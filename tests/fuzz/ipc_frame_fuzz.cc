// Fuzz target: the frame parser. The first byte says how to cut the rest; whatever the cut, the
// outcome is the same.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "client/ipc/frame.h"

namespace {

std::uint64_t reached = 0;  // inputs that were accepted

struct Outcome {
  std::string messages;
  std::int32_t code = 0;
  bool operator==(const Outcome&) const = default;
};

Outcome parse(kvtier::ByteSpan bytes, std::size_t piece, const kvtier::FrameLimits& limits) {
  kvtier::FrameParser parser(limits);
  Outcome outcome;
  while (!bytes.empty() && outcome.code == 0) {
    const std::size_t count = std::min(piece, bytes.size());
    const auto fed = parser.feed(bytes.first(count));
    if (!fed) outcome.code = static_cast<std::int32_t>(fed.error().code);
    bytes = bytes.subspan(count);
    while (auto message = parser.next()) {
      if (!message->body.is_object() || !message->fds.empty()) std::abort();
      ++reached;
      outcome.messages += kvtier::dump_json(message->body);
      outcome.messages.append(reinterpret_cast<const char*>(message->payload.data()),
                              message->payload.size());
      outcome.messages += '\n';
    }
  }
  return outcome;
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return reached > 0; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const kvtier::ByteSpan bytes(reinterpret_cast<const std::byte*>(data + 1), size - 1);
  kvtier::FrameLimits limits;
  if ((data[0] & 1) != 0) limits = {kvtier::kRequestJsonBytesMax, 0};
  const std::size_t piece = 1 + (data[0] >> 1);
  if (parse(bytes, size, limits) != parse(bytes, piece, limits)) std::abort();
  return 0;
}
