// Tail log: whatever happens to the file, replay gives tokens and rows exactly as they were after
// some whole number of records, or an error, and never writes outside the half.
#include "tiers/tail_log_format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "base/hash.h"
#include "base/random.h"
#include "tests/unit/format_samples.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kBase = 2048;
constexpr std::size_t kRecordHeaderBytes = 64;

// A tail half with guard bytes on both sides of its tokens and its plane.
class Half {
 public:
  static constexpr std::size_t kGuard = 4096;
  explicit Half(const Geometry& geometry)
      : geometry_(geometry),
        layout_(geometry, kSegmentTokensMax),
        tokens_(kSegmentTokensMax + 2 * kGuard / sizeof(TokenRecord)),
        plane_(layout_.size_bytes() + 2 * kGuard) {
    clear();
  }
  void clear() {
    std::ranges::fill(tokens_, TokenRecord{0x5A5A5A5A, 0x5A5A5A5A, 0x5A5A5A5A, 0x5A5A5A5A});
    std::memset(plane_.data(), 0x5A, plane_.size());
  }
  [[nodiscard]] TokenRecord* tokens() { return tokens_.data() + kGuard / sizeof(TokenRecord); }
  [[nodiscard]] std::byte* plane() { return plane_.data() + kGuard; }
  [[nodiscard]] const PlaneLayout& layout() const { return layout_; }
  // Tokens and rows of [first, first + count) as one string of bytes.
  [[nodiscard]] std::vector<std::byte> content(std::uint32_t first, std::uint32_t count) {
    ByteWriter writer;
    writer.write_bytes(std::as_bytes(std::span(tokens() + first, count)));
    samples::visit_rows(geometry_, layout_, first, count, [&](const samples::RowPlace& row) {
      writer.write_bytes({plane() + row.offset, row.size_bytes});
    });
    return writer.take();
  }
  [[nodiscard]] bool guards_intact() {
    const auto same = [](ByteSpan bytes) {
      return std::all_of(bytes.begin(), bytes.end(),
                         [](std::byte one) { return one == std::byte{0x5A}; });
    };
    const ByteSpan tokens = std::as_bytes(std::span(tokens_));
    return same(tokens.first(kGuard)) && same(tokens.last(kGuard)) &&
           same(ByteSpan(plane_).first(kGuard)) && same(ByteSpan(plane_).last(kGuard));
  }

 private:
  const Geometry& geometry_;
  PlaneLayout layout_;
  std::vector<TokenRecord> tokens_;
  std::vector<std::byte> plane_;
};

// Appends records from a source half, and remembers what the tail was after each.
class Writer {
 public:
  explicit Writer(const TailLogHeader& header, const Geometry& geometry)
      : header_(header),
        geometry_(geometry),
        source_(geometry),
        file_(encode_tail_log_header(header)) {
    states_.emplace_back();
    text_states_.emplace_back();
    ends_.push_back(file_.size());
  }
  // Tokens [first, first + count) of the stream `seed`.
  void append(std::uint32_t first, std::uint32_t count, std::uint64_t seed) {
    samples::fill_plane(geometry_, source_.layout(), seed, header_.base_token, first, count,
                        source_.tokens(), source_.plane());
    const TokenTexts texts = seed % 2 == 1 ? samples::texts_of(count) : TokenTexts();
    const std::vector<std::byte> record =
        encode_tail_record({.header = &header_,
                            .geometry = &geometry_,
                            .layout = &source_.layout(),
                            .tokens = source_.tokens(),
                            .plane = source_.plane(),
                            .first = first,
                            .count = count,
                            .start_token = header_.base_token + first,
                            .order = states_.size() - 1,
                            .texts = &texts});
    EXPECT_EQ(record.size(), tail_record_bytes(geometry_, count, texts.encoded_bytes()));
    file_.insert(file_.end(), record.begin(), record.end());
    texts_.resize(first);
    texts_.append(texts, 0, count);
    text_states_.push_back(texts_);
    states_.push_back(source_.content(0, first + count));
    ends_.push_back(file_.size());
  }
  [[nodiscard]] const std::vector<std::byte>& file() const { return file_; }
  [[nodiscard]] const std::vector<std::vector<std::byte>>& states() const { return states_; }
  [[nodiscard]] const std::vector<TokenTexts>& texts() const { return text_states_; }
  [[nodiscard]] const std::vector<std::size_t>& ends() const { return ends_; }

