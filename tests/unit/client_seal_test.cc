// Sequences while full halves are sealed: who reads meanwhile, what fails, what is given back.
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/fault.h"
#include "tests/unit/client_fixture.h"

namespace kvtier::testing {
namespace {

using Sequences = ClientTest;

TEST_F(Sequences, AReaderOpensWhileTheWriterSeals) {
  const TestShape shape{1, 1, 1, 16, KVT_DTYPE_F16, 1};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "growing");
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done) {
      kvt_sequence* opened = open_sequence(space, "growing", false);
      if (opened == nullptr) break;
      KVT_EXPECT_OK(kvt_sequence_close(opened));
    }
  });
  Model model(shape);
  for (std::uint64_t i = 0; i < 60; ++i) model.append(sequence, i * 10'000, 1024);
  done = true;
  reader.join();
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// A full half that could not be sealed is not overtaken by what follows it: the sequence would
// begin with tokens from its middle. It is sealed first, and the commit comes after it.
TEST_F(Sequences, NothingIsCommittedBehindASealThatFailed) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "whole");
  Model model(shape);
  ASSERT_TRUE(arm_faults("seal.written=fail"));
  model.append_many(sequence, 1, 3000);  // 2,048 are to be sealed, the rest is in the other half
  const auto failures = [&] { return request(Json{{"op", "stats"}})["writing"]["seal_failures"]; };
  for (int i = 0; i < 3000 && failures() != 1; ++i) ::usleep(10000);
  EXPECT_EQ(failures(), 1) << "nobody has looked for the seal yet";
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  ASSERT_TRUE(arm_faults(""));
  kvt_sequence* reader = open_sequence(space, "whole", false);
  EXPECT_EQ(kvt_sequence_length(reader), 2048u) << "the rest is in the tail log";
  KVT_EXPECT_OK(kvt_sequence_close(reader));
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  sequence = open_sequence(space, "whole", false);
  model.expect_equal(sequence);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// The piece fills a half and begins the next: admission decides about what is left of the tail
// only.
TEST_F(Sequences, AFullHalfIsAlwaysAdmitted) {
  kvt_client_close(client_);
  daemon_->stop();
  daemon_->scarce_writes = true;
  daemon_->start();
  client_ = open_client();
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, nullptr);
  Model model(shape);
  model.append(sequence, 1, 1024);
  model.append(sequence, 2000, 1000);
  model.append(sequence, 4000, 300, false);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  const std::vector<std::uint32_t> ids = model.ids();
  kvt_match match{};
  sequence = create_sequence(space, nullptr, ids, &match);
  EXPECT_EQ(match.tokens, 2048u);
  model.tokens().resize(match.tokens);
  model.expect_equal(sequence);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// As a chat does: a long prompt, then token by token.
TEST_F(Sequences, TheMemoryOfASealedHalfGoesBackWhileDecoding) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "chat");
  Model model(shape);
  model.append_many(sequence, 1, 2100);
  const auto tail_bytes = [this] {
    const Json host = request({{"op", "stats"}})["host"];
    EXPECT_EQ(host["tails"], 1);
    EXPECT_LE(host["tail_bytes"].get<std::uint64_t>(),
              host["tail_bytes_reserved"].get<std::uint64_t>());
    return host["tail_bytes"].get<std::uint64_t>();
  };
  const std::uint64_t half = 2048ull * shape.layers * shape.kv_heads * 2 * shape.row_bytes();
  EXPECT_GT(tail_bytes(), half);
  for (std::uint32_t i = 0; i < 500 && tail_bytes() >= half; ++i) {  // until the seal is done
    model.append(sequence, 5000 + i, 1);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_LT(tail_bytes(), half);
  model.expect_equal(sequence);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  EXPECT_EQ(request({{"op", "stats"}})["host"]["tails"], 0);
  kvt_space_close(space);
}

}  // namespace
}  // namespace kvtier::testing
