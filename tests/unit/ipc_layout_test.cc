// The shared-memory layout is frozen: sizes, alignments and offsets are those of
// tests/golden/shm_layout.txt.
//
// A change here breaks every client that runs beside a newer daemon: move kProtocolVersion
// (once 0.1 is released), then write the golden file anew with KVTIER_UPDATE_GOLDEN=1, in one
// commit.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "client/ipc/shm_layout.h"

namespace kvtier {
namespace {

class Dump {
 public:
  void type(const char* name, std::size_t size, std::size_t alignment) {
    text_ << name << " size " << size << " align " << alignment << "\n";
  }
  void field(const char* type, const char* name, std::size_t offset, std::size_t size) {
    text_ << "  " << type << "." << name << " offset " << offset << " size " << size << "\n";
  }
  void value(const char* name, std::uint64_t value) { text_ << name << " = " << value << "\n"; }
  [[nodiscard]] std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
};

#define TYPE(t) dump.type(#t, sizeof(t), alignof(t))
#define FIELD(t, f) dump.field(#t, #f, offsetof(t, f), sizeof(t::f))
#define VALUE(v) dump.value(#v, static_cast<std::uint64_t>(v))

void dump_rings(Dump& dump) {
  TYPE(Submission);
  FIELD(Submission, user_data);
  FIELD(Submission, op);
  FIELD(Submission, priority);
  FIELD(Submission, flags);
  FIELD(Submission, sequence);
  FIELD(Submission, argument_offset);
  FIELD(Submission, count);
  FIELD(Submission, half);
  FIELD(Submission, value0);
  FIELD(Submission, value1);
  FIELD(Submission, reserved0);
  FIELD(Submission, stamp);
  TYPE(Completion);
  FIELD(Completion, user_data);
  FIELD(Completion, status);
  FIELD(Completion, count);
  FIELD(Completion, value0);
  FIELD(Completion, value1);
  FIELD(Completion, bytes_disk);
  FIELD(Completion, reserved);
  FIELD(Completion, stamp);
  TYPE(FetchEntry);
  FIELD(FetchEntry, segment);
  FIELD(FetchEntry, row_mask);
  FIELD(FetchEntry, slot_offset);
  FIELD(FetchEntry, layer);
  FIELD(FetchEntry, chunk);
  FIELD(FetchEntry, group);
  FIELD(FetchEntry, status);
  TYPE(RingIndices);
  FIELD(RingIndices, tail);
  FIELD(RingIndices, head);
  FIELD(RingIndices, reader_sleeps);
  TYPE(ControlLayout);
  FIELD(ControlLayout, submission);
  FIELD(ControlLayout, completion);
  FIELD(ControlLayout, submissions);
  FIELD(ControlLayout, completions);
  FIELD(ControlLayout, arguments);
}

void dump_directory_and_frames(Dump& dump) {
  TYPE(DirectoryHeader);
  FIELD(DirectoryHeader, version);
  FIELD(DirectoryHeader, tokens);
  FIELD(DirectoryHeader, segments);
  FIELD(DirectoryHeader, reserved0);
  FIELD(DirectoryHeader, reserved);
  TYPE(DirectoryEntry);
  FIELD(DirectoryEntry, segment);
  FIELD(DirectoryEntry, first_token);
  FIELD(DirectoryEntry, visible_tokens);
  FIELD(DirectoryEntry, tokens);
  FIELD(DirectoryEntry, abstract_offsets);
  FIELD(DirectoryEntry, reserved);
  TYPE(ControlFrameHeader);
  FIELD(ControlFrameHeader, magic);
  FIELD(ControlFrameHeader, json_bytes);
  FIELD(ControlFrameHeader, payload_bytes);
  FIELD(ControlFrameHeader, fd_count);
}

void dump_values(Dump& dump) {
  VALUE(kProtocolVersion);
  VALUE(kControlMagic);
  VALUE(kNoAbstract);
  VALUE(kDirectoryBytes);
  VALUE(Op::kNop);
  VALUE(Op::kFetch);
  VALUE(Op::kRelease);
  VALUE(Op::kPrefetch);
  VALUE(Op::kTouch);
  VALUE(Op::kCancel);
  VALUE(Op::kSeal);
  VALUE(Op::kCommit);
  VALUE(Op::kObjectSet);
  VALUE(Op::kObjectGet);
  VALUE(Op::kObjectExists);
  VALUE(Op::kObjectDelete);
  VALUE(Priority::kCommit);
  VALUE(Priority::kDemand);
  VALUE(Priority::kPrefetch);
  VALUE(Priority::kWriteBack);
  VALUE(Priority::kBackground);
}

std::string dump_layout() {
  Dump dump;
  dump_values(dump);
  dump_rings(dump);
  dump_directory_and_frames(dump);
  return dump.text();
}

TEST(ShmLayout, IsTheGoldenOne) {
  const std::string now = dump_layout();
  if (std::getenv("KVTIER_UPDATE_GOLDEN") != nullptr) {
    std::ofstream(KVT_GOLDEN_FILE) << now;
    GTEST_FAIL() << "wrote " << KVT_GOLDEN_FILE
                 << ": look at the difference, then run again without the variable";
  }
  std::ifstream file(KVT_GOLDEN_FILE);
  ASSERT_TRUE(file.good()) << KVT_GOLDEN_FILE;
  std::ostringstream golden;
  golden << file.rdbuf();
  EXPECT_EQ(now, golden.str()) << "the layout of shared memory changed: see the head of this file";
}

// Fields fill their types: a gap would carry bytes of one process to another, and hide a change.
TEST(ShmLayout, EntriesHaveNoPadding) {
  EXPECT_TRUE(std::has_unique_object_representations_v<Submission>);
  EXPECT_TRUE(std::has_unique_object_representations_v<Completion>);
  EXPECT_TRUE(std::has_unique_object_representations_v<FetchEntry>);
  EXPECT_TRUE(std::has_unique_object_representations_v<DirectoryEntry>);
  EXPECT_TRUE(std::has_unique_object_representations_v<ControlFrameHeader>);
}

}  // namespace
}  // namespace kvtier
