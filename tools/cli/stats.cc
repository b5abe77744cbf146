// stats: the daemon's counters, once, again and again, or for Prometheus.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <unistd.h>

#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

bool is_bytes(const std::string& name) {
  return name.find("bytes") != std::string::npos && name.find("per_day") == std::string::npos;
}

std::string show(const std::string& name, const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_unsigned() && is_bytes(name)) return human_bytes(value.get<std::uint64_t>());
  return value.dump();
}

void print_section(const std::string& name, const Json& section) {
  if (section.is_array()) {
    std::printf("%s\n", name.c_str());
    if (section.empty()) std::printf("  nothing\n");
    for (const Json& line : section)
      std::printf("  %s\n",
                  line.is_string() ? line.get<std::string>().c_str() : line.dump().c_str());
    return;
  }
  std::printf("%s\n", name.c_str());
  for (const auto& [key, value] : section.items())
    if (!value.is_structured()) std::printf("  %-28s %s\n", key.c_str(), show(key, value).c_str());
  for (const auto& [key, value] : section.items())
    if (value.is_structured()) print_section("  " + name + "." + key, value);
}

void print_human(const Json& stats) {
  for (const auto& [name, section] : stats.items())
    if (section.is_structured()) print_section(name, section);
}

// kvtier_<section>_<key> <number>; texts and lists have no place there.
void print_prometheus(const std::string& prefix, const Json& value) {
  for (const auto& [key, field] : value.items()) {
    const std::string name = prefix + "_" + key;
    if (field.is_object())
      print_prometheus(name, field);
    else if (field.is_number())
      std::printf("# TYPE %s gauge\n%s %s\n", name.c_str(), name.c_str(), field.dump().c_str());
    else if (field.is_boolean())
      std::printf("# TYPE %s gauge\n%s %d\n", name.c_str(), name.c_str(),
                  field.get<bool>() ? 1 : 0);
  }
}

int run_stats(const Invocation& invocation) {
  double interval = 0;
  if (invocation.has("watch")) {
    char* end = nullptr;
    interval = std::strtod(invocation.get("watch").c_str(), &end);
    if (*end != '\0' || !(interval >= 0.1) || interval > 3600) {
      print_error(invocation, {Code::kInvalid}, "--watch needs seconds, 0.1 to 3600");
      return 2;
    }
  }
  for (;;) {
    Json reply;
    int exit_code = 0;
    if (!request(invocation, Json{{"op", "stats"}}, &reply, &exit_code)) return exit_code;
    reply.erase("ok");
    if (invocation.json)
      print_json(reply);
    else if (invocation.has("prometheus"))
      print_prometheus("kvtier", reply);
    else {
      if (interval > 0) std::printf("\033[H\033[2J");
      print_human(reply);
    }
    if (interval <= 0) return 0;
    std::fflush(stdout);
    ::usleep(static_cast<useconds_t>(std::lround(interval * 1e6)));
  }
}

}  // namespace

Command stats_command() {
  return {"stats",
          "what is where, hits and misses with their reasons, bytes, limits, what is off and why",
          {},
          {{"--watch", "SECONDS", "again and again"},
           {"--prometheus", nullptr, "text exposition format"}},
          run_stats};
}

}  // namespace kvtier::cli
