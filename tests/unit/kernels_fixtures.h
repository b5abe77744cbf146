// What the tests of kernels share: guarded outputs, random rows, pages laid out like a slot cache
// or like chunks.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "base/random.h"
#include "kernels/float16.h"
#include "kernels/kernel_table.h"

namespace kvtier::testing {

// `count` elements for a kernel to write, between canaries, at an address that is aligned to an
// element and no more.
template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t count)
      : count_(count), bytes_(kBand + count * sizeof(T) + kBand, kCanary) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kBand); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + kBand); }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  void fill(const std::vector<T>& values) { std::copy(values.begin(), values.end(), data()); }
  bool intact() const {
    for (std::size_t i = 0; i < kBand; ++i)
      if (bytes_[i] != kCanary || bytes_[bytes_.size() - 1 - i] != kCanary) return false;
    return true;
  }
  // Bytes [first, first + n) still hold the canary: nothing was written there.
  bool untouched(std::size_t first, std::size_t n) const {
    for (std::size_t i = 0; i < n; ++i)
      if (bytes_[kBand + first + i] != kCanary) return false;
    return true;
  }
  bool same_bits(const Guarded& other) const { return bytes_ == other.bytes_; }

 private:
  // Off a vector's alignment, but fit for elements of up to four bytes in raw memory.
  static constexpr std::size_t kBand = 128 + std::max<std::size_t>(alignof(T), 4);
  static constexpr std::uint8_t kCanary = 0xA5;
  std::size_t count_;
  std::vector<std::uint8_t> bytes_;
};

inline float random_float(Random* random) { return static_cast<float>(random->unit() * 4.0 - 2.0); }

// One that numerics trip over, now and then.
inline float awkward_float(Random* random) {
  switch (random->below(16)) {
    case 0:
      return 0.0f;
    case 1:
      return -0.0f;
    case 2:
      return 5.0e-8f;  // f16 subnormal
    case 3:
      return -3.0e-6f;
    case 4:
      return 65519.0f;  // the last that rounds to a finite f16
    case 5:
      return -65504.0f;
    case 6:
      return 1.0f + 0x1.0p-11f;  // half way between two f16
    default:
      return random_float(random) * static_cast<float>(1 << random->below(12));
  }
}

inline std::vector<float> random_floats(Random* random, std::size_t count) {
  std::vector<float> values(count);
  for (float& value : values) value = random_float(random);
  return values;
}

// Rows of `tokens` tokens in pages of `page_tokens`, pages in shuffled order, K rows of a page
// before its V rows. Memory is exactly as long as needed and off a vector's alignment.
struct PagedRows {
  PagedRows(Random* random, Dtype dtype, std::size_t tokens, std::size_t page_tokens,
            std::uint32_t dim, std::uint32_t v_dim, float (*draw)(Random*) = random_float) {
    const std::size_t element = dtype_bytes(dtype);
    const std::size_t page_bytes = page_tokens * (dim + v_dim) * element;
    const std::size_t count = (tokens + page_tokens - 1) / page_tokens;
    memory.resize(element + count * page_bytes);
    for (std::size_t i = 0; i < count; ++i) pages.push_back(i * page_bytes);
    for (std::size_t i = count; i > 1; --i) std::swap(pages[i - 1], pages[random->below(i)]);
    for (std::size_t i = 0; i < (memory.size() - element) / element; ++i)
      store_element(memory.data() + element, dtype, i, draw(random));
    rows.base = memory.data() + element;
    rows.pages = pages.data();
    rows.page_tokens = page_tokens;
    rows.k_stride = dim * element;
    rows.v_offset = page_tokens * dim * element;
    rows.v_stride = v_dim * element;
    rows.dtype = dtype;
  }
  double k(std::uint64_t token, std::uint32_t d) const {
    return element(token, rows.k_stride, 0, d);
  }
  double v(std::uint64_t token, std::uint32_t d) const {
    return element(token, rows.v_stride, rows.v_offset, d);
  }

  std::vector<std::byte> memory;
  std::vector<std::uint64_t> pages;
  RowPages rows;

 private:
  double element(std::uint64_t token, std::uint64_t stride, std::uint64_t offset,
                 std::uint32_t d) const {
    const std::byte* page = rows.base + pages[token / rows.page_tokens];
    return static_cast<double>(
        load_element(page + offset + token % rows.page_tokens * stride, rows.dtype, d));
  }
};

inline constexpr Dtype kDtypes[] = {Dtype::kF32, Dtype::kF16, Dtype::kBf16};

}  // namespace kvtier::testing
