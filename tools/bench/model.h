// A synthetic sequence of SmolLM2-135M's geometry, through the public C interface: what several
// benchmarks need.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "kvtier/kvtier.h"

namespace kvtier::bench {

inline constexpr std::uint32_t kLayers = 30, kKvHeads = 3, kQueryHeads = 9, kDim = 64;

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
[[nodiscard]] Result<ClientPtr> open_client(const std::string& socket);
[[nodiscard]] Result<SpacePtr> open_space(kvt_client* client, std::uint8_t dtype);
[[nodiscard]] Result<SequencePtr> create_sequence(kvt_space* space, const char* name);

// Random rows of one piece, written to all layers of `sequence`, again and again until `tokens` are
// there.
class Writer {
 public:
  explicit Writer(std::uint8_t dtype);
  [[nodiscard]] Result<void> append(kvt_sequence* sequence, std::uint64_t tokens);
  [[nodiscard]] std::uint64_t token_bytes() const noexcept {
    return 2ull * kLayers * kKvHeads * row_bytes_;
  }

 private:
  std::uint32_t row_bytes_;
  std::vector<std::byte> rows_;  // [heads][piece][row]
  std::uint32_t next_id_ = 1;
};

// Times a bare two-thread ping-pong (ring.cc).
double bare_ping_pong_us(std::uint64_t rounds);

}  // namespace kvtier::bench
