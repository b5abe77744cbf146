#include "tiers/store_lock.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>

namespace kvtier {

void write_store_holder(int lock_fd, const std::string& socket) {
  if (::ftruncate(lock_fd, 0) != 0) return;
  ::dprintf(lock_fd, "%ld\n%s\n", static_cast<long>(::getpid()), socket.c_str());
}

StoreHolder read_store_holder(const std::string& store_path) {
  long process = 0;
  StoreHolder holder;
  std::string name;
  std::ifstream lock(store_path + "/LOCK");
  lock >> process >> std::ws;
  std::getline(lock, holder.socket);
  std::ifstream("/proc/" + std::to_string(process) + "/comm") >> name;
  if (name != "kvtierd") return {};
  holder.process = static_cast<pid_t>(process);
  return holder;
}

}  // namespace kvtier
