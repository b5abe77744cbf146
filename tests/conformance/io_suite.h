// The list of Io back ends that the conformance suite runs over, and what its tests share. A new
// back end is one line in io_test.cc.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "tiers/io.h"
#include "tiers/sim_disk.h"

namespace kvtier {

// What a back end stands on, kept alive beside it.
struct IoGround {
  std::string root;
  SimDisk disk{SimDiskOptions{}};
  VirtualClock clock;
};

struct IoBackend {
  std::string name;
  bool real;  // over the file system, with fault points and an event descriptor
  std::function<Result<std::unique_ptr<Io>>(IoGround&)> make;
};
std::ostream& operator<<(std::ostream& out, const IoBackend& backend);

class IoSuite : public testing::TestWithParam<IoBackend> {
 protected:
  void SetUp() override;
  void TearDown() override;

  FileId make_file(std::string_view path, ByteSpan contents, bool direct = false);
  std::vector<std::byte> contents(std::string_view path);
  // Runs polls until nothing is in flight.
  void drain();
  // Submits one request and waits for its status.
  Status run(IoOp op, FileId file, std::uint64_t offset, std::vector<IoVec> pieces);

  IoGround ground_;
  std::unique_ptr<Io> io_;
};

std::vector<std::byte> pattern(std::size_t size_bytes, std::uint64_t seed);
[[nodiscard]] inline Code code_of(const Result<void>& result) {
  return result ? Code::kOk : result.error().code;
}
template <class T>
[[nodiscard]] Code code_of(const Result<T>& result) {
  return result ? Code::kOk : result.error().code;
}

}  // namespace kvtier
