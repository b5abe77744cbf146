// Sequence: an open sequence on the client's side: its tail, its directory, and its life over
// several connections.
//
// Appending and writing touch only the tail; sealing goes on behind, and is waited for only when
// both halves are in use. When the connection is lost, the next call attaches again by id and
// copies into the new tail what the daemon does not have (docs/protocol.md, section 3). What lies
// below tail_first() is read from the daemon, the rest from the tail. One thread at a time, with
// its views.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/chunk_stream.h"
#include "client/directory.h"
#include "client/last_error.h"
#include "client/space.h"
#include "client/tail.h"

namespace kvtier {

struct SequenceOptions {
  std::string name;
  bool private_only = false;
};

class Sequence {
 public:
  // A new one that shares the longest stored prefix of `ids`.
  [[nodiscard]] static Result<std::shared_ptr<Sequence>> create(std::shared_ptr<Space> space,
                                                                const SequenceOptions& options,
                                                                std::span<const std::uint32_t> ids,
                                                                PrefixMatch* match);
  // An existing one, by name, or by id where the name is empty.
  [[nodiscard]] static Result<std::shared_ptr<Sequence>> open(std::shared_ptr<Space> space,
                                                              const std::string& name,
                                                              std::uint64_t id, bool writable);
  ~Sequence();
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  [[nodiscard]] Result<std::shared_ptr<Sequence>> fork(std::uint64_t tokens,
                                                       const SequenceOptions& options);
  // Seals what is in the tail and closes. Everything answers kStale afterwards, also where it
  // failed. With kQuick a daemon that went away is not started, and what cannot be sealed is given
  // up with a line in the log.
  [[nodiscard]] Result<void> close(Patience patience = Patience::kFull);

  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  [[nodiscard]] std::uint64_t length() const noexcept {
    return tail_ ? tail_->length() : directory_.tokens();
  }
  // As length(); a reader first looks whether the writer has sealed more.
  [[nodiscard]] std::uint64_t current_length();
  [[nodiscard]] Space& space() const noexcept { return *space_; }
  [[nodiscard]] Result<void> read_tokens(std::uint64_t first, std::uint64_t count,
                                         TokenRecord* out);

  // Texts of tokens [first, first + count), appended to `out`.
  [[nodiscard]] Result<void> read_texts(std::uint64_t first, std::uint64_t count, TokenTexts* out);

  // `texts`: of all tokens, or none.
  [[nodiscard]] Result<void> append(std::span<const TokenRecord> tokens, TokenTexts texts = {});
  [[nodiscard]] Result<void> write(std::uint32_t layer, std::uint32_t first, std::uint32_t count,
                                   const StridedRows& k, const StridedRows& v);
  [[nodiscard]] Result<void> finish_piece();
  [[nodiscard]] Result<void> abort_piece();
  [[nodiscard]] Result<void> commit();
  [[nodiscard]] Result<void> truncate(std::uint64_t tokens);
  [[nodiscard]] Result<void> read(std::uint32_t layer, std::uint64_t first, std::uint64_t count,
                                  std::byte* k, std::byte* v);

