// stats: the daemon's counters, once, again and again, or for Prometheus. For people the questions
// that they ask, in that order; --all has every counter.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <unistd.h>

#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

std::string bytes_of(const Json& section, const char* key) {
  return human_bytes(number_of(section, key));
}

std::string count_of(const Json& section, const char* key) {
  return std::to_string(number_of(section, key));
}

std::string count_of(const Json& section, const char* key, const char* one,
                     const char* more = "s") {
  return counted(number_of(section, key), one, more);
}

std::string percent(std::uint64_t part, std::uint64_t whole) {
  if (whole == 0) return "0 %";
  char text[16];
  std::snprintf(text, sizeof text, "%.0f %%",
                100.0 * static_cast<double>(part) / static_cast<double>(whole));
  return text;
}

void line(const char* head, const std::string& text) {
  std::printf("%-9s %s\n", head, text.c_str());
}

// Of abstracts, behind what they take: " (3 to build, 2 to load)", or "".
std::string waiting_of(const Json& stats) {
  const Json abstracts = stats.value("abstracts", Json::object());
  const std::uint64_t build = number_of(abstracts, "waiting");
  const std::uint64_t load = number_of(abstracts, "loads_waiting");
  if (build + load == 0) return "";
  return " (" + std::to_string(build) + " to build, " + std::to_string(load) + " to load)";
}

void print_where(const Json& stats) {
  const Json& host = stats["host"];
  const Json& disk = stats["disk"];
  line("memory", bytes_of(host, "used_bytes") + " of " + bytes_of(host, "arena_bytes") + " in " +
                     count_of(host, "chunks", "chunk") + " (" + bytes_of(host, "leased_bytes") +
                     " leased, " + bytes_of(host, "pinned_bytes") + " private); abstracts " +
                     bytes_of(host, "abstracts_used_bytes") + " of " +
                     bytes_of(host, "abstracts_arena_bytes") + waiting_of(stats) + "; pages of " +
                     text_of(host, "pages"));
  if (host.contains("tails") && number_of(host, "tails") != 0)
    line("tails", count_of(host, "tails", "sequence") +
                      " open for writing: " + bytes_of(host, "tail_bytes") +
                      " in memory, at most " + bytes_of(host, "tail_bytes_reserved") + " of " +
                      bytes_of(stats["limits"], "tail_bytes_max"));
  line("disk", bytes_of(disk, "store_bytes") + " of " + bytes_of(disk, "limit_bytes") + " in " +
                   count_of(disk, "segments", "segment") + " of " +
                   count_of(disk, "sequences", "sequence") + " (" + bytes_of(disk, "dead_bytes") +
                   " of it shown by none); " + bytes_of(disk, "free_bytes") + " free at " +
                   text_of(disk, "store"));
  if (stats.contains("objects") && number_of(stats["objects"], "count") != 0)
    line("values", count_of(stats["objects"], "count") + " under opaque keys, " +
                       bytes_of(stats["objects"], "disk_bytes") + " on disk");
  if (number_of(disk, "kept_files") != 0)
    line("kept",
         count_of(disk, "kept_files", "file") + " that the catalogue does not name, " +
             bytes_of(disk, "kept_bytes") +
             (number_of(disk, "kept_lost") != 0 ? " (rows were lost: kvtier doctor has the mend)"
                                                : " (kvtier gc removes them)"));
  line("evicted", count_of(host, "evictions", "chunk") + " from memory; " +
                      count_of(disk, "evicted_segments", "segment") + " and " +
                      count_of(disk, "evicted_sequences", "nameless sequence") + " from disk");
  if (number_of(disk, "refused_no_room") != 0)
    line("refused", count_of(disk, "refused_no_room", "write") +
                        " for want of room on disk (kvtier rm, kvtier gc, or raise "
                        "store.disk_bytes_max)");
}

