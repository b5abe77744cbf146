/* kvtier.h: the C interface of the kvtier client library. C99 and C++. Since 0.1 unless a line says
 * otherwise.
 *
 * kvtier keeps the KV cache of language models in a local daemon: host memory and NVMe, shared by
 * every runtime of the user. A client opens a *space* (one model + runtime + KV layout), in it a
 * *sequence* (an append-only stream of tokens with their K and V), appends tokens layer by layer,
 * and reads it through *views*: exact, or a budget of rows chosen per step.
 *
 * Every function returns kvt_status: 0, or a positive code of this header. Handles are opaque;
 * destroying null does nothing. A client handle may be used from several threads; a sequence and
 * its views from one at a time. After fork() a child gets KVT_ERROR_FORK. Nothing here installs
 * signal handlers, calls back, or lets the caller free our memory.
 */
#ifndef KVTIER_KVTIER_H_
#define KVTIER_KVTIER_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVT_API __attribute__((visibility("default")))
#define KVT_ABI_VERSION 1

typedef int32_t kvt_status;
/* Numbers are those of base/status.h and never change. */
#define KVT_OK 0
#define KVT_ERROR_MISS 1
#define KVT_ERROR_FULL 2
#define KVT_ERROR_TIMEOUT 3
#define KVT_ERROR_CANCELLED 4
#define KVT_ERROR_BUSY 5
#define KVT_ERROR_NO_SPACE 6
#define KVT_ERROR_INVALID 20
#define KVT_ERROR_NOT_FOUND 21
#define KVT_ERROR_EXISTS 22
#define KVT_ERROR_TOO_LARGE 23
#define KVT_ERROR_WRONG_SPACE 24
#define KVT_ERROR_NOT_FINITE 25
#define KVT_ERROR_PERMISSION 26
#define KVT_ERROR_UNSUPPORTED 27
#define KVT_ERROR_STALE 28
#define KVT_ERROR_CORRUPT 40
#define KVT_ERROR_VERSION 41
#define KVT_ERROR_PROTOCOL 42
#define KVT_ERROR_IO 60
#define KVT_ERROR_READ_ONLY 61
#define KVT_ERROR_DAEMON_LOST 62
#define KVT_ERROR_FORK 63
#define KVT_ERROR_INTERNAL 80

#define KVT_DTYPE_F32 0
#define KVT_DTYPE_F16 1
#define KVT_DTYPE_BF16 2
#define KVT_DTYPE_OPAQUE 3

typedef struct kvt_client kvt_client;
typedef struct kvt_space kvt_space;
typedef struct kvt_sequence kvt_sequence;
typedef struct kvt_view kvt_view;

KVT_API uint32_t kvt_abi_version(void);
/* The library's version, "0.1.0". Static. */
KVT_API const char* kvt_version(void);
/* The meaning of a status. Static; never null. */
KVT_API const char* kvt_strerror(kvt_status status);
/* What the last failed call of this thread has to say beyond its code ("layer 3, token 17: NaN").
 * Valid until the next call of the thread; never null. */
KVT_API const char* kvt_last_error(void);

/* ---- client ---------------------------------------------------------------------------------- */

typedef struct kvt_client_options {
  uint32_t struct_size;
  uint32_t autostart;      /* 1: start kvtierd if nobody listens (default) */
  const char* socket_path; /* null: $KVTIER_SOCKET, else $XDG_RUNTIME_DIR/kvtier/kvtierd.sock, else
                              under /tmp */
  const char*
      daemon_path;     /* null: $KVTIER_DAEMON, else beside the library, else `kvtierd` of PATH */
  const char* name;    /* shown by `kvtier status`; null: the program's name */
  uint32_t timeout_ms; /* of connecting and of control requests; default 10000 */
  uint32_t spin_us;    /* spin this long for an answer before sleeping, 1000 at most; 0: chosen by
                          the number of cores (daemon.spin_us is the daemon's side of it) */
} kvt_client_options;
KVT_API void kvt_client_options_init(kvt_client_options* options);

/* Connects, and starts the daemon where wanted. Blocks up to timeout_ms. */
KVT_API kvt_status kvt_client_open(const kvt_client_options* options, kvt_client** out);
KVT_API void kvt_client_close(kvt_client* client);
/* Sends one admin request (docs/protocol.md) and gives the reply's JSON. `*out_json` is freed with
 * kvt_free. Long ones (verify, repair, export, import, warm, gc, rm) have no timeout, and hold up
 * no other thread. */
