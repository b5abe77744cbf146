#include "daemon/directory.h"

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "base/check.h"
#include "client/ipc/shared_copy.h"
#include "daemon/abstracts.h"
#include "daemon/engine_state.h"

namespace kvtier {

Result<Memfd> make_directory_memfd() {
  return make_memfd("kvtier-directory", kDirectoryBytes, MemfdAccess::kReadOnly, false);
}

namespace {

// A segment that a directory names stays readable for the handle until it is closed, whatever
// happens to the sequence. An abstract that cannot be built says so at once, and who waited for it
// may move abstracts of any directory (publish_segment).
void hold(EngineState& engine, OpenSequence& open, const SequencePart& part) {
  OpenSequence::Held& held = open.held[part.segment->row.id.value];
  held.visible_tokens = std::max(held.visible_tokens, part.visible_tokens);
  if (held.segment != nullptr) return;
  held.segment = part.segment;
  ++part.segment->handle_refs;
  hold_abstracts(engine, open, *part.segment);
}

void write_entry(std::byte* base, std::size_t index, const SequencePart& part) {
  DirectoryEntry entry{part.segment->row.id.value,
                       part.first_token,
                       part.visible_tokens,
                       part.segment->row.tokens,
                       {},
                       0};
  const std::vector<SegmentAbstract>& abstracts = part.segment->abstracts;
  for (std::uint32_t lane = 0; lane < kSpaceAbstractsMax; ++lane) {
    entry.abstract_offsets[lane] = lane < abstracts.size() ? abstracts[lane].offset : kNoAbstract;
    // What a worker still writes is shown to nobody.
    KVT_CHECK(entry.abstract_offsets[lane] == kNoAbstract ||
              abstracts[lane].state == AbstractState::kReady);
  }
  copy_to_shared<SharedOrder::kRelease>(
      base + sizeof(DirectoryHeader) + index * sizeof(DirectoryEntry), &entry, sizeof(entry));
}

// A seqlock's writer: clients read while we write, see an odd version or another one than before,
// and read again. What is written in between is stored with release order (shared_copy.h). Nothing
// that may write a directory itself is called in between.
std::uint64_t begin_write(DirectoryHeader* header) {
  const std::uint64_t version = header->version.load(std::memory_order_relaxed);
  KVT_CHECK(version % 2 == 0);
  header->version.store(version + 1, std::memory_order_relaxed);
  return version + 2;
}

// The handle shows nothing: what hold_parts() sets off leaves its directory alone.
void forget_entries(OpenSequence& open) {
  for (auto& [id, held] : open.held) held.entry = UINT32_MAX;
}

void hold_parts(EngineState& engine, OpenSequence& open) {
  for (const SequencePart& part : open.sequence->parts) hold(engine, open, part);
}

// All parts are held.
void write_directory(OpenSequence& open) {
  const StoredSequence& sequence = *open.sequence;
  KVT_CHECK(sequence.parts.size() <= kSequenceSegmentsMax);
  std::byte* base = open.directory.mapping.data();
  auto* header = reinterpret_cast<DirectoryHeader*>(base);
  const std::uint64_t version = begin_write(header);
  struct Rest {
    std::uint64_t tokens;
    std::uint32_t segments;
    std::uint32_t reserved;
  } rest{sequence.tokens_sealed, static_cast<std::uint32_t>(sequence.parts.size()), 0};
  static_assert(sizeof(Rest) == 16 && offsetof(DirectoryHeader, tokens) == 8);
  copy_to_shared<SharedOrder::kRelease>(base + 8, &rest, sizeof(rest));
  for (std::size_t i = 0; i < sequence.parts.size(); ++i) {
    open.held[sequence.parts[i].segment->row.id.value].entry = static_cast<std::uint32_t>(i);
    write_entry(base, i, sequence.parts[i]);
  }
  header->version.store(version, std::memory_order_release);
}

}  // namespace

void publish_directory(EngineState& engine, OpenSequence& open) {
  forget_entries(open);
  hold_parts(engine, open);
  write_directory(open);
}

// Its parts are others than before: until each handle is written anew, none has an entry of them.
void publish_directories(EngineState& engine, StoredSequence& sequence) {
  for (OpenSequence* open : sequence.open) forget_entries(*open);
  for (OpenSequence* open : sequence.open) hold_parts(engine, *open);
  for (OpenSequence* open : sequence.open) write_directory(*open);
}

void publish_segment(EngineState& engine, const Segment& segment) {
  for (auto& [id, session] : engine.sessions) {
    for (auto& open : session->open) {
      if (open == nullptr) continue;
      const auto place = open->held.find(segment.row.id.value);
      if (place == open->held.end() || place->second.entry == UINT32_MAX) continue;
      std::byte* base = open->directory.mapping.data();
      auto* header = reinterpret_cast<DirectoryHeader*>(base);
      const std::uint64_t version = begin_write(header);
      write_entry(base, place->second.entry, open->sequence->parts[place->second.entry]);
      header->version.store(version, std::memory_order_release);
    }
  }
}

}  // namespace kvtier
