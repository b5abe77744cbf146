#include "client/space.h"

#include "client/last_error.h"

namespace kvtier {
Result<PrefixMatch> parse_match(const Json& body) {
  PrefixMatch match;
  KVT_TRY(match.tokens, json_uint(body, "tokens", 0, kSequenceTokensMax));
  KVT_TRY(const std::uint64_t stored, json_uint(body, "stored_token", UINT32_MAX, UINT32_MAX));
  match.stored_token = static_cast<std::uint32_t>(stored);
  KVT_TRY(const std::string reason, json_string(body, "reason", "nothing"));
  match.reason = reason == "all"       ? 0
                 : reason == "differs" ? 1
                 : reason == "end"     ? 2
                 : reason == "slower"  ? 4
                                       : 3;
  return match;
}

Result<std::shared_ptr<Space>> Space::open(std::shared_ptr<Client> client, SpaceOptions options) {
  KVT_TRY_VOID(options.fingerprint.geometry.validate());
  KVT_TRY_VOID(options.abstract.validate());
  if (options.rope_pairing > 2 || options.rope_frequencies.size() > kHeadDimMax)
    return error(Code::kInvalid, "rope_pairing is 0, 1 or 2, with a frequency per pair");
  std::shared_ptr<Space> space(new Space(std::move(client), std::move(options)));
  for (int attempt = 0;; ++attempt) {
    KVT_TRY(std::shared_ptr<Connection> connection, space->client_->connection(Patience::kFull));
    const auto announced = space->announce(connection, space->client_->deadline());
    if (announced) return space;
    // Nobody may have looked at the connection since the daemon went away.
    if (announced.error().code != Code::kDaemonLost || attempt == 1)
      return error(announced.error());
  }
}

Result<void> Space::announce(const std::shared_ptr<Connection>& connection,
                             const Deadline& deadline) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (announced_.lock() == connection) return {};
  const Fingerprint& print = options_.fingerprint;
  Json request{{"op", "space"},
               {"model", print.model},
               {"runtime", print.runtime},
               {"detail", print.detail},
               {"private", options_.private_only},
               {"abstract", options_.abstract.text()},
               {"rope_pairing", options_.rope_pairing},
               {"rope_frequencies", options_.rope_frequencies.size()}};
  ByteWriter payload;
  encode_geometry(print.geometry, &payload);
  payload.write_bytes(std::as_bytes(std::span<const float>(options_.rope_frequencies)));
  KVT_TRY(ControlMessage reply, connection->call(std::move(request), payload.view(), 0, deadline));
  KVT_TRY(const std::uint64_t id, json_uint(reply.body, "space", 0));
  if (id == 0) return error(Code::kProtocol, "the daemon's reply names no space");
  if (id_ != 0 && id != id_)
    return error(Code::kProtocol, "the daemon calls the same space by another number");
  id_ = id;
  announced_ = connection;
  return {};
}

Result<PrefixMatch> Space::match(std::span<const std::uint32_t> ids) {
  if (ids.size() > kSequenceTokensMax)
    return error_with(Code::kTooLarge, "%zu tokens: a sequence has at most %llu", ids.size(),
                      static_cast<unsigned long long>(kSequenceTokensMax));
  for (int attempt = 0;; ++attempt) {
    KVT_TRY(std::shared_ptr<Connection> connection, client_->connection(Patience::kFull));
    KVT_TRY_VOID(announce(connection, client_->deadline()));
    auto reply = connection->call(Json{{"op", "match"}, {"space", id_}}, std::as_bytes(ids), 0,
                                  client_->deadline());
    if (reply) return parse_match(reply->body);
    if (reply.error().code != Code::kDaemonLost || attempt == 1) return error(reply.error());
  }
}

}  // namespace kvtier