  // -- for views
  // Takes completed seals and a moved directory; gets a lost connection back.
  [[nodiscard]] Result<void> refresh(Patience patience);
  // Tokens that are sealed for reading: below it fetch, from it on read the tail.
  [[nodiscard]] std::uint64_t tail_first() const noexcept {
    return tail_ ? tail_->first_token() : directory_.tokens();
  }
  // Tokens whose rows of this layer can be read.
  [[nodiscard]] std::uint64_t visible(std::uint32_t layer) const noexcept {
    return tail_ ? tail_->visible(layer) : directory_.tokens();
  }
  [[nodiscard]] const Tail* tail() const noexcept { return tail_ ? &*tail_ : nullptr; }
  // Tail::mark, where this is the writer.
  void mark_token(std::uint64_t token, std::uint32_t flags) noexcept {
    if (tail_) tail_->mark(token, flags);
  }
  [[nodiscard]] const Directory& directory() const noexcept { return directory_; }
  // As the daemon has them now, while a step goes on with what directory() says: nothing moves.
  [[nodiscard]] Result<std::span<const DirectoryEntry>> newest_segments() {
    return directory_.newest();
  }
  [[nodiscard]] const std::shared_ptr<Connection>& connection() const noexcept {
    return connection_;
  }
  [[nodiscard]] ChunkStream chunk_stream(FetchTally* tally) const {
    return ChunkStream(connection_, handle_, tally);
  }
  // Says which rows a selection took (at most kFetchEntriesMax entries, their masks). Never waits:
  // a hint, and false where it could not be given. `after_prompt`: the first of them.
  bool touch(std::span<const FetchEntry> entries, bool after_prompt);
  // Somebody will wait for it; now nobody does. As Fetch::ahead.
  [[nodiscard]] Result<Fetch> fetch_ahead(std::span<const FetchEntry> entries,
                                          std::uint64_t size_bytes) const {
    return Fetch::ahead(connection_, handle_, entries, size_bytes);
  }
  [[nodiscard]] Result<Ticket> prefetch(std::span<const FetchEntry> entries) const {
    return Fetch::prefetch(connection_, handle_, entries);
  }
  // Abstracts of what is stored, as the daemon sees it now. `segments` without a place in `ready`
  // or `failed` are being built or loaded. kStale where it was closed.
  struct AbstractProgress {
    std::uint32_t lane = 0;
    std::uint64_t segments = 0, ready = 0, failed = 0;
    // Of codes: in the abstracts memory from there on; UINT64_MAX: not there (yet).
    std::uint64_t codebook_offset = UINT64_MAX;
    bool codebook_missing = false;  // the space has none: calibrate()
    bool codebook_coming = false;   // it is being read or trained
    // Nothing more comes by waiting.
    [[nodiscard]] bool settled() const noexcept {
      return ready + failed >= segments && !codebook_coming;
    }
  };
  [[nodiscard]] Result<AbstractProgress> want_abstracts(const AbstractSpec& spec);
  [[nodiscard]] Result<AbstractProgress> abstract_progress(std::uint32_t lane);
  void drop_abstracts(std::uint32_t lane) noexcept;
  // Has the space's codebook trained, from what is stored and the queries that were observed. Takes
  // seconds, once per space. kMiss where nothing is stored yet.
  [[nodiscard]] Result<void> calibrate(const AbstractSpec& spec);
  // Query vectors [queries][query_heads][dim] of the newest tokens: for calibrations.
  void observe_queries(std::uint32_t layer, std::uint32_t queries, const float* q);
  // The layer is a full one of this space. kInvalid.
  [[nodiscard]] Result<void> check_layer(std::uint32_t layer) const;
  // Called with the number of tokens that are as before whenever stored ones were cut off or
  // replaced, here or by another writer; until remove_observer.
  using TruncateObserver = std::function<void(std::uint64_t)>;
  std::uint64_t add_observer(TruncateObserver observer);
  void remove_observer(std::uint64_t id) noexcept;

 private:
  explicit Sequence(std::shared_ptr<Space> space) : space_(std::move(space)) {}

