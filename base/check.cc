#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace kvtier {

void check_failed(const char* condition, const char* file, int line) noexcept {
  std::fprintf(stderr, "kvtier: check failed: %s at %s:%d. This is a bug; please report it.\n",
               condition, file, line);
  std::abort();
}

}  // namespace kvtier
