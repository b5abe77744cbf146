// Trace files: what was written is read, what is damaged is refused; the figures of small traces;
// the least that must be read.
#include "tools/bench/replay_trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <list>

#include "base/random.h"
#include "tools/bench/replay_bound.h"

namespace kvtier::bench {
namespace {

// Two layers of two heads, three steps over 64 tokens, budget 4, single rows and pages of 32.
TraceShape small_shape() {
  TraceShape shape;
  shape.tokens = 64;
  shape.layers = shape.kv_heads = 2;
  shape.row_bytes = 256;
  shape.steps = 3;
  shape.budget = 4;
  shape.granules = {1, 32};
  shape.source = "a test";
  return shape;
}

Trace small_trace() {
  Trace trace;
  trace.shape = small_shape();
  for (std::uint32_t head = 0; head < trace.shape.heads(); ++head) {
    HeadTrace one;
    for (std::uint32_t step = 0; step < trace.shape.steps; ++step) {
      const std::uint32_t rows[] = {step, 8 | kHotRow, 20 + head, 40 + step};
      one.add(rows);
      const std::uint32_t pages[] = {step % 2};
      one.add(pages);
    }
    trace.heads.push_back(one);
  }
  return trace;
}

Code code_of(ByteSpan bytes) {
  std::string problem;
  const auto trace = parse_trace(bytes, &problem);
  EXPECT_EQ(trace.has_value(), problem.empty());
  return trace ? Code::kOk : trace.error().code;
}

// A file with another header line, or with a word of its lists replaced.
std::vector<std::byte> with_header(const std::string& line) {
  std::vector<std::byte> bytes = encode_trace(small_trace());
  const auto end = std::find(bytes.begin(), bytes.end(), std::byte{'\n'});
  std::vector<std::byte> out(line.size());
  std::memcpy(out.data(), line.data(), line.size());
  out.insert(out.end(), end, bytes.end());
  return out;
}
std::vector<std::byte> with_word(std::size_t index, std::uint32_t value) {
  std::vector<std::byte> bytes = encode_trace(small_trace());
  const auto end = std::find(bytes.begin(), bytes.end(), std::byte{'\n'});
  const auto at = static_cast<std::size_t>(end - bytes.begin()) + 1 + index * sizeof value;
  std::memcpy(bytes.data() + at, &value, sizeof value);
  return bytes;
}

TEST(ReplayTrace, WhatWasWrittenIsRead) {
  const Trace trace = small_trace();
  std::string problem;
  const auto read = parse_trace(encode_trace(trace), &problem);
  ASSERT_TRUE(read) << problem;
  EXPECT_EQ(read->shape.tokens, 64u);
  EXPECT_EQ(read->shape.granules, trace.shape.granules);
  EXPECT_EQ(read->shape.source, "a test");
  EXPECT_EQ(encode_trace(*read), encode_trace(trace));
  const auto units = read->units(2, 1, 0, 0);
  ASSERT_EQ(units.size(), 4u);
  EXPECT_EQ(units[1], 8 | kHotRow);
  EXPECT_EQ(units[3], 42u);
}

TEST(ReplayTrace, EveryCutIsRefused) {
  const std::vector<std::byte> bytes = encode_trace(small_trace());
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_EQ(code_of(ByteSpan(bytes).first(size)), Code::kCorrupt) << size;
  std::vector<std::byte> longer = bytes;
  longer.push_back({});
  EXPECT_EQ(code_of(longer), Code::kCorrupt);
}

TEST(ReplayTrace, WrongListsAreRefused) {
  EXPECT_EQ(code_of(with_word(1, 0)), Code::kOk);       // the row it is
  EXPECT_EQ(code_of(with_word(0, 5)), Code::kCorrupt);  // more than the budget
  EXPECT_EQ(code_of(with_word(0, UINT32_MAX)), Code::kCorrupt);
  EXPECT_EQ(code_of(with_word(4, 64)), Code::kCorrupt);  // beyond the tokens
  EXPECT_EQ(code_of(with_word(1, 8)), Code::kCorrupt);   // twice the same
  EXPECT_EQ(code_of(with_word(2, 30)), Code::kCorrupt);  // not ascending
  EXPECT_EQ(code_of(with_word(6, 2)), Code::kCorrupt);   // a page beyond the tokens
  EXPECT_EQ(code_of(with_word(6, 0 | kHotRow)), Code::kCorrupt);
}

TEST(ReplayTrace, WrongHeadersAreRefused) {
  const auto header = [](const char* change) {
    Trace trace = small_trace();
    const std::vector<std::byte> bytes = encode_trace(trace);
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    std::string line = text.substr(0, text.find('\n'));
    const std::string key = std::string(change).substr(0, std::string(change).find(':'));
    const std::size_t at = line.find(key + ":");
    EXPECT_NE(at, std::string::npos) << change;
    std::size_t end = line.find(key == "\"granules\"" ? "]" : ",", at);
    if (key == "\"granules\"") ++end;
    return line.substr(0, at) + change + line.substr(end);
  };
  EXPECT_EQ(code_of(with_header(header("\"tokens\":64"))), Code::kOk);
  EXPECT_EQ(code_of(with_header("{\"tokens\":64}")), Code::kCorrupt);
  EXPECT_EQ(code_of(with_header("no JSON")), Code::kCorrupt);
  EXPECT_EQ(code_of(with_header(header("\"kvtier_trace\":2"))), Code::kVersion);
  for (const char* change :
       {"\"tokens\":0", "\"tokens\":-1", "\"tokens\":99999999", "\"layers\":257", "\"kv_heads\":0",
        "\"row_bytes\":3", "\"row_bytes\":1048576", "\"steps\":0", "\"steps\":65537",
        "\"budget\":65", "\"granules\":[32]", "\"granules\":[1,1]", "\"granules\":[1,24]",
        "\"granules\":[1,128]", "\"granules\":[1,2,4,8,16]", "\"granules\":[\"1\"]"})
    EXPECT_EQ(code_of(with_header(header(change))), Code::kInvalid) << change;
}

TEST(ReplayTrace, FiguresOfASmallTrace) {
  const TraceFigures of = figures_of(small_trace(), 1);
  // Of four rows two are others at each step, and all twelve fit into three budgets.
  EXPECT_DOUBLE_EQ(of.rows_new[0], 0.5);
  EXPECT_DOUBLE_EQ(of.rows_new[3], 0.5);
  EXPECT_DOUBLE_EQ(of.chunks_touched, 1.0);
  EXPECT_DOUBLE_EQ(of.chunks_new, 0.0);
  EXPECT_DOUBLE_EQ(of.newest, 0.0);
  EXPECT_DOUBLE_EQ(of.hot_rows, 1.0);
  EXPECT_DOUBLE_EQ(of.hot_new, 0.0);             // hot at the step before
  EXPECT_DOUBLE_EQ(of.in_pages, (1 + 3) / 8.0);  // page 1 at step 1, page 0 at step 2
  EXPECT_DOUBLE_EQ(of.next_head, 0.75);
}

// The least over all orders of eviction, by trying all.
std::uint64_t tried(const std::vector<std::uint32_t>& chunks, std::size_t at,
                    std::vector<std::uint32_t> held, std::size_t capacity) {
  if (at == chunks.size()) return 0;
  if (std::find(held.begin(), held.end(), chunks[at]) != held.end())
    return tried(chunks, at + 1, std::move(held), capacity);
  if (held.size() < capacity) {
    held.push_back(chunks[at]);
    return 1 + tried(chunks, at + 1, std::move(held), capacity);
  }
  std::uint64_t least = UINT64_MAX;
  for (std::uint32_t& victim : held) {
    const std::uint32_t was = victim;
    victim = chunks[at];
    least = std::min(least, 1 + tried(chunks, at + 1, held, capacity));
    victim = was;
  }
  return least;
}

TEST(ReplayBound, NoOrderOfEvictionReadsLess) {
  Random random(4);
  for (int round = 0; round < 60; ++round) {
    References references;
    for (int i = 0; i < 11; ++i) {
      references.chunks.push_back(static_cast<std::uint32_t>(random.below(6)));
      references.step_ends.push_back(references.chunks.size());
    }
    for (const std::size_t capacity : {std::size_t{1}, std::size_t{2}, std::size_t{3}})
      EXPECT_EQ(least_reads(references, 0, capacity), tried(references.chunks, 0, {}, capacity));
  }
}

TEST(ReplayBound, OnlyTheMeasuredStepsCount) {
  const References references = {{1, 2, 1, 3, 2, 1}, {2, 4, 6}};
  EXPECT_EQ(least_reads(references, 0, 8), 3u);
  EXPECT_EQ(least_reads(references, 1, 8), 1u);
  EXPECT_EQ(least_reads(references, 2, 8), 0u);
  EXPECT_EQ(first_reads(references, 1), 1u);
  EXPECT_EQ(least_reads(references, 2, 2), 1u);  // 3 is never needed again: one of the others went
}

}  // namespace
}  // namespace kvtier::bench
