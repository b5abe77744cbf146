// TokenTexts: the texts of a run of tokens: a length of each, and all their bytes one after the
// other. Together they are UTF-8; a single token may end inside a character. A token without text
// has length 0. The byte form (segment, tail log, export file, control requests): u16 lengths, then
// the bytes; no bytes at all where no token has text. No thread of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace kvtier {

class TokenTexts {
 public:
  [[nodiscard]] std::uint32_t tokens() const noexcept {
    return static_cast<std::uint32_t>(lengths_.size());
  }
  [[nodiscard]] const std::vector<std::uint16_t>& lengths() const noexcept { return lengths_; }
  [[nodiscard]] ByteSpan bytes() const noexcept { return bytes_; }
  // No token has text.
  [[nodiscard]] bool empty() const noexcept { return bytes_.empty(); }

  // Keeps the first `tokens`, or goes on to them with tokens that have no text.
  void resize(std::uint32_t tokens);
  // kTooLarge for a text above kTokenTextBytesMax, kInvalid where the lengths are not those of the
  // bytes; nothing is appended then.
  [[nodiscard]] Result<void> append(const std::vector<std::uint16_t>& lengths, ByteSpan bytes);
  // Tokens [first, first + count) of `from`; what it lacks has no text.
  void append(const TokenTexts& from, std::uint32_t first, std::uint32_t count);

  [[nodiscard]] std::uint64_t encoded_bytes() const noexcept {
    return empty() ? 0 : lengths_.size() * sizeof(std::uint16_t) + bytes_.size();
  }
  [[nodiscard]] std::vector<std::byte> encode() const;
  // kCorrupt for what encode() of `tokens` tokens cannot have made.
  [[nodiscard]] static Result<TokenTexts> parse(ByteSpan encoded, std::uint32_t tokens);

  friend bool operator==(const TokenTexts&, const TokenTexts&) = default;

 private:
  [[nodiscard]] std::size_t offset_of(std::uint32_t token) const noexcept;

  std::vector<std::uint16_t> lengths_;
  std::vector<std::byte> bytes_;
};

}  // namespace kvtier