void print_hits(const Json& stats) {
  const Json& prefixes = stats["prefixes"];
  const Json& chunks = stats["chunks"];
  const std::uint64_t asked = number_of(prefixes, "tokens_asked");
  const std::uint64_t found = number_of(prefixes, "tokens_found");
  line("prefixes", asked == 0 ? "none asked for"
                              : std::to_string(found) + " of " + std::to_string(asked) +
                                    " tokens found (" + percent(found, asked) + ") in " +
                                    count_of(prefixes, "matches", "question"));
  const std::uint64_t memory = number_of(chunks, "from_memory");
  const std::uint64_t disk = number_of(chunks, "from_disk");
  line("chunks", std::to_string(memory + disk) + " wanted: " + std::to_string(memory) +
                     " from memory, " + std::to_string(disk) + " from disk (" +
                     percent(memory, memory + disk) + " in memory)");
  std::string misses;
  for (const auto& [reason, count] : stats["misses"].items())
    misses += (misses.empty() ? "" : ", ") + reason + " " + count.dump();
  line("misses", misses);
  for (const Json& miss : stats["recent_misses"]) {
    std::string text = human_time(number_of(miss, "unix_s")) + "  " + text_of(miss, "reason") +
                       ": " + count_of(miss, "tokens_found") + " of " +
                       count_of(miss, "tokens_asked") + " tokens";
    if (text_of(miss, "reason") == "differs")
      text += ", token " + count_of(miss, "tokens_found") + " is " + count_of(miss, "asked_token") +
              ", stored is " + count_of(miss, "stored_token");
    text += ", asked of model " + short_model(text_of(miss, "model"));
    if (!text_of(miss, "detail").empty()) text += ", " + text_of(miss, "detail");
    std::printf("          %s\n", text.c_str());
  }
}

void print_disk_traffic(const Json& stats) {
  const Json& disk = stats["disk"];
  const Json& writes = stats["writes"];
  const Json& cost = stats["cost"];
  line("read", bytes_of(disk, "read_bytes") + " since start in " + count_of(disk, "reads", "read") +
                   ": " + bytes_of(stats["chunks"], "read_bytes") +
                   " for chunks, the rest for heads, sidecars, tail logs, values and the building "
                   "of abstracts");
  line("written", bytes_of(disk, "written_bytes") + " since start (segments " +
                      bytes_of(disk, "written_segment_bytes") + ", logs " +
                      bytes_of(disk, "written_log_bytes") + ", sidecars " +
                      bytes_of(disk, "written_sidecar_bytes") +
                      "; the rest are codebooks, values and what was wiped)");
  const std::uint64_t budget = number_of(writes, "budget_bytes_per_day");
  line("today", bytes_of(writes, "today_bytes") + " written" +
                    (budget == 0 ? std::string("; no budget")
                                 : " of a budget of " + human_bytes(budget) + " (" +
                                       percent(number_of(writes, "today_bytes"), budget) + ")") +
                    (writes.value("budget_spent", false) ? "; SPENT" : "") +
                    (number_of(writes, "declined") == 0
                         ? ""
                         : "; " + count_of(writes, "declined", "optional write") + " left out") +
                    (number_of(writes, "one_shot_declined") == 0
                         ? ""
                         : "; " + count_of(writes, "one_shot_declined", "one-shot prefix", "es") +
                               " not admitted"));
  if (number_of(cost, "read_bytes_per_s") != 0)
    line("load", "this disk reads " + bytes_of(cost, "read_bytes_per_s") + "/s; " +
                     count_of(cost, "declined", "load") + " declined as slower than computing");
  for (const Json& space : cost["spaces"]) {
    char text[128];
    const double load = space.value("load_us_per_token", 0.0);
    std::snprintf(text, sizeof text, "%.1f us to compute, ",
                  space.value("compute_us_per_token", 0.0));
    const std::size_t end = std::strlen(text);
    if (load > 0)
      std::snprintf(text + end, sizeof text - end, "%.1f us to load", load);
    else
      std::snprintf(text + end, sizeof text - end, "its load is not measured yet");
    line("per token", short_model(text_of(space, "model")) + ": " + text);
  }
}

// Kind by kind: a chunk that was read and its segment are one fault, and not two of a kind.
std::string damage_text(const Json& damage) {
  struct Kind {
    const char *counter, *one, *many;
  };
  constexpr Kind kKinds[] = {
      {"segments_bad", "segment", "segments"},
      {"chunks_bad", "chunk", "chunks"},
      {"segments_missing", "missing segment", "missing segments"},
      {"logs_torn", "tail log", "tail logs"},
      {"rows_damaged", "row of the catalogue", "rows of the catalogue"},
  };
  std::string text;
  for (const Kind& kind : kKinds) {
    const std::uint64_t count = number_of(damage, kind.counter);
    if (count == 0) continue;
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " " +
            (count == 1 ? kind.one : kind.many);
  }
  return text;
}

