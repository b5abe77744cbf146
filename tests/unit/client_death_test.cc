// The daemon dies and comes back: nothing is lost, errors come fast.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/fault.h"
#include "tests/unit/client_fixture.h"

namespace kvtier::testing {
namespace {

using Clock = std::chrono::steady_clock;
std::int64_t ms_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count();
}

using DaemonDeath = ClientTest;

TEST_F(DaemonDeath, TheTailIsReplayed) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "survivor");
  Model model(shape);
  std::uint64_t number = 1;
  // A committed tail, an uncommitted one, a half that is full, a piece in progress across the
  // halves.
  for (const std::uint32_t more : {300u, 900u, 1500u, 2000u, 10u}) {
    model.append_many(sequence, number += 10000, more);
    if (more == 300) KVT_ASSERT_OK(kvt_sequence_commit(sequence));
    daemon_->kill();
    daemon_->start();
    model.append(sequence, number += 10000, 1);
    model.expect_equal(sequence);
  }
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  daemon_->kill();
  daemon_->start();
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  kvt_sequence* again = open_sequence(space, "survivor", false);
  model.expect_equal(again);
  KVT_EXPECT_OK(kvt_sequence_close(again));
  kvt_space_close(space);
}

TEST_F(DaemonDeath, ThePieceInProgressSurvives) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "piece");
  Model model(shape);
  model.append_many(sequence, 1, 2000);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  for (std::uint32_t i = 0; i < 100; ++i) model.tokens().push_back(7000 + i);
  std::vector<kvt_token> records(100);
  for (std::uint32_t i = 0; i < 100; ++i) records[i] = {Model::id_of(7000 + i), 2000 + i, 0, 0};
  KVT_ASSERT_OK(kvt_sequence_append(sequence, records.data(), 100));
  model.write(sequence, 0, 2000, 100);
  daemon_->kill();
  daemon_->start();
  kvt_view* view = nullptr;
  KVT_ASSERT_OK(kvt_view_open(sequence, nullptr, &view));
  std::vector<float> q(shape.query_heads * shape.dim, 0.5f), out(q.size());
  KVT_ASSERT_OK(
      kvt_view_attend(view, 0, 1, q.data(), 0.25f, out.data(), nullptr));  // attaches again
  model.write(sequence, 1, 2000, 100);
  KVT_ASSERT_OK(kvt_sequence_finish_piece(sequence));
  model.expect_equal(sequence);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  model.expect_equal(sequence);
  kvt_view_close(view);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(DaemonDeath, CommittedIsThereAndTheRestIsNot) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "half");
  Model model(shape);
  model.append_many(sequence, 1, 2500);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  Model committed = model;
  model.append(sequence, 70000, 100);
  daemon_->kill();
  kvt_sequence_close(sequence);  // fails: nobody is there
  kvt_client_close(client_);
  kvt_space_close(space);
  daemon_->start();
  client_ = open_client();
  space = open_space(shape);
  sequence = open_sequence(space, "half", true);
  committed.expect_equal(sequence);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// No new token: what is committed is that the sequence exists.
TEST_F(DaemonDeath, ACommittedForkIsThereWithoutATokenOfItsOwn) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* trunk = create_sequence(space, "trunk");
  Model model(shape);
  model.append_many(trunk, 1, 2500);
  kvt_sequence *fork = nullptr, *uncommitted = nullptr;
  KVT_ASSERT_OK(kvt_sequence_fork(trunk, UINT64_MAX, nullptr, &fork));
  KVT_ASSERT_OK(kvt_sequence_fork(trunk, 2000, nullptr, &uncommitted));
  kvt_match match{};
  kvt_sequence* matched = create_sequence(space, nullptr, model.ids(), &match);
  ASSERT_EQ(match.tokens, 2500u);
  KVT_ASSERT_OK(kvt_sequence_commit(fork));
  KVT_ASSERT_OK(kvt_sequence_commit(matched));
  KVT_ASSERT_OK(kvt_sequence_commit(matched));
  daemon_->kill();
  daemon_->start();
  model.expect_equal(fork);
  model.expect_equal(matched);
  std::vector<kvt_token> records(1);
  KVT_EXPECT_OK(kvt_sequence_tokens(uncommitted, 1999, 1, records.data()));
  KVT_ASSERT_OK(kvt_sequence_commit(fork));
  KVT_EXPECT_OK(kvt_sequence_close(fork));
  KVT_EXPECT_OK(kvt_sequence_close(matched));
  kvt_sequence_close(uncommitted);
  KVT_EXPECT_OK(kvt_sequence_close(trunk));
  kvt_space_close(space);
}

