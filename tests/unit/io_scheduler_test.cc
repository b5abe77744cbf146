// The scheduler over a scripted Io that keeps what was submitted until the test completes it.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "tiers/io_files.h"
#include "tiers/io_scheduler.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kKib = 1024;

// Remembers requests in order of arrival; complete() makes the next poll() call one of them back.
class ScriptedIo final : public Io {
 public:
  Result<FileId> open(std::string_view, OpenOptions) override { return FileId{1}; }
  void close(FileId) override {}
  Result<std::uint64_t> size_bytes(FileId) override { return 0; }
  Result<void> resize(FileId, std::uint64_t) override { return {}; }
  Result<void> make_directory(std::string_view) override { return {}; }
  Result<std::vector<std::string>> list(std::string_view) override {
    return std::vector<std::string>{};
  }
  Result<void> rename(std::string_view, std::string_view) override { return {}; }
  Result<void> unlink(std::string_view) override { return {}; }
  Result<void> sync_directory(std::string_view) override { return {}; }
  Result<std::uint64_t> free_bytes() override { return 0; }

  void submit(IoRequest request) override {
    order_.push_back(request.offset);
    running_.push_back(std::move(request));
  }
  std::size_t poll() override {
    std::vector<IoRequest> finished;
    finished.swap(finished_);
    for (IoRequest& request : finished) request.done(result_);
    return finished.size();
  }
  std::size_t in_flight() const override { return running_.size() + finished_.size(); }
  int event_fd() const override { return -1; }
  bool register_memory(std::byte*, std::uint64_t) override { return false; }
  const char* name() const override { return "scripted"; }
  std::string note() const override { return ""; }
  IoStats stats() const override { return {}; }

  void complete_first() {
    finished_.push_back(std::move(running_.front()));
    running_.erase(running_.begin());
  }
  void complete_all() {
    while (!running_.empty()) complete_first();
  }
  // Tags (the offsets) of everything that was started, in order.
  const std::vector<std::uint64_t>& order() const { return order_; }
  std::uint64_t running_bytes(bool bulk_only = false) const {
    std::uint64_t sum = 0;
    for (const IoRequest& request : running_)
      if (!bulk_only || request.priority >= IoPriority::kWriteBack) sum += request.size_bytes();
    return sum;
  }
  std::size_t running() const { return running_.size(); }
  Result<void> result_;

 private:
  std::vector<IoRequest> running_, finished_;
  std::vector<std::uint64_t> order_;
};

class IoSchedulerTest : public testing::Test {
 protected:
  // The offset serves as tag.
  IoTicket submit(IoPriority priority, std::uint64_t tag, std::uint64_t size_bytes,
                  IoDone done = {}) {
    IoRequest request;
    request.op = size_bytes == 0 ? IoOp::kSync : IoOp::kRead;
    request.priority = priority;
    request.offset = tag;
    if (size_bytes > 0) request.pieces = {{&byte_, size_bytes}};
    request.done = [this, done = std::move(done)](Result<void> result) {
      ++called_;
      if (done) done(result);
    };
    return scheduler_.submit(std::move(request));
  }
  void finish_all() {
    for (int i = 0; i < 1000 && scheduler_.outstanding() > 0; ++i) {
      io_.complete_all();
      scheduler_.poll();
    }
    EXPECT_EQ(scheduler_.outstanding(), 0u);
    EXPECT_EQ(scheduler_.stats().bytes_in_flight, 0u);
  }

  std::byte byte_{};
  std::size_t called_ = 0;
  ScriptedIo io_;
  IoScheduler scheduler_{io_, IoSchedulerOptions{1024 * kKib, 512 * kKib, 128 * kKib}};
};

TEST_F(IoSchedulerTest, UrgencyFirstThenOrderOfSubmission) {
  submit(IoPriority::kDemand, 0, 1024 * kKib);  // fills the house
  submit(IoPriority::kWriteBack, 40, 64 * kKib);
  submit(IoPriority::kBackground, 50, 64 * kKib);
  submit(IoPriority::kWriteBack, 41, 64 * kKib);
  submit(IoPriority::kPrefetch, 30, 64 * kKib);
  submit(IoPriority::kDemand, 20, 64 * kKib);
  submit(IoPriority::kDemand, 21, 64 * kKib);
  submit(IoPriority::kPrefetch, 31, 64 * kKib);
  EXPECT_EQ(io_.running(), 2u) << "and one bulk request beside it";
  EXPECT_EQ(scheduler_.stats().waiting[static_cast<std::size_t>(IoPriority::kDemand)], 2u);
  io_.complete_all();
  scheduler_.poll();
  finish_all();
  EXPECT_EQ(io_.order(), (std::vector<std::uint64_t>{0, 40, 20, 21, 30, 31, 41, 50}));
  EXPECT_EQ(called_, 8u);
}

