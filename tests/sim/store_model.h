// ModelSequence: what a sequence of the simulated store must be, and what else it may be.
//
// Acknowledged is what must be found after a crash. What was asked for and not acknowledged adds
// its outcome to those that may be found instead: a crash, or an error, leaves one of them. Tokens
// and row (name, pin, expiry) are acknowledged apart: a row that is written says what was sealed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/sim_client.h"

namespace kvtier::sim {

using Ids = std::vector<std::uint32_t>;

[[nodiscard]] bool is_prefix(const Ids& a, const Ids& b);
[[nodiscard]] Ids first_of(Ids ids, std::uint64_t tokens);

// What its row says of a sequence beside its tokens.
struct Traits {
  std::string name;
  bool pinned = false;
  std::uint64_t expires_unix_s = 0;  // 0: never

  [[nodiscard]] bool expired(std::uint64_t now_unix_s) const {
    return expires_unix_s != 0 && expires_unix_s <= now_unix_s && !pinned;
  }
  friend bool operator==(const Traits&, const Traits&) = default;
};

struct ModelSequence {
  Traits traits;
  std::vector<Traits> maybe_traits;   // an unacknowledged change may have left these
  std::unique_ptr<SimSequence> open;  // the writer's
  Ids ids;                            // what the writer has, sealed and tail
  bool acknowledged = false;          // it must exist
  Ids durable;                        // its content, where acknowledged
  std::vector<std::optional<Ids>> maybe;
  bool damaged = false;  // stored bytes of it were: what lies behind them may be gone

  [[nodiscard]] const std::string& name() const { return traits.name; }

  // All that the writer has is durable.
  void acknowledge();
  // Its row is durable and says `row`. The sequence is open.
  void acknowledge_row(const Traits& row);
  // What is found now stays: after a crash, or after a repair.
  void found(Ids content);
  // A truncation is durable, or may be.
  void cut(std::uint64_t tokens);
  void maybe_cut(std::uint64_t tokens);
  // The writer's handle is gone: what was not acknowledged is not expected any more.
  void close();

  // Expired sequences go when nobody has them open.
  [[nodiscard]] bool may_be_absent(std::uint64_t now_unix_s) const;
  [[nodiscard]] bool must_be_absent(std::uint64_t now_unix_s) const;
  [[nodiscard]] bool may_hold(const Ids& content) const;
  [[nodiscard]] bool may_have(const Traits& row) const;
  [[nodiscard]] std::string describe(const Ids& content) const;
};

}  // namespace kvtier::sim
