// Texts of tokens: what a client gives is what every client reads, wherever the tokens have been:
// tail, tail log, segment, memory only, export file, compaction.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "base/fault.h"
#include "base/random.h"
#include "tests/unit/client_fixture.h"
#include "tiers/export_format.h"

namespace kvtier::testing {
namespace {

using Words = std::vector<std::string>;

Words make_words(std::uint64_t first, std::uint32_t count) {
  Words words;
  for (std::uint64_t i = first; i < first + count; ++i)
    words.push_back(i % 7 == 3 ? "" : i % 11 == 5 ? "\xE2\x80" : " w" + std::to_string(i));
  return words;
}

// One layer of one head: tokens that are quick to write.
TestShape small_shape() {
  TestShape shape;
  shape.layers = shape.kv_heads = shape.query_heads = 1;
  return shape;
}

class Texts : public ClientTest {
 protected:
  // A piece; `words` of all tokens, or none.
  void append(kvt_sequence* sequence, std::uint32_t count, const Words& words = {}) {
    Model model(small_shape());
    std::vector<kvt_token> tokens;
    const std::uint64_t first = kvt_sequence_length(sequence);
    for (std::uint32_t i = 0; i < count; ++i) {
      tokens.push_back(
          {Model::id_of(first + i + salt_), static_cast<std::uint32_t>(first + i), 2, 9});
      model.tokens().push_back(first + i + salt_);
      expected_.push_back(words.empty() ? "" : words[i]);
    }
    std::vector<std::uint16_t> bytes;
    std::string all;
    for (const std::string& word : words) {
      bytes.push_back(static_cast<std::uint16_t>(word.size()));
      all += word;
    }
    if (words.empty())
      KVT_ASSERT_OK(kvt_sequence_append(sequence, tokens.data(), count));
    else
      KVT_ASSERT_OK(
          kvt_sequence_append_with_texts(sequence, tokens.data(), count, bytes.data(), all.data()));
    model.write(sequence, 0, 0, count);
    KVT_ASSERT_OK(kvt_sequence_finish_piece(sequence));
  }
  static Words read(kvt_sequence* sequence, std::uint64_t first, std::uint64_t count) {
    std::vector<std::uint16_t> bytes(count);
    std::string all(count * 16, '\0');
    std::uint64_t total = 0;
    KVT_EXPECT_OK(
        kvt_sequence_texts(sequence, first, count, bytes.data(), all.data(), all.size(), &total));
    Words words;
    std::size_t at = 0;
    for (const std::uint16_t size : bytes) {
      words.push_back(all.substr(at, size));
      at += size;
    }
    EXPECT_EQ(at, total);
    return words;
  }
  void expect_texts(kvt_sequence* sequence) {
    ASSERT_EQ(kvt_sequence_length(sequence), expected_.size());
    const Words words = read(sequence, 0, expected_.size());
    ASSERT_EQ(words.size(), expected_.size());
    for (std::size_t i = 0; i < words.size(); ++i)
      ASSERT_EQ(words[i], expected_[i]) << "token " << i << " of " << words.size();
  }
  void truncate(kvt_sequence* sequence, std::uint64_t tokens) {
    KVT_ASSERT_OK(kvt_sequence_truncate(sequence, tokens));
    expected_.resize(tokens);
    ++salt_;
  }