KVT_API kvt_status kvt_client_request(kvt_client* client, const char* json, char** out_json);
KVT_API void kvt_free(void* memory);

/* ---- space ----------------------------------------------------------------------------------- */

typedef struct kvt_layer {
  uint8_t kind; /* 0 full attention; 1 sliding window, 2 recurrent: KVT_ERROR_UNSUPPORTED, until
                   snapshots of such layers can be stored */
  uint8_t rope; /* keys: 0 after RoPE, 1 before, 2 none */
  uint8_t v_transposed;
  uint8_t dtype; /* KVT_DTYPE_* */
  uint16_t kv_heads;
  uint16_t query_heads;
  uint32_t k_row_bytes; /* one token of one head */
  uint32_t v_row_bytes;
} kvt_layer;

typedef struct kvt_space_options {
  uint32_t struct_size;
  uint16_t chunk_tokens;        /* default 32 */
  uint16_t heads_per_chunk;     /* 1 (default), or 0: all heads of a layer */
  uint16_t positions_per_token; /* default 1 */
  uint16_t reserved;
  uint32_t private_only; /* 1: nothing that this client makes in it is ever written to disk */
  const char* model;     /* identity of weights and tokenizer */
  const char* runtime;
  const char* detail; /* what else makes KV different; null: "" */
  const kvt_layer* layers;
  uint32_t layer_count;
  uint32_t rope_pairing;   /* dimensions that turn together: 0 not known, 1 i and i + n, 2 2i and
                              2i + 1. With the next three, codebooks of key codes hold at all
                              positions, whatever text they were calibrated on, and keys can be
                              factorised (preset shadow) */
  uint32_t rope_positions; /* most positions that the model is used at */
  uint32_t rope_frequency_count; /* n: pairs that turn */
  const float* rope_frequencies; /* radians per position, [n]; copied */
  const char* preset; /* whose abstracts are built as tokens are sealed, where the space is new;
                         null: those of the default preset. "full" and "window" need none. As in
                         kvt_view_options */
} kvt_space_options;
KVT_API void kvt_space_options_init(kvt_space_options* options);

/* Opens a space; makes it if new. KVT_ERROR_INVALID or KVT_ERROR_TOO_LARGE for a geometry that
 * cannot be. */
KVT_API kvt_status kvt_space_open(kvt_client* client, const kvt_space_options* options,
                                  kvt_space** out);
KVT_API void kvt_space_close(kvt_space* space);

/* ---- sequence -------------------------------------------------------------------------------- */

typedef struct kvt_token {
  uint32_t id;
  uint32_t position;
  uint32_t flags; /* bits 0-7 boundary class: 0 none, 1 clause, 2 sentence, 3 paragraph; bit 8: the
                     model wrote it, bit 9: a segment of what it wrote begins with it (views of
                     partition "segments" set both); the others are 0 */
  uint32_t span;  /* the client's own mark, 0 none */
} kvt_token;

typedef struct kvt_match {
  uint64_t tokens;       /* length of the longest stored prefix */
  uint64_t differs_at;   /* first token that differs or is not stored; = tokens */
  uint32_t stored_token; /* what is stored there, or UINT32_MAX: nothing */
  uint32_t reason;       /* 0 all matched, 1 token differs, 2 nothing stored beyond, 3 nothing
                            stored at all, 4 stored, but slower to load than to compute */
} kvt_match;

typedef struct kvt_sequence_options {
  uint32_t struct_size;
  uint32_t private_only; /* 1: never written to disk */
  const char* name;      /* null: nameless */
} kvt_sequence_options;
KVT_API void kvt_sequence_options_init(kvt_sequence_options* options);

/* The longest stored prefix of `count` token ids in this space. */
KVT_API kvt_status kvt_space_match(kvt_space* space, const uint32_t* ids, uint64_t count,
                                   kvt_match* out);
/* A new sequence that shares the longest stored prefix of at most `count` ids (0: empty). `match`
 * may be null. Positions are 0, 1, 2, ... Append goes on after the matched tokens.
 * KVT_ERROR_EXISTS: the name is taken; by this call itself where the daemon died within it. */
KVT_API kvt_status kvt_sequence_create(kvt_space* space, const kvt_sequence_options* options,
                                       const uint32_t* ids, uint64_t count, kvt_match* match,
                                       kvt_sequence** out);
