// Copies between private memory and memory that another process may write at the same moment.
//
// Every access is an atomic of 8 bytes (single bytes at the ragged end, or where the address is not
// aligned), so that a compiler can neither tear a word nor read it twice, and ThreadSanitizer sees
// no race. What was copied may still be a mixture of several writes: validate the private copy, use
// only that. No fence is needed for a seqlock: a reader copies with kAcquire between its two reads
// of the version, a writer with kRelease between its two stores. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kvtier {

enum class SharedOrder : int {
  kRelaxed = __ATOMIC_RELAXED,
  kAcquire = __ATOMIC_ACQUIRE,
  kRelease = __ATOMIC_RELEASE
};

namespace internal {
using SharedWord = std::uint64_t __attribute__((may_alias));
inline bool word_aligned(const void* address) noexcept {
  return reinterpret_cast<std::uintptr_t>(address) % sizeof(SharedWord) == 0;
}
}  // namespace internal

// Reads `bytes` of `shared` to `target`. kOrder: kRelaxed or kAcquire.
template <SharedOrder kOrder = SharedOrder::kRelaxed>
inline void copy_from_shared(void* target, const void* shared, std::size_t bytes) noexcept {
  auto* out = static_cast<unsigned char*>(target);
  const auto* in = static_cast<const unsigned char*>(shared);
  if (internal::word_aligned(in)) {
    for (; bytes >= sizeof(internal::SharedWord); bytes -= sizeof(internal::SharedWord)) {
      const std::uint64_t word = __atomic_load_n(reinterpret_cast<const internal::SharedWord*>(in),
                                                 static_cast<int>(kOrder));
      std::memcpy(out, &word, sizeof(word));
      in += sizeof(word);
      out += sizeof(word);
    }
  }
  for (; bytes > 0; --bytes) *out++ = __atomic_load_n(in++, static_cast<int>(kOrder));
}

// Writes `bytes` of `source` to `shared`. kOrder: kRelaxed or kRelease.
template <SharedOrder kOrder = SharedOrder::kRelaxed>
inline void copy_to_shared(void* shared, const void* source, std::size_t bytes) noexcept {
  auto* out = static_cast<unsigned char*>(shared);
  const auto* in = static_cast<const unsigned char*>(source);
  if (internal::word_aligned(out)) {
    for (; bytes >= sizeof(internal::SharedWord); bytes -= sizeof(internal::SharedWord)) {
      std::uint64_t word;
      std::memcpy(&word, in, sizeof(word));
      __atomic_store_n(reinterpret_cast<internal::SharedWord*>(out), word,
                       static_cast<int>(kOrder));
      in += sizeof(word);
      out += sizeof(word);
    }
  }
  for (; bytes > 0; --bytes) __atomic_store_n(out++, *in++, static_cast<int>(kOrder));
}

}  // namespace kvtier