 private:
  TailLogHeader header_;
  const Geometry& geometry_;
  Half source_;
  std::vector<std::byte> file_;
  TokenTexts texts_;
  std::vector<std::vector<std::byte>> states_;  // after 0, 1, 2 ... records
  std::vector<TokenTexts> text_states_;
  std::vector<std::size_t> ends_;
};

class TailLog : public ::testing::Test {
 protected:
  Result<TailReplay> replay(ByteSpan file) {
    return replay_tail_log(file, header_, geometry_, half_.layout(), half_.tokens(), half_.plane());
  }
  // Replays and expects what was written by the first `records` records; -1: any number.
  void expect_prefix(const Writer& writer, ByteSpan file, int records) {
    const Result<TailReplay> result = replay(file);
    ASSERT_TRUE(result.has_value()) << result.error().message();
    if (records >= 0) {
      ASSERT_EQ(result->next_order, static_cast<std::uint64_t>(records));
    }
    ASSERT_LT(result->next_order, writer.states().size());
    ASSERT_EQ(result->end_offset, writer.ends()[result->next_order]);
    ASSERT_EQ(half_.content(0, result->tokens), writer.states()[result->next_order]);
    ASSERT_EQ(result->texts, writer.texts()[result->next_order]);
  }
  Writer sample() {
    Writer writer(header_, geometry_);
    writer.append(0, 3, 1);
    writer.append(3, 1, 1);
    writer.append(2, 4, 2);  // replaces tokens 2 and 3
    writer.append(5, 0, 2);  // cuts to 5
    writer.append(5, 40, 3);
    return writer;
  }

  Geometry geometry_ = samples::small_geometry();
  TailLogHeader header_ = samples::make_log_header(SequenceId{0x77}, 3, kBase);
  Half half_{geometry_};
};

TEST_F(TailLog, HeaderRoundTrips) {
  const std::vector<std::byte> bytes = encode_tail_log_header(header_);
  EXPECT_EQ(bytes.size(), kTailLogHeaderBytes);
  const Result<TailLogHeader> parsed = parse_tail_log_header(bytes);
  ASSERT_TRUE(parsed.has_value());
  EXPECT_EQ(parsed->sequence, header_.sequence);
  EXPECT_EQ(parsed->space, header_.space);
  EXPECT_EQ(parsed->generation, header_.generation);
  EXPECT_EQ(parsed->base_token, header_.base_token);
  EXPECT_EQ(parsed->fingerprint, header_.fingerprint);
}

TEST_F(TailLog, HeaderFlipsAndCutsAreCorrupt) {
  std::vector<std::byte> bytes = encode_tail_log_header(header_);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] ^= static_cast<std::byte>(1 << bit);
      ASSERT_EQ(parse_tail_log_header(bytes).error().code, Code::kCorrupt) << i;
      bytes[i] ^= static_cast<std::byte>(1 << bit);
    }
  for (std::size_t size = 0; size < bytes.size(); ++size)
    ASSERT_EQ(parse_tail_log_header(ByteSpan(bytes).first(size)).error().code, Code::kCorrupt);
  bytes[8] = std::byte{2};
  const std::uint64_t checksum = hash64(ByteSpan(bytes).first(kHeadChecksumOffset));
  std::memcpy(bytes.data() + kHeadChecksumOffset, &checksum, sizeof(checksum));
  EXPECT_EQ(parse_tail_log_header(bytes).error().code, Code::kVersion);
}

TEST_F(TailLog, AnEmptyLogReplaysToNothing) {
  const Result<TailReplay> result = replay(encode_tail_log_header(header_));
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->tokens, 0u);
  EXPECT_EQ(result->end_offset, kTailLogHeaderBytes);
  EXPECT_EQ(result->next_order, 0u);
  EXPECT_FALSE(result->torn);
}

TEST_F(TailLog, ReplacedAndCutRangesReplay) {
  const Writer writer = sample();
  expect_prefix(writer, writer.file(), 5);
  const Result<TailReplay> result = replay(writer.file());
  EXPECT_EQ(result->tokens, 45u);
  EXPECT_FALSE(result->torn);
  EXPECT_TRUE(half_.guards_intact());
}

