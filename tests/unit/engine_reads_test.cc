// Touch records: what they count per token, and what they keep in memory.
#include "tests/unit/engine_fixture.h"

namespace kvtier {
namespace {

static_assert(read_group(0, 2) == 0 && read_group(1, 2) == 2);
static_assert(read_group(0, 30) == 0 && read_group(7, 30) == 0 && read_group(8, 30) == 1 &&
              read_group(29, 30) == 3);

using sim::SimSequence;

class EngineReadsTest : public EngineFixture {
 protected:
  Completion touch(SimSequence& sequence, std::vector<FetchEntry> entries, bool after_prompt) {
    std::memcpy(client->layout()->arguments, entries.data(), entries.size() * sizeof(FetchEntry));
    Submission request{};
    request.op = static_cast<std::uint16_t>(Op::kTouch);
    request.sequence = sequence.handle;
    request.count = static_cast<std::uint32_t>(entries.size());
    request.value0 = after_prompt ? 1 : 0;
    return client->wait(client->submit(request));
  }
  FetchEntry entry(SimSequence& sequence, std::size_t segment, std::uint16_t layer,
                   std::uint16_t chunk, std::uint64_t mask) {
    FetchEntry made{};
    made.segment = sequence.read_directory().entries[segment].segment;
    made.layer = layer;
    made.chunk = chunk;
    made.row_mask = mask;
    return made;
  }
  // "group: token*count ...", of the tokens that were read.
  std::string reads(std::uint64_t first, std::uint64_t count) {
    const Json body =
        client
            ->control(Json{{"op", "reads"}, {"target", "chat"}, {"first", first}, {"count", count}})
            .body;
    std::string text;
    for (const Json& group : body["groups"]) {
      text += (text.empty() ? "" : "; ") + group["first_layer"].dump() + "-" +
              group["last_layer"].dump() + ":";
      for (std::size_t i = 0; i < group["counts"].size(); ++i)
        if (group["counts"][i] != 0)
          text += " " + std::to_string(first + i) + "*" + group["counts"][i].dump();
    }
    return text;
  }
};

TEST_F(EngineReadsTest, CountsRowsByTokenAndGroupOfLayers) {
  auto chat = client->create(space, {}, "chat");
  seal_all(*chat, make_ids(150), 100);  // segments of 100 and 50, chunks of 8
  EXPECT_EQ(reads(0, 150), "0-0:; 1-1:");
  EXPECT_EQ(touch(*chat,
                  {entry(*chat, 0, 0, 0, 0b101), entry(*chat, 0, 0, 0, 0b100),
                   entry(*chat, 1, 1, 1, 0b1)},
                  false)
                .status,
            0);
  EXPECT_EQ(reads(0, 150), "0-0: 0*1 2*2; 1-1: 108*1");
  EXPECT_EQ(reads(1, 2), "0-0: 2*2; 1-1:");
  // The last chunk of 100 tokens holds four: more bits are a client's nonsense.
  EXPECT_EQ(touch(*chat, {entry(*chat, 0, 1, 12, UINT64_MAX)}, true).status, 0);
  EXPECT_EQ(reads(0, 150), "0-0:; 1-1: 96*1 97*1 98*1 99*1") << "a new prompt";
  EXPECT_EQ(state().metrics.touches, 4u);
}

TEST_F(EngineReadsTest, NonsenseCountsNothing) {
  auto chat = client->create(space, {}, "chat");
  seal_all(*chat, make_ids(100), 100);
  FetchEntry unknown = entry(*chat, 0, 0, 0, 1);
  unknown.segment += 77;
  FetchEntry group = entry(*chat, 0, 0, 0, 1);
  group.group = 9;
  EXPECT_EQ(touch(*chat,
                  {unknown, group, entry(*chat, 0, 99, 0, 1), entry(*chat, 0, 0, 13, 1),
                   entry(*chat, 0, 0, 0, 0)},
                  false)
                .status,
            0);
  EXPECT_EQ(reads(0, 100), "0-0:; 1-1:");
  EXPECT_EQ(client->control(Json{{"op", "reads"}, {"target", "chat"}, {"first", 90}, {"count", 11}})
                .status.code,
            Code::kInvalid);
}

TEST_F(EngineReadsTest, WhatIsCutOffIsForgotten) {
  auto chat = client->create(space, {}, "chat");
  seal_all(*chat, make_ids(100), 100);
  ASSERT_EQ(touch(*chat, {entry(*chat, 0, 0, 0, 0xFF), entry(*chat, 0, 0, 1, 0xFF)}, true).status,
            0);
  ASSERT_TRUE(
      client->control(Json{{"op", "truncate"}, {"handle", chat->handle}, {"tokens", 10}}).ok());
  EXPECT_EQ(reads(8, 2), "0-0: 8*1 9*1; 1-1:");
  chat->tokens_sealed = 10;
  seal_all(*chat, make_ids(50), 40);
  EXPECT_EQ(reads(8, 42), "0-0: 8*1 9*1; 1-1:");
}

// What was touched longest ago makes room; what one sequence alone cannot have is said.
TEST_F(EngineReadsTest, MemoryForCountsIsBounded) {
  std::vector<std::unique_ptr<SimSequence>> sequences;
  for (const char* name : {"chat", "second", "third"}) {
    sequences.push_back(client->create(space, {}, name));
    seal_all(*sequences.back(), make_ids(100), 100);
    ASSERT_EQ(touch(*sequences.back(), {entry(*sequences.back(), 0, 0, 0, 1)}, true).status, 0);
  }
  std::uint64_t& bytes = state().sequences.read_count_bytes;
  EXPECT_EQ(bytes, 3 * ReadCounts::kPageBytes);
  const auto reads_of = [&](const char* name) {
    return find_sequence_by_name(state(), name)->reads.get();
  };
  bytes += kReadCountBytesMax - 4 * ReadCounts::kPageBytes;  // as if many more were there
  ASSERT_EQ(touch(*sequences[0], {entry(*sequences[0], 0, 0, 0, 1)}, false).status, 0);
  EXPECT_EQ(reads_of("second"), nullptr);
  EXPECT_EQ(reads_of("chat")->rows(), 2u);
  EXPECT_EQ(reads_of("third")->rows(), 1u);
  bytes += 2 * ReadCounts::kPageBytes;
  ASSERT_EQ(touch(*sequences[0], {entry(*sequences[0], 0, 0, 0, 1)}, false).status, 0);
  EXPECT_EQ(reads_of("third"), nullptr);
  EXPECT_LE(bytes, kReadCountBytesMax);
  bytes = kReadCountBytesMax;  // and no other that could go
  find_sequence_by_name(state(), "chat")->reads.reset();
  bytes = kReadCountBytesMax;
  ASSERT_EQ(touch(*sequences[0], {entry(*sequences[0], 0, 0, 0, 1)}, false).status, 0);
  const Json body =
      client->control(Json{{"op", "reads"}, {"target", "chat"}, {"first", 0}, {"count", 1}}).body;
  EXPECT_EQ(body["complete"], false);
  EXPECT_EQ(body["rows"], 0);
  bytes = 0;
}

}  // namespace
}  // namespace kvtier
