// Space: one model + runtime + KV layout, as the client knows it. Opens itself again on a new
// connection. Any thread; constant but for which connection has heard of it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/retrieval/query_sample.h"
#include "kernels/abstract_spec.h"
#include "kernels/layout.h"

namespace kvtier {

struct SpaceOptions {
  Fingerprint fingerprint;
  // Built as tokens are sealed, where the space is new. Views want others later.
  AbstractSpec abstract;
  // How the runtime rotates keys and queries: only for abstracts, so no part of the fingerprint.
  // Pairing 0: not known; 1: dimensions i and i + n; 2: 2 i and 2 i + 1.
  std::uint32_t rope_pairing = 0;
  std::uint32_t rope_positions = 0;  // keys will be used at positions below this
  std::vector<float> rope_frequencies;
  bool private_only = false;
};

struct PrefixMatch {
  std::uint64_t tokens = 0;
  std::uint32_t stored_token = UINT32_MAX;
  std::uint32_t reason = 3;  // as kvt_match
};
// Fields of a reply to match and create.
[[nodiscard]] Result<PrefixMatch> parse_match(const Json& body);

class Space {
 public:
  [[nodiscard]] static Result<std::shared_ptr<Space>> open(std::shared_ptr<Client> client,
                                                           SpaceOptions options);

  [[nodiscard]] Client& client() const noexcept { return *client_; }
  [[nodiscard]] const Geometry& geometry() const noexcept { return options_.fingerprint.geometry; }
  [[nodiscard]] const TailLayout& tail_layout() const noexcept { return tail_layout_; }
  [[nodiscard]] const SpaceOptions& options() const noexcept { return options_; }
  [[nodiscard]] QuerySample& queries() noexcept { return queries_; }
  [[nodiscard]] bool private_only() const noexcept { return options_.private_only; }
  // The space's number, the same on every connection.
  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }

  // Tells the connection of the space, where it was not told yet.
  [[nodiscard]] Result<void> announce(const std::shared_ptr<Connection>& connection,
                                      const Deadline& deadline);
  [[nodiscard]] Result<PrefixMatch> match(std::span<const std::uint32_t> ids);

 private:
  Space(std::shared_ptr<Client> client, SpaceOptions options)
      : client_(std::move(client)),
        options_(std::move(options)),
        tail_layout_(options_.fingerprint.geometry),
        queries_(options_.fingerprint.geometry) {}

  const std::shared_ptr<Client> client_;
  SpaceOptions options_;  // constant after open
  const TailLayout tail_layout_;
  QuerySample queries_;
  std::uint64_t id_ = 0;  // constant after open
  std::mutex mutex_;
  std::weak_ptr<Connection> announced_;  // guarded by mutex_
};

}  // namespace kvtier
