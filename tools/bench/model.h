// A synthetic sequence of SmolLM2-135M's geometry, through the public C interface: what several
// benchmarks need.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "kvtier/kvtier.h"

namespace kvtier::bench {

struct Context;

inline constexpr std::uint32_t kLayers = 30, kDim = 64;

struct Shape {
  std::uint16_t kv_heads = 3, query_heads = 9;
  std::uint8_t dtype = KVT_DTYPE_F16;

  [[nodiscard]] std::uint32_t row_bytes() const noexcept {
    return kDim * (dtype == KVT_DTYPE_F32 ? 4u : 2u);
  }
  [[nodiscard]] std::uint64_t token_bytes() const noexcept {
    return 2ull * kLayers * kv_heads * row_bytes();
  }
};

struct CloseClient {
  void operator()(kvt_client* client) const { kvt_client_close(client); }
};
struct CloseSpace {
  void operator()(kvt_space* space) const { kvt_space_close(space); }
};
struct CloseSequence {
  void operator()(kvt_sequence* sequence) const { kvt_sequence_close(sequence); }
};
struct CloseView {
  void operator()(kvt_view* view) const { kvt_view_close(view); }
};
using ClientPtr = std::unique_ptr<kvt_client, CloseClient>;
using SpacePtr = std::unique_ptr<kvt_space, CloseSpace>;
using SequencePtr = std::unique_ptr<kvt_sequence, CloseSequence>;
using ViewPtr = std::unique_ptr<kvt_view, CloseView>;

// Turns a failed call into an error that says what the library said.
[[nodiscard]] Result<void> check(kvt_status status);
[[nodiscard]] Result<ClientPtr> open_client(const std::string& socket, std::uint32_t spin_us = 0);
[[nodiscard]] Result<SpacePtr> open_space(kvt_client* client, const Shape& shape,
                                          const char* preset = "quest");
[[nodiscard]] Result<SequencePtr> create_sequence(kvt_space* space, const std::string& name);
[[nodiscard]] Result<SequencePtr> open_sequence(kvt_space* space, const std::string& name,
                                                bool writable);
// `budget` 0: everything.
[[nodiscard]] Result<ViewPtr> open_view(kvt_sequence* sequence, std::uint64_t budget,
                                        const char* preset = "quest");

// Random rows of one piece, written to all layers of `sequence`, again and again until `tokens` are
// there.
class Writer {
 public:
  explicit Writer(const Shape& shape);
  [[nodiscard]] Result<void> append(kvt_sequence* sequence, std::uint64_t tokens);
  // One layer of the piece of `count` tokens that was begun.
  [[nodiscard]] Result<void> write_layer(kvt_sequence* sequence, std::uint32_t layer,
                                         std::uint32_t count);
  // A token with an id of its own.
  [[nodiscard]] kvt_token next_token(std::uint64_t position) noexcept;

 private:
  Shape shape_;
  std::vector<std::byte> rows_;  // [heads][piece][row]
  std::uint32_t next_id_ = 1;
};

// A store that holds one committed sequence named "session", and no daemon. The first call makes
// it, later ones find it.
struct SessionStore {
  std::string path;
  std::uint64_t bytes = 0;  // of K and V
};
[[nodiscard]] Result<SessionStore> session_store(const Context& context, const Shape& shape,
                                                 std::uint64_t tokens);

// An arena that kArenaSeals seals of 2,048 tokens fill: behind them its memory has been used.
inline const std::vector<std::string> kSmallArena = {"host.arena_bytes=192MiB",
                                                     "host.leased_bytes_per_client_max=64MiB"};
inline constexpr std::size_t kArenaSeals = 5;

// What `kvtier stats` shows.
[[nodiscard]] Result<Json> daemon_stats(kvt_client* client);

// Attention of one decode step over all layers; seconds.
[[nodiscard]] Result<double> attend_step(kvt_view* view, const Shape& shape);

// Times a bare two-thread ping-pong (ring.cc).
double bare_ping_pong_us(std::uint64_t rounds);

}  // namespace kvtier::bench