  static Result<std::shared_ptr<Sequence>> open_with(std::shared_ptr<Space> space, Json request,
                                                     std::span<const std::uint32_t> ids,
                                                     bool writable, PrefixMatch* match);
  Result<void> take_attach(const std::shared_ptr<Connection>& connection, ControlMessage reply,
                           bool writable);
  // What is stored of the sequence, as attached again, is what this Sequence knows: the same
  // segments below its tail, its own tokens in it. kStale where another writer changed it, and
  // where a truncate of ours that answered an error did, unless this is for the next truncate.
  Result<void> check_unchanged(const std::shared_ptr<Connection>& connection, std::uint64_t handle,
                               const Directory& directory, const Tail& fresh) const;
  // Every look at the directory goes through this: what changed below its end is told to views.
  Result<void> refresh_directory();
  void tell_observers(std::uint64_t tokens);
  // A truncate that answered an error was done: between what is stored and the tail tokens are
  // missing.
  [[nodiscard]] bool was_cut() const noexcept {
    return tail_ && directory_.tokens() < tail_->first_token();
  }
  [[nodiscard]] Result<void> check_whole() const;
  Result<void> ensure(Patience patience);
  Result<void> attach_again(const std::shared_ptr<Connection>& connection, Patience patience);
  Result<void> check_open() const;
  Result<void> check_writable() const;
  // Runs `work`; once more, on a new connection, where the old one was lost in it.
  template <class Work>
  auto with_connection(Patience patience, Work&& work) -> decltype(work());

  void give_back(const std::shared_ptr<Connection>& connection, std::uint64_t handle) const;
  Result<void> tell_texts(std::uint32_t half, std::uint32_t tokens);
  Result<void> fetch_texts(const std::shared_ptr<Connection>& connection, std::uint32_t handle,
                           std::uint64_t first, std::uint64_t count, TokenTexts* out) const;
  Result<void> submit_seals();
  Result<void> submit_seal(std::uint32_t half);
  Result<void> settle_seal(std::uint32_t half);  // waits
  Result<void> take_finished_seals();            // does not wait
  void abandon_seals() noexcept;                 // nobody will settle them
  Result<void> settle_all_seals();
  Result<void> seal_everything(Patience patience = Patience::kFull);
  Result<void> make_room(std::uint32_t count);
  Result<void> commit_once(bool again = false);
  Result<void> truncate_once(std::uint64_t tokens);
  Result<void> truncate_stored(std::uint64_t tokens);
  Result<void> seal_tail_for_close(Patience patience);
  Result<void> check_finite(std::uint32_t layer, std::uint32_t first, std::uint32_t count,
                            const StridedRows& rows, bool is_key) const;
  Result<std::uint64_t> sealed_part(std::uint64_t first, std::uint64_t last) const;
  Result<void> read_sealed(std::uint32_t layer, std::uint64_t first, std::uint64_t last,
                           std::uint64_t count, std::byte* k, std::byte* v);
  void read_tail(std::uint32_t layer, std::uint64_t begin, std::uint64_t end, std::uint64_t first,
                 std::uint64_t count, std::byte* k, std::byte* v) const;

  // Seals, commits and truncates take as long as the disk needs for what is queued there; death of
  // the daemon ends a wait at once.
  static constexpr std::uint64_t kDiskMs = 300'000;

  const std::shared_ptr<Space> space_;
  std::shared_ptr<Connection> connection_;
  std::uint32_t handle_ = 0;
  std::uint64_t id_ = 0;
  bool writable_ = false;
  bool private_ = false;
  bool closed_ = false;
  bool closing_ = false;
  bool row_durable_ = false;  // a commit or seal was acknowledged since it was attached
  bool truncating_ = false;
  std::uint64_t cut_asked_ = UINT64_MAX;  // by truncates below the tail that answered an error
  Directory directory_;
  std::optional<Tail> tail_;  // writable ones
  std::vector<std::pair<std::uint64_t, TruncateObserver>> observers_;
  std::uint64_t last_observer_ = 0;
  std::chrono::steady_clock::time_point piece_begun_;
  std::uint64_t compute_ns_per_token_ = 0;  // of the runtime, smoothed; told at close
  Ticket touched_ = 0;                      // the last touch record
};

template <class Work>
auto Sequence::with_connection(Patience patience, Work&& work) -> decltype(work()) {
  for (int attempt = 0;; ++attempt) {
    KVT_TRY_VOID(ensure(patience));
    auto done = work();
    if (done || done.error().code != Code::kDaemonLost || !connection_->lost() || attempt == 2)
      return done;
    clear_error_text();
  }
}

}  // namespace kvtier