void print_state(const Json& stats) {
  const Json& daemon = stats["daemon"];
  line("daemon", text_of(daemon, "version") + ", pid " + count_of(daemon, "pid") + ", up " +
                     human_duration(number_of(daemon, "uptime_s")) + "; " +
                     count_of(daemon, "clients", "client") + " with " +
                     count_of(daemon, "open_sequences", "open sequence") + "; disk by " +
                     text_of(stats["disk"], "backend") + ", kernels " + text_of(daemon, "kernels"));
  if (const std::string damaged = damage_text(stats["damage"]); !damaged.empty())
    line("damage", damaged + (stats["damage"].value("settled", false)
                                  ? " since start; nothing of it is left"
                                  : " since start: `kvtier verify` names what is damaged"));
  for (const Json& off : stats["off"])
    line("off", off.is_string() ? off.get<std::string>() : off.dump());
}

void print_human(const Json& stats) {
  print_state(stats);
  print_where(stats);
  print_hits(stats);
  print_disk_traffic(stats);
}

// ---- every counter ----

bool is_bytes(const std::string& name) { return name.find("bytes") != std::string::npos; }

std::string show(const std::string& name, const Json& value) {
  if (value.is_null()) return "none";
  if (value.is_string()) return value.get<std::string>();
  if (name == "unix_s") return human_time(value.get<std::uint64_t>());
  if (value.is_number_unsigned() && is_bytes(name)) return human_bytes(value.get<std::uint64_t>());
  return value.dump();
}

// One line: "space 1, model tiny, compute_us_per_token 3.1".
std::string show_entry(const Json& entry) {
  if (!entry.is_object()) return show("", entry);
  std::string text;
  for (const auto& [key, value] : entry.items())
    if (const std::string shown = show(key, value); !shown.empty())
      text += (text.empty() ? "" : ", ") + key + " " + shown;
  return text;
}

void print_section(const std::string& name, const Json& section) {
  std::printf("%s\n", name.c_str());
  if (section.is_array()) {
    if (section.empty()) std::printf("  nothing\n");
    for (const Json& entry : section) std::printf("  %s\n", show_entry(entry).c_str());
    return;
  }
  for (const auto& [key, value] : section.items())
    if (!value.is_structured()) std::printf("  %-28s %s\n", key.c_str(), show(key, value).c_str());
  for (const auto& [key, value] : section.items())
    if (value.is_structured()) print_section("  " + name + "." + key, value);
}

void print_all(const Json& stats) {
  for (const auto& [name, section] : stats.items())
    if (section.is_structured()) print_section(name, section);
}

// kvtier_<section>_<key> <number>; texts and lists have no place there.
void print_prometheus(const std::string& prefix, const Json& value) {
  for (const auto& [key, field] : value.items()) {
    const std::string name = prefix + "_" + key;
    if (name == "kvtier_ok") continue;  // the answer's, not the daemon's
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
    const std::string text = invocation.get("watch");
    char* end = nullptr;
    interval = std::strtod(text.c_str(), &end);
    if (*end != '\0' || !(interval >= 0.1) || interval > 3600) {
      print_error(invocation, {Code::kInvalid}, "--watch needs seconds, 0.1 to 3600");
      return 2;
    }
  }
  if (invocation.json && invocation.has("prometheus")) {
    print_error(invocation, {Code::kInvalid}, "choose one of --json and --prometheus");
    return 2;
  }
  for (;;) {
    Json reply;
    int exit_code = 0;
    if (!request(invocation, Json{{"op", "stats"}}, &reply, &exit_code)) return exit_code;
    if (interval > 0 && ::isatty(STDOUT_FILENO) != 0 && !invocation.json)
      std::printf("\033[H\033[2J");
    if (invocation.json)
      print_json(reply);
    else if (invocation.has("prometheus"))
      print_prometheus("kvtier", reply);
    else
      invocation.has("all") ? print_all(reply) : print_human(reply);
    if (interval <= 0) return 0;
    if (std::fflush(stdout) != 0) return 0;  // nobody reads any more
    ::usleep(static_cast<useconds_t>(std::lround(interval * 1e6)));
  }
}

}  // namespace

Command stats_command() {
  return {"stats",
          "what is where, hits and misses with their reasons, bytes, limits, what is off and why",
          {},
          {{"--all", nullptr, "every counter"},
           {"--watch", "SECONDS", "again and again, every 2 seconds unless said otherwise", "2"},
           {"--prometheus", nullptr, "text exposition format"}},
          run_stats};
}

}  // namespace kvtier::cli