TEST_F(IoSchedulerTest, BytesInFlightAreBounded) {
  for (std::uint64_t i = 0; i < 100; ++i) submit(IoPriority::kDemand, i, 100 * kKib);
  EXPECT_EQ(io_.running(), 10u);
  while (scheduler_.outstanding() > 0) {
    EXPECT_LE(io_.running_bytes(), 1024 * kKib);
    io_.complete_first();
    scheduler_.poll();
  }
  EXPECT_EQ(called_, 100u);
  EXPECT_TRUE(std::is_sorted(io_.order().begin(), io_.order().end()));
}

TEST_F(IoSchedulerTest, BulkHasABoundOfItsOwn) {
  for (std::uint64_t i = 0; i < 20; ++i)
    submit(i % 2 == 0 ? IoPriority::kWriteBack : IoPriority::kBackground, i, 64 * kKib);
  EXPECT_EQ(io_.running_bytes(true), 512 * kKib);
  submit(IoPriority::kPrefetch, 100, 256 * kKib);  // others still fit beside it
  EXPECT_EQ(io_.order().back(), 100u);
  finish_all();
}

TEST_F(IoSchedulerTest, BulkShrinksWhileSomethingUrgentIsAbout) {
  for (std::uint64_t i = 0; i < 40; ++i) submit(IoPriority::kWriteBack, i, 64 * kKib);
  ASSERT_EQ(io_.running_bytes(true), 512 * kKib);
  submit(IoPriority::kDemand, 100, 64 * kKib);
  EXPECT_EQ(io_.order().back(), 100u);  // the read starts at once
  for (int i = 0; i < 6; ++i) {         // bulk drains to the smaller bound and not one starts
    io_.complete_first();
    scheduler_.poll();
  }
  EXPECT_EQ(io_.running_bytes(true), 128 * kKib);
  EXPECT_EQ(io_.order().back(), 100u);
  io_.complete_first();  // below it: one more
  scheduler_.poll();
  EXPECT_EQ(io_.running_bytes(true), 128 * kKib);
  EXPECT_EQ(io_.order().back(), 8u);
  while (std::find(io_.order().begin(), io_.order().end(), 9u) == io_.order().end()) {
    io_.complete_first();  // the read ends
    scheduler_.poll();
  }
  io_.complete_first();
  scheduler_.poll();
  EXPECT_EQ(io_.running_bytes(true), 512 * kKib);  // back to the large bound
  finish_all();
  EXPECT_EQ(called_, 41u);
}

TEST_F(IoSchedulerTest, LargerThanTheBoundStartsAlone) {
  submit(IoPriority::kDemand, 0, 64 * kKib);
  submit(IoPriority::kDemand, 1, 4096 * kKib);
  submit(IoPriority::kDemand, 2, 64 * kKib);
  EXPECT_EQ(io_.running(), 1u);
  io_.complete_all();
  scheduler_.poll();
  EXPECT_EQ(io_.order(), (std::vector<std::uint64_t>{0, 1}));
  submit(IoPriority::kWriteBack, 3, 4096 * kKib);
  EXPECT_EQ(io_.order(), (std::vector<std::uint64_t>{0, 1, 3})) << "2 waits: one of bulk goes on";
  finish_all();
  EXPECT_EQ(io_.order(), (std::vector<std::uint64_t>{0, 1, 3, 2}));
}

TEST_F(IoSchedulerTest, LargeBulkStartsWhileUrgentReadsNeverEnd) {
  submit(IoPriority::kWriteBack, 1000, 256 * kKib);  // above the small bound
  submit(IoPriority::kWriteBack, 1001, 256 * kKib);
  for (std::uint64_t i = 0; i < 50; ++i) {
    submit(IoPriority::kDemand, i, 64 * kKib);
    io_.complete_first();
    scheduler_.poll();
  }
  EXPECT_NE(std::find(io_.order().begin(), io_.order().end(), 1001u), io_.order().end())
      << "starved";
  finish_all();
}

