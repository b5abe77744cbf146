// KVT_CHECK: a condition that only a bug of ours can break; on in release. Never for bytes that
// others wrote. KVT_DCHECK: the same in hot loops; off with NDEBUG.
#pragma once

namespace kvtier {
[[noreturn]] void check_failed(const char* condition, const char* file, int line) noexcept;
}

#define KVT_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::kvtier::check_failed(#condition, __FILE__, __LINE__))

#ifdef NDEBUG
#define KVT_DCHECK(condition) static_cast<void>(0)
#else
#define KVT_DCHECK(condition) KVT_CHECK(condition)
#endif
