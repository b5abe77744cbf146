// Every Io back end against one suite: names, transfers, order of callbacks, ends of files.
#include <poll.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <numeric>
#include <thread>

#include "io_suite.h"
#include "tiers/io_faulty.h"

namespace kvtier {

std::ostream& operator<<(std::ostream& out, const IoBackend& backend) {
  return out << backend.name;
}

namespace {

Result<std::unique_ptr<Io>> make_real(const IoGround& ground, const char* backend) {
  IoOptions options;
  options.root = ground.root;
  options.backend = backend;
  options.depth = 16;  // fewer than the suite has in flight
  options.threads = 3;
  return make_io(options);
}

const std::vector<IoBackend>& backends() {
  static const std::vector<IoBackend> list = {
      {"threads", true, [](IoGround& ground) { return make_real(ground, "threads"); }},
      {"io_uring", true, [](IoGround& ground) { return make_real(ground, "io_uring"); }},
      {"simulated", false,
       [](IoGround& ground) -> Result<std::unique_ptr<Io>> {
         return make_sim_io(ground.disk, ground.clock);
       }},
      {"faulty_without_a_plan", true,
       [](IoGround& ground) -> Result<std::unique_ptr<Io>> {
         KVT_TRY(auto inner, make_real(ground, "threads"));
         return std::make_unique<FaultyIo>(std::move(inner));
       }},
  };
  return list;
}

}  // namespace

void IoSuite::SetUp() {
  char root[] = "/tmp/kvtier-io-XXXXXX";
  ASSERT_NE(::mkdtemp(root), nullptr);
  ground_.root = root;
  auto made = GetParam().make(ground_);
  if (!made && made.error().code == Code::kUnsupported)
    GTEST_SKIP() << "back end " << GetParam().name
                 << " does not work on this machine: " << made.error().message();
  ASSERT_TRUE(made) << made.error().message();
  io_ = *std::move(made);
}

void IoSuite::TearDown() {
  if (io_ != nullptr) {
    EXPECT_EQ(io_->in_flight(), 0u);
  }
  io_.reset();
  std::filesystem::remove_all(ground_.root);
}

std::vector<std::byte> pattern(std::size_t size_bytes, std::uint64_t seed) {
  std::vector<std::byte> bytes(size_bytes);
  Random random(seed);
  for (std::size_t i = 0; i < size_bytes; ++i) bytes[i] = static_cast<std::byte>(random.next());
  return bytes;
}

FileId IoSuite::make_file(std::string_view path, ByteSpan contents, bool direct) {
  const auto file = io_->open(path, {OpenMode::kCreateNew, false});
  EXPECT_TRUE(file) << path;
  if (!file) return {};
  const auto written = write_fully(*io_, *file, 0, contents);
  EXPECT_TRUE(written);
  if (!direct) return *file;
  EXPECT_TRUE(sync_fully(*io_, *file));
  io_->close(*file);
  return io_->open(path, {OpenMode::kWrite, true}).value_or(FileId{});
}

std::vector<std::byte> IoSuite::contents(std::string_view path) {
  const auto file = io_->open(path, {});
  EXPECT_TRUE(file) << path;
  if (!file) return {};
  std::vector<std::byte> bytes(io_->size_bytes(*file).value_or(0));
  EXPECT_TRUE(read_fully(*io_, *file, 0, bytes));
  io_->close(*file);
  return bytes;
}

void IoSuite::drain() {
  while (io_->in_flight() > 0)
    if (io_->poll() == 0) io_->wait();
}

Status IoSuite::run(IoOp op, FileId file, std::uint64_t offset, std::vector<IoVec> pieces) {
  std::optional<Status> status;
  IoRequest request;
  request.op = op;
  request.file = file;
  request.offset = offset;
  request.pieces = std::move(pieces);
  request.done = [&](Result<void> result) {
    EXPECT_FALSE(status.has_value()) << "called twice";
    status = result ? Status{} : result.error();
  };
  io_->submit(std::move(request));
  EXPECT_FALSE(status.has_value()) << "called inside submit";
  drain();
  EXPECT_TRUE(status.has_value());
  return status.value_or(Status{Code::kInternal, 0, nullptr});
}

INSTANTIATE_TEST_SUITE_P(Backends, IoSuite, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });

