// SimClient: a client of an engine in the same process: the rings and the shared memory of a real
// one, no socket. Calls turn the world until their answer is there.
//
// What a token's rows hold follows from the ids up to it (prefix_hashes), so that equal prefixes
// have equal rows, as with a model, and a test can tell for every row what it must be.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "client/ipc/ring.h"
#include "kernels/layout.h"
#include "tests/sim/sim_world.h"

namespace kvtier::sim {

// Two layers, two heads, 32-byte rows, chunks of 8 tokens.
[[nodiscard]] Geometry tiny_geometry(std::uint16_t heads_per_chunk = 1);
// hash(i) depends on ids[0..i].
[[nodiscard]] std::vector<std::uint64_t> prefix_hashes(const std::vector<std::uint32_t>& ids);
// The K (or V) row of a token: finite floats.
void fill_row(std::uint64_t prefix_hash, std::uint32_t layer, std::uint32_t head, bool value,
              std::byte* row, std::uint32_t row_bytes);

struct Reply {
  Status status;
  Json body;
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;
  [[nodiscard]] bool ok() const { return status.ok(); }
};

class SimClient;

struct DirectoryView {
  DirectoryHeader* header = nullptr;
  std::vector<DirectoryEntry> entries;
  std::uint64_t tokens = 0;
  // "" where the entries are the tokens [0, `expected`) without a gap, and the header says so.
  [[nodiscard]] std::string check(std::uint64_t expected) const;
};

// An open sequence, as a client keeps it.
struct SimSequence {
  std::uint32_t handle = 0;
  std::uint64_t id = 0;
  std::uint64_t tokens_sealed = 0;
  std::uint32_t half = 0;
  std::uint32_t count = 0;  // tokens in the half
  bool writable = false;
  UniqueFd directory_fd, tail_fd;
  Mapping directory, tail;
  Json info;
  [[nodiscard]] DirectoryView read_directory() const;
};

struct FetchResult {
  Completion completion{};
  std::vector<FetchEntry> entries;
};

class SimClient {
 public:
  // `data` false: no rings, as a tool connects.
  SimClient(SimWorld& world, const std::string& name, bool data = true);
  ~SimClient();  // closes the session, if its engine still runs

  [[nodiscard]] bool alive() const;
  [[nodiscard]] SessionId session() const { return session_; }
  Reply control(Json body, std::vector<std::byte> payload = {});
  // A request whose answer is not waited for: null until it comes.
  using Answer = std::shared_ptr<std::unique_ptr<Reply>>;
  Answer start_control(Json body, std::vector<std::byte> payload = {});
  Reply wait(const Answer& answer);
  [[nodiscard]] std::uint64_t open_space(const Geometry& geometry,
                                         const std::string& model = "model",
                                         bool is_private = false,
                                         const char* abstracts = "box/pages:16");
  // Null where it failed; `*reply` has the reason.
  std::unique_ptr<SimSequence> create(std::uint64_t space, const std::vector<std::uint32_t>& ids,
                                      const std::string& name, bool is_private = false,
                                      Reply* reply = nullptr);
  std::unique_ptr<SimSequence> attach(std::uint64_t space, const Json& which, bool write,
                                      Reply* reply = nullptr);
  std::unique_ptr<SimSequence> opened(Reply reply);

  // Writes tokens [first, first + count) of `ids` behind what the half holds.
  void append(SimSequence& sequence, const Geometry& geometry,
              const std::vector<std::uint32_t>& ids, std::uint64_t first, std::uint32_t count);
  // Completes where the world's engine still runs; else kDaemonLost.
  Completion seal(SimSequence& sequence);
  Completion commit(SimSequence& sequence);
  std::uint64_t start_seal(const SimSequence& sequence) { return start(Op::kSeal, sequence); }
  std::uint64_t start_commit(const SimSequence& sequence) { return start(Op::kCommit, sequence); }
  // The half is a segment: the client goes on in the other one.
  static void sealed(SimSequence& sequence);
  std::uint64_t submit(Submission request);
  Completion wait(std::uint64_t user_data);
  // A completion that has come; false where not.
  bool poll(std::uint64_t user_data, Completion* completion);
  FetchResult fetch(SimSequence& sequence, std::vector<FetchEntry> entries, Op op = Op::kFetch);
  std::uint64_t start_fetch(SimSequence& sequence, const std::vector<FetchEntry>& entries, Op op,
                            std::uint64_t argument);
  void release(std::uint64_t lease);

  [[nodiscard]] const std::byte* arena() const { return arena_.data(); }
  [[nodiscard]] const std::byte* abstracts() const { return abstracts_.data(); }
  [[nodiscard]] ControlLayout* layout() {
    return reinterpret_cast<ControlLayout*>(control_.data());
  }
  // Every chunk of the visible tokens of a directory.
  [[nodiscard]] static std::vector<FetchEntry> all_entries(const DirectoryView& directory,
                                                           const Geometry& geometry);
  // Compares the rows of a fetched chunk; "" or what differs.
  [[nodiscard]] std::string check_chunk(const FetchEntry& entry, const DirectoryEntry& where,
                                        const Geometry& geometry,
                                        const std::vector<std::uint64_t>& hashes) const;
  // Of the tail after an attach.
  [[nodiscard]] std::string check_tail(const SimSequence& sequence, const Geometry& geometry,
                                       const std::vector<std::uint32_t>& ids, std::uint64_t first,
                                       std::uint32_t count) const;

  SimWorld& world;

 private:
  void drain_completions();
  std::uint64_t start(Op op, const SimSequence& sequence);

  std::uint64_t epoch_ = 0;
  SessionId session_;
  Mapping control_, arena_, abstracts_;
  UniqueFd control_fd_;
  ClientRings rings_;
  std::uint64_t next_user_data_ = 1;
  std::vector<Completion> arrived_;
};

}  // namespace kvtier::sim
