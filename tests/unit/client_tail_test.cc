// Tail: the bookkeeping of halves and pieces, against a plain list of tokens.
#include "client/tail.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "base/unique_fd.h"

namespace kvtier {
namespace {

struct Fixture {
  Fixture() : layout((geometry.layers = {layer()}, geometry)) {}
  static LayerGeometry layer() {
    LayerGeometry layer;
    layer.kv_heads = 2;
    layer.query_heads = 2;
    layer.k_row_bytes = layer.v_row_bytes = 32;
    return layer;
  }
  Mapping memory() {
    Memfd made = *make_memfd("tail", layout.size_bytes(), MemfdAccess::kSharedWrite, false);
    return std::move(made.mapping);
  }
  Geometry geometry;
  TailLayout layout;
};

// Rows whose first word names the token.
struct Rows {
  Rows(std::uint32_t first, std::uint32_t count) : bytes(2 * count * 32) {
    for (std::uint32_t head = 0; head < 2; ++head)
      for (std::uint32_t i = 0; i < count; ++i) {
        const std::uint32_t value = (first + i) * 2 + head;
        std::memcpy(bytes.data() + (head * count + i) * 32, &value, 4);
      }
    rows = {bytes.data(), std::uint64_t{count} * 32, 32};
  }
  std::vector<std::byte> bytes;
  StridedRows rows;
};

void expect_tokens(const Tail& tail, std::uint64_t end) {
  std::array<Tail::Run, 3> runs;
  const std::uint32_t count = tail.runs(tail.first_token(), end, &runs);
  std::uint64_t next = tail.first_token();
  for (std::uint32_t r = 0; r < count; ++r) {
    ASSERT_EQ(runs[r].first_token, next);
    for (std::uint32_t i = 0; i < runs[r].count; ++i, ++next) {
      const std::uint32_t place = runs[r].first_place + i;
      ASSERT_EQ(tail.tokens(runs[r].half)[place].id, next);
      for (std::uint32_t head = 0; head < 2; ++head) {
        std::uint32_t k = 0, v = 0;
        std::memcpy(&k, tail.k_row(runs[r].half, place, 0, head), 4);
        std::memcpy(&v, tail.v_row(runs[r].half, place, 0, head), 4);
        ASSERT_EQ(k, next * 2 + head);
        ASSERT_EQ(v, next * 2 + head);
      }
    }
  }
  ASSERT_EQ(next, end);
}

void begin(Tail* tail, std::uint32_t count) {
  std::vector<TokenRecord> records(count);
  for (std::uint32_t i = 0; i < count; ++i)
    records[i].id = static_cast<std::uint32_t>(tail->length()) + i;
  tail->begin_piece(records);
}

TEST(Tail, RandomPiecesSealsAndReplays) {
  Fixture fixture;
  std::mt19937 random(7);
  Tail tail(&fixture.geometry, &fixture.layout, fixture.memory(), 0, 0);
  for (int step = 0; step < 400; ++step) {
    const std::uint32_t count = 1 + static_cast<std::uint32_t>(random()) % 1024;
    if (const std::uint32_t needed = tail.halves_needed(count); needed != 0) {
      ASSERT_EQ(needed, 1u << (1 - tail.active()));
      tail.free_half(1 - tail.active());  // its seal completed
      ASSERT_EQ(tail.halves_needed(count), 0u);
    }
    begin(&tail, count);
    const auto length = static_cast<std::uint32_t>(tail.length());
    const Rows rows(length, count);
    const std::uint32_t part = static_cast<std::uint32_t>(random()) % (count + 1);
    tail.write(0, 0, part, rows.rows, rows.rows);
    ASSERT_EQ(tail.visible(0), length + part);
    expect_tokens(tail, length + part);
    if (random() % 4 ==
        0) {  // the daemon dies: it comes back with what was sealed, and some committed tokens
      const std::uint64_t sealed = tail.first_token();
      const Tail::Half& first = tail.half(tail.has_older() ? 1 - tail.active() : tail.active());
      const auto committed = static_cast<std::uint32_t>(random()) % (first.tokens + 1);
      Tail fresh(&fixture.geometry, &fixture.layout, fixture.memory(), sealed, committed);
      for (std::uint32_t i = 0; i < committed; ++i) {
        std::array<Tail::Run, 3> run;
        ASSERT_EQ(tail.runs(sealed + i, sealed + i + 1, &run), 1u);
        fresh.tokens(0)[i] = tail.tokens(run[0].half)[run[0].first_place];
        for (std::uint32_t head = 0; head < 2; ++head) {
          std::memcpy(fresh.k_row(0, i, 0, head),
                      tail.k_row(run[0].half, run[0].first_place, 0, head), 32);
          std::memcpy(fresh.v_row(0, i, 0, head),
                      tail.v_row(run[0].half, run[0].first_place, 0, head), 32);
        }
      }
      fresh.replay(tail);
      ASSERT_EQ(fresh.length(), tail.length());
      ASSERT_EQ(fresh.visible(0), length + part);
      tail = std::move(fresh);
      expect_tokens(tail, length + part);
    }
    if (random() % 8 == 0) {
      tail.abort_piece();
      ASSERT_EQ(tail.length(), length);
      continue;
    }
    EXPECT_EQ(tail.first_incomplete_layer(), part == count ? 1u : 0u);
    tail.write(0, part, count - part, {rows.bytes.data() + part * 32, rows.rows.head_stride, 32},
               {rows.bytes.data() + part * 32, rows.rows.head_stride, 32});
    ASSERT_EQ(tail.first_incomplete_layer(), 1u);
    tail.finish_piece();
    ASSERT_EQ(tail.length(), length + count);
    expect_tokens(tail, length + count);
    const std::uint32_t active = tail.active();
    if (random() % 16 == 0 && tail.half(active).state == Tail::HalfState::kFilling &&
        tail.half(active).tokens != 0) {
      tail.cut_active();  // a short seal
      if (tail.has_older()) tail.free_half(1 - active);
      tail.free_half(active);
      ASSERT_EQ(tail.first_token(), length + count);
    }
  }
}

// Only what nobody else has seen: the daemon keeps what it was told.
TEST(Tail, MarksWhatIsItsOwn) {
  Fixture fixture;
  Tail tail(&fixture.geometry, &fixture.layout, fixture.memory(), 0, 0);
  const auto flags = [&](std::uint64_t token) {
    TokenRecord record;
    tail.copy_tokens(token, token + 1, &record);
    return record.flags;
  };
  const auto append = [&](std::uint32_t count) {
    begin(&tail, count);
    const Rows rows(static_cast<std::uint32_t>(tail.length()), count);
    tail.write(0, 0, count, rows.rows, rows.rows);
    tail.finish_piece();
  };
  append(10);
  tail.half(0).durable_tokens = 4;
  begin(&tail, 1);
  for (const std::uint64_t token : {3u, 4u, 10u, 11u, 5000u}) tail.mark(token, 0x100);
  EXPECT_EQ(flags(3), 0u) << "durable";
  EXPECT_EQ(flags(4), 0x100u);
  EXPECT_EQ(flags(10), 0x100u) << "of the piece";
  tail.mark(10, 0x200);
  EXPECT_EQ(flags(10), 0x300u);
  tail.abort_piece();
  append(1024);
  append(1024);  // the first half is full
  ASSERT_EQ(tail.half(0).state, Tail::HalfState::kFull);
  tail.mark(2000, 0x100);
  EXPECT_EQ(flags(2000), 0u) << "on its way into a segment";
  tail.mark(2050, 0x100);
  EXPECT_EQ(flags(2050), 0x100u);
  tail.free_half(0);
  tail.mark(2000, 0x100);  // not here any more
}

TEST(Tail, TruncateKeepsThePlaces) {
  Fixture fixture;
  Tail tail(&fixture.geometry, &fixture.layout, fixture.memory(), 0, 0);
  for (int i = 0; i < 3; ++i) {
    begin(&tail, 1000);
    const Rows rows(static_cast<std::uint32_t>(tail.length()), 1000);
    tail.write(0, 0, 1000, rows.rows, rows.rows);
    tail.finish_piece();
  }
  EXPECT_EQ(tail.half(0).state, Tail::HalfState::kFull);
  EXPECT_EQ(tail.half(1).tokens, 952u);
  tail.truncate(2500);
  EXPECT_EQ(tail.length(), 2500u);
  expect_tokens(tail, 2500);
  tail.free_half(0);
  EXPECT_EQ(tail.first_token(), 2048u);
  expect_tokens(tail, 2500);
  tail.restart(1000);
  EXPECT_EQ(tail.first_token(), 1000u);
  EXPECT_EQ(tail.length(), 1000u);
}

// Nothing that was sealed is kept in memory while a client decodes; while it streams, both halves
// are used again and again.
TEST(Tail, ASealedHalfIsGivenBackWhenPiecesAreSmall) {
  Fixture fixture;
  Memfd made = *make_memfd("tail", fixture.layout.size_bytes(), MemfdAccess::kSharedWrite, false);
  Tail tail(&fixture.geometry, &fixture.layout, std::move(made.mapping), 0, 0);
  const auto resident = [&made] { return memfd_resident_bytes(made.fd.get()); };
  const auto append = [&tail](std::uint32_t count) {
    begin(&tail, count);
    const Rows rows(static_cast<std::uint32_t>(tail.length()), count);
    tail.write(0, 0, count, rows.rows, rows.rows);
    tail.finish_piece();
  };
  const std::uint64_t half = fixture.layout.half_bytes;
  for (int i = 0; i < 3; ++i) append(1000);
  tail.free_half(0);
  append(64);  // it may go on like this
  EXPECT_GT(resident(), half);
  append(1);
  EXPECT_LT(resident(), half);
  EXPECT_GT(resident(), 0u);
  expect_tokens(tail, 3065);
  const std::uint64_t before = resident();
  append(1);
  EXPECT_EQ(resident(), before);
  // A small piece that needs both halves finds them.
  append(1000);
  append(4096 - 4066 - 2);
  EXPECT_EQ(tail.half(tail.active()).tokens, 2046u);
  append(5);
  expect_tokens(tail, 4099);
  tail.free_half(1);
  append(1);
  EXPECT_LT(resident(), half);
  expect_tokens(tail, 4100);
  tail.restart(10);
  EXPECT_EQ(resident(), 0u);
}

}  // namespace
}  // namespace kvtier