/* An existing one by name (or by id where name is null). `writable` 0: reads only, any number at
 * once; 1: exclusive, KVT_ERROR_BUSY while any other handle writes, one of this client's, too: the
 * error's text names its process. KVT_ERROR_WRONG_SPACE if it belongs to another space. */
KVT_API kvt_status kvt_sequence_open(kvt_space* space, const char* name, uint64_t id,
                                     int32_t writable, kvt_sequence** out);
/* A new sequence with the first `tokens` tokens of this one (UINT64_MAX: all), sharing what is
 * stored. */
KVT_API kvt_status kvt_sequence_fork(kvt_sequence* sequence, uint64_t tokens,
                                     const kvt_sequence_options* options, kvt_sequence** out);
/* Seals what is in the tail (not for private or read-only ones: dropped unless sealed) and closes.
 */
KVT_API kvt_status kvt_sequence_close(kvt_sequence* sequence);
/* As kvt_sequence_close where the daemon runs. Where it does not, none is started or waited for:
 * KVT_ERROR_DAEMON_LOST, and the log says how many tokens were given up. For destructors. */
KVT_API kvt_status kvt_sequence_drop(kvt_sequence* sequence);

KVT_API uint64_t kvt_sequence_id(const kvt_sequence* sequence);
/* Tokens appended (and complete in all layers). */
KVT_API uint64_t kvt_sequence_length(const kvt_sequence* sequence);
/* Copies token records [first, first + count) to `out`. Blocks on the daemon for what is not in the
 * tail. */
KVT_API kvt_status kvt_sequence_tokens(kvt_sequence* sequence, uint64_t first, uint64_t count,
                                       kvt_token* out);

/* Begins a piece of 1 to 1024 new tokens; the piece before must be complete in all layers. May
 * block while the tail is full and the daemon seals (back-pressure). */
KVT_API kvt_status kvt_sequence_append(kvt_sequence* sequence, const kvt_token* tokens,
                                       uint32_t count);
/* The same with a text of each token: text_bytes[i] bytes each (0: none; at most 1,024), all of
 * them one after the other in `texts`. Together they are UTF-8; a token may end inside a character.
 * They are stored with the tokens, on their way through commit, seal, export and compaction;
 * whoever shares the tokens as a prefix shares them. */
KVT_API kvt_status kvt_sequence_append_with_texts(kvt_sequence* sequence, const kvt_token* tokens,
                                                  uint32_t count, const uint16_t* text_bytes,
                                                  const char* texts);
/* Texts of tokens [first, first + count): the bytes of each to out_bytes[count], all texts one
 * after the other to `out_texts`, and their sum to `out_total`. KVT_ERROR_TOO_LARGE where `room` is
 * less: then out_bytes and out_total are right, and nothing else was written. Tokens that were
 * given none have 0 bytes. Blocks on the daemon for what is not in the tail. */
KVT_API kvt_status kvt_sequence_texts(kvt_sequence* sequence, uint64_t first, uint64_t count,
                                      uint16_t* out_bytes, char* out_texts, uint64_t room,
                                      uint64_t* out_total);
/* Writes K and V of layer `layer` for tokens [first, first + count) of the piece. Element strides
 * are in bytes: head_stride between KV heads, token_stride between tokens; a row is contiguous. NaN
 * or infinity is refused (KVT_ERROR_NOT_FINITE) and nothing of the call is kept. */
typedef struct kvt_rows {
  const void* data;
  uint64_t head_stride;
  uint64_t token_stride;
} kvt_rows;
KVT_API kvt_status kvt_sequence_write(kvt_sequence* sequence, uint32_t layer, uint32_t first,
                                      uint32_t count, const kvt_rows* k, const kvt_rows* v);
/* Ends the piece where all full layers are written; called by append, commit and close by
 * themselves. */
KVT_API kvt_status kvt_sequence_finish_piece(kvt_sequence* sequence);
/* Gives up the piece that was begun. */
KVT_API kvt_status kvt_sequence_abort_piece(kvt_sequence* sequence);
/* Returns when every token so far survives kill -9 and power loss. */
KVT_API kvt_status kvt_sequence_commit(kvt_sequence* sequence);
/* Keeps the first `tokens` tokens. Waits for the disk where they are stored. After an error it may
 * have been done all the same: then everything else is KVT_ERROR_STALE until it is called again, or
 * the sequence is closed and opened. */
