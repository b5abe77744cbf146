// Where the socket is, by the environment.
#include "client/ipc/paths.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

namespace kvtier {
namespace {

TEST(Paths, FirstThatIsSet) {
  ::setenv("KVTIER_SOCKET", "/run/x/a.sock", 1);
  ::setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  EXPECT_EQ(default_socket_path(), "/run/x/a.sock");
  ::setenv("KVTIER_SOCKET", "", 1);
  EXPECT_EQ(default_socket_path(), "/run/user/7/kvtier/kvtierd.sock");
  ::setenv("XDG_RUNTIME_DIR", "relative", 1);
  const std::string fallback = "/tmp/kvtier-" + std::to_string(::geteuid()) + "/kvtierd.sock";
  EXPECT_EQ(default_socket_path(), fallback);
  ::unsetenv("KVTIER_SOCKET");
  ::unsetenv("XDG_RUNTIME_DIR");
  EXPECT_EQ(default_socket_path(), fallback);
}

TEST(Paths, TheLogLiesBesideTheSocket) {
  EXPECT_EQ(daemon_log_path("/run/x/a.sock"), "/run/x/kvtierd.log");
}

}  // namespace
}  // namespace kvtier