// As a warm does: more waits than fits, until it ends.
TEST_F(IoSchedulerTest, WriteBackGoesOnWhileAFullHouseOfHintsNeverEnds) {
  for (const IoPriority flood : {IoPriority::kPrefetch, IoPriority::kDemand}) {
    for (std::uint64_t i = 0; i < 8; ++i) submit(flood, i, 256 * kKib);
    for (std::uint64_t i = 0; i < 4; ++i) submit(IoPriority::kWriteBack, 1000 + i, 64 * kKib);
    submit(IoPriority::kWriteBack, 1004, 0);
    submit(IoPriority::kBackground, 2000, 64 * kKib);
    for (std::uint64_t i = 8; i < 60; ++i) {
      submit(flood, i, 256 * kKib);
      EXPECT_LE(io_.running_bytes(true), 64 * kKib) << "one at a time";
      io_.complete_first();
      scheduler_.poll();
    }
    for (const std::uint64_t tag : {1000, 1003, 1004, 2000})
      EXPECT_EQ(std::count(io_.order().begin(), io_.order().end(), tag),
                flood == IoPriority::kPrefetch ? 1 : 2)
          << tag << " starved";
    finish_all();
  }
}

// None of them ever waits.
TEST_F(IoSchedulerTest, WriteBackGoesOnWhereReadsFillTheHouseToTheByte) {
  bool over = false;
  std::function<void(Result<void>)> again = [&](Result<void>) {
    if (!over) submit(IoPriority::kDemand, 0, 64 * kKib, again);
  };
  for (int i = 0; i < 16; ++i) again({});
  ASSERT_EQ(io_.running_bytes(), 1024 * kKib);
  for (std::uint64_t i = 1; i <= 3; ++i) submit(IoPriority::kWriteBack, i, 64 * kKib);
  for (int i = 0; i < 100; ++i) {
    EXPECT_LE(io_.running_bytes(true), 64 * kKib) << "one at a time";
    io_.complete_first();
    scheduler_.poll();
  }
  EXPECT_EQ(std::count(io_.order().begin(), io_.order().end(), 3u), 1) << "starved";
  over = true;
  finish_all();
}

TEST_F(IoSchedulerTest, ACommitDoesNotQueueBehindReads) {
  for (std::uint64_t i = 0; i < 30; ++i) submit(IoPriority::kDemand, i, 64 * kKib);
  ASSERT_EQ(io_.running_bytes(), 1024 * kKib);
  submit(IoPriority::kCommit, 100, 64 * kKib);
  EXPECT_EQ(io_.order().back(), 100u);
  submit(IoPriority::kCommit, 101, 64 * kKib);  // one of them; the next takes the first room
  EXPECT_EQ(io_.order().back(), 100u);
  io_.complete_first();
  io_.complete_first();
  scheduler_.poll();
  EXPECT_EQ(*(std::find(io_.order().begin(), io_.order().end(), 100u) + 1), 101u);
  finish_all();
}

TEST_F(IoSchedulerTest, SyncsTakeNoRoom) {
  submit(IoPriority::kDemand, 0, 1024 * kKib);
  submit(IoPriority::kCommit, 1, 0);
  submit(IoPriority::kCommit, 2, 0);
  EXPECT_EQ(io_.running(), 3u);
  finish_all();
}

TEST_F(IoSchedulerTest, CallbacksMaySubmitMore) {
  int left = 50;
  bool inside_submit = false;
  std::function<void()> next = [&] {
    inside_submit = true;
    submit(IoPriority::kDemand, static_cast<std::uint64_t>(50 - left), 900 * kKib,
           [&](Result<void>) {
             EXPECT_FALSE(inside_submit);
             if (--left > 0) next();
           });
    inside_submit = false;
  };
  next();
  finish_all();
  EXPECT_EQ(left, 0);
  EXPECT_EQ(scheduler_.stats().submitted[static_cast<std::size_t>(IoPriority::kDemand)], 50u);
  EXPECT_EQ(scheduler_.stats().bytes[static_cast<std::size_t>(IoPriority::kDemand)],
            50 * 900 * kKib);
}

TEST_F(IoSchedulerTest, WhatWaitsCanBeHastened) {
  const IoTicket first = submit(IoPriority::kDemand, 0, 1024 * kKib);  // fills the house
  submit(IoPriority::kPrefetch, 30, 64 * kKib);
  IoTicket hastened = submit(IoPriority::kPrefetch, 31, 64 * kKib);
  submit(IoPriority::kPrefetch, 32, 64 * kKib);
  submit(IoPriority::kDemand, 20, 64 * kKib);
  scheduler_.hasten(&hastened, IoPriority::kDemand);
  EXPECT_EQ(hastened.priority, IoPriority::kDemand);
  IoTicket slower = hastened;
  scheduler_.hasten(&slower, IoPriority::kBackground);
  EXPECT_EQ(slower.priority, IoPriority::kDemand) << "nothing is made to wait longer";
  IoTicket started = first;
  scheduler_.hasten(&started, IoPriority::kCommit);
  EXPECT_EQ(started.priority, IoPriority::kDemand) << "it has begun";
  EXPECT_EQ(scheduler_.stats().waiting[static_cast<std::size_t>(IoPriority::kDemand)], 2u);
  EXPECT_EQ(scheduler_.stats().waiting[static_cast<std::size_t>(IoPriority::kPrefetch)], 2u);
  finish_all();
  EXPECT_EQ(io_.order(), (std::vector<std::uint64_t>{0, 20, 31, 30, 32}));
  EXPECT_EQ(called_, 5u);
}