  Words expected_;
  std::uint64_t salt_ = 0;  // other tokens after a truncation
};

// A life of random steps, each of which may be the one that loses or mixes them up.
TEST_F(Texts, StayWithTheirTokensWhateverHappens) {
  kvt_space* space = open_space(small_shape());
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const std::string name = "life" + std::to_string(seed);
    expected_.clear();
    salt_ += 1'000'000;
    kvt_sequence* sequence = create_sequence(space, name.c_str());
    for (std::uint64_t step = 0; step < 24 && !HasFatalFailure(); ++step) {
      const std::uint64_t action = random.below(10);
      const std::uint64_t length = expected_.size();
      if (action < 5) {
        const auto count =
            static_cast<std::uint32_t>(1 + random.below(random.one_in(3) ? 1024 : 50));
        append(sequence, count, random.one_in(3) ? Words() : make_words(length + step * 7, count));
      } else if (action == 5) {
        KVT_ASSERT_OK(kvt_sequence_commit(sequence));
      } else if (action == 6) {
        truncate(sequence, random.one_in(2)
                               ? random.below(length + 1)
                               : length - random.below(std::min<std::uint64_t>(length, 30) + 1));
      } else if (action == 7) {
        KVT_ASSERT_OK(kvt_sequence_close(sequence));
        sequence = open_sequence(space, name.c_str(), true);
      } else if (action == 8) {
        daemon_->kill();  // with or without a commit before
        daemon_->start();
      } else {
        KVT_ASSERT_OK(kvt_sequence_commit(sequence));
        daemon_->kill();
        static_cast<void>(kvt_sequence_close(sequence));  // where there is a tail, it is lost
        daemon_->start();
        sequence = open_sequence(space, name.c_str(), true);
      }
      if (HasFatalFailure()) return;
      expect_texts(sequence);
    }
    KVT_EXPECT_OK(kvt_sequence_close(sequence));
  }
  kvt_space_close(space);
}

// What the daemon still has of tokens that are gone is not taken for those that came after them.
TEST_F(Texts, OfTokensThatAreGoneAreGone) {
  kvt_space* space = open_space(small_shape());
  const auto begin = [&](const char* name) {
    expected_.clear();
    salt_ += 1'000'000;
    return create_sequence(space, name);
  };
  const auto reopen = [&](kvt_sequence** sequence, const char* name) {
    KVT_ASSERT_OK(kvt_sequence_close(*sequence));
    *sequence = open_sequence(space, name, true);
    expect_texts(*sequence);
  };
  // The first half is used again.
  kvt_sequence* sequence = begin("halves");
  for (std::uint64_t i = 0; i < 6; ++i)
    append(sequence, 1024, i < 4 ? make_words(i * 1024, 1024) : Words());
  reopen(&sequence, "halves");
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  // Cut below what is sealed.
  sequence = begin("below");
  append(sequence, 10, make_words(0, 10));
  reopen(&sequence, "below");
  append(sequence, 20, make_words(10, 20));
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  truncate(sequence, 5);
  append(sequence, 20);
  reopen(&sequence, "below");
  // Cut in the committed tail: others have their place.
  append(sequence, 20, make_words(100, 20));
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  append(sequence, 10, make_words(120, 10));
  truncate(sequence, 35);
  append(sequence, 15, make_words(300, 15));
  reopen(&sequence, "below");
  // All of the tail goes, and nothing with text comes.
  append(sequence, 20, make_words(500, 20));
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  truncate(sequence, 50);
  append(sequence, 20);
  reopen(&sequence, "below");
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(Texts, AreSharedByPrefixesForksAndReaders) {
  kvt_space* space = open_space(small_shape());
  kvt_sequence* trunk = create_sequence(space, "trunk");
  append(trunk, 300, make_words(0, 300));
  KVT_ASSERT_OK(kvt_sequence_close(trunk));
  std::vector<std::uint32_t> ids;
  for (std::uint64_t i = 0; i < 200; ++i) ids.push_back(Model::id_of(i));
  kvt_match match{};
  kvt_sequence* other = create_sequence(space, "other", ids, &match);
  ASSERT_EQ(match.tokens, 200u);
  const Words all = expected_;
  expected_.resize(200);
  append(other, 10);
  expect_texts(other);
  kvt_sequence* fork = nullptr;
  KVT_ASSERT_OK(kvt_sequence_fork(other, UINT64_MAX, nullptr, &fork));
  expect_texts(fork);
  KVT_EXPECT_OK(kvt_sequence_close(fork));
  KVT_EXPECT_OK(kvt_sequence_close(other));
  other = open_sequence(space, "other", false);
  expect_texts(other);
  KVT_EXPECT_OK(kvt_sequence_close(other));
  expected_ = all;
  trunk = open_sequence(space, "trunk", false);
  expect_texts(trunk);
  EXPECT_EQ(read(trunk, 290, 10), Words(all.begin() + 290, all.end()));
  KVT_EXPECT_OK(kvt_sequence_close(trunk));
  const Json text = request(
      {{"op", "texts"}, {"target", "trunk"}, {"first", 0}, {"count", 3}, {"as_text", true}});
  EXPECT_EQ(text["text"], " w0 w1 w2");
  kvt_space_close(space);
}

// JSON takes UTF-8 only; the lengths of the tokens' texts hold all the same.
TEST_F(Texts, AsOneTextWhatIsNoUtf8IsAQuestionMark) {
  kvt_space* space = open_space(small_shape());
  kvt_sequence* sequence = create_sequence(space, "bytes");
  append(sequence, 8,
         {"a\xFF", "\xF0\x9F", "\x98\x80", "\xC2", "\xED\xA0\x80", "\xC0\xAF", "\xE2\x82", "."});
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  const Json reply = request(
      {{"op", "texts"}, {"target", "bytes"}, {"first", 0}, {"count", 8}, {"as_text", true}});
  EXPECT_EQ(reply["text"],
            "a?\xF0\x9F\x98\x80??????"
            "??.");
  EXPECT_EQ(reply["token_bytes"], Json::array({2, 2, 2, 1, 3, 2, 2, 1}));
  kvt_space_close(space);
}

TEST_F(Texts, OfAPrivateSequenceLiveInMemory) {
  kvt_space* space = open_space(small_shape(), "secret", "quest", true);
  kvt_sequence* sequence = create_sequence(space, nullptr);
  for (int i = 0; i < 5; ++i) append(sequence, 1000, make_words(expected_.size(), 1000));
  expect_texts(sequence);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(Texts, StayWhereATruncationFails) {
  kvt_space* space = open_space(small_shape());
  for (const char* fault : {"commit.appended=fail", "truncate.done=fail"}) {  // done all the same
    SCOPED_TRACE(fault);
    expected_.clear();
    kvt_sequence* sequence = create_sequence(space, fault);
    append(sequence, 20, make_words(0, 20));
    KVT_ASSERT_OK(kvt_sequence_commit(sequence));
    ASSERT_TRUE(arm_faults(fault));
    EXPECT_EQ(kvt_sequence_truncate(sequence, 10), KVT_ERROR_IO);
    ASSERT_TRUE(arm_faults(""));
    append(sequence, 1, make_words(20, 1));
    KVT_EXPECT_OK(kvt_sequence_close(sequence));
    sequence = open_sequence(space, fault, false);
    expect_texts(sequence);
    KVT_EXPECT_OK(kvt_sequence_close(sequence));
  }
  kvt_space_close(space);
}

TEST_F(Texts, LimitsAreSaid) {
  kvt_space* space = open_space(small_shape());
  kvt_sequence* sequence = create_sequence(space, nullptr);
  const kvt_token tokens[2] = {};
  const std::string text(1 + 1025, 'x');
  const std::uint16_t bytes[2] = {1, 1025};
  EXPECT_EQ(kvt_sequence_append_with_texts(sequence, tokens, 2, bytes, text.data()),
            KVT_ERROR_TOO_LARGE);
  EXPECT_STREQ(kvt_last_error(), "token 1 has a text of 1025 bytes: at most 1024");
  EXPECT_EQ(kvt_sequence_append_with_texts(sequence, tokens, 2, nullptr, text.data()),
            KVT_ERROR_INVALID);
  EXPECT_EQ(kvt_sequence_length(sequence), 0u);
  append(sequence, 3, {"one", "", "three"});
  std::uint16_t lengths[3] = {};
  char room[8] = "-------";
  std::uint64_t total = 0;
  EXPECT_EQ(kvt_sequence_texts(sequence, 0, 3, lengths, room, 7, &total), KVT_ERROR_TOO_LARGE);
  EXPECT_EQ(total, 8u);
  EXPECT_EQ(lengths[2], 5);
  EXPECT_STREQ(room, "-------");
  KVT_EXPECT_OK(kvt_sequence_texts(sequence, 0, 3, lengths, room, 8, &total));
  EXPECT_EQ(std::string(room, 8), "onethree");
  EXPECT_EQ(kvt_sequence_texts(sequence, 2, 2, lengths, room, 8, &total), KVT_ERROR_INVALID);
  KVT_EXPECT_OK(kvt_sequence_texts(sequence, 3, 0, nullptr, nullptr, 0, &total));
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// Segments that only partly belong to the sequence, a committed tail, and a merge of all of it.
TEST_F(Texts, GoThroughExportImportAndCompaction) {
  kvt_space* space = open_space(small_shape());
  kvt_sequence* sequence = create_sequence(space, "chat");
  for (int i = 0; i < 4; ++i) {
    append(sequence, 100, i == 2 ? Words() : make_words(expected_.size(), 100));
    KVT_ASSERT_OK(kvt_sequence_close(sequence));
    sequence = open_sequence(space, "chat", true);
    if (i == 1) truncate(sequence, 130);
  }
  append(sequence, 20, make_words(7, 20));
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  const std::string file = root_ + "/chat.kvx";
  request({{"op", "export"}, {"target", "chat"}, {"path", file}});
  request({{"op", "import"}, {"path", file}, {"name", "copy"}});
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  EXPECT_GT(request({{"op", "gc"}})["segments_compacted"], 0);
  for (const char* name : {"copy", "chat"}) {
    const Json show = request({{"op", "show"}, {"target", name}});
    EXPECT_EQ(show["segments"].size(), 1u) << name;
    sequence = open_sequence(space, name, false);
    expect_texts(sequence);
    KVT_EXPECT_OK(kvt_sequence_close(sequence));
  }
  kvt_space_close(space);
}

// Snapshots of layers that cannot be sliced come by import only, so far. Each stays at its token.
TEST_F(Texts, SnapshotsStayWhereTheyWereTaken) {
  kvt_space* space = open_space(small_shape());
  const auto write_file = [&](const std::string& path) {
    const Json ls = request({{"op", "ls"}});
    ExportDescription description;
    description.fingerprint.model = "test-model";
    description.fingerprint.runtime = "test/1";
    LayerGeometry layer;
    layer.kv_heads = layer.query_heads = 1;
    layer.k_row_bytes = layer.v_row_bytes = small_shape().row_bytes();
    description.fingerprint.geometry.layers = {layer};
    description.tokens = 50;
    description.segments = 5;
    std::ofstream file(path, std::ios::binary);
    ExportWriter writer(
        [&](ByteSpan bytes) -> Result<void> {
          file.write(reinterpret_cast<const char*>(bytes.data()),
                     static_cast<std::streamsize>(bytes.size()));
          return {};
        },
        CodecId::kRaw);
    ASSERT_TRUE(writer.begin(description));
    const Geometry& geometry = description.fingerprint.geometry;
    for (std::uint64_t i = 0; i < 5; ++i) {
      ExportSegment segment{i * 10, std::vector<TokenRecord>(10), {}, {}};
      if (i == 1 || i == 4) segment.snapshot.assign(100 + i, static_cast<std::byte>(i));
      ASSERT_TRUE(writer.begin_segment(segment));
      const std::vector<std::byte> chunk(static_cast<std::size_t>(geometry.chunk_bytes(0)));
      for (std::uint32_t c = 0; c < PlaneLayout(geometry, 10).chunks_total(); ++c)
        ASSERT_TRUE(writer.add_chunk(chunk));
    }
    ASSERT_TRUE(writer.finish());
  };
  write_file(root_ + "/in.kvx");
  ASSERT_FALSE(HasFatalFailure());
  request({{"op", "import"}, {"path", root_ + "/in.kvx"}, {"name", "states"}});
  EXPECT_GT(request({{"op", "gc"}})["segments_compacted"], 0);
  request({{"op", "export"}, {"target", "states"}, {"path", root_ + "/out.kvx"}});
  std::ifstream stream(root_ + "/out.kvx", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  auto reader =
      ExportReader::open({bytes.size(), [&](std::uint64_t offset, MutableByteSpan target) {
                            std::memcpy(target.data(), bytes.data() + offset, target.size());
                            return Result<void>();
                          }});
  ASSERT_TRUE(reader);
  ASSERT_EQ(reader->segments(), 2u) << "merged, but not over a snapshot";
  EXPECT_EQ(reader->read_segment(0)->tokens.size(), 20u);
  EXPECT_EQ(reader->read_segment(0)->snapshot, std::vector<std::byte>(101, std::byte{1}));
  EXPECT_EQ(reader->read_segment(1)->tokens.size(), 30u);
  EXPECT_EQ(reader->read_segment(1)->snapshot, std::vector<std::byte>(104, std::byte{4}));
  kvt_space_close(space);
}

}  // namespace
}  // namespace kvtier::testing
