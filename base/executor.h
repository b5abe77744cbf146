// Executor: where work that may take long runs (sealing, abstracts, codecs, catalogue batches).
//
// The core posts a job and gets its result by a message that the job sends back (Mailbox). The
// inline executor runs a job when the test says so, in a seeded order if wanted; the thread pool
// runs it at once.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kvtier {

class Executor {
 public:
  virtual ~Executor() = default;
  // Queues a job; never runs it inside the call. Any thread.
  virtual void post(std::function<void()> job) = 0;
};

// Runs jobs only inside run_one(). One thread.
class InlineExecutor final : public Executor {
 public:
  void post(std::function<void()> job) override { jobs_.push_back(std::move(job)); }
  // Runs the job at `index` (in posting order) of those that wait; false if there is none.
  bool run_one(std::size_t index = 0);
  [[nodiscard]] std::size_t waiting() const noexcept { return jobs_.size(); }
  // Forgets what waits: a crash.
  void drop_all() noexcept { jobs_.clear(); }

 private:
  std::deque<std::function<void()>> jobs_;
};

// `threads` workers that take jobs in order.
class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(std::size_t threads);
  ~ThreadPool() override { stop(); }
  // After stop() it drops the job.
  void post(std::function<void()> job) override;
  // Finishes what was posted and ends the threads. Once, by one thread.
  void stop();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;  // guarded by mutex_
  bool stopping_ = false;                   // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace kvtier
