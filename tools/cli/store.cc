// verify, repair, gc: the soundness of the store. A running daemon does it; `verify --store` needs
// none and never writes.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "tiers/catalogue.h"
#include "tiers/store_check.h"
#include "tiers/store_rebuild.h"
#include "tiers/store_report.h"
#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

// As the daemon replies, from a check of the directory alone.
Result<Json> check_offline(const std::string& store, bool deep) {
  IoOptions io_options;
  io_options.root = store;
  io_options.backend = "threads";
  KVT_TRY(const std::unique_ptr<Io> io, make_io(io_options));
  CatalogueOptions catalogue_options;
  catalogue_options.path = store + "/catalogue";
  catalogue_options.read_only = true;
  Result<StoreRows> rows = error(Code::kNotFound);
  Result<std::unique_ptr<Catalogue>> catalogue = Catalogue::open(catalogue_options);
  rows = catalogue ? load_store_rows(**catalogue) : error(catalogue.error());
  StoreCheckOptions options;
  options.deep = deep;
  const bool empty = rows && rows->spaces.empty() && rows->segments.empty() &&
                     rows->sequences.empty() && rows->objects.empty() && rows->damaged.empty();
  // One that knows nothing does not make leftovers of the files.
  StoreReport report = check_store(*io, rows && !empty ? &*rows : nullptr, options);
  const bool catalogue_lost =
      !rows || (empty && report.segments + report.logs + report.objects != 0);
  const std::string remake =
      ": `kvtier repair --store " + shell_word(store) + "` makes a new one from the files";
  // Of a newer kvtier, unreadable, on a failing disk: a new one is no mend.
  const bool repairable = rows || rows.error().code == Code::kCorrupt ||
                          rows.error().code == Code::kNotFound ||
                          rows.error().code == Code::kInternal;  // RocksDB threw
  if (catalogue_lost) {
    ++report.damage;
    report.findings.push_back({"catalogue", "", FindingKind::kDamaged, FindingSeverity::kDamage,
                               rows ? "it is empty and the store is not" + remake
                               : rows.error().code == Code::kNotFound
                                   ? rows.error().message() + remake
                                   : with_store_named(describe(rows.error()), store)});
  }
  Json reply{{"ok", true}};
  reply.update(report_json(std::move(report), deep));
  if (catalogue_lost)
    reply["problems"][0]["mend"] = repairable ? "kvtier repair --store " + shell_word(store) : "";
  return reply;
}

void print_problems(const Json& reply) {
  std::vector<std::vector<std::string>> rows = {{"OBJECT", "WHERE", "SEVERITY", "WHAT"}};
  for (const Json& problem : reply["problems"])
    rows.push_back({text_of(problem, "object"), text_of(problem, "region"),
                    text_of(problem, "severity"), text_of(problem, "reason")});
  if (rows.size() > 1) print_table(rows);
}

// The catalogue comes first: what is damaged beside it, a daemon drops once it can start.
std::string mend_of(const Json& reply, const std::string& store) {
  const Json& problems = reply["problems"];
  const bool catalogue = !problems.empty() && text_of(problems[0], "object") == "catalogue";
  if (catalogue && !store.empty()) {
    const std::string mend = text_of(problems[0], "mend");
    return mend.empty() ? "" : "; first `" + mend + "`";
  }
  return std::string(store.empty() ? "; " : "; with kvtierd running over this store, ") +
         "`kvtier repair` drops what is damaged, so that storing it again heals it";
}

std::string warnings_of(const Json& reply) {
  const auto count = std::ranges::count_if(reply["problems"], [](const Json& problem) {
    return text_of(problem, "severity") == "warning";
  });
  return count == 0 ? ""
                    : "; " + counted(static_cast<std::uint64_t>(count), "warning") +
                          ": nothing stored is lost, and kvtier mends it when it is needed";
}

