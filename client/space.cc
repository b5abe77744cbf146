#include "client/space.h"

#include "client/last_error.h"

namespace kvtier {
namespace {

Result<AbstractKind> parse_abstract_kind(const std::string& name) {
  for (const AbstractKind kind : {AbstractKind::kNone, AbstractKind::kBox, AbstractKind::kMean}) {
    if (name == abstract_kind_name(kind)) return kind;
  }
  return error_with(Code::kProtocol, "the daemon's space has abstracts of an unknown kind: %s",
                    name.c_str());
}

}  // namespace

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
  if (options.unit_tokens == 0 || options.unit_tokens > kSegmentTokensMax)
    return error_with(Code::kInvalid, "unit_tokens is %u: give 1 to %u", options.unit_tokens,
                      kSegmentTokensMax);
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
               {"abstract_kind", abstract_kind_name(options_.abstract_kind)},
               {"unit_tokens", options_.unit_tokens}};
  ByteWriter geometry;
  encode_geometry(print.geometry, &geometry);
  KVT_TRY(ControlMessage reply, connection->call(std::move(request), geometry.view(), 0, deadline));
  KVT_TRY(const std::uint64_t id, json_uint(reply.body, "space", 0));
  KVT_TRY(const std::string kind, json_string(reply.body, "abstract_kind", ""));
  KVT_TRY(options_.abstract_kind, parse_abstract_kind(kind));
  KVT_TRY(const std::uint64_t unit_tokens,
          json_uint(reply.body, "unit_tokens", options_.unit_tokens, kSegmentTokensMax));
  if (id == 0 || unit_tokens == 0)
    return error(Code::kProtocol, "the daemon's reply names no space");
  if (id_ != 0 && id != id_)
    return error(Code::kProtocol, "the daemon calls the same space by another number");
  id_ = id;
  options_.unit_tokens = static_cast<std::uint16_t>(unit_tokens);
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
