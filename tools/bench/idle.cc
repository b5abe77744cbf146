// What an idle daemon takes from the machine: processor time, and the speed of a model that
// computes on the same cores.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <thread>

#include "tools/bench/bench.h"
#include "tools/bench/model.h"

namespace kvtier::bench {
namespace {

// User and system seconds of a process so far.
double processor_seconds(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  std::istringstream fields(text.substr(text.rfind(')') + 2));
  std::string skip;
  for (int i = 0; i < 11; ++i) fields >> skip;
  double user = 0, system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

Result<OwnDaemon> start_daemon(const Context& context) {
  return OwnDaemon::start(context, context.directory + "/idle",
                          {"host.arena_bytes=256MiB", "host.leased_bytes_per_client_max=128MiB"});
}

// The daemon's share of a core while nobody asks anything.
Result<void> processor_share(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY(const OwnDaemon daemon, start_daemon(context));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  const double seconds = context.smoke() ? 1 : 5;
  std::vector<double> shares;
  for (std::size_t i = 0; i < context.rounds(3, 5); ++i) {
    const double before = processor_seconds(daemon.pid());
    ::usleep(static_cast<useconds_t>(seconds * 1e6));
    shares.push_back((processor_seconds(daemon.pid()) - before) / seconds * 100);
  }
  Figure figure = bounded("idle daemon, one client attached", shares, 0.5);
  figure.unit = "%";
  figure.ceiling_name = "% of one core";
  figure.goal = 1;
  figures->push_back(figure);
  return {};
}

constexpr std::size_t kFloats = 4096;  // 16 KiB: in the core's own cache, so that it only computes

// One thread's share of the work: a multiplication and an addition per float and pass.
void compute(std::uint64_t passes, float* result) {
  std::array<float, kFloats> values;
  values.fill(1);
  for (std::uint64_t pass = 0; pass < passes; ++pass)
    for (float& value : values) value = value * 0.999F + 0.001F;
  *result = values[passes % kFloats];  // or the compiler would leave the work out
}

// The same work on every core at once, done when the last one is: seconds. Begins a little later,
// so that what a start leaves to do is done.
double compute_everywhere(std::uint64_t passes) {
  ::usleep(200'000);
  std::vector<float> results(std::max(1U, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  const double start = seconds_now();
  for (float& result : results) threads.emplace_back(compute, passes, &result);
  for (std::thread& thread : threads) thread.join();
  return seconds_now() - start;
}

// Passes that take about so long.
std::uint64_t passes_for(double seconds) {
  std::uint64_t passes = 16'384;
  double took = compute_everywhere(passes);
  while (took < 0.05) took = compute_everywhere(passes *= 4);
  return static_cast<std::uint64_t>(static_cast<double>(passes) * seconds / took) + 1;
}

// A model that computes on all cores, alone and beside the daemon. Alone twice: what the machine
// differs by from itself.
Result<void> model_beside(const Context& context, std::vector<Figure>* figures) {
  const std::uint64_t passes = passes_for(context.smoke()                ? 0.1
                                          : context.size == Size::kQuick ? 1
                                                                         : 3);
  const double operations = 2.0 * kFloats * static_cast<double>(passes) *
                            std::max(1U, std::thread::hardware_concurrency());
  const auto alone = [&]() -> Result<double> { return operations / compute_everywhere(passes); };
  const auto beside = [&]() -> Result<double> {
    KVT_TRY(const OwnDaemon daemon, start_daemon(context));
    KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
    return operations / compute_everywhere(passes);
  };
  KVT_TRY(const auto columns, interleave(context.rounds(7, 11), {beside, alone, alone}));
  Figure figure = compare("computing on all cores beside an idle daemon", columns[0], columns[1]);
  scale(&figure, 1e-9);
  figure.unit = "GFLOP/s";
  figure.ceiling_name = "GFLOP/s without a daemon";
  figure.better = Better::kHigher;
  figure.goal = 0.98;
  figure.note = "without against itself: " + spread(columns[2], columns[1]);
  figures->push_back(figure);
  return {};
}

}  // namespace

Result<void> bench_idle(const Context& context, std::vector<Figure>* figures) {
  KVT_TRY_VOID(processor_share(context, figures));
  return model_beside(context, figures);
}

}  // namespace kvtier::bench
