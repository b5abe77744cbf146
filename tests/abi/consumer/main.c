#include <kvtier/kvtier.h>
#include <stdio.h>
#include <string.h>

int main(void) {
  kvt_client_options options;
  kvt_client* client = NULL;
  kvt_client_options_init(&options);
  options.autostart = 0;
  options.socket_path = "/nonexistent/kvtierd.sock";
  if (kvt_abi_version() != KVT_ABI_VERSION) return 1;
  if (kvt_client_open(&options, &client) == KVT_OK || client != NULL) return 2;
  if (strlen(kvt_last_error()) == 0) return 3;
  printf("kvtier %s: %s\n", kvt_version(), kvt_last_error());
  return 0;
}
