// TOML as a flat list: keys with their tables, kinds, lines, and problems that name a line.
#include "base/toml.h"

#include <gtest/gtest.h>

namespace kvtier {
namespace {

std::vector<TomlEntry> entries_of(std::string_view text) {
  std::string problem;
  auto parsed = parse_toml(text, &problem);
  EXPECT_TRUE(parsed) << problem;
  return parsed ? *parsed : std::vector<TomlEntry>();
}

TEST(Toml, EntriesComeInTheOrderOfTheLines) {
  const auto entries = entries_of("z = 1\na = \"text\"\n[table]\nx = 0.5\n[table.in]\ny = true\n");
  ASSERT_EQ(entries.size(), 4u);
  EXPECT_EQ(entries[0].key, "z");
  EXPECT_EQ(std::get<std::int64_t>(entries[0].value), 1);
  EXPECT_EQ(std::get<std::string>(entries[1].value), "text");
  EXPECT_EQ(entries[2].key, "table.x");
  EXPECT_EQ(std::get<double>(entries[2].value), 0.5);
  EXPECT_EQ(entries[3].key, "table.in.y");
  EXPECT_EQ(std::get<bool>(entries[3].value), true);
  EXPECT_EQ(entries[3].line, 6u);
}

TEST(Toml, WhatNobodyTakesHasNoValue) {
  const auto entries =
      entries_of("list = [1, 0.5]\nday = 2026-01-01\n\"a.b\" = 1\nlists = [[1], [2]]\n");
  ASSERT_EQ(entries.size(), 4u);
  for (const std::size_t i : {0, 1, 3})
    EXPECT_TRUE(std::holds_alternative<std::monostate>(entries[i].value)) << i;
  EXPECT_EQ(entries[2].key, "\"a.b\"") << "not the b of a table a";
}

TEST(Toml, WholeNumbersMayBeAList) {
  using Numbers = std::vector<std::int64_t>;
  const auto entries = entries_of("list = [1,\n -2]\nnone = []\n");
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(std::get<Numbers>(entries[0].value), (Numbers{1, -2}));
  EXPECT_EQ(entries[0].line, 1u);
  EXPECT_EQ(std::get<Numbers>(entries[1].value), Numbers());
}

TEST(Toml, DeepTablesAreNotFollowed) {
  std::string text = "a";
  for (int i = 0; i < 200; ++i) text += ".a";
  const auto entries = entries_of(text + " = 1\n");
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<std::monostate>(entries[0].value));
}

TEST(Toml, ProblemsNameTheirLine) {
  std::string problem;
  EXPECT_EQ(parse_toml("a = 1\nb = \n", &problem).error().code, Code::kInvalid);
  EXPECT_NE(problem.find("line 2"), std::string::npos) << problem;
  EXPECT_EQ(parse_toml("a = 1\na = 2\n", &problem).error().code, Code::kInvalid) << "twice";
  EXPECT_EQ(parse_toml("# fine: \xc3\xa9\n\xc3\xa9 = 2\n", &problem).error().code, Code::kInvalid);
  EXPECT_NE(problem.find("line 2"), std::string::npos) << problem;
}

}  // namespace
}  // namespace kvtier
