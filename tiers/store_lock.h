// What LOCK in a store's directory says: who holds it, in one line its process and in the next its
// socket, empty where systemd has that. Held by flock; the text is for messages alone.
#pragma once

#include <sys/types.h>

#include <string>

namespace kvtier {

struct StoreHolder {
  pid_t process = 0;  // 0: not a kvtierd that runs
  std::string socket;
};

// Best effort: a full disk may have refused it.
void write_store_holder(int lock_fd, const std::string& socket);
[[nodiscard]] StoreHolder read_store_holder(const std::string& store_path);

}  // namespace kvtier
