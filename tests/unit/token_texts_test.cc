#include "base/token_texts.h"

#include <gtest/gtest.h>

#include <string>

#include "base/limits.h"
#include "base/random.h"

namespace kvtier {
namespace {

TokenTexts texts_of(const std::vector<std::string>& words) {
  TokenTexts texts;
  for (const std::string& word : words)
    EXPECT_TRUE(texts.append({static_cast<std::uint16_t>(word.size())}, as_bytes(word)));
  return texts;
}
std::vector<std::string> words_of(const TokenTexts& texts) {
  std::vector<std::string> words;
  std::size_t at = 0;
  for (const std::uint16_t length : texts.lengths()) {
    words.emplace_back(reinterpret_cast<const char*>(texts.bytes().data()) + at, length);
    at += length;
  }
  return words;
}

TEST(TokenTexts, AreWhatAListOfStringsIs) {
  Random random(5);
  for (int round = 0; round < 200; ++round) {
    TokenTexts texts;
    std::vector<std::string> words;
    for (int step = 0; step < 20; ++step) {
      const auto n = static_cast<std::uint32_t>(random.below(6));
      if (random.one_in(3)) {
        texts.resize(n * 3);
        words.resize(n * 3);
      } else {
        std::vector<std::string> more;
        for (std::uint32_t i = 0; i < n; ++i)
          more.emplace_back(random.below(5), static_cast<char>('a' + random.below(26)));
        const auto first = static_cast<std::uint32_t>(random.below(8));
        const auto count = static_cast<std::uint32_t>(random.below(8));
        texts.append(texts_of(more), first, count);
        for (std::uint32_t i = first; i < first + count; ++i)
          words.push_back(i < more.size() ? more[i] : "");
      }
      ASSERT_EQ(words_of(texts), words);
      ASSERT_EQ(texts.tokens(), words.size());
      const std::vector<std::byte> encoded = texts.encode();
      ASSERT_EQ(encoded.size(), texts.encoded_bytes());
      const Result<TokenTexts> parsed = TokenTexts::parse(encoded, texts.tokens());
      ASSERT_TRUE(parsed);
      ASSERT_EQ(*parsed, texts);
    }
  }
}

TEST(TokenTexts, WhatCannotBeIsRefused) {
  TokenTexts texts = texts_of({"ab", "", "cde"});
  const TokenTexts before = texts;
  const std::string large(kTokenTextBytesMax + 1, 'x');
  EXPECT_EQ(texts.append({kTokenTextBytesMax + 1}, as_bytes(large)).error().code, Code::kTooLarge);
  EXPECT_EQ(texts.append({1, 2}, as_bytes("abcd")).error().code, Code::kInvalid);
  EXPECT_EQ(texts, before);
  const std::vector<std::byte> encoded = texts.encode();
  ASSERT_EQ(encoded.size(), 3 * 2 + 5u);
  for (std::size_t size = 1; size < encoded.size(); ++size)
    EXPECT_EQ(TokenTexts::parse(ByteSpan(encoded).first(size), 3).error().code, Code::kCorrupt);
  for (const std::uint32_t tokens : {0u, 1u, 2u, 4u, 1000u})
    EXPECT_EQ(TokenTexts::parse(encoded, tokens).error().code, Code::kCorrupt) << tokens;
  EXPECT_EQ(TokenTexts::parse({}, 7)->tokens(), 7u);
  EXPECT_TRUE(texts_of({"", ""}).encode().empty());
}

}  // namespace
}  // namespace kvtier
