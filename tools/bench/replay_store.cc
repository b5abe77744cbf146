#include "tools/bench/replay_store.h"

#include <algorithm>
#include <cstring>

#include "base/random.h"

namespace kvtier::bench {
namespace {

constexpr const char* kName = "replay";
constexpr std::uint32_t kSpinUs = 1000;

Result<std::shared_ptr<Client>> connect(const OwnDaemon& daemon) {
  ClientOptions options;
  options.socket_path = daemon.socket();
  options.name = "kvtier-bench";
  options.autostart = false;
  options.timeout_ms = 60'000;
  options.spin_us = kSpinUs;
  return Client::open(options);
}

Result<std::shared_ptr<Space>> open_space(std::shared_ptr<Client> client, const TraceShape& shape) {
  LayerGeometry layer;
  layer.dtype = Dtype::kF16;
  layer.kv_heads = layer.query_heads = static_cast<std::uint16_t>(shape.kv_heads);
  layer.k_row_bytes = layer.v_row_bytes = shape.row_bytes / 2;
  SpaceOptions options;
  options.fingerprint.model = "synthetic, of a trace's shape";
  options.fingerprint.runtime = "kvtier-bench";
  options.fingerprint.geometry.layers.assign(shape.layers, layer);
  return Space::open(std::move(client), std::move(options));
}

// Pieces of the same random rows, stamped anew for each layer.
class Filler {
 public:
  Filler(const TraceShape& shape, Sequence* sequence) : shape_(shape), sequence_(*sequence) {
    rows_.resize(std::size_t{shape.kv_heads} * kPieceTokensMax * row_bytes());
    Random random(5);
    auto* values = reinterpret_cast<std::uint16_t*>(rows_.data());
    for (std::size_t i = 0; i < rows_.size() / 2; ++i)
      values[i] = static_cast<std::uint16_t>(0x2C00 + (random.next() & 0x8FFF));
  }

  Result<void> append(std::uint32_t count) {
    const std::uint64_t first = sequence_.length();
    std::vector<TokenRecord> tokens(count);
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto token = static_cast<std::uint32_t>(first + i);
      tokens[i] = {token * 2654435761u % 49152, token, 0, 0};
    }
    KVT_TRY_VOID(sequence_.append(tokens));
    const StridedRows rows = {rows_.data(), std::uint64_t{kPieceTokensMax} * row_bytes(),
                              row_bytes()};
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
      stamp(first, count, layer);
      KVT_TRY_VOID(sequence_.write(layer, 0, count, rows, rows));
    }
    return sequence_.finish_piece();
  }

 private:
  [[nodiscard]] std::uint32_t row_bytes() const noexcept { return shape_.row_bytes / 2; }
  void stamp(std::uint64_t first, std::uint32_t count, std::uint32_t layer) {
    for (std::uint32_t head = 0; head < shape_.kv_heads; ++head) {
      for (std::uint32_t i = 0; i < count; ++i) {
        const std::uint64_t mark = row_stamp(first + i, layer, head);
        const std::size_t row = std::size_t{head} * kPieceTokensMax + i;
        std::memcpy(rows_.data() + row * row_bytes(), &mark, sizeof mark);
      }
    }
  }

  const TraceShape& shape_;
  Sequence& sequence_;
  std::vector<std::byte> rows_;
};

}  // namespace

std::uint64_t row_stamp(std::uint64_t token, std::uint32_t layer, std::uint32_t head) noexcept {
  // Ten bits each, below the exponent of 1: 24 of the token, 8 of layer and head.
  const std::uint64_t parts[4] = {token, token >> 10, (token >> 20 & 3) << 8 | layer,
                                  (token >> 22 & 3) << 8 | head};
  std::uint64_t mark = 0;
  for (int i = 0; i < 4; ++i) mark |= (0x3C00 | (parts[i] & 0x3FF)) << (16 * i);
  return mark;
}

Result<void> make_replay_store(const Context& context, const std::string& path,
                               const TraceShape& shape) {
  KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, path, {"host.arena_bytes=768MiB"}));
  KVT_TRY(const std::shared_ptr<Client> client, connect(daemon));
  KVT_TRY(std::shared_ptr<Space> space, open_space(client, shape));
  SequenceOptions options;
  options.name = kName;
  KVT_TRY(const std::shared_ptr<Sequence> sequence,
          Sequence::create(std::move(space), options, {}, nullptr));
  Filler filler(shape, sequence.get());
  for (std::uint32_t done = 0; done < shape.tokens;) {
    const std::uint32_t count = std::min(kPieceTokensMax, shape.tokens - done);
    KVT_TRY_VOID(filler.append(count));
    done += count;
  }
  return sequence->close();
}

Result<ReplayStore> ReplayStore::open(const Context& context, const std::string& path,
                                      const TraceShape& shape, std::uint64_t arena_bytes) {
  arena_bytes = std::max(arena_bytes, kArenaBytesMin);
  const std::uint64_t leased_bytes = std::min<std::uint64_t>(512ull << 20, arena_bytes / 2);
  KVT_TRY(OwnDaemon daemon,
          OwnDaemon::start(context, path,
                           {"host.arena_bytes=" + std::to_string(arena_bytes),
                            "host.leased_bytes_per_client_max=" + std::to_string(leased_bytes),
                            "daemon.spin_us=" + std::to_string(kSpinUs)}));
  ReplayStore store(std::move(daemon), arena_bytes);
  KVT_TRY(store.client_, connect(store.daemon_));
  KVT_TRY(std::shared_ptr<Space> space, open_space(store.client_, shape));
  KVT_TRY(store.sequence_, Sequence::open(std::move(space), kName, 0, false));
  if (store.sequence_->length() != shape.tokens)
    return error(Code::kInternal, "the replay's sequence is not as long as its trace");
  return store;
}

}  // namespace kvtier::bench
