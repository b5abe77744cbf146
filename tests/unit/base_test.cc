#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/executor.h"
#include "base/fault.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log_limit.h"
#include "base/mailbox.h"
#include "base/random.h"
#include "base/shell_word.h"
#include "base/unique_fd.h"

namespace kvtier {
namespace {

TEST(ByteReader, ShortReadFailsForGoodAndGivesZeros) {
  ByteWriter writer;
  writer.write<std::uint16_t>(0xABCD);
  ByteReader reader(writer.view());
  EXPECT_EQ(reader.read<std::uint32_t>(), 0u);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.read<std::uint16_t>(), 0u);
  EXPECT_FALSE(reader.ok());
}

TEST(ByteReader, HugeLengthDoesNotWrap) {
  ByteWriter writer;
  writer.write<std::uint64_t>(1);
  ByteReader reader(writer.view());
  reader.read<std::uint32_t>();
  EXPECT_TRUE(reader.read_bytes(UINT64_MAX).empty());
  EXPECT_FALSE(reader.ok());
}

TEST(ShellWord, IsQuotedWhereAShellWouldTakeItForMore) {
  EXPECT_EQ(shell_word("/var/lib/kvtier-1_2.x"), "/var/lib/kvtier-1_2.x");
  EXPECT_EQ(shell_word("/my store"), "'/my store'");
  EXPECT_EQ(shell_word("/it's"), "'/it'\\''s'");
  EXPECT_EQ(shell_word(""), "''");
}

TEST(Fault, NthVisitFailsAndOthersDoNot) {
  ASSERT_TRUE(arm_faults("a.b=fail@2"));
  EXPECT_FALSE(KVT_FAULT("a.b"));
  EXPECT_FALSE(KVT_FAULT("other"));
  EXPECT_TRUE(KVT_FAULT("a.b"));
  EXPECT_FALSE(KVT_FAULT("a.b"));
  EXPECT_EQ(fault_visits(), 4u);
  ASSERT_TRUE(arm_faults(""));
  EXPECT_FALSE(KVT_FAULT("a.b"));
}

TEST(Fault, MalformedTextIsRefused) {
  for (const char* text : {"a", "=kill", "a=explode", "a=kill@", "a=kill@0", "a=kill@x"})
    EXPECT_FALSE(arm_faults(text)) << text;
}

TEST(Fault, KillKills) {
  const pid_t child = ::fork();
  if (child == 0) {
    static_cast<void>(arm_faults("x=kill"));
    static_cast<void>(KVT_FAULT("x"));
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
}

TEST(Memfd, ReadOnlyPlaneCannotBeMappedWritableNorResized) {
  auto made = make_memfd("test", 1 << 16, MemfdAccess::kReadOnly, false);
  ASSERT_TRUE(made);
  made->mapping.data()[5] = std::byte{42};
  EXPECT_FALSE(Mapping::map(made->fd.get(), 1 << 16, true));
  auto reader = Mapping::map(made->fd.get(), 1 << 16, false);
  ASSERT_TRUE(reader);
  EXPECT_EQ(reader->data()[5], std::byte{42});
  EXPECT_NE(::ftruncate(made->fd.get(), 4096), 0);
}

TEST(Mailbox, RunsMessagesOfOtherThreadsInOrderAndWakes) {
  Mailbox mailbox(true);
  std::vector<int> seen;
  {
    ThreadPool pool(1);
    for (int i = 0; i < 100; ++i)
      pool.post([&, i] { mailbox.post([&seen, i] { seen.push_back(i); }); });
  }
  while (mailbox.drain() > 0) {
  }
  ASSERT_EQ(seen.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(seen[static_cast<std::size_t>(i)], i);
}

TEST(ThreadPool, FinishesWhatWasPostedAndDropsWhatComesAfterAStop) {
  int done = 0;
  ThreadPool pool(1);
  for (int i = 0; i < 100; ++i) pool.post([&] { ++done; });
  pool.stop();
  EXPECT_EQ(done, 100);
  const auto late = std::make_shared<int>();
  pool.post([late] { ++*late; });
  EXPECT_EQ(late.use_count(), 1);
}

TEST(LogLimit, OneLinePerCauseAndTenSeconds) {
  LogLimit limit;
  VirtualClock clock;
  ::testing::internal::CaptureStderr();
  for (int second = 0; second < 10; ++second) {
    for (int i = 0; i < 100; ++i) {
      limit.warn(clock.now_ns(), 1, "full %d", second);
      limit.warn(clock.now_ns(), 2, "broken %d", second);
    }
    clock.advance_ns(1'000'000'000);
  }
  limit.warn(clock.now_ns(), 1, "full again");
  limit.warn(0, 1, "full elsewhere");
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 4) << log;
  for (const char* line : {"full 0\n", "broken 0\n", "full elsewhere\n",
                           "full again (999 like it before were left out)\n"})
    EXPECT_NE(log.find(line), std::string::npos) << log;
}

TEST(Json, FieldsAreCheckedForKindAndRange) {
  auto json = parse_json(R"({"n": 5, "s": "x", "neg": -1, "none": null})");
  ASSERT_TRUE(json);
  EXPECT_EQ(json_uint(*json, "n", 0).value(), 5u);
  EXPECT_EQ(json_uint(*json, "absent", 7).value(), 7u);
  EXPECT_EQ(json_uint(*json, "none", 7).value(), 7u);
  EXPECT_FALSE(json_uint(*json, "neg", 0));
  EXPECT_FALSE(json_uint(*json, "n", 0, 4));
  EXPECT_FALSE(json_uint(*json, "s", 0));
  EXPECT_FALSE(parse_json("{"));
  EXPECT_FALSE(parse_json(std::string(100, '[') + std::string(100, ']')));
}

TEST(Hash, SeedAndBytesBothCount) {
  const std::uint32_t value = 7;
  EXPECT_NE(hash64(as_bytes_of(value), 1), hash64(as_bytes_of(value), 2));
  const std::uint32_t other = 8;
  EXPECT_NE(hash128(as_bytes_of(value)), hash128(as_bytes_of(other)));
}

}  // namespace
}  // namespace kvtier