TEST_F(IoSchedulerTest, AHastenedRequestMayStartAtOnce) {
  submit(IoPriority::kWriteBack, 0, 512 * kKib);
  IoTicket bulk = submit(IoPriority::kBackground, 1, 64 * kKib);  // over the bound of bulk
  EXPECT_EQ(io_.running(), 1u);
  scheduler_.hasten(&bulk, IoPriority::kDemand);
  EXPECT_EQ(io_.running(), 2u);
  finish_all();
  EXPECT_EQ(called_, 2u);
}

TEST_F(IoSchedulerTest, WhatWaitsCanBeTakenBack) {
  const IoTicket first = submit(IoPriority::kDemand, 0, 1024 * kKib);
  const IoTicket taken = submit(IoPriority::kPrefetch, 30, 64 * kKib);
  submit(IoPriority::kPrefetch, 31, 64 * kKib);
  EXPECT_FALSE(scheduler_.withdraw(first)) << "it has begun";
  EXPECT_FALSE(scheduler_.withdraw(IoTicket{})) << "nothing";
  EXPECT_TRUE(scheduler_.withdraw(taken));
  EXPECT_FALSE(scheduler_.withdraw(taken)) << "it is gone";
  IoTicket gone = taken;
  scheduler_.hasten(&gone, IoPriority::kDemand);
  EXPECT_EQ(scheduler_.outstanding(), 2u);
  finish_all();
  EXPECT_EQ(io_.order(), (std::vector<std::uint64_t>{0, 31}));
  EXPECT_EQ(called_, 2u) << "its callback was dropped";
}

TEST_F(IoSchedulerTest, WhatIsTakenBackAgainAndAgainTakesNoMemory) {
  submit(IoPriority::kDemand, 0, 1024 * kKib);
  submit(IoPriority::kPrefetch, 1, 64 * kKib);
  for (std::uint64_t i = 2; i < 5000; ++i) {
    const IoTicket taken = submit(IoPriority::kPrefetch, i, 64 * kKib);
    ASSERT_TRUE(scheduler_.withdraw(taken));
  }
  EXPECT_LT(scheduler_.queued(IoPriority::kPrefetch), 100u);
  finish_all();
  EXPECT_EQ(io_.order(), (std::vector<std::uint64_t>{0, 1}));
}

TEST_F(IoSchedulerTest, WhatWasTakenBackHoldsUpNobody) {
  submit(IoPriority::kDemand, 0, 1000 * kKib);
  const IoTicket large = submit(IoPriority::kDemand, 1, 100 * kKib);  // does not fit
  submit(IoPriority::kPrefetch, 2, 16 * kKib);                        // must not go before it
  EXPECT_EQ(io_.running(), 1u);
  EXPECT_TRUE(scheduler_.withdraw(large));
  scheduler_.poll();
  EXPECT_EQ(io_.running(), 2u);
  finish_all();
}

TEST_F(IoSchedulerTest, ErrorsFreeTheRoomToo) {
  io_.result_ = error(Code::kIo);
  std::size_t errors = 0;
  for (std::uint64_t i = 0; i < 20; ++i)
    submit(IoPriority::kDemand, i, 512 * kKib,
           [&](Result<void> result) { errors += result ? 0 : 1; });
  finish_all();
  EXPECT_EQ(errors, 20u);
}

// What a back end has taken and not begun.
TEST(IoQueue, CommitsGoFirst) {
  struct Taken {
    IoRequest request;
  };
  std::deque<Taken> queue;
  std::uint64_t tag = 0;
  for (const IoPriority priority :
       {IoPriority::kDemand, IoPriority::kCommit, IoPriority::kPrefetch, IoPriority::kCommit,
        IoPriority::kDemand, IoPriority::kWriteBack}) {
    IoRequest request;
    request.priority = priority;
    request.offset = tag++;
    queue_request(&queue, Taken{std::move(request)});
  }
  std::vector<std::uint64_t> order;
  for (const Taken& taken : queue) order.push_back(taken.request.offset);
  EXPECT_EQ(order, (std::vector<std::uint64_t>{1, 3, 0, 2, 4, 5}));
}

}  // namespace
}  // namespace kvtier
