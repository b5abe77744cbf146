// make_store SOCKET NAME TOKENS [SEED [MODE]]: stores a sequence of known rows and commits it. MODE
// "private": a private one, which it holds for five seconds instead. MODE "held": it is committed
// and held open until the standard input ends. MODE "read": all of it is sealed, and a view with a
// budget attends to it, again and again with the key of token 700 as query. MODE "codes": the same,
// and the view chooses by key codes, so that there is a codebook. For the tests of the command
// line.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/support/known_rows.h"

namespace {

using namespace kvtier::testing;

kvt_status read_known(kvt_sequence* sequence, std::uint64_t seed, const char* preset) {
  constexpr std::uint64_t kToken = 700;
  constexpr int kSteps = 20;
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.preset = preset;
  options.budget = 48;
  kvt_view* view = nullptr;
  kvt_status status = kvt_view_open(sequence, &options, &view);
  for (int step = 0; status == KVT_OK && step < kSteps; ++step)
    for (std::uint32_t layer = 0; status == KVT_OK && layer < kKnownLayers; ++layer) {
      std::vector<float> q(kKnownHeads * 2 * kKnownDim), out(q.size());
      for (std::uint32_t i = 0; i < q.size(); ++i)
        q[i] = 100.0f * known_value(seed, layer, i / kKnownDim / 2, kToken, i % kKnownDim, false);
      status = kvt_view_attend(view, layer, 1, q.data(), 1.0f, out.data(), nullptr);
    }
  kvt_view_close(view);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  kvt_client* client = nullptr;
  kvt_space* space = nullptr;
  kvt_sequence* sequence = nullptr;
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = argv[2];
  const std::string mode = argc > 5 ? argv[5] : "";
  const bool is_private = mode == "private";
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
  if (status == KVT_OK && mode == "held")
    while (std::getchar() != EOF) continue;
  if (status == KVT_OK && (mode == "read" || mode == "codes")) {
    kvt_sequence_close(sequence);  // seals it
    sequence = nullptr;
    status = kvt_sequence_open(space, argv[2], 0, 0, &sequence);
    if (status == KVT_OK) status = read_known(sequence, seed, mode == "read" ? "quest" : "codes");
  }
  if (status != KVT_OK)
    std::fprintf(stderr, "make_store: %s: %s\n", kvt_strerror(status), kvt_last_error());
  kvt_sequence_close(sequence);
  kvt_space_close(space);
  kvt_client_close(client);
  return status == KVT_OK ? 0 : 1;
}