// Nobody but the client knows of such a sequence: it goes on, and leaves nothing behind where
// nothing was added to it.
TEST_F(DaemonDeath, ANamelessSequenceGoesOnWithWhatWasNeverCommitted) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* trunk = create_sequence(space, "trunk");
  Model model(shape);
  model.append_many(trunk, 1, 2500);
  KVT_ASSERT_OK(kvt_sequence_close(trunk));
  kvt_match match{};
  kvt_sequence* chat = create_sequence(space, nullptr, model.ids(), &match);
  ASSERT_EQ(match.tokens, 2500u);
  model.append_many(chat, 90000, 30);
  const auto sequences = [&] {
    return request(Json{{"op", "stats"}})["disk"]["sequences"].get<std::uint64_t>();
  };
  for (const bool crash : {true, false}) {
    EXPECT_EQ(sequences(), 2u);
    crash ? daemon_->kill() : daemon_->stop();
    daemon_->start();
    model.expect_equal(chat);
    model.append_many(chat, crash ? 91000 : 92000, 30);
    model.expect_equal(chat);
  }
  KVT_EXPECT_OK(kvt_sequence_close(chat));
  EXPECT_EQ(sequences(), 2u) << "its tokens were sealed";
  kvt_sequence* look = create_sequence(space, nullptr, model.ids(), &match);
  EXPECT_EQ(match.tokens, model.tokens().size());
  EXPECT_EQ(sequences(), 3u);
  KVT_EXPECT_OK(kvt_sequence_close(look));
  daemon_->kill();
  daemon_->start();
  kvt_space_close(space);
  space = open_space(shape);  // with a connection to the new daemon
  EXPECT_EQ(sequences(), 2u);
  kvt_space_close(space);
}