int finish_verify(const Invocation& invocation, const Json& reply) {
  const bool sound = reply.value("sound", false);
  if (invocation.json) {
    print_json(reply);
  } else {
    print_problems(reply);
    const std::uint64_t objects = number_of(reply, "objects");
    const std::string bytes = human_bytes(number_of(reply, "bytes"));
    std::printf("%s: %s, %s,%s %s%s\n", sound ? "sound" : "NOT sound",
                counted(number_of(reply, "segments"), "segment").c_str(),
                counted(number_of(reply, "chunks"), "chunk").c_str(),
                objects != 0 ? (" " + counted(objects, "opaque key") + ",").c_str() : "",
                (invocation.has("quick")
                     ? "only heads and tables checked (" + bytes + "), not the chunks' bytes"
                     : bytes + " checked")
                    .c_str(),
                (sound ? warnings_of(reply) : mend_of(reply, invocation.get("store"))).c_str());
  }
  return sound ? 0 : 3;
}

int print_offline_error(const Invocation& invocation, const Status& status) {
  return print_error(invocation, status, invocation.get("store") + ": " + describe(status));
}

// Before a directory that is none gets a catalogue, or is called damaged.
Result<void> check_is_store(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0)
    return error(errno == EACCES ? Code::kPermission : Code::kNotFound, "it cannot be looked at",
                 errno);
  for (const char* part : {"catalogue", "segments", "logs"}) {
    if (::stat((path + "/" + part).c_str(), &info) == 0) return {};
    if (errno != ENOENT && errno != ENOTDIR)
      return error(errno == EACCES ? Code::kPermission : Code::kIo, "it cannot be entered", errno);
  }
  return error(Code::kNotFound, "there is no store of kvtier in this directory");
}

int run_verify(const Invocation& invocation) {
  Json reply;
  int exit_code = 0;
  if (invocation.has("store")) {
    if (const auto is = check_is_store(invocation.get("store")); !is)
      return print_offline_error(invocation, is.error());
    const Result<Json> checked = check_offline(invocation.get("store"), !invocation.has("quick"));
    if (!checked) return print_offline_error(invocation, checked.error());
    return finish_verify(invocation, *checked);
  }
  if (!request(invocation, Json{{"op", "verify"}, {"deep", !invocation.has("quick")}}, &reply,
               &exit_code, 0))
    return exit_code;
  return finish_verify(invocation, reply);
}

// A damaged catalogue keeps the daemon from starting, so this is done without one.
int repair_offline(const Invocation& invocation) {
  if (const auto is = check_is_store(invocation.get("store")); !is)
    return print_offline_error(invocation, is.error());
  const Result<RebuildReport> report = rebuild_catalogue(invocation.get("store"));
  if (!report && report.error().code == Code::kExists) {  // nothing to do
    if (invocation.json)
      print_json(Json{{"ok", true}, {"rebuilt", false}, {"reason", report.error().message()}});
    else
      std::printf("%s\n", report.error().message());
    return 0;
  }
  if (!report) return print_offline_error(invocation, report.error());
  if (invocation.json) {
    print_json(Json{{"ok", true},
                    {"rebuilt", true},
                    {"moved_to", report->moved_to},
                    {"rows_kept", report->rows_kept},
                    {"spaces", report->spaces},
                    {"segments", report->segments},
                    {"sequences", report->sequences},
                    {"objects", report->objects},
                    {"sequences_from_logs", report->sequences_from_logs},
                    {"segments_left_out", report->segments_left_out},
                    {"logs_left_out", report->logs_left_out}});
    return 0;
  }
  if (!report->moved_to.empty())
    std::printf("the old catalogue is kept as %s\n", report->moved_to.c_str());
  std::printf("the new catalogue has %s and %s (%llu from logs alone)\n",
              counted(report->segments, "segment").c_str(),
              counted(report->sequences, "sequence").c_str(),
              static_cast<unsigned long long>(report->sequences_from_logs));
  if (report->segments_left_out != 0 || report->logs_left_out != 0)
    std::printf("left out as damaged or without an owner: %s, %s\n",
                counted(report->segments_left_out, "segment").c_str(),
                counted(report->logs_left_out, "log").c_str());
  std::printf(
      "what no sequence shows any more is found again by its tokens, until kvtier gc removes it; "
      "now: kvtier start\n");
  return 0;
}