KVT_API kvt_status kvt_sequence_truncate(kvt_sequence* sequence, uint64_t tokens);
/* Exact rows of tokens [first, first + count), the piece in progress included where that layer is
 * written, to k[head][token][row] and v[head][token][row], contiguous. A chunk that fails its
 * checksum is KVT_ERROR_MISS. */
KVT_API kvt_status kvt_sequence_read(kvt_sequence* sequence, uint32_t layer, uint64_t first,
                                     uint64_t count, void* k, void* v);

/* Query vectors of the newest `queries` tokens, q: [queries][query_heads][dim] f32, contiguous.
 * Which directions of keys matter is learned from a few of them, for codebooks of key codes.
 * kvt_view_attend does so by itself; runtimes that attend to prompts by their own means call this
 * once per layer and piece. Copies what it keeps; never fails. */
KVT_API void kvt_sequence_observe_queries(kvt_sequence* sequence, uint32_t layer, uint32_t queries,
                                          const float* q);

/* ---- view ------------------------------------------------------------------------------------ */

/* A view's budget: that of the profile that kvtier-quality --tune made for the model. */
#define KVT_BUDGET_PROFILE UINT64_MAX

typedef struct kvt_view_options {
  uint32_t struct_size;
  uint32_t sinks; /* first tokens, always attended; default 16 */
  uint32_t
      window; /* newest sealed tokens, always attended; default 64. The tail is always attended */
  uint32_t wait_ms;  /* how long a step waits where most abstracts must be loaded or built first;
                        default 10000. What is missing then is fetched first until it comes */
  uint64_t budget;   /* rows per KV head and layer beside sinks, window, tail; 0: everything, exact;
                        KVT_BUDGET_PROFILE: what the model's profile says, KVT_ERROR_NOT_FOUND where
                        it has none. A preset's layer_percent changes it by layer */
  uint64_t capacity; /* rows that the slot cache holds per KV head and layer; 0: the preset's
                        residency (2 x budget; progressive: 1 x). Never less than budget, sinks and
                        window together */
  const char* preset; /* null: that of the model's profile (docs/retrieval.md), else the default. A
                         built-in of docs/retrieval.md or one of the user: a
                         name, or a path to a TOML file. KVT_ERROR_NOT_FOUND with all names, or
                         KVT_ERROR_INVALID with what fits, in kvt_last_error */
} kvt_view_options;
KVT_API void kvt_view_options_init(kvt_view_options* options);

typedef struct kvt_view_stats {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t steps;          /* attend calls */
  uint64_t selections;     /* new choices, one per KV head; of several queries, per block of them */
  uint64_t rows_attended;  /* over all KV heads */
  uint64_t rows_fetched;   /* copied into the slot cache */
  uint64_t chunks_fetched; /* entries of fetch requests */
  uint64_t bytes_host;     /* rows copied from the host tier */
  uint64_t bytes_disk;     /* read from disk on behalf of this view */
  uint64_t wait_ns;        /* waited for the daemon */
  uint64_t client_bytes;   /* private memory of this view: slot cache, tables, buffers */
  uint64_t abstract_bytes; /* mapped abstracts that it scores */
  uint64_t units_scored;   /* over all selections, and steps at which trigger "mass" reuses one */
  uint64_t units_missing;  /* beside them, without an abstract: wanted */
  uint64_t rows_selected;  /* beside sinks and window */
  double mass_sum; /* over selections: estimated share of the attention mass beside sinks and window
                      that the chosen rows hold */
  /* With a precision (presets such as progressive): */
  uint64_t rows_base;      /* attended from their base rendition */
  uint64_t rows_refined;   /* had more of the mass than the preset lets a base row have: fetched */
  uint64_t steps_refined;  /* that waited for such rows */
  uint64_t base_bytes;     /* mapped base renditions, or low-rank keys */
  double base_mass_sum;    /* over steps: share of the attention mass that base renditions gave */
  double base_error_sum;   /* over refined rows: how far their logits in the base were off */
  uint64_t steps_repeated; /* done again: renditions were moved while they were read */
  uint64_t steps_waited;   /* of all: rows had to come from the daemon first */
  uint64_t rows_waited;    /* of rows_fetched, those rows */
  /* Where the abstract bounds its keys (box, ball) and a step chose by its own queries: how much of
   * the attention mass it can have missed, whatever the text. docs/retrieval.md */
  uint64_t bound_steps;  /* steps with such a bound */
  double bound_sum;      /* over them: its mean over the query heads, 0 to 1 */
  double bound_max;      /* the largest of any step and query head */
  uint64_t rows_rebuilt; /* of rows_fetched: only values came, keys are from a low-rank copy */
  uint64_t rows_hinted;  /* runners-up that the daemon was told of (runners_up_percent) */
  double bound_last;     /* the largest of any query head at the newest of bound_steps */
} kvt_view_stats;

