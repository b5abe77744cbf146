/* The C interface in one program: stores the KV of some tokens under a name, finds it again by its
 * tokens, reads rows back, forks, and says why a match ends where it does.
 *
 *   session NAME
 *
 * A second run needs another NAME, and finds what the first has stored; `kvtier rm NAME` frees one.
 */
#include <kvtier/kvtier.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kLayers = 2, kHeads = 2, kDim = 16, kTokens = 300 };

static void check(kvt_status status, const char* what) {
  if (status == KVT_OK) return;
  fprintf(stderr, "%s: %s: %s\n", what, kvt_strerror(status), kvt_last_error());
  exit(1);
}

/* What a forward pass would leave: [head][token][dim]. */
static void make_rows(float* rows, uint32_t layer, uint32_t count) {
  for (uint32_t i = 0; i < kHeads * count * kDim; ++i)
    rows[i] = (float)((i * 37 + layer * 11) % 512) / 256.0f;
}

static void prefill(kvt_sequence* sequence, const uint32_t* ids, uint32_t count) {
  static kvt_token tokens[kTokens];
  static float k[kHeads * kTokens * kDim], v[kHeads * kTokens * kDim];
  const uint64_t row = kDim * sizeof(float);
  const kvt_rows k_rows = {k, count * row, row}, v_rows = {v, count * row, row};
  memset(tokens, 0, sizeof tokens);
  for (uint32_t i = 0; i < count; ++i) {
    tokens[i].id = ids[i];
    tokens[i].position = i;
  }
  check(kvt_sequence_append(sequence, tokens, count), "append");
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    make_rows(k, layer, count);
    make_rows(v, layer + 100, count);
    check(kvt_sequence_write(sequence, layer, 0, count, &k_rows, &v_rows), "write");
  }
  check(kvt_sequence_commit(sequence), "commit"); /* survives kill -9 and power loss from here on */
}

int main(int argc, char** argv) {
  kvt_client* client = NULL;
  kvt_space* space = NULL;
  kvt_sequence *sequence = NULL, *fork = NULL;
  kvt_layer layers[kLayers];
  kvt_space_options options;
  kvt_sequence_options named;
  kvt_match match;
  uint32_t ids[kTokens];
  if (argc != 2) {
    fprintf(stderr, "usage: %s NAME\n", argv[0]);
    return 2;
  }
  for (uint32_t i = 0; i < kTokens; ++i) ids[i] = 1000 + i;

  check(kvt_client_open(NULL, &client), "open"); /* starts kvtierd if nobody listens */
  memset(layers, 0, sizeof layers);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    layers[layer].dtype = KVT_DTYPE_F32;
    layers[layer].kv_heads = layers[layer].query_heads = kHeads;
    layers[layer].k_row_bytes = layers[layer].v_row_bytes = kDim * sizeof(float);
  }
  kvt_space_options_init(&options);
  options.model = "session-example";
  options.runtime = "session-example/1";
  options.layers = layers;
  options.layer_count = kLayers;
  check(kvt_space_open(client, &options, &space), "space");

  kvt_sequence_options_init(&named);
  named.name = argv[1];
  check(kvt_sequence_create(space, &named, ids, kTokens - 1, &match, &sequence), "create");
  printf("%llu tokens were stored\n", (unsigned long long)match.tokens);
  if (match.tokens == 0) prefill(sequence, ids, kTokens);
  check(kvt_sequence_close(sequence), "close"); /* seals: other sequences can share it now */

  ids[200] = 7;
  check(kvt_space_match(space, ids, kTokens, &match), "match");
  printf("match ends at token %llu: asked for %u, stored is %u\n",
         (unsigned long long)match.differs_at, ids[match.differs_at], match.stored_token);

  check(kvt_sequence_open(space, argv[1], 0, 0, &sequence), "open");
  {
    float k[kHeads * kDim], v[kHeads * kDim];
    check(kvt_sequence_read(sequence, 1, 17, 1, k, v), "read");
    printf("K of layer 1, token 17 begins with %.4f\n", k[0]);
  }
  kvt_sequence_options_init(&named);
  check(kvt_sequence_fork(sequence, 100, &named, &fork), "fork");
  printf("fork: %llu tokens, nothing copied\n", (unsigned long long)kvt_sequence_length(fork));
  kvt_sequence_close(fork);
  kvt_sequence_close(sequence);
  kvt_space_close(space);
  kvt_client_close(client);
  return 0;
}
