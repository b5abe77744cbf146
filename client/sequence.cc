#include "client/sequence.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "client/last_error.h"

namespace kvtier {
namespace {

// A daemon whose connection broke needs a moment to notice before it lets the same writer in again.
constexpr std::uint32_t kBusyMs = 2000;

Result<Mapping> map_tail(int fd, const TailLayout& layout) {
  struct stat info {};
  if (::fstat(fd, &info) != 0 || static_cast<std::uint64_t>(info.st_size) < layout.size_bytes())
    return error(Code::kProtocol, "the daemon's tail has another size");
  return Mapping::map(fd, layout.size_bytes(), true);
}

tl::unexpected<Status> cut_error(std::uint64_t tokens) {
  return error_with(Code::kStale,
                    "a truncate that answered an error was done, %llu tokens are stored: truncate "
                    "to that number, or close the sequence and open it again",
                    static_cast<unsigned long long>(tokens));
}

}  // namespace

Sequence::~Sequence() {
  if (closed_ || connection_ == nullptr || connection_->lost()) return;
  abandon_seals();
  // Closed without kvt_sequence_close: what is not durable is given up, the daemon's side is not
  // kept.
  static_cast<void>(
      connection_->tell(Json{{"op", "close"}, {"handle", handle_}}, Deadline::after_ms(1000)));
}

Result<std::shared_ptr<Sequence>> Sequence::open_with(std::shared_ptr<Space> space, Json request,
                                                      std::span<const std::uint32_t> ids,
                                                      bool writable, PrefixMatch* match) {
  std::shared_ptr<Sequence> sequence(new Sequence(std::move(space)));
  Client& client = sequence->space_->client();
  for (int attempt = 0;; ++attempt) {
    KVT_TRY(std::shared_ptr<Connection> connection, client.connection(Patience::kFull));
    KVT_TRY_VOID(sequence->space_->announce(connection, client.deadline()));
    request["space"] = sequence->space_->id();
    auto reply = connection->call(request, std::as_bytes(ids), writable ? 2 : 1, client.deadline());
    if (!reply && reply.error().code == Code::kDaemonLost && attempt == 0) continue;
    if (!reply) return error(reply.error());
    if (match != nullptr) {
      KVT_TRY(*match, parse_match(reply->body));
    }
    KVT_TRY_VOID(sequence->take_attach(connection, *std::move(reply), writable));
    return sequence;
  }
}

Result<std::shared_ptr<Sequence>> Sequence::create(std::shared_ptr<Space> space,
                                                   const SequenceOptions& options,
                                                   std::span<const std::uint32_t> ids,
                                                   PrefixMatch* match) {
  if (ids.size() > kSequenceTokensMax)
    return error(Code::kTooLarge, "more tokens than a sequence may have");
  Json request{{"op", "create"}, {"private", options.private_only || space->private_only()}};
  if (!options.name.empty()) request["name"] = options.name;
  PrefixMatch found;
  return open_with(std::move(space), std::move(request), ids, true,
                   match != nullptr ? match : &found);
}

Result<std::shared_ptr<Sequence>> Sequence::open(std::shared_ptr<Space> space,
                                                 const std::string& name, std::uint64_t id,
                                                 bool writable) {
  Json request{{"op", "attach"}, {"write", writable}};
  if (!name.empty()) {
    request["name"] = name;
  } else {
    request["sequence"] = id;
  }
  return open_with(std::move(space), std::move(request), {}, writable, nullptr);
}

Result<void> Sequence::take_attach(const std::shared_ptr<Connection>& connection,
                                   ControlMessage reply, bool writable) {
  KVT_TRY(const std::uint64_t id, json_uint(reply.body, "sequence", 0));
  KVT_TRY(const std::uint64_t handle, json_uint(reply.body, "handle", 0, UINT32_MAX));
  KVT_TRY(const std::uint64_t sealed,
          json_uint(reply.body, "tokens_sealed", 0, kSequenceTokensMax));
  KVT_TRY(const std::uint64_t in_tail, json_uint(reply.body, "tail_tokens", 0, kSegmentTokensMax));
  KVT_TRY(const bool is_private, json_bool(reply.body, "private", false));
  KVT_TRY(const bool tail_texts, json_bool(reply.body, "tail_texts", false));
  if (id == 0 || handle == 0) return error(Code::kProtocol, "the daemon's reply names no sequence");
  KVT_TRY(Directory directory, Directory::map(reply.fds[0].get()));
  KVT_TRY_VOID(directory.refresh());
  // A reader's directory may already show what the writer sealed since the reply was made.
  if (writable && directory.tokens() != sealed)
    return error(Code::kProtocol, "the daemon's directory and its reply differ");
  if (writable) {
    KVT_TRY(Mapping memory, map_tail(reply.fds[1].get(), space_->tail_layout()));
    Tail fresh(&space_->geometry(), &space_->tail_layout(), std::move(memory), sealed,
               static_cast<std::uint32_t>(in_tail));
    if (tail_texts && !tail_) {
      Tail::Half& stored = fresh.half(0);
      const auto fetched = fetch_texts(connection, static_cast<std::uint32_t>(handle), sealed,
                                       in_tail, &stored.texts);
      if (!fetched) {
        give_back(connection, handle);
        return fetched;
      }
      stored.texts_told = static_cast<std::uint32_t>(in_tail);
    }
    if (tail_) {
      const auto unchanged = check_unchanged(connection, handle, directory, fresh);
      if (!unchanged) {
        give_back(connection, handle);
        return unchanged;
      }
      if (sealed >= tail_->first_token()) {
        fresh.replay(*tail_);
      } else {  // as asked for
        cut_asked_ = UINT64_MAX;
      }
      KVT_LOG(kInfo, "sequence %llu: attached again, %llu tokens replayed",
              static_cast<unsigned long long>(id),
              static_cast<unsigned long long>(fresh.length() - sealed - in_tail));
    }
    fresh.half(0).any_told = fresh.half(0).any_told || tail_texts;
    tail_.emplace(std::move(fresh));
  }
  connection_ = connection;
  handle_ = static_cast<std::uint32_t>(handle);
  id_ = id;
  writable_ = writable;
  private_ = is_private;
  row_durable_ = false;
  const std::uint64_t differs_from = directory.differs_from(directory_);
  directory_ = std::move(directory);
  if (differs_from != UINT64_MAX) tell_observers(differs_from);
  return {};
}

// A handle that is not to be used: lets other writers in.
void Sequence::give_back(const std::shared_ptr<Connection>& connection,
                         std::uint64_t handle) const {
  static_cast<void>(
      connection->tell(Json{{"op", "close"}, {"handle", handle}}, space_->client().deadline()));
}

Result<void> Sequence::check_unchanged(const std::shared_ptr<Connection>& connection,
                                       std::uint64_t handle, const Directory& directory,
                                       const Tail& fresh) const {
  const std::uint64_t first = tail_->first_token(), sealed = fresh.first_token();
  if (sealed < first && sealed >= cut_asked_ && fresh.length() == sealed &&
      directory.differs_from(directory_) >= sealed)
    return truncating_ ? Result<void>() : Result<void>(cut_error(sealed));
  if (sealed < first)
    return error_with(Code::kCorrupt,
                      "the daemon came back with %llu tokens of sequence %llu, where %llu to %llu "
                      "were stored",
                      static_cast<unsigned long long>(fresh.length()),
                      static_cast<unsigned long long>(id_), static_cast<unsigned long long>(first),
                      static_cast<unsigned long long>(tail_->length()));
  const auto changed = [this](std::uint64_t token) {
    return error_with(Code::kStale,
                      "sequence %llu was changed by another writer meanwhile, from token %llu on: "
                      "open it again",
                      static_cast<unsigned long long>(id_), static_cast<unsigned long long>(token));
  };
  // Below the tail nothing is kept here: it must be in the very same segments.
  const std::uint64_t differs_from = directory.differs_from(directory_);
  if (differs_from < first) return changed(differs_from);
  if (fresh.length() > tail_->length()) return changed(tail_->length());
  // What of the tail is stored must be our tokens: sealed ones, then those of the tail log.
  std::vector<TokenRecord> stored(static_cast<std::size_t>(fresh.length() - first));
  if (sealed != first) {
    KVT_TRY(
        const ControlMessage reply,
        connection->call(
            Json{{"op", "tokens"}, {"handle", handle}, {"first", first}, {"count", sealed - first}},
            {}, 0, space_->client().deadline()));
    if (reply.payload.size() != (sealed - first) * sizeof(TokenRecord))
      return error(Code::kProtocol, "the daemon sent fewer tokens");
    std::memcpy(stored.data(), reply.payload.data(), reply.payload.size());
  }
  fresh.copy_tokens(sealed, fresh.length(), stored.data() + (sealed - first));
  std::vector<TokenRecord> ours(stored.size());
  tail_->copy_tokens(first, fresh.length(), ours.data());
  const auto other = std::mismatch(ours.begin(), ours.end(), stored.begin()).first;
  if (other != ours.end()) return changed(first + static_cast<std::uint64_t>(other - ours.begin()));
  return {};
}

Result<void> Sequence::check_open() const {
  return closed_ ? Result<void>(error(Code::kStale, "the sequence was closed")) : Result<void>();
}

Result<void> Sequence::check_writable() const {
  KVT_TRY_VOID(check_open());
  return writable_
             ? Result<void>()
             : Result<void>(error(Code::kPermission, "the sequence was opened for reading only"));
}

Result<void> Sequence::ensure(Patience patience) {
  KVT_TRY_VOID(check_open());
  if (!connection_->lost()) {
    if (space_->client().current() != nullptr) return {};
    return error(Code::kStale, "the client was closed");
  }
  KVT_TRY(std::shared_ptr<Connection> connection, space_->client().connection(patience));
  const auto attached = attach_again(connection, patience);
  if (!attached && attached.error().code == Code::kTimeout && patience == Patience::kQuick)
    return error(Code::kDaemonLost,
                 "the daemon went away and has not opened the sequence again yet: try again");
  KVT_TRY_VOID(attached);
  return submit_seals();
}

Result<void> Sequence::attach_again(const std::shared_ptr<Connection>& connection,
                                    Patience patience) {
  const Deadline busy = Deadline::after_ms(patience == Patience::kQuick ? kQuickMs : kBusyMs);
  const Deadline deadline = patience == Patience::kQuick ? busy : space_->client().deadline();
  KVT_TRY_VOID(space_->announce(connection, deadline));
  const Json request{
      {"op", "attach"}, {"space", space_->id()}, {"sequence", id_}, {"write", writable_}};
  for (;;) {
    auto reply = connection->call(request, {}, writable_ ? 2 : 1, deadline);
    if (reply) return take_attach(connection, *std::move(reply), writable_);
    if (reply.error().code != Code::kBusy || busy.passed()) return error(reply.error());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

Result<void> Sequence::refresh(Patience patience) {
  KVT_TRY_VOID(ensure(patience));
  KVT_TRY_VOID(take_finished_seals());
  KVT_TRY_VOID(refresh_directory());
  return check_whole();
}

Result<void> Sequence::check_whole() const {
  return was_cut() ? Result<void>(cut_error(directory_.tokens())) : Result<void>();
}

Result<void> Sequence::refresh_directory() {
  KVT_TRY(const bool moved, directory_.refresh());
  if (moved && directory_.differs_from() != UINT64_MAX) tell_observers(directory_.differs_from());
  return {};
}

void Sequence::tell_observers(std::uint64_t tokens) {
  for (const auto& [id, observer] : observers_) observer(tokens);
}

std::uint64_t Sequence::current_length() {
  if (!tail_ && !closed_) static_cast<void>(refresh_directory());  // what it says last counts
  return length();
}

Result<void> Sequence::check_layer(std::uint32_t layer) const {
  const Geometry& geometry = space_->geometry();
  if (layer >= geometry.layers.size())
    return error_with(Code::kInvalid, "layer %u: the space has %zu", layer, geometry.layers.size());
  if (geometry.layers[layer].kind != LayerKind::kFull)
    return error_with(Code::kInvalid, "layer %u keeps no rows: only full-attention layers do",
                      layer);
  return {};
}

std::uint64_t Sequence::add_observer(TruncateObserver observer) {
  observers_.emplace_back(++last_observer_, std::move(observer));
  return last_observer_;
}

void Sequence::remove_observer(std::uint64_t id) noexcept {
  std::erase_if(observers_, [id](const auto& entry) { return entry.first == id; });
}

// ---- fork, truncate, close ----------------------------------------------------------------------

Result<std::shared_ptr<Sequence>> Sequence::fork(std::uint64_t tokens,
                                                 const SequenceOptions& options) {
  KVT_TRY_VOID(check_open());
  if (tail_ && tail_->in_piece()) {
    KVT_TRY_VOID(finish_piece());
  }
  KVT_TRY_VOID(refresh(Patience::kFull));
  if (tokens == UINT64_MAX) tokens = length();
  if (tokens > length())
    return error_with(Code::kInvalid, "cannot fork %llu tokens of %llu",
                      static_cast<unsigned long long>(tokens),
                      static_cast<unsigned long long>(length()));
  if (tokens > tail_first()) {
    KVT_TRY_VOID(with_connection(Patience::kFull, [this] { return seal_everything(); }));
  }
  Json request{{"op", "fork"},
               {"handle", handle_},
               {"tokens", tokens},
               {"private", options.private_only || space_->private_only()},
               {"write", true}};
  if (!options.name.empty()) request["new_name"] = options.name;
  std::shared_ptr<Sequence> made(new Sequence(space_));
  request["space"] = space_->id();
  // Not tried again where the connection is lost in it: the fork may have been made.
  KVT_TRY(ControlMessage reply,
          connection_->call(std::move(request), {}, 2, space_->client().deadline()));
  KVT_TRY_VOID(made->take_attach(connection_, std::move(reply), true));
  return made;
}

Result<void> Sequence::truncate(std::uint64_t tokens) {
  KVT_TRY_VOID(check_writable());
  if (tail_->in_piece()) {
    if (tail_->first_incomplete_layer() == space_->geometry().layers.size()) {
      KVT_TRY_VOID(finish_piece());
    } else {
      tail_->abort_piece();
    }
  }
  if (tokens > length())
    return error_with(Code::kInvalid, "cannot keep %llu tokens of %llu",
                      static_cast<unsigned long long>(tokens),
                      static_cast<unsigned long long>(length()));
  // Where one answered an error, less may be stored than length() says.
  if (tokens == length() && cut_asked_ == UINT64_MAX) return {};
  truncating_ = true;
  const auto done =
      with_connection(Patience::kFull, [this, tokens] { return truncate_once(tokens); });
  truncating_ = false;
  return done;
}

Result<void> Sequence::truncate_once(std::uint64_t tokens) {
  KVT_TRY_VOID(refresh_directory());
  const std::uint64_t stored = was_cut() ? directory_.tokens() : length();
  if (tokens > stored) return cut_error(stored);
  if (was_cut()) {
    abandon_seals();  // the daemon refuses them
  } else {
    KVT_TRY_VOID(settle_all_seals());
  }
  const Tail::Half& active = tail_->half(tail_->active());
  if (tokens < tail_->first_token() || tokens - active.first_token < active.durable_tokens)
    return truncate_stored(tokens);
  tail_->truncate(tokens);
  return {};
}

Result<void> Sequence::truncate_stored(std::uint64_t tokens) {
  const bool in_tail = tokens >= tail_->first_token();
  row_durable_ = false;  // where this fails, the catalogue is in doubt until the next commit
  if (!in_tail) {
    cut_asked_ = std::min(cut_asked_, tokens);
  } else {  // also where this fails the texts may be gone
    Tail::Half& active = tail_->half(tail_->active());
    active.texts_told =
        std::min(active.texts_told, static_cast<std::uint32_t>(tokens - active.first_token));
  }
  KVT_TRY(ControlMessage reply,
          connection_->call(Json{{"op", "truncate"}, {"handle", handle_}, {"tokens", tokens}}, {},
                            0, Deadline::after_ms(kDiskMs)));
  KVT_TRY(const std::uint64_t sealed, json_uint(reply.body, "tokens_sealed", 0));
  KVT_TRY_VOID(refresh_directory());
  if (sealed != directory_.tokens() || sealed != (in_tail ? tail_->first_token() : tokens))
    return error(Code::kProtocol, "the daemon truncated to another length");
  if (in_tail) {
    tail_->truncate(tokens);
  } else {
    tail_->restart(tokens);
    cut_asked_ = UINT64_MAX;
  }
  return {};
}

Result<void> Sequence::seal_tail_for_close(Patience patience) {
  if (tail_->in_piece()) {
    if (tail_->first_incomplete_layer() == space_->geometry().layers.size()) {
      KVT_TRY_VOID(finish_piece());
    } else {
      tail_->abort_piece();
    }
  }
  if (tail_->length() == tail_->first_token()) return {};
  return with_connection(patience, [this, patience] { return seal_everything(patience); });
}

Result<void> Sequence::close(Patience patience) {
  KVT_TRY_VOID(check_open());
  Result<void> sealed;
  closing_ = true;
  const bool quick = patience == Patience::kQuick;
  if (writable_ && !private_) sealed = seal_tail_for_close(patience);
  if (!sealed && quick) {
    const Tail::Half& oldest = tail_->half(tail_->active() ^ (tail_->has_older() ? 1 : 0));
    const std::uint64_t tokens = length() - oldest.first_token - oldest.durable_tokens;
    describe_error(sealed.error());
    if (tokens != 0)  // else all are committed
      KVT_LOG(kWarn, "sequence %llu: dropped with %llu tokens that are not stored: %s",
              static_cast<unsigned long long>(id_), static_cast<unsigned long long>(tokens),
              error_text());
  }
  closed_ = true;
  observers_.clear();
  abandon_seals();
  tail_.reset();
  if (!connection_->lost()) {
    Json request{{"op", "close"}, {"handle", handle_}};
    if (compute_ns_per_token_ != 0) request["compute_ns_per_token"] = compute_ns_per_token_;
    const auto closed = connection_->tell(
        std::move(request), quick ? Deadline::after_ms(1000) : space_->client().deadline());
    // A daemon that went away has closed it, too.
    if (sealed && !closed && closed.error().code != Code::kDaemonLost) return error(closed.error());
  }
  return sealed;
}

}  // namespace kvtier
