#include "base/fault.h"

#include <signal.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "base/log.h"

namespace kvtier {
namespace internal {
std::atomic<bool> faults_armed{false};
}

namespace {

struct Fault {
  std::string name;
  bool kill = false;
  std::uint64_t visit_at = 1;
  std::uint64_t visits = 0;
};

std::mutex mutex;
std::vector<Fault> faults;  // guarded by mutex
std::atomic<std::uint64_t> visits_all{0};

bool parse_fault(std::string_view text, Fault* fault) {
  const std::size_t equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0) return false;
  fault->name = std::string(text.substr(0, equals));
  std::string_view action = text.substr(equals + 1);
  const std::size_t at = action.find('@');
  if (at != std::string_view::npos) {
    const std::string_view digits = action.substr(at + 1);
    const auto parsed =
        std::from_chars(digits.data(), digits.data() + digits.size(), fault->visit_at);
    if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size() ||
        fault->visit_at == 0)
      return false;
    action = action.substr(0, at);
  }
  fault->kill = action == "kill";
  return fault->kill || action == "fail";
}

}  // namespace

bool internal::visit_fault(const char* name) noexcept {
  visits_all.fetch_add(1, std::memory_order_relaxed);
  const std::lock_guard lock(mutex);
  bool fail = false;
  for (Fault& fault : faults) {
    if (fault.name != "*" && fault.name != name) continue;
    if (++fault.visits != fault.visit_at) continue;
    if (fault.kill) ::kill(::getpid(), SIGKILL);
    fail = true;
  }
  if (fail) KVT_LOG(kWarn, "fault point %s fails, as it was asked to", name);
  return fail;
}

Result<void> arm_faults(std::string_view text) {
  std::vector<Fault> parsed;
  while (!text.empty()) {
    const std::size_t comma = text.find(',');
    Fault fault;
    if (!parse_fault(text.substr(0, comma), &fault))
      return error(Code::kInvalid, "a fault is NAME=kill or NAME=fail, with @N for the N-th visit");
    parsed.push_back(std::move(fault));
    if (comma == std::string_view::npos) break;
    text.remove_prefix(comma + 1);
  }
  const std::lock_guard lock(mutex);
  faults = std::move(parsed);
  visits_all = 0;
  internal::faults_armed = !faults.empty();
  return {};
}

void arm_faults_from_environment() {
  const char* text = std::getenv("KVTIER_FAULTS");
  if (text == nullptr || *text == '\0') return;
  if (!arm_faults(text)) KVT_LOG(kError, "KVTIER_FAULTS: cannot read '%s'", text);
}

std::uint64_t fault_visits() noexcept { return visits_all.load(); }

}  // namespace kvtier
