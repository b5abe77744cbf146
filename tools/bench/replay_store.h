// ReplayStore: a stored sequence of a trace's geometry, and a client of it: what a trace is
// replayed against. Rows carry a stamp that says whose they are: a replay notices wrong ones.
#pragma once

#include <memory>
#include <string>

#include "client/sequence.h"
#include "tools/bench/bench.h"
#include "tools/bench/replay_trace.h"

namespace kvtier::bench {

// Token, layer and head in the first 8 bytes of a K row, as four finite numbers of 16 bits.
[[nodiscard]] std::uint64_t row_stamp(std::uint64_t token, std::uint32_t layer,
                                      std::uint32_t head) noexcept;

// Makes the store at `path`: one named sequence of the shape's tokens, sealed and closed.
[[nodiscard]] Result<void> make_replay_store(const Context& context, const std::string& path,
                                             const TraceShape& shape);

// A daemon over the store with an empty arena of so many bytes, and the sequence opened for
// reading. Daemon and client spin while they wait, as on a machine with cores to spare.
class ReplayStore {
 public:
  [[nodiscard]] static Result<ReplayStore> open(const Context& context, const std::string& path,
                                                const TraceShape& shape,
                                                std::uint64_t arena_bytes);
  ReplayStore(ReplayStore&&) = default;
  ReplayStore& operator=(ReplayStore&&) = delete;

  [[nodiscard]] Sequence& sequence() const noexcept { return *sequence_; }
  [[nodiscard]] const Geometry& geometry() const noexcept { return sequence_->space().geometry(); }
  [[nodiscard]] std::uint64_t arena_bytes() const noexcept { return arena_bytes_; }
  // An arena has no fewer.
  static constexpr std::uint64_t kArenaBytesMin = 4ull << 20;

 private:
  ReplayStore(OwnDaemon daemon, std::uint64_t arena_bytes)
      : daemon_(std::move(daemon)), arena_bytes_(arena_bytes) {}

  OwnDaemon daemon_;  // ends last
  std::uint64_t arena_bytes_;
  std::shared_ptr<Client> client_;
  std::shared_ptr<Sequence> sequence_;
};

}  // namespace kvtier::bench
