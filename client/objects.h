// Objects: asynchronous batches of set, get, exists and delete of opaque keys, for store plug-ins.
//
// Values travel through a staging memory that client and daemon share; an operation waits in a
// queue until staging and ring have room for it. Results are taken by poll(); event_fd() is
// readable while there may be some. All operations may be repeated, so those under way when the
// daemon dies are submitted again to the next one. No thread of its own: things move when somebody
// calls submit() or poll(). Any thread.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "client/client.h"

namespace kvtier {

inline constexpr std::uint32_t kObjectBatchMax = 256;

enum class ObjectVerb : std::uint8_t { kSet = 0, kGet = 1, kExists = 2, kDelete = 3 };

struct ObjectRequest {
  std::string key;
  std::byte* value = nullptr;  // the caller's until its result is polled
  std::uint64_t value_bytes = 0;
};
struct ObjectResult {
  std::uint64_t batch = 0;
  std::uint32_t index = 0;
  Code code = Code::kOk;
  std::uint64_t value_bytes = 0;
};

class Objects {
 public:
  explicit Objects(Client* client) : client_(client) {}
  ~Objects();
  Objects(const Objects&) = delete;
  Objects& operator=(const Objects&) = delete;

  // Queues a batch; its number, from 1. kTooLarge for keys and values above the limits: then
  // nothing is queued. Does not wait for the daemon but to get its first connection.
  [[nodiscard]] Result<std::uint64_t> submit(ObjectVerb verb,
                                             std::span<const ObjectRequest> requests);
  // Results, in the order of completion, waiting until the deadline for the first. None is no
  // error.
  [[nodiscard]] Result<std::vector<ObjectResult>> poll(std::size_t room, const Deadline& deadline);
  // Stable for the life of the client. -1 where it cannot be made.
  [[nodiscard]] int event_fd();

 private:
  struct Operation {
    std::uint64_t batch = 0;
    std::uint32_t index = 0;
    ObjectVerb verb = ObjectVerb::kSet;
    ObjectRequest request;
    Ticket ticket = 0;
    std::uint64_t arguments = 0;
    std::uint64_t staging_offset = 0;
  };

  // All with mutex_ held.
  Result<void> prepare_events();
  Result<void> connect();  // to a living daemon, with staging
  Result<void> make_staging(std::uint64_t bytes_min);
  Result<void> pump();                       // starts what has room
  Result<bool> start(Operation* operation);  // false: no room now
  void collect();                            // takes what completed
  void finish(Operation* operation, const Completion& completion);
  void fail_all(Code code);
  void requeue_all();
  [[nodiscard]] std::uint64_t take_staging(std::uint64_t bytes);  // kNoRoom
  void give_staging_back(std::uint64_t offset);

  static constexpr std::uint64_t kNoRoom = UINT64_MAX;

  Client* const client_;
  std::mutex mutex_;
  // Guarded by mutex_, all of it.
  UniqueFd epoll_, news_;  // news_: an eventfd, set while results wait or an operation completed
  std::shared_ptr<Connection> connection_;
  Mapping staging_;
  std::map<std::uint64_t, std::uint64_t> staged_;  // offset -> bytes, of operations under way
  std::uint64_t last_batch_ = 0;
  std::deque<Operation> waiting_;
  std::vector<Operation> under_way_;
  std::deque<ObjectResult> results_;
};

}  // namespace kvtier