/* The presets that views take, as JSON, freed with kvt_free: {"presets": [{"name", "from", parts}],
 * "broken": [{"name", "from", "error"}], "directory", "profiles": [{"from", "model", "preset",
 * "budget"} or {"from", "error"}]}; "from" is "built-in" or the user's file.
 * `preset` null: all of them; else this one, with "toml", its file's text, or the error of
 * kvt_view_open; "broken" then has the user's file where this is a built-in one of its name. No
 * daemon is needed. */
KVT_API kvt_status kvt_presets(const char* preset, char** out_json);

KVT_API kvt_status kvt_view_open(kvt_sequence* sequence, const kvt_view_options* options,
                                 kvt_view** out);
KVT_API void kvt_view_close(kvt_view* view);
/* Attention of `queries` consecutive newest tokens over the sequence, each causal (the last query
 * sees everything, the one before it one token less). q: [queries][query_heads][dim] f32,
 * contiguous; out the same; lse: [queries] [query_heads] f32 or null. One query: as the view's
 * preset and budget say. Several: exact, but with a preset whose query is "block" as preset and
 * budget say, a choice for each 64 of them. KVT_ERROR_DAEMON_LOST within 200 ms where a missing row
 * cannot be had. */
KVT_API kvt_status kvt_view_attend(kvt_view* view, uint32_t layer, uint32_t queries, const float* q,
                                   float scale, float* out, float* lse);
/* What queries of `layer` will probably be at the next kvt_view_attend with one query, q:
 * [query_heads][dim] f32: rows that they would choose come while the caller goes on, so that the
 * step waits for few. A guess, from the input of the layer before through this layer's norm and
 * query projection, is good enough: the choice does not depend on it. Of use with presets whose
 * fetch is "ahead" (codes-lookahead, progressive-lookahead), for which kvt_view_looks_ahead is 1;
 * else nothing is done. Never waits. */
KVT_API kvt_status kvt_view_look_ahead(kvt_view* view, uint32_t layer, const float* q, float scale);
KVT_API int kvt_view_looks_ahead(const kvt_view* view);
/* The kernels that this view runs, "simd" or "scalar": the best ones of the machine, unless the
 * environment variable KVTIER_KERNELS names others (kvt_view_open refuses what it cannot run).
 * Static. */
KVT_API const char* kvt_view_kernels(const kvt_view* view);
/* The preset that this view took, "# NAME" and its parts, as a TOML file that views take has them.
 * Valid until the view is closed. */
KVT_API const char* kvt_view_preset(const kvt_view* view);
KVT_API kvt_status kvt_view_get_stats(const kvt_view* view, kvt_view_stats* out);

/* ---- opaque keys: for store plug-ins
 * --------------------------------------------------------------------------- */

typedef struct kvt_object {
  const void* key;
  uint32_t key_bytes; /* 1 to 1024 */
  uint32_t reserved;
  void* value;          /* caller's, untouched until the batch is polled; set: read, get: written */
  uint64_t value_bytes; /* set: length; get: room */
} kvt_object;
typedef struct kvt_object_result {
  uint64_t batch; /* as returned by submit */
  uint32_t index; /* in the batch */
  kvt_status status;
  uint64_t value_bytes; /* get: length */
} kvt_object_result;
#define KVT_OBJECT_SET 0
#define KVT_OBJECT_GET 1
#define KVT_OBJECT_EXISTS 2
#define KVT_OBJECT_DELETE 3
/* Queues a batch of up to 256 and returns its number; the objects array is copied, values are not.
 */
KVT_API kvt_status kvt_objects_submit(kvt_client* client, int32_t verb, const kvt_object* objects,
                                      uint32_t count, uint64_t* out_batch);
/* Readable while results wait to be polled. Borrowed; never close it. */
KVT_API int kvt_objects_event_fd(kvt_client* client);
/* Up to `room` results, waiting at most timeout_ms (0: none) for the first. */
KVT_API kvt_status kvt_objects_poll(kvt_client* client, kvt_object_result* out, uint32_t room,
                                    uint32_t timeout_ms, uint32_t* out_count);

#ifdef __cplusplus
}
#endif
#endif /* KVTIER_KVTIER_H_ */