TEST_F(TailLog, SignedNonsenseInTheTextsEndsTheReplay) {
  Writer writer(header_, geometry_);
  writer.append(0, 5, 1);
  const std::size_t record = kTailLogHeaderBytes;
  const std::size_t texts =
      record + kRecordHeaderBytes + 5 * (sizeof(TokenRecord) + geometry_.token_bytes());
  const std::pair<std::size_t, std::uint16_t> patches[] = {
      {record + 6, 7},    // an unknown flag
      {texts, 0xFFFF},    // more bytes than the record has
      {texts, 12},        // fewer than the lengths say
      {texts + 4, 1000},  // lengths beyond the bytes
      {texts + 4, 1 + kTokenTextBytesMax}};
  for (const auto& [at, value] : patches) {
    std::vector<std::byte> file = writer.file();
    ASSERT_EQ(replay(file)->tokens, 5u);
    std::memcpy(file.data() + at, &value, sizeof(value));
    const ByteSpan head = ByteSpan(file).subspan(record, kRecordHeaderBytes);
    std::uint64_t sum = hash64(ByteSpan(file).subspan(record + kRecordHeaderBytes));
    std::memcpy(file.data() + record + 48, &sum, 8);
    sum = hash64(head.first(56));
    std::memcpy(file.data() + record + 56, &sum, 8);
    const Result<TailReplay> result = replay(file);
    ASSERT_TRUE(result.has_value());
    EXPECT_EQ(result->tokens, 0u) << at << " = " << value;
    EXPECT_TRUE(result->torn);
  }
}

TEST_F(TailLog, AFullHalfReplaysAndNotOneTokenMore) {
  Writer writer(header_, geometry_);
  writer.append(0, kSegmentTokensMax - 1, 4);
  writer.append(kSegmentTokensMax - 1, 1, 4);
  expect_prefix(writer, writer.file(), 2);
  EXPECT_TRUE(half_.guards_intact());
  // A record that begins at the half's end, and one that crosses it, made by a writer whose base
  // lies lower.
  for (const std::uint32_t first : {kSegmentTokensMax, kSegmentTokensMax - 1}) {
    half_.clear();
    TailLogHeader lower = header_;
    lower.base_token = kBase + 1;
    std::vector<std::byte> file = writer.file();
    std::vector<TokenRecord> tokens(kSegmentTokensMax);
    std::vector<std::byte> plane(half_.layout().size_bytes());
    const std::vector<std::byte> record = encode_tail_record({.header = &lower,
                                                              .geometry = &geometry_,
                                                              .layout = &half_.layout(),
                                                              .tokens = tokens.data(),
                                                              .plane = plane.data(),
                                                              .first = 0,
                                                              .count = 2,
                                                              .start_token = kBase + first,
                                                              .order = 2});
    file.insert(file.end(), record.begin(), record.end());
    const Result<TailReplay> result = replay(file);
    ASSERT_TRUE(result.has_value());
    EXPECT_EQ(result->next_order, 2u);
    EXPECT_TRUE(result->torn);
    EXPECT_TRUE(half_.guards_intact());
  }
}

TEST_F(TailLog, EveryFlippedByteGivesAPrefixOrAnError) {
  const Writer writer = sample();
  std::vector<std::byte> file = writer.file();
  Random random(11);
  for (std::size_t i = 0; i < file.size(); ++i) {
    const auto change = static_cast<std::byte>(1 + random.below(255));
    file[i] ^= change;
    if (i < kTailLogHeaderBytes) {
      ASSERT_EQ(replay(file).error().code, Code::kCorrupt) << i;
    } else {
      std::size_t hit = 0;  // the record that the byte belongs to, and all after it, are lost
      while (writer.ends()[hit + 1] <= i) ++hit;
      expect_prefix(writer, file, static_cast<int>(hit));
      ASSERT_TRUE(replay(file)->torn);
    }
    if (HasFatalFailure()) FAIL() << "byte " << i;
    file[i] ^= change;
  }
  expect_prefix(writer, file, 5);
  EXPECT_TRUE(half_.guards_intact());
}

TEST_F(TailLog, EveryTruncationGivesAPrefixOrAnError) {
  const Writer writer = sample();
  for (std::size_t size = 0; size < writer.file().size(); ++size) {
    const ByteSpan cut = ByteSpan(writer.file()).first(size);
    if (size < kTailLogHeaderBytes) {
      ASSERT_EQ(replay(cut).error().code, Code::kCorrupt) << size;
      continue;
    }
    std::size_t whole = 0;
    while (whole + 1 < writer.ends().size() && writer.ends()[whole + 1] <= size) ++whole;
    expect_prefix(writer, cut, static_cast<int>(whole));
    if (HasFatalFailure()) FAIL() << "length " << size;
  }
}

