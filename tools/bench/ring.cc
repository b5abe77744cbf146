// The ring's round trip against a bare ping-pong of two threads over one cache line, both sides
// spinning.
#include <atomic>
#include <memory>
#include <thread>

#include "client/ipc/ring.h"
#include "client/ipc/wait.h"
#include "tools/bench/bench.h"

namespace kvtier::bench {
namespace {

struct Bare {
  alignas(128) std::atomic<std::uint64_t> ping{0};
  alignas(128) std::atomic<std::uint64_t> pong{0};
};

double bare_us(std::uint64_t rounds) {
  auto lines = std::make_unique<Bare>();
  std::thread other([&] {
    for (std::uint64_t i = 1; i <= rounds; ++i) {
      while (lines->ping.load(std::memory_order_acquire) != i) AdaptiveSpin::relax();
      lines->pong.store(i, std::memory_order_release);
    }
  });
  const double start = seconds_now();
  for (std::uint64_t i = 1; i <= rounds; ++i) {
    lines->ping.store(i, std::memory_order_release);
    while (lines->pong.load(std::memory_order_acquire) != i) AdaptiveSpin::relax();
  }
  const double end = seconds_now();
  other.join();
  return (end - start) * 1e6 / static_cast<double>(rounds);
}

// As Waiter and the daemon spin.
template <class Reader>
void spin_on(const Reader& reader) {
  for (int i = 0; i < 16 && !reader.stamped(); ++i) AdaptiveSpin::relax();
}

Result<double> ring_us(std::uint64_t rounds) {
  KVT_TRY(Memfd memory,
          make_memfd("bench-ring", sizeof(ControlLayout), MemfdAccess::kSharedWrite, false));
  auto* layout = reinterpret_cast<ControlLayout*>(memory.mapping.data());
  std::thread daemon([&] {
    RingReader<Submission> submissions(&layout->submission, layout->submissions,
                                       kSubmissionEntries);
    RingWriter<Completion> completions(&layout->completion, layout->completions, kCompletionEntries,
                                       -1);
    Submission one{};
    for (std::uint64_t done = 0; done < rounds;) {
      spin_on(submissions);
      const Result<std::uint32_t> got = submissions.pop({&one, 1});
      if (!got) return;
      if (*got == 0) continue;
      Completion answer{};
      answer.user_data = one.user_data;
      static_cast<void>(completions.push(answer));
      ++done;
    }
  });
  RingWriter<Submission> submissions(&layout->submission, layout->submissions, kSubmissionEntries,
                                     -1);
  RingReader<Completion> completions(&layout->completion, layout->completions, kCompletionEntries);
  const double start = seconds_now();
  Submission request{};
  Completion answer{};
  for (std::uint64_t i = 0; i < rounds; ++i) {
    request.user_data = i;
    static_cast<void>(submissions.push(request));
    for (;;) {
      spin_on(completions);
      const Result<std::uint32_t> got = completions.pop({&answer, 1});
      if (got && *got == 1) break;
    }
  }
  const double end = seconds_now();
  daemon.join();
  return (end - start) * 1e6 / static_cast<double>(rounds);
}

}  // namespace

double bare_ping_pong_us(std::uint64_t rounds) { return bare_us(rounds); }

Result<void> bench_ring(const Context& context, std::vector<Figure>* figures) {
  const std::uint64_t rounds = context.smoke() ? 20'000 : 200'000;
  KVT_TRY(const auto columns,
          interleave(context.rounds(7, 15), {[&] { return ring_us(rounds); },
                                             [&]() -> Result<double> { return bare_us(rounds); }}));
  Figure figure = compare("ring round trip, both spinning", columns[0], columns[1]);
  figure.unit = "us";
  figure.ceiling_name = "us bare two-thread ping-pong";
  figure.goal = 1.5;
  figures->push_back(figure);
  return {};
}

}  // namespace kvtier::bench
