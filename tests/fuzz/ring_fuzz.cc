// Fuzz target: what a client may write into shared memory. Input: 64 bytes for the argument area,
// then records of a flag byte and a submission's 64 bytes; flags make single fields right, so that
// the ones behind them are reached. The last flag scribbles over the ring itself.
#include <cstdint>
#include <cstring>

#include "client/ipc/shm_layout.h"
#include "tests/fuzz/engine_world.h"

namespace {

using namespace kvtier;
using fuzz::FuzzWorld;

std::uint64_t fetched = 0, sealed = 0;

enum Flag : std::uint8_t {
  kOwnHandle = 1,
  kNoReserved = 2,
  kInsideArea = 4,
  kKnownOp = 8,
  kSmallCount = 16,
  kRightHalf = 32,
  kOwnEntries = 64,
  kScribble = 128,
};

// Entries of the hostile client's own sequence, a few bytes of them changed.
void put_entries(FuzzWorld& world, ByteSpan noise) {
  const sim::DirectoryView directory = world.own().read_directory();
  std::vector<FetchEntry> entries = sim::SimClient::all_entries(directory, world.geometry());
  if (entries.empty()) return;
  std::byte* bytes = reinterpret_cast<std::byte*>(entries.data());
  const std::size_t size = entries.size() * sizeof(FetchEntry);
  for (std::size_t i = 0; i + 3 <= noise.size() && i < 12; i += 3) {
    std::uint16_t at = 0;
    std::memcpy(&at, noise.data() + i, sizeof at);
    bytes[at % size] ^= noise[i + 2];
  }
  std::memcpy(world.hostile().layout()->arguments, bytes, size);
}

void put_area(FuzzWorld& world, ByteSpan bytes) {
  std::byte* area = world.hostile().layout()->arguments;
  for (std::size_t at = 0; at < 16384; at += bytes.size())
    std::memcpy(area + at, bytes.data(), bytes.size());
}

Submission make(FuzzWorld& world, std::uint8_t flags, ByteSpan bytes) {
  Submission request{};
  std::memcpy(&request, bytes.data(), sizeof request);
  if ((flags & kOwnHandle) != 0) request.sequence = world.own().handle;
  if ((flags & kNoReserved) != 0) request.flags = 0, request.reserved0 = 0;
  if ((flags & kInsideArea) != 0) request.argument_offset = request.argument_offset % 512 * 8;
  if ((flags & kKnownOp) != 0) request.op %= 12;
  if ((flags & kSmallCount) != 0) request.count %= 130;
  if ((flags & kRightHalf) != 0) request.half &= 1;
  if ((flags & kOwnEntries) != 0) request.argument_offset = 0;
  return request;
}

}  // namespace

extern "C" int kvt_fuzz_reached() { return fetched > 0 && sealed > 0; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kAreaBytes = 64, kRecordBytes = 1 + sizeof(Submission);
  if (size < kAreaBytes + kRecordBytes) return 0;
  FuzzWorld& world = fuzz::fuzz_world();
  const ByteSpan input(reinterpret_cast<const std::byte*>(data), size);
  put_area(world, input.first(kAreaBytes));
  bool broken = false;
  std::vector<std::pair<std::uint64_t, std::uint16_t>> submitted;
  for (std::size_t at = kAreaBytes; at + kRecordBytes <= size && submitted.size() < 64;
       at += kRecordBytes) {
    const std::uint8_t flags = data[at];
    const ByteSpan record = input.subspan(at + 1, sizeof(Submission));
    if ((flags & kOwnEntries) != 0) put_entries(world, record.subspan(40));
    const Submission request = make(world, flags, record);
    submitted.emplace_back(world.hostile().submit(request), request.op);
    if ((flags & kScribble) == 0) continue;
    std::uint16_t where = 0;
    std::memcpy(&where, record.data(), sizeof where);
    std::byte* layout = reinterpret_cast<std::byte*>(world.hostile().layout());
    std::memcpy(layout + where % 4096 / 8 * 8, record.data() + 8, 8);
    broken = true;
  }
  world.world().settle();
  for (const auto& [id, op] : submitted) {
    Completion completion{};
    if (broken || !world.hostile().poll(id, &completion) || completion.status != 0) continue;
    fetched += op == static_cast<std::uint16_t>(Op::kFetch) ? 1 : 0;
    sealed += op == static_cast<std::uint16_t>(Op::kSeal) ? 1 : 0;
    if (op == static_cast<std::uint16_t>(Op::kFetch) && completion.value0 != 0)
      world.hostile().release(completion.value0);
  }
  static int inputs = 0;
  if (broken || ++inputs % 16 == 0) {
    world.drop_hostile();
    world.check();
  }
  return 0;
}
