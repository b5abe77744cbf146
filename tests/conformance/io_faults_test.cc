// Fault points of the real back ends: the named operation fails once with kIo and the rest goes on;
// a failed sync is final for its file.
#include "base/fault.h"
#include "io_suite.h"

namespace kvtier {
namespace {

struct Disarmed {
  ~Disarmed() { static_cast<void>(arm_faults("")); }
};

TEST_P(IoSuite, FaultPointsFailTheNthOperation) {
  if (!GetParam().real) return;  // the simulated disk has error rates of its own, see sim_disk_test
  const Disarmed disarmed;
  const FileId file = make_file("f", pattern(100, 1));
  std::byte byte{};
  ASSERT_TRUE(arm_faults("io.read=fail@2,io.write=fail,io.allocate=fail"));
  EXPECT_EQ(run(IoOp::kRead, file, 0, {{&byte, 1}}).code, Code::kOk);
  EXPECT_EQ(run(IoOp::kRead, file, 0, {{&byte, 1}}).code, Code::kIo);
  EXPECT_EQ(run(IoOp::kRead, file, 0, {{&byte, 1}}).code, Code::kOk);
  EXPECT_EQ(run(IoOp::kWrite, file, 0, {{&byte, 1}}).code, Code::kIo);
  EXPECT_EQ(run(IoOp::kWrite, file, 0, {{&byte, 1}}).code, Code::kOk);
  EXPECT_EQ(run(IoOp::kAllocate, file, 4096, {}).code, Code::kIo);
  EXPECT_EQ(io_->size_bytes(file).value_or(0), 100u);
  EXPECT_EQ(run(IoOp::kAllocate, file, 4096, {}).code, Code::kOk);
  EXPECT_EQ(fault_visits(), 7u);
  EXPECT_EQ(io_->stats().errors, 3u);
}

TEST_P(IoSuite, FaultPointsOfNames) {
  if (!GetParam().real) return;
  const Disarmed disarmed;
  const FileId file = make_file("f", pattern(100, 1));
  ASSERT_TRUE(arm_faults(
      "io.open=fail,io.rename=fail,io.unlink=fail,io.resize=fail,io.sync_directory=fail"));
  EXPECT_EQ(code_of(io_->open("f", {})), Code::kIo);
  EXPECT_EQ(code_of(io_->rename("f", "g")), Code::kIo);
  EXPECT_EQ(code_of(io_->unlink("f")), Code::kIo);
  EXPECT_EQ(code_of(io_->resize(file, 1)), Code::kIo);
  EXPECT_EQ(code_of(io_->sync_directory("")), Code::kIo);
  EXPECT_EQ(io_->size_bytes(file).value_or(0), 100u);
  EXPECT_TRUE(io_->open("f", {}));
  EXPECT_TRUE(io_->sync_directory(""));
  EXPECT_TRUE(io_->rename("f", "g"));
  EXPECT_TRUE(io_->unlink("g"));
}

TEST_P(IoSuite, AFailedSyncOfADirectoryIsForgotten) {
  if (!GetParam().real) return;
  const Disarmed disarmed;
  ASSERT_TRUE(io_->make_directory("d"));
  ASSERT_TRUE(arm_faults("io.sync_directory=fail"));
  for (const Code expected : {Code::kIo, Code::kOk}) {
    IoRequest request;
    request.op = IoOp::kSyncDirectory;
    request.directory = "d";
    Code code = Code::kTimeout;
    request.done = [&code](Result<void> result) { code = code_of(result); };
    io_->submit(std::move(request));
    drain();
    EXPECT_EQ(code, expected);
  }
}

TEST_P(IoSuite, AFailedSyncPoisonsTheFile) {
  if (!GetParam().real) return;
  const Disarmed disarmed;
  const FileId file = make_file("f", pattern(100, 1));
  const FileId other = make_file("g", pattern(100, 1));
  ASSERT_TRUE(arm_faults("io.sync=fail"));
  EXPECT_EQ(run(IoOp::kSync, file, 0, {}).code, Code::kIo);
  EXPECT_EQ(run(IoOp::kSync, file, 0, {}).code,
            Code::kIo);  // the fault is spent; the file stays bad
  EXPECT_EQ(fault_visits(), 1u) << "the second sync must not come as far as the kernel";
  EXPECT_EQ(run(IoOp::kSync, other, 0, {}).code, Code::kOk);
}

}  // namespace
}  // namespace kvtier