TEST_F(TailLog, ATornLastRecordLosesOnlyItself) {
  const Writer writer = sample();
  for (const std::byte fill : {std::byte{0x00}, std::byte{0xFF}}) {
    std::vector<std::byte> file =
        writer.file();  // the last record's second half never reached the disk
    const std::size_t from = writer.ends()[4] + 4096;
    ASSERT_LT(from, file.size());
    std::fill(file.begin() + static_cast<std::ptrdiff_t>(from), file.end(), fill);
    expect_prefix(writer, file, 4);
    EXPECT_TRUE(replay(file)->torn);
  }
  std::vector<std::byte> file =
      writer.file();  // nothing of it did: space that was reserved is not a torn record
  std::fill(file.begin() + static_cast<std::ptrdiff_t>(writer.ends()[4]), file.end(), std::byte{0});
  expect_prefix(writer, file, 4);
  EXPECT_FALSE(replay(file)->torn);
}

TEST_F(TailLog, RecordsOutOfOrderOrTwiceStopTheReplay) {
  const Writer writer = sample();
  const auto at = [&](std::size_t record) {
    return writer.file().begin() + static_cast<std::ptrdiff_t>(writer.ends()[record]);
  };
  std::vector<std::byte> swapped(at(0) - 4096, at(0));
  swapped.insert(swapped.end(), at(1), at(2));
  swapped.insert(swapped.end(), at(0), at(1));
  expect_prefix(writer, swapped, 0);
  std::vector<std::byte> twice(at(0) - 4096, at(1));
  twice.insert(twice.end(), at(0), at(1));
  expect_prefix(writer, twice, 1);
  std::vector<std::byte> hole(at(0) - 4096, at(1));
  hole.insert(hole.end(), at(2), at(3));
  expect_prefix(writer, hole, 1);
}

TEST_F(TailLog, AGapInTheTokensStopsTheReplay) {
  Writer writer(header_, geometry_);
  writer.append(0, 2, 1);
  writer.append(3, 1, 1);  // token 2 is missing
  const Result<TailReplay> result = replay(writer.file());
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->tokens, 2u);
  EXPECT_TRUE(result->torn);
}

TEST_F(TailLog, AnotherFilesRecordsStopTheReplay) {
  const Writer writer = sample();
  for (int which = 0; which < 2; ++which) {
    TailLogHeader other = header_;
    if (which == 0)
      other.sequence = SequenceId{0x78};
    else
      other.generation = 2;
    Writer foreign(other, geometry_);
    foreign.append(0, 3, 9);
    std::vector<std::byte> file(writer.file().begin(), writer.file().begin() + 4096);
    file.insert(file.end(), foreign.file().begin() + 4096, foreign.file().end());
    expect_prefix(writer, file, 0);
    EXPECT_TRUE(replay(file)->torn);
  }
}

TEST_F(TailLog, AnotherSequencesFileIsRefused) {
  const auto code_of = [&](const TailLogHeader& header) {
    Writer writer(header, geometry_);
    writer.append(0, 3, 9);
    half_.clear();
    const Result<TailReplay> result = replay(writer.file());
    EXPECT_EQ(half_.tokens()[0].id, 0x5A5A5A5Au);  // nothing was written
    return result ? Code::kOk : result.error().code;
  };
  TailLogHeader other = header_;
  other.sequence = SequenceId{0x78};
  EXPECT_EQ(code_of(other), Code::kCorrupt);
  other = header_;
  other.space = SpaceId{1};
  EXPECT_EQ(code_of(other), Code::kCorrupt);
  other = header_;
  other.fingerprint.high ^= 1;
  EXPECT_EQ(code_of(other), Code::kCorrupt);
  other = header_;
  other.base_token = 0;
  EXPECT_EQ(code_of(other), Code::kCorrupt);
  other = header_;
  other.generation = 2;
  EXPECT_EQ(code_of(other), Code::kStale);
}