namespace {

TEST_P(IoSuite, OpenModesSayWhatMustExist) {
  EXPECT_EQ(code_of(io_->open("f", {OpenMode::kRead, false})), Code::kNotFound);
  EXPECT_EQ(code_of(io_->open("f", {OpenMode::kWrite, false})), Code::kNotFound);
  const FileId made = make_file("f", pattern(100, 1));
  EXPECT_EQ(code_of(io_->open("f", {OpenMode::kCreateNew, false})), Code::kExists);
  EXPECT_EQ(code_of(io_->open("none/f", {OpenMode::kCreateNew, false})), Code::kNotFound);
  const auto again = io_->open("f", {OpenMode::kWrite, false});
  ASSERT_TRUE(again);
  EXPECT_NE(again->value, made.value);
  EXPECT_TRUE(write_fully(*io_, *again, 10, pattern(5, 2)));
  const auto reader = io_->open("f", {OpenMode::kRead, false});
  ASSERT_TRUE(reader);
  std::vector<std::byte> byte(1);
  EXPECT_EQ(run(IoOp::kWrite, *reader, 0, {{byte.data(), 1}}).code, Code::kInvalid);
  EXPECT_EQ(code_of(io_->resize(*reader, 1)), Code::kInvalid);
  EXPECT_EQ(io_->size_bytes(*reader).value_or(0), 100u);
}

TEST_P(IoSuite, PathsStayBelowTheRoot) {
  make_file("inside", pattern(10, 1));
  for (const char* path : {"/etc/hostname", "../x", "a/../../x", "..", ""}) {
    EXPECT_EQ(code_of(io_->open(path, {})), Code::kInvalid) << path;
    EXPECT_EQ(code_of(io_->open(path, {OpenMode::kCreateNew, false})), Code::kInvalid) << path;
    EXPECT_EQ(code_of(io_->unlink(path)), Code::kInvalid) << path;
    EXPECT_EQ(code_of(io_->rename("inside", path)), Code::kInvalid) << path;
    EXPECT_EQ(code_of(io_->rename(path, "other")), Code::kInvalid) << path;
    EXPECT_EQ(code_of(io_->make_directory(path)), Code::kInvalid) << path;
  }
  EXPECT_EQ(code_of(io_->list("../")), Code::kInvalid);
  EXPECT_EQ(code_of(io_->sync_directory("/tmp")), Code::kInvalid);
  EXPECT_EQ(io_->list("").value_or(std::vector<std::string>{}), std::vector<std::string>{"inside"});
}

TEST_P(IoSuite, BufferedTransfersTakeOddOffsetsAndLengths) {
  auto expected = pattern(10'007, 3);
  const FileId file = make_file("f", expected);
  const auto patch = pattern(777, 4);
  ASSERT_TRUE(write_fully(*io_, file, 4'099, patch));
  std::copy(patch.begin(), patch.end(), expected.begin() + 4'099);
  EXPECT_EQ(contents("f"), expected);
  std::vector<std::byte> part(1'234);
  ASSERT_TRUE(read_fully(*io_, file, 3'333, part));
  EXPECT_TRUE(std::equal(part.begin(), part.end(), expected.begin() + 3'333));
}

TEST_P(IoSuite, DirectTransfersOfOneMebibyteAndMore) {
  for (const std::size_t size : {kDiskAlign, std::uint64_t{1} << 20, std::uint64_t{5} << 20}) {
    AlignedBuffer source(size), target(size);
    const auto bytes = pattern(size, size);
    std::memcpy(source.data(), bytes.data(), size);
    const auto file = io_->open("f" + std::to_string(size), {OpenMode::kCreateNew, true});
    ASSERT_TRUE(file);
    ASSERT_EQ(run(IoOp::kWrite, *file, 0, {{source.data(), size}}).code, Code::kOk);
    ASSERT_EQ(run(IoOp::kSync, *file, 0, {}).code, Code::kOk);
    ASSERT_EQ(run(IoOp::kRead, *file, 0, {{target.data(), size}}).code, Code::kOk);
    EXPECT_EQ(std::memcmp(target.data(), bytes.data(), size), 0) << size;
    EXPECT_EQ(io_->size_bytes(*file).value_or(0), size);
    io_->close(*file);
  }
}

TEST_P(IoSuite, RoomIsZerosUntilItIsWritten) {
  const auto bytes = pattern(kDiskAlign, 6);
  const FileId file = make_file("f", bytes, true);
  ASSERT_EQ(run(IoOp::kAllocate, file, 64 * kDiskAlign, {}).code, Code::kOk);
  const std::uint64_t size = *io_->size_bytes(file);
  EXPECT_TRUE(size == 64 * kDiskAlign || size == kDiskAlign) << "all of it, or nothing happened";
  AlignedBuffer one(kDiskAlign);
  std::memset(one.data(), 7, kDiskAlign);
  ASSERT_EQ(run(IoOp::kWrite, file, 63 * kDiskAlign, {{one.data(), kDiskAlign}}).code, Code::kOk);
  ASSERT_EQ(run(IoOp::kAllocate, file, 2 * kDiskAlign, {}).code, Code::kOk);
  ASSERT_EQ(run(IoOp::kSync, file, 0, {}).code, Code::kOk);
  std::vector<std::byte> expected(64 * kDiskAlign);
  std::copy(bytes.begin(), bytes.end(), expected.begin());
  std::fill(expected.end() - kDiskAlign, expected.end(), std::byte{7});
  EXPECT_EQ(contents("f"), expected);
  const auto reader = io_->open("f", {OpenMode::kRead, false});
  ASSERT_TRUE(reader);
  EXPECT_EQ(run(IoOp::kAllocate, *reader, kDiskAlign, {}).code, Code::kInvalid);
  io_->close(*reader);
}

// Files of /proc have no room to give.
TEST_P(IoSuite, RoomThatTheFileSystemCannotGiveIsNoError) {
  if (!GetParam().real) return;
  std::filesystem::create_symlink("/proc/self", ground_.root + "/proc");
  const auto file = io_->open("proc/comm", {OpenMode::kWrite, false});
  ASSERT_TRUE(file);
  EXPECT_EQ(run(IoOp::kAllocate, *file, kDiskAlign, {}).code, Code::kOk);
  EXPECT_EQ(io_->stats().errors, 0u);
  io_->close(*file);
}

TEST_P(IoSuite, DirectWantsAlignedOffsetLengthAndMemory) {
  const FileId file = make_file("f", pattern(4 * kDiskAlign, 5), true);
  AlignedBuffer buffer(2 * kDiskAlign);
  EXPECT_EQ(run(IoOp::kRead, file, 512, {{buffer.data(), kDiskAlign}}).code, Code::kInvalid);
  EXPECT_EQ(run(IoOp::kRead, file, 0, {{buffer.data(), 512}}).code, Code::kInvalid);
  EXPECT_EQ(run(IoOp::kRead, file, 0, {{buffer.data() + 8, kDiskAlign}}).code, Code::kInvalid);
  EXPECT_EQ(run(IoOp::kRead, file, kDiskAlign, {{buffer.data(), kDiskAlign}}).code, Code::kOk);
}

// Pieces at shuffled places of one arena, some of them neighbours in memory, some not.
void scattered(Io& io, FileId file, std::size_t piece_bytes, std::size_t count, std::byte* arena,
               const std::function<Status(IoOp, std::vector<IoVec>)>& run) {
  std::vector<std::size_t> places(2 * count);
  std::iota(places.begin(), places.end(), 0);
  Random random(count);
  for (std::size_t i = places.size() - 1; i > 0; --i)
    std::swap(places[i], places[random.below(i + 1)]);
  std::sort(places.begin(),
            places.begin() + static_cast<std::ptrdiff_t>(count / 2));  // makes some neighbours
  const auto bytes = pattern(piece_bytes * count, count);
  std::vector<IoVec> pieces;
  for (std::size_t i = 0; i < count; ++i) {
    pieces.push_back({arena + places[i] * piece_bytes, piece_bytes});
    std::memcpy(pieces[i].data, bytes.data() + i * piece_bytes, piece_bytes);
  }
  ASSERT_EQ(run(IoOp::kWrite, pieces).code, Code::kOk);
  for (const IoVec& piece : pieces) std::memset(piece.data, 0, piece.size_bytes);
  ASSERT_EQ(run(IoOp::kRead, pieces).code, Code::kOk);
  for (std::size_t i = 0; i < count; ++i)
    ASSERT_EQ(std::memcmp(pieces[i].data, bytes.data() + i * piece_bytes, piece_bytes), 0)
        << i << " of " << count;
  EXPECT_EQ(io.size_bytes(file).value_or(0), piece_bytes * count);
}

TEST_P(IoSuite, VectoredTransfersScatter) {
  AlignedBuffer arena(2 * kIoVecsMax * kDiskAlign);
  for (const bool direct : {false, true})
    for (const std::size_t count : {std::size_t{2}, std::size_t{7}, std::size_t{kIoVecsMax}}) {
      const auto file =
          io_->open(std::to_string(count) + (direct ? "d" : "b"), {OpenMode::kCreateNew, direct});
      ASSERT_TRUE(file);
      scattered(
          *io_, *file, direct ? kDiskAlign : 1'001, count, arena.data(),
          [&](IoOp op, std::vector<IoVec> pieces) { return run(op, *file, 0, std::move(pieces)); });
    }
}

TEST_P(IoSuite, RegisteredMemoryGivesTheSameBytes) {
  AlignedBuffer arena(64 * kDiskAlign), other(8 * kDiskAlign);
  const bool registered = io_->register_memory(arena.data(), arena.size_bytes());
  const auto bytes = pattern(16 * kDiskAlign, 6);
  const FileId file = make_file("f", bytes, true);
  const auto expect_read = [&](std::vector<IoVec> pieces) {
    ASSERT_EQ(run(IoOp::kRead, file, 0, pieces).code, Code::kOk);
    std::size_t at = 0;
    for (const IoVec& piece : pieces) {
      EXPECT_EQ(std::memcmp(piece.data, bytes.data() + at, piece.size_bytes), 0);
      at += piece.size_bytes;
    }
  };
  const std::uint64_t end = arena.size_bytes();
  expect_read({{arena.data(), 8 * kDiskAlign}});
  expect_read({{arena.data() + end - kDiskAlign, kDiskAlign}});
  expect_read({{arena.data() + 16 * kDiskAlign, kDiskAlign},
               {arena.data() + 17 * kDiskAlign, 3 * kDiskAlign}});
  const std::uint64_t fixed = io_->stats().fixed_reads;
  expect_read(
      {{arena.data(), kDiskAlign}, {arena.data() + 4 * kDiskAlign, kDiskAlign}});  // two runs
  expect_read({{other.data(), 8 * kDiskAlign}});                                   // elsewhere
  EXPECT_EQ(io_->stats().fixed_reads, fixed);
  if (GetParam().name == "io_uring" && registered) {
    EXPECT_EQ(fixed, 3u);
  }
}

TEST_P(IoSuite, ResizeCutsAndExtendsWithZeros) {
  auto expected = pattern(10'000, 7);
  const FileId file = make_file("f", expected);
  ASSERT_TRUE(io_->resize(file, 5'001));
  ASSERT_TRUE(io_->resize(file, 50'000));
  expected.resize(5'001);
  expected.resize(50'000);
  EXPECT_EQ(io_->size_bytes(file).value_or(0), 50'000u);
  EXPECT_EQ(contents("f"), expected);
}

TEST_P(IoSuite, NamesAreListedRenamedAndUnlinked) {
  ASSERT_TRUE(io_->make_directory("d"));
  ASSERT_TRUE(io_->make_directory("d"));
  ASSERT_TRUE(io_->make_directory("d/e"));
  EXPECT_EQ(code_of(io_->make_directory("none/e")), Code::kNotFound);
  for (const char* path : {"d/c", "d/a", "d/b", "d/e/x", "top"}) make_file(path, as_bytes(path));
  EXPECT_EQ(code_of(io_->make_directory("top")), Code::kExists);
  const std::vector<std::string> names = {"a", "b", "c", "e"};
  EXPECT_EQ(io_->list("d").value_or(std::vector<std::string>{}), names);
  EXPECT_EQ(io_->list("").value_or(std::vector<std::string>{}),
            (std::vector<std::string>{"d", "top"}));
  EXPECT_EQ(code_of(io_->list("none")), Code::kNotFound);
  EXPECT_EQ(code_of(io_->list("top")), Code::kInvalid);
  ASSERT_TRUE(io_->rename("d/a", "d/b"));  // replaces
  const auto bytes = contents("d/b");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()), "d/a");
  EXPECT_EQ(code_of(io_->rename("d/a", "d/z")), Code::kNotFound);
  ASSERT_TRUE(io_->unlink("d/c"));
  EXPECT_EQ(code_of(io_->unlink("d/c")), Code::kNotFound);
  EXPECT_EQ(code_of(io_->unlink("d/e")), Code::kInvalid);
  EXPECT_EQ(io_->list("d").value_or(std::vector<std::string>{}),
            (std::vector<std::string>{"b", "e"}));
  EXPECT_TRUE(io_->sync_directory("d"));
  EXPECT_TRUE(io_->sync_directory(""));
  EXPECT_EQ(code_of(io_->sync_directory("none")), Code::kNotFound);
  EXPECT_GT(io_->free_bytes().value_or(0), 0u);
}

TEST_P(IoSuite, DirectoriesAreSyncedWithoutWaiting) {
  ASSERT_TRUE(io_->make_directory("d"));
  const FileId file = make_file("d/f", pattern(100, 1));
  const std::uint64_t before = io_->stats().syncs;
  const auto sync = [this](const char* directory, FileId with = {},
                           std::vector<IoVec> pieces = {}) {
    Code code = Code::kTimeout;
    IoRequest request;
    request.op = IoOp::kSyncDirectory;
    request.directory = directory;
    request.file = with;
    request.pieces = std::move(pieces);
    request.done = [&code](Result<void> result) { code = code_of(result); };
    io_->submit(std::move(request));
    EXPECT_EQ(code, Code::kTimeout) << "a callback inside submit()";
    drain();
    return code;
  };
  EXPECT_EQ(sync("d"), Code::kOk);
  EXPECT_EQ(sync(""), Code::kOk);
  EXPECT_EQ(io_->stats().syncs, before + 2);
  EXPECT_EQ(sync("none"), Code::kNotFound);
  EXPECT_EQ(sync("/tmp"), Code::kInvalid);
  EXPECT_EQ(sync("d/../.."), Code::kInvalid);
  std::byte byte{};
  EXPECT_EQ(sync("d", {}, {{&byte, 1}}), Code::kInvalid);
  EXPECT_EQ(sync("d", file), Code::kInvalid);
  EXPECT_EQ(run(IoOp::kRead, file, 0, {{&byte, 1}}).code, Code::kOk) << "the caller's file is open";
}

TEST_P(IoSuite, AnOpenFileSurvivesRenameAndUnlink) {
  const auto bytes = pattern(9'000, 8);
  const FileId file = make_file("f", bytes);
  ASSERT_TRUE(io_->rename("f", "g"));
  ASSERT_TRUE(io_->unlink("g"));
  std::vector<std::byte> read(bytes.size());
  ASSERT_TRUE(read_fully(*io_, file, 0, read));
  EXPECT_EQ(read, bytes);
  EXPECT_TRUE(io_->list("").value_or(std::vector<std::string>{"x"}).empty());
}

TEST_P(IoSuite, ReadingPastTheEndIsAnError) {
  const FileId file = make_file("odd", pattern(10'000, 9));
  std::vector<std::byte> buffer(4'096);
  EXPECT_EQ(run(IoOp::kRead, file, 10'000, {{buffer.data(), 1}}).code, Code::kCorrupt);
  EXPECT_EQ(run(IoOp::kRead, file, 9'000, {{buffer.data(), 1'001}}).code, Code::kCorrupt);
  EXPECT_EQ(run(IoOp::kRead, file, 9'000, {{buffer.data(), 500}, {buffer.data() + 500, 501}}).code,
            Code::kCorrupt);
  EXPECT_EQ(run(IoOp::kRead, file, 1ull << 40, {{buffer.data(), 1}}).code, Code::kCorrupt);
  EXPECT_EQ(run(IoOp::kRead, file, 9'000, {{buffer.data(), 1'000}}).code, Code::kOk);
  io_->close(file);
  const FileId direct = io_->open("odd", {OpenMode::kRead, true}).value_or(FileId{});
  AlignedBuffer aligned(4 * kDiskAlign);
  EXPECT_EQ(run(IoOp::kRead, direct, 0, {{aligned.data(), 4 * kDiskAlign}}).code, Code::kCorrupt);
  EXPECT_EQ(run(IoOp::kRead, direct, 2 * kDiskAlign, {{aligned.data(), kDiskAlign}}).code,
            Code::kCorrupt);
  EXPECT_EQ(run(IoOp::kRead, direct, 0, {{aligned.data(), 2 * kDiskAlign}}).code, Code::kOk);
}

TEST_P(IoSuite, RequestsThatCannotBeAreRefusedThroughTheCallback) {
  const FileId file = make_file("f", pattern(100, 10));
  std::byte byte{};
  EXPECT_EQ(run(IoOp::kRead, file, 0, {}).code, Code::kInvalid);
  EXPECT_EQ(run(IoOp::kRead, file, 0, {{nullptr, 1}}).code, Code::kInvalid);
  EXPECT_EQ(run(IoOp::kRead, file, 0, {{&byte, 0}}).code, Code::kInvalid);
  EXPECT_EQ(run(IoOp::kRead, file, UINT64_MAX, {{&byte, 1}}).code, Code::kInvalid);
  EXPECT_EQ(run(IoOp::kRead, file, 1, {{&byte, UINT64_MAX}}).code, Code::kInvalid);
  EXPECT_EQ(run(IoOp::kSync, file, 0, {{&byte, 1}}).code, Code::kInvalid);
  EXPECT_EQ(run(IoOp::kRead, file, 0, std::vector<IoVec>(kIoVecsMax + 1, {&byte, 1})).code,
            Code::kInvalid);
  EXPECT_EQ(run(IoOp::kRead, FileId{}, 0, {{&byte, 1}}).code, Code::kInvalid);
  io_->close(file);
  EXPECT_EQ(run(IoOp::kRead, file, 0, {{&byte, 1}}).code, Code::kInvalid);
  EXPECT_EQ(code_of(io_->size_bytes(file)), Code::kInvalid);
  EXPECT_EQ(io_->stats().errors, 9u);
}

TEST_P(IoSuite, ManyInFlightEachComesBackOnce) {
  constexpr std::size_t kCount = 400;
  const auto file = io_->open("f", {OpenMode::kCreateNew, true});
  ASSERT_TRUE(file);
  AlignedBuffer source(kCount * kDiskAlign), target(kCount * kDiskAlign);
  for (std::size_t i = 0; i < kCount; ++i)
    std::memset(source.data() + i * kDiskAlign, static_cast<int>(i % 251 + 1), kDiskAlign);
  for (const IoOp op : {IoOp::kWrite, IoOp::kRead}) {
    std::vector<int> called(kCount, 0);
    std::byte* const memory = op == IoOp::kWrite ? source.data() : target.data();
    for (std::size_t i = 0; i < kCount; ++i) {
      const std::size_t place = i * 149 % kCount;  // 149 and 400 have no common factor
      IoRequest request;
      request.op = op;
      request.file = *file;
      request.offset = place * kDiskAlign;
      request.pieces = {{memory + place * kDiskAlign, kDiskAlign}};
      request.done = [&called, place](Result<void> result) { called[place] += result ? 1 : 100; };
      io_->submit(std::move(request));
    }
    EXPECT_EQ(io_->in_flight(), kCount);
    drain();
    EXPECT_EQ(called, std::vector<int>(kCount, 1));
  }
  EXPECT_EQ(std::memcmp(source.data(), target.data(), source.size_bytes()), 0);
  EXPECT_EQ(io_->stats().reads, kCount);
  EXPECT_EQ(io_->stats().writes, kCount);
  EXPECT_EQ(io_->stats().read_bytes, kCount * kDiskAlign);
  EXPECT_EQ(io_->stats().written_bytes, kCount * kDiskAlign);
  EXPECT_EQ(io_->stats().errors, 0u);
}

TEST_P(IoSuite, CallbacksMaySubmit) {
  const auto bytes = pattern(8'000, 11);
  const FileId file = make_file("f", bytes);
  std::vector<std::byte> buffer(8'000);
  std::size_t left = 200;
  bool inside_submit = false;
  std::function<void()> next = [&] {
    IoRequest request;
    request.file = file;
    request.offset = left;
    request.pieces = {{buffer.data(), 100}};
    request.done = [&](Result<void> result) {
      EXPECT_TRUE(result);
      EXPECT_FALSE(inside_submit);
      if (--left > 0) next();
    };
    inside_submit = true;
    io_->submit(std::move(request));
    inside_submit = false;
  };
  next();
  drain();
  EXPECT_EQ(left, 0u);
}

TEST_P(IoSuite, TheEventDescriptorTellsOfWork) {
  if (!GetParam().real) {
    EXPECT_EQ(io_->event_fd(), -1);
    return;
  }
  const auto readable = [&](int timeout_ms) {
    pollfd wanted{io_->event_fd(), POLLIN, 0};
    return ::poll(&wanted, 1, timeout_ms) == 1;
  };
  const FileId file = make_file("f", pattern(100, 12));
  EXPECT_FALSE(readable(0));
  std::byte byte{};
  for (const FileId target : {file, FileId{}}) {  // the second fails before it begins
    bool called = false;
    IoRequest request;
    request.file = target;
    request.pieces = {{&byte, 1}};
    request.done = [&](Result<void>) { called = true; };
    io_->submit(std::move(request));
    ASSERT_TRUE(readable(10'000));
    while (!called) io_->poll();
    io_->poll();
    EXPECT_FALSE(readable(0));
  }
}

TEST_P(IoSuite, MayBeDestroyedWithOperationsInFlight) {
  constexpr std::size_t kCount = 40;
  const FileId file = make_file("f", pattern(kCount * kDiskAlign, 13), true);
  auto memory = std::make_unique<AlignedBuffer>(kCount * kDiskAlign);
  bool called = false;
  for (std::size_t i = 0; i < kCount; ++i) {
    IoRequest request;
    request.file = file;
    request.offset = i * kDiskAlign;
    request.pieces = {{memory->data() + i * kDiskAlign, kDiskAlign}};
    request.done = [&](Result<void>) { called = true; };
    io_->submit(std::move(request));
  }
  io_.reset();
  EXPECT_FALSE(called);
  std::memset(memory->data(), 0x77, memory->size_bytes());  // nobody writes there any more
  for (const std::byte byte : memory->span()) ASSERT_EQ(byte, std::byte{0x77});
}

// The daemon makes its Io on one thread and runs it on another.
TEST_P(IoSuite, TheThreadThatSubmitsFirstOwnsIt) {
  const auto bytes = pattern(4 * kDiskAlign, 14);
  std::ofstream(ground_.root + "/made")
      .write(reinterpret_cast<const char*>(bytes.data()), 4 * kDiskAlign);
  if (!GetParam().real) make_file("made", bytes);
  AlignedBuffer arena(4 * kDiskAlign);
  io_->register_memory(arena.data(), arena.size_bytes());
  const auto file = io_->open("made", {OpenMode::kRead, true});
  ASSERT_TRUE(file);
  std::thread owner([&] {
    EXPECT_TRUE(read_fully(*io_, *file, 0, arena.span()));
    const auto written = io_->open("written", {OpenMode::kCreateNew, true});
    ASSERT_TRUE(written);
    EXPECT_TRUE(write_fully(*io_, *written, 0, arena.span()));
    io_->close(*file);
    io_->close(*written);
  });
  owner.join();
  EXPECT_EQ(std::memcmp(arena.data(), bytes.data(), bytes.size()), 0);
  EXPECT_EQ(io_->list("").value_or(std::vector<std::string>{}),
            (std::vector<std::string>{"made", "written"}));
}

TEST_P(IoSuite, NamesItself) {
  const std::string name = io_->name();
  const std::string expected =
      GetParam().name == "faulty_without_a_plan" ? "threads" : GetParam().name;
  EXPECT_EQ(name, expected);
  if (name == "threads") {
    EXPECT_FALSE(io_->note().empty()) << "not the fastest: it must say why";
  }
  if (name == "io_uring") {
    EXPECT_EQ(io_->note(), "");
  }
}

}  // namespace
}  // namespace kvtier