void print_cuts(const Json& reply) {
  std::vector<std::vector<std::string>> rows = {{"SEQUENCE", "TOKENS BEFORE", "LEFT"}};
  for (const Json& cut : reply["sequences_cut"])
    rows.push_back(
        {label_of(cut),
         cut.contains("tokens_before") ? std::to_string(number_of(cut, "tokens_before")) : "?",
         std::to_string(number_of(cut, "tokens_after"))});
  if (rows.size() > 1) print_table(rows);
}

int run_repair(const Invocation& invocation) {
  if (invocation.has("store")) return repair_offline(invocation);
  Json reply;
  int exit_code = 0;
  if (!request(invocation, Json{{"op", "repair"}}, &reply, &exit_code, 0)) return exit_code;
  const std::uint64_t left = number_of(reply, "left");
  if (invocation.json) {
    print_json(reply);
  } else {
    print_problems(reply);
    print_cuts(reply);
    std::printf("damaged files dropped: %llu; sequences cut: %zu\n",
                static_cast<unsigned long long>(number_of(reply, "dropped")),
                reply["sequences_cut"].size());
    if (const std::uint64_t behind = number_of(reply, "segments_behind"); behind != 0)
      std::printf("removed, too, as only what was dropped led there: %s (%s)\n",
                  counted(behind, "segment").c_str(),
                  human_bytes(number_of(reply, "bytes_behind")).c_str());
    if (left != 0)
      std::printf("NOT mended: %llu of those listed above, see WHAT\n",
                  static_cast<unsigned long long>(left));
  }
  return left == 0 ? 0 : 3;
}

int run_gc(const Invocation& invocation) {
  Json reply;
  int exit_code = 0;
  const bool objects = invocation.has("objects");
  if (!request(invocation, Json{{"op", "gc"}, {"objects", objects}}, &reply, &exit_code, 0))
    return exit_code;
  if (invocation.json) {
    print_json(reply);
    return 0;
  }
  std::printf("%s compacted, %llu removed",
              counted(number_of(reply, "segments_compacted"), "segment").c_str(),
              static_cast<unsigned long long>(number_of(reply, "segments_removed")));
  if (objects)
    std::printf(", %s removed", counted(number_of(reply, "objects_removed"), "opaque key").c_str());
  std::printf(", %s freed\n", human_bytes(number_of(reply, "bytes_freed")).c_str());
  if (reply.value("merging_declined", false))
    std::printf("not merged: today's write budget is spent (store.disk_write_bytes_per_day)\n");
  return 0;
}

}  // namespace

Command verify_command() {
  return {"verify",
          "check everything that is stored against its checksums (exit 3: something is damaged)",
          {},
          {{"--quick", nullptr, "heads and tables of the files only, not the chunks' bytes"},
           {"--store", "PATH", "check this directory without a daemon; never writes"}},
          run_verify};
}
Command repair_command() {
  return {
      "repair",
      "drop what is damaged, so that storing it again heals it; lists which sequences end earlier "
      "(exit 3: some of it could not be mended)",
      {},
      {{"--store", "PATH", "without a daemon: make a new catalogue where the old one is broken"}},
      run_repair};
}
Command gc_command() {
  return {"gc",
          "merge small segments into larger ones (compacted), remove those that no sequence uses "
          "(removed); freed: what both gave back on disk",
          {},
          {{"--objects", nullptr, "remove what store plug-ins stored under opaque keys, too"}},
          run_gc};
}

}  // namespace kvtier::cli
