#include "client/process.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

namespace kvtier {
namespace {

// The stamp lies in a page that a child finds zeroed (MADV_WIPEONFORK) and fills anew; `last` is
// copied by the fork, so that the child's next number is new. Where the kernel does not know that
// advice, the stamp is the pid.
class Stamp {
 public:
  Stamp() noexcept {
    void* memory =
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return;
    if (::madvise(memory, 4096, MADV_WIPEONFORK) != 0) {
      ::munmap(memory, 4096);
      return;
    }
    page_ = new (memory) std::atomic<std::uint64_t>(0);
  }
  std::uint64_t read() noexcept {
    if (page_ == nullptr) return static_cast<std::uint64_t>(::getpid());
    std::uint64_t stamp = page_->load(std::memory_order_relaxed);
    if (stamp != 0) return stamp;
    const std::uint64_t fresh = last_.fetch_add(1, std::memory_order_relaxed) + 1;
    return page_->compare_exchange_strong(stamp, fresh, std::memory_order_relaxed) ? fresh : stamp;
  }

 private:
  std::atomic<std::uint64_t>* page_ = nullptr;
  std::atomic<std::uint64_t> last_{0};
};

}  // namespace

std::uint64_t process_stamp() noexcept {
  static Stamp stamp;
  return stamp.read();
}

}  // namespace kvtier
