// make_store SOCKET NAME TOKENS [SEED [private]]: stores a sequence of known rows and commits it; a
// private one it holds for five seconds instead. For the tests of the command line.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "tests/support/known_rows.h"

int main(int argc, char** argv) {
  using namespace kvtier::testing;
  if (argc < 4) return 2;
  kvt_client* client = nullptr;
  kvt_space* space = nullptr;
  kvt_sequence* sequence = nullptr;
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = argv[2];
  const bool is_private = argc > 5;
  options.private_only = is_private ? 1 : 0;
  const std::uint64_t seed = argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 1;
  kvt_status status = open_known_client(argv[1], &client);
  if (status == KVT_OK) status = open_known_space(client, &space);
  if (status == KVT_OK)
    status = kvt_sequence_create(space, &options, nullptr, 0, nullptr, &sequence);
  for (std::uint64_t left = std::strtoull(argv[3], nullptr, 10); status == KVT_OK && left > 0;) {
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(left, 1000));
    status = append_known(sequence, seed, count);
    left -= count;
  }
  if (status == KVT_OK && !is_private) status = kvt_sequence_commit(sequence);
  if (status == KVT_OK && is_private) ::sleep(5);
  if (status != KVT_OK)
    std::fprintf(stderr, "make_store: %s: %s\n", kvt_strerror(status), kvt_last_error());
  kvt_sequence_close(sequence);
  kvt_space_close(space);
  kvt_client_close(client);
  return status == KVT_OK ? 0 : 1;
}