TEST_F(TailLog, SignedNonsenseInARecordStopsTheReplay) {
  struct Case {
    std::size_t offset;
    std::uint32_t value;
  };
  const Case cases[] = {{0, 1},     {4, 60},    {4, UINT32_MAX},  {8, 1},  {16, 1},        {24, 1},
                        {32, 2047}, {32, 2049}, {36, UINT32_MAX}, {40, 0}, {40, 1u << 30}, {44, 1}};
  const Writer writer = sample();
  for (const Case& one : cases) {
    std::vector<std::byte> file = writer.file();
    std::byte* record = file.data() + kTailLogHeaderBytes;
    std::memcpy(record + one.offset, &one.value, sizeof(one.value));
    const std::uint64_t checksum = hash64(ByteSpan(record, kRecordHeaderBytes - 8));
    std::memcpy(record + kRecordHeaderBytes - 8, &checksum, sizeof(checksum));
    expect_prefix(writer, file, 0);
    if (HasFatalFailure()) FAIL() << "offset " << one.offset << " value " << one.value;
  }
  EXPECT_TRUE(half_.guards_intact());
}

TEST_F(TailLog, RandomHistoriesReplayExactly) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    if (seed % 2 == 1)
      geometry_.heads_per_chunk = 0;
    else
      geometry_.heads_per_chunk = 1;
    Half half(geometry_);
    Writer writer(header_, geometry_);
    std::uint32_t tokens = 0;
    for (int i = 0; i < 12; ++i) {
      const auto first = static_cast<std::uint32_t>(random.below(tokens + 1));
      const auto count = static_cast<std::uint32_t>(random.below(30));
      writer.append(first, count, random.next());
      tokens = first + count;
    }
    const std::size_t cut =
        kTailLogHeaderBytes + random.below(writer.file().size() - kTailLogHeaderBytes + 1);
    const Result<TailReplay> result =
        replay_tail_log(ByteSpan(writer.file()).first(cut), header_, geometry_, half.layout(),
                        half.tokens(), half.plane());
    ASSERT_TRUE(result.has_value());
    ASSERT_EQ(half.content(0, result->tokens), writer.states()[result->next_order])
        << "seed " << seed;
    ASSERT_EQ(result->texts, writer.texts()[result->next_order]) << "seed " << seed;
  }
}

TEST_F(TailLog, RecordSizesAreWhatTheFormatSays) {
  const std::uint64_t token = geometry_.token_bytes();
  EXPECT_EQ(token, 2 * 32u + 48u);
  EXPECT_EQ(tail_record_bytes(geometry_, 0), 4096u);
  EXPECT_EQ(tail_record_bytes(geometry_, 31), 4096u);  // 64 + 31 * (16 + 112) = 4032
  EXPECT_EQ(tail_record_bytes(geometry_, 32), 8192u);
  EXPECT_EQ(tail_record_tokens_max(geometry_), kSegmentTokensMax);
  Geometry large = geometry_;
  large.chunk_tokens = 8;
  large.layers.assign(kLayersMax,
                      {.kv_heads = 1, .query_heads = 1, .k_row_bytes = 8192, .v_row_bytes = 8192});
  ASSERT_TRUE(large.validate().has_value());
  ASSERT_EQ(large.token_bytes(), kTokenBytesMax);
  EXPECT_EQ(tail_record_tokens_max(large), 255u);
  EXPECT_EQ(tail_record_tokens_max(large, 1 << 20), 1u);
  large.layers[0].kv_heads = large.layers[0].query_heads = 2;
  EXPECT_EQ(large.validate().error().code, Code::kTooLarge);
  large.layers[0].kv_heads = large.layers[0].query_heads = 1;
  EXPECT_LE(tail_record_bytes(large, 1), kTailLogRecordBytesMax);
}

TEST(TailLogName, GoesBothWays) {
  EXPECT_EQ(tail_log_path(SequenceId{0x77}, 3), "logs/0000000000000077-0000000000000003.kvl");
  const Result<TailLogName> name = tail_log_name_of("0000000000000077-0000000000000003.kvl");
  ASSERT_TRUE(name.has_value());
  EXPECT_EQ(name->sequence, SequenceId{0x77});
  EXPECT_EQ(name->generation, 3u);
  for (const char* bad :
       {"", "0000000000000077-0000000000000003.kvs", "0000000000000077_0000000000000003.kvl",
        "0000000000000000-0000000000000003.kvl", "77-3.kvl",
        "0000000000000077-000000000000000G.kvl", "0000000000000077-00000000000000003.kvl"})
    EXPECT_EQ(tail_log_name_of(bad).error().code, Code::kInvalid) << bad;
}

}  // namespace
}  // namespace kvtier