// Another writer comes between: what is replayed must not land on tokens of somebody else.
TEST_F(DaemonDeath, AnotherWritersTokensAreNotBuiltUpon) {
  const TestShape shape{};
  struct Case {
    std::uint64_t keep;
    std::uint32_t more;
  };
  // Other segments below the tail; other tokens in it; nothing but a shorter tail; more tokens.
  for (const Case& c : {Case{1000, 1100}, Case{2500, 100}, Case{2500, 0}, Case{3000, 10}}) {
    SCOPED_TRACE("cut to " + std::to_string(c.keep) + ", then " + std::to_string(c.more) + " more");
    const std::string name = "shared" + std::to_string(c.keep + c.more);
    kvt_space* space = open_space(shape);
    kvt_sequence* first = create_sequence(space, name.c_str());
    Model model(shape);
    model.append_many(first, 1, 3000);
    KVT_ASSERT_OK(kvt_sequence_commit(first));
    daemon_->kill();
    daemon_->start();

    kvt_client* const ours = client_;
    client_ = open_client();
    kvt_space* other_space = open_space(shape);
    kvt_sequence* second = open_sequence(other_space, name.c_str(), true);
    Model other = model;
    KVT_ASSERT_OK(kvt_sequence_truncate(second, c.keep));
    other.tokens().resize(c.keep);
    if (c.more != 0) other.append_many(second, 500'000, c.more);
    KVT_ASSERT_OK(kvt_sequence_close(second));

    if (c.more != 0) {
      EXPECT_EQ(kvt_sequence_commit(first), KVT_ERROR_STALE);
      EXPECT_NE(std::string(kvt_last_error()).find("another writer"), std::string::npos)
          << kvt_last_error();
    } else {
      KVT_EXPECT_OK(kvt_sequence_commit(first));  // and our tokens are replayed
      KVT_EXPECT_OK(kvt_sequence_close(first));
      first = nullptr;
      other = model;
    }
    second = open_sequence(other_space, name.c_str(), true);  // nobody else holds it
    other.expect_equal(second);
    KVT_EXPECT_OK(kvt_sequence_close(second));
    if (first != nullptr) {
      EXPECT_EQ(kvt_sequence_close(first), KVT_ERROR_STALE);
    }
    kvt_space_close(other_space);
    kvt_client_close(client_);
    client_ = ours;
    kvt_space_close(space);
  }
}

// Nothing is read across what it cut off. It is repeated, or the sequence is opened anew.
TEST_F(DaemonDeath, ATruncateThatWasDoneInSpiteOfItsErrorIsSaid) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  std::vector<float> q(shape.query_heads * shape.dim, 0.5f), out(q.size());
  std::vector<std::byte> k(500 * shape.kv_heads * shape.row_bytes()), v(k.size());
  const kvt_token token{};
  const auto stale = [](kvt_status status) {
    EXPECT_EQ(status, KVT_ERROR_STALE) << kvt_last_error();
    EXPECT_NE(std::string(kvt_last_error()).find("1000 tokens are stored"), std::string::npos)
        << kvt_last_error();
  };
  for (const bool dies : {false, true})
    for (const bool opens : {false, true}) {
      SCOPED_TRACE(std::string(dies ? "after a death, " : "") + (opens ? "opened" : "repeated"));
      const std::string name = "chat" + std::to_string(dies) + std::to_string(opens);
      kvt_sequence* sequence = create_sequence(space, name.c_str());
      Model model(shape);
      model.append_many(sequence, 1, 3000);
      KVT_ASSERT_OK(kvt_sequence_commit(sequence));
      kvt_view* view = nullptr;
      KVT_ASSERT_OK(kvt_view_open(sequence, nullptr, &view));
      ASSERT_TRUE(arm_faults("truncate.done=fail"));
      EXPECT_EQ(kvt_sequence_truncate(sequence, 1000), KVT_ERROR_IO);
      ASSERT_TRUE(arm_faults(""));
      if (dies) {
        daemon_->kill();
        daemon_->start();
      }
      stale(kvt_sequence_commit(sequence));
      stale(kvt_sequence_append(sequence, &token, 1));
      stale(attend_again(view, 0, 1, q.data(), 0.25f, out.data(), nullptr));
      if (!dies) stale(kvt_sequence_read(sequence, 0, 1500, 500, k.data(), v.data()));
      kvt_view_close(view);
      if (opens) {
        stale(kvt_sequence_close(sequence));
        sequence = open_sequence(space, name.c_str(), true);
      } else {
        if (!dies) stale(kvt_sequence_truncate(sequence, 3000));  // its length() still
        stale(kvt_sequence_truncate(sequence, 1500));
        KVT_ASSERT_OK(kvt_sequence_truncate(sequence, 1000));
      }
      model.tokens().resize(1000);
      model.append(sequence, 500'000, 33);
      model.expect_equal(sequence);
      KVT_ASSERT_OK(kvt_sequence_close(sequence));
      sequence = open_sequence(space, name.c_str(), false);
      model.expect_equal(sequence);
      KVT_ASSERT_OK(kvt_sequence_close(sequence));
    }
  kvt_space_close(space);
}

TEST_F(DaemonDeath, AnotherWritersCutIsNotTakenForOneOfOursThatWasSettled) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "chat");
  Model model(shape);
  model.append_many(sequence, 1, 3000);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  ASSERT_TRUE(arm_faults("truncate.done=fail"));
  EXPECT_EQ(kvt_sequence_truncate(sequence, 1000), KVT_ERROR_IO);
  ASSERT_TRUE(arm_faults(""));
  daemon_->kill();
  daemon_->start();
  KVT_ASSERT_OK(kvt_sequence_truncate(sequence, 1000));
  model.tokens().resize(1000);
  model.append_many(sequence, 500'000, 3000);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  daemon_->kill();
  daemon_->start();
  kvt_client* const ours = client_;
  client_ = open_client();
  kvt_space* other_space = open_space(shape);
  kvt_sequence* other = open_sequence(other_space, "chat", true);
  KVT_ASSERT_OK(kvt_sequence_truncate(other, 1500));
  KVT_ASSERT_OK(kvt_sequence_close(other));
  kvt_space_close(other_space);
  kvt_client_close(client_);
  client_ = ours;
  EXPECT_EQ(kvt_sequence_commit(sequence), KVT_ERROR_CORRUPT) << kvt_last_error();
  static_cast<void>(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(DaemonDeath, ReadingFailsFastAndGoesOnAfterwards) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "fast");
  Model model(shape);
  model.append_many(sequence, 1, 3000);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));  // comes after the seal of the first half
  kvt_view* view = nullptr;
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.preset = "quest";
  options.budget = 64;
  KVT_ASSERT_OK(kvt_view_open(sequence, &options, &view));
  std::vector<float> q(shape.query_heads * shape.dim, 0.5f), out(q.size()), again(q.size());
  KVT_ASSERT_OK(kvt_view_attend(view, 0, 1, q.data(), 0.25f, out.data(), nullptr));
  daemon_->kill();

  auto start = Clock::now();
  KVT_EXPECT_OK(kvt_view_attend(view, 0, 1, q.data(), 0.25f, again.data(), nullptr));
  EXPECT_EQ(again, out) << "all rows are in slot cache and tail";
  EXPECT_EQ(kvt_view_attend(view, 1, 1, q.data(), 0.25f, out.data(), nullptr),
            KVT_ERROR_DAEMON_LOST);
  std::vector<std::byte> k(shape.kv_heads * shape.row_bytes()), v(k.size());
  EXPECT_EQ(kvt_sequence_read(sequence, 0, 0, 1, k.data(), v.data()), KVT_ERROR_DAEMON_LOST);
  model.expect_rows(sequence, 2500, 500);  // the tail is ours
  EXPECT_LT(ms_since(start), 200);

  daemon_->start();
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  KVT_EXPECT_OK(kvt_view_attend(view, 1, 1, q.data(), 0.25f, out.data(), nullptr));
  model.expect_equal(sequence);
  kvt_view_close(view);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// The second half is sealed and its writer does not know yet: a new connection may begin its tail
