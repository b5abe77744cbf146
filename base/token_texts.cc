#include "base/token_texts.h"

#include <algorithm>
#include <numeric>

#include "base/limits.h"

namespace kvtier {

std::size_t TokenTexts::offset_of(std::uint32_t token) const noexcept {
  return std::accumulate(lengths_.begin(), lengths_.begin() + token, std::size_t{0});
}

void TokenTexts::resize(std::uint32_t tokens) {
  if (tokens < this->tokens()) bytes_.resize(offset_of(tokens));
  lengths_.resize(tokens);
}

Result<void> TokenTexts::append(const std::vector<std::uint16_t>& lengths, ByteSpan bytes) {
  std::size_t sum = 0;
  for (const std::uint16_t length : lengths) {
    if (length > kTokenTextBytesMax)
      return error(Code::kTooLarge, "the text of a token is above 1,024 bytes");
    sum += length;
  }
  if (sum != bytes.size())
    return error(Code::kInvalid, "the lengths of texts and their bytes do not agree");
  lengths_.insert(lengths_.end(), lengths.begin(), lengths.end());
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  return {};
}

void TokenTexts::append(const TokenTexts& from, std::uint32_t first, std::uint32_t count) {
  const std::uint32_t begin = std::min(first, from.tokens());
  const std::uint32_t end = begin + std::min(count, from.tokens() - begin);
  const auto at = [&](std::size_t offset) {
    return from.bytes_.begin() + static_cast<std::ptrdiff_t>(offset);
  };
  bytes_.insert(bytes_.end(), at(from.offset_of(begin)), at(from.offset_of(end)));
  lengths_.insert(lengths_.end(), from.lengths_.begin() + begin, from.lengths_.begin() + end);
  lengths_.resize(lengths_.size() + count - (end - begin));
}

std::vector<std::byte> TokenTexts::encode() const {
  if (empty()) return {};
  ByteWriter writer;
  writer.write_bytes(std::as_bytes(std::span(lengths_)));
  writer.write_bytes(bytes_);
  return writer.take();
}

Result<TokenTexts> TokenTexts::parse(ByteSpan encoded, std::uint32_t tokens) {
  TokenTexts texts;
  texts.resize(tokens);
  if (encoded.empty()) return texts;
  const std::size_t head = std::size_t{tokens} * sizeof(std::uint16_t);
  if (encoded.size() <= head)
    return error(Code::kCorrupt, "the texts of tokens are shorter than their lengths");
  std::vector<std::uint16_t> lengths(tokens);
  if (tokens != 0) std::memcpy(lengths.data(), encoded.data(), head);
  texts.lengths_.clear();
  if (!texts.append(lengths, encoded.subspan(head)))
    return error(Code::kCorrupt, "the texts of tokens and their lengths do not agree");
  return texts;
}

}  // namespace kvtier