// later than a read that is under way took it to.
TEST_F(DaemonDeath, AReadThatGoesOnElsewhereHasEveryRow) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  int whole = 0;
  for (int round = 0; round < 6; ++round) {
    const std::string name = "read" + std::to_string(round);
    kvt_sequence* sequence = create_sequence(space, name.c_str());
    Model model(shape);
    model.append_many(sequence, 1 + static_cast<std::uint64_t>(round) * 10000, 5000);
    ::usleep(100000);  // both halves are durable
    const std::vector<std::byte> k = model.rows(0, 0, 0, 5000), v = model.rows(0, 1, 0, 5000);
    std::atomic<bool> done = false;
    std::thread killer([&] {
      ::usleep(1000 + 700 * static_cast<unsigned>(round));
      daemon_->kill();
      daemon_->start();
      done = true;
    });
    do {
      std::vector<std::byte> k_read(k.size(), std::byte{0xA5}), v_read(v.size(), std::byte{0xA5});
      const kvt_status status =
          kvt_sequence_read(sequence, 0, 0, 5000, k_read.data(), v_read.data());
      if (status != KVT_OK) continue;
      EXPECT_TRUE(k_read == k && v_read == v) << "rows that nobody wrote, and no error";
      ++whole;
    } while (!done);
    killer.join();
    KVT_EXPECT_OK(kvt_sequence_commit(sequence));  // waits for the daemon
    model.expect_equal(sequence);
    KVT_EXPECT_OK(kvt_sequence_close(sequence));
  }
  EXPECT_GT(whole, 0);
  kvt_space_close(space);
}

TEST_F(DaemonDeath, AnOrderlyStopLosesNothingEither) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "orderly");
  Model model(shape);
  for (int round = 0; round < 3; ++round) {
    model.append_many(sequence, static_cast<std::uint64_t>(round) * 10000, 1200);
    daemon_->stop();
    daemon_->start();
  }
  model.append(sequence, 90000, 1);
  model.expect_equal(sequence);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(DaemonDeath, ASpaceOpensAfterARestartThatNobodyNoticed) {
  daemon_->kill();
  daemon_->start();
  kvt_space* space = open_space(TestShape{});
  ASSERT_NE(space, nullptr);
  kvt_space_close(space);
}

TEST_F(DaemonDeath, NobodyListensIsSaid) {
  daemon_->stop();
  kvt_client_options options;
  kvt_client_options_init(&options);
  const std::string socket = daemon_->socket();
  options.socket_path = socket.c_str();
  options.autostart = 0;
  kvt_client* client = nullptr;
  EXPECT_EQ(kvt_client_open(&options, &client), KVT_ERROR_NOT_FOUND);
  EXPECT_NE(std::string(kvt_last_error()).find("kvtier start"), std::string::npos);
  options.autostart = 1;
  options.daemon_path = "/nonexistent/kvtierd";
  EXPECT_EQ(kvt_client_open(&options, &client), KVT_ERROR_NOT_FOUND);
  EXPECT_NE(std::string(kvt_last_error()).find("/nonexistent/kvtierd"), std::string::npos);
}

}  // namespace
}  // namespace kvtier::testing
