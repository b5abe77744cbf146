// verify, repair, gc: the soundness of the store. A running daemon does it; `verify --store` needs
// none and never writes.
#include <cstdio>

#include "tiers/store_check.h"
#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

// The same shape as the daemon's reply, from a check of the directory alone.
Result<Json> check_offline(const std::string& store, bool deep) {
  IoOptions io_options;
  io_options.root = store;
  io_options.backend = "threads";
  KVT_TRY(const std::unique_ptr<Io> io, make_io(io_options));
  CatalogueOptions catalogue_options;
  catalogue_options.path = store + "/catalogue";
  catalogue_options.read_only = true;
  Json problems = Json::array();
  Result<StoreRows> rows = error(Code::kNotFound);
  if (Result<std::unique_ptr<Catalogue>> catalogue = Catalogue::open(catalogue_options); catalogue)
    rows = load_store_rows(**catalogue);
  if (!rows)
    problems.push_back(
        Json{{"object", "catalogue"}, {"region", ""}, {"reason", rows.error().message()}});
  StoreCheckOptions options;
  options.deep = deep;
  const StoreReport report = check_store(*io, rows ? &*rows : nullptr, options);
  for (const Finding& finding : report.findings)
    problems.push_back(Json{{"object", finding.path},
                            {"region", finding.region},
                            {"severity", finding_severity_name(finding.severity)},
                            {"reason", finding.what}});
  return Json{{"sound", report.sound() && rows.has_value()},
              {"segments", report.segments},
              {"chunks", deep ? report.chunks_checked : report.chunks},
              {"bytes", report.read_bytes},
              {"problems", std::move(problems)}};
}

void print_problems(const Json& reply) {
  std::vector<std::vector<std::string>> rows = {{"OBJECT", "WHERE", "WHAT"}};
  for (const Json& problem : reply["problems"])
    rows.push_back(
        {text_of(problem, "object"), text_of(problem, "region"), text_of(problem, "reason")});
  if (rows.size() > 1) print_table(rows);
}

int finish_verify(const Invocation& invocation, const Json& reply) {
  const bool sound = reply.value("sound", false);
  if (invocation.json) {
    print_json(reply);
  } else {
    print_problems(reply);
    std::printf(
        "%s: %llu segments, %llu chunks, %s checked%s\n", sound ? "sound" : "NOT sound",
        static_cast<unsigned long long>(number_of(reply, "segments")),
        static_cast<unsigned long long>(number_of(reply, "chunks")),
        human_bytes(number_of(reply, "bytes")).c_str(),
        sound ? "" : "; `kvtier repair` drops what is damaged, so that storing it again heals it");
  }
  return sound ? 0 : 3;
}

int run_verify(const Invocation& invocation) {
  Json reply;
  int exit_code = 0;
  if (invocation.has("store")) {
    const Result<Json> checked = check_offline(invocation.get("store"), !invocation.has("quick"));
    if (!checked) return print_error(invocation, checked.error(), checked.error().message());
    return finish_verify(invocation, *checked);
  }
  if (!request(invocation, Json{{"op", "verify"}, {"deep", !invocation.has("quick")}}, &reply,
               &exit_code, 0))
    return exit_code;
  return finish_verify(invocation, reply);
}

int run_repair(const Invocation& invocation) {
  Json reply;
  int exit_code = 0;
  if (!request(invocation, Json{{"op", "repair"}}, &reply, &exit_code, 0)) return exit_code;
  if (invocation.json) {
    print_json(reply);
  } else {
    print_problems(reply);
    std::printf("%llu damaged objects dropped\n",
                static_cast<unsigned long long>(number_of(reply, "dropped")));
  }
  return 0;
}

int run_gc(const Invocation& invocation) {
  Json reply;
  int exit_code = 0;
  if (!request(invocation, Json{{"op", "gc"}}, &reply, &exit_code, 0)) return exit_code;
  if (invocation.json)
    print_json(reply);
  else
    std::printf("%llu segments compacted, %llu removed, %s freed\n",
                static_cast<unsigned long long>(number_of(reply, "segments_compacted")),
                static_cast<unsigned long long>(number_of(reply, "segments_removed")),
                human_bytes(number_of(reply, "bytes_freed")).c_str());
  return 0;
}

}  // namespace

Command verify_command() {
  return {"verify",
          "check everything that is stored against its checksums (exit 3: something is damaged)",
          {},
          {{"--quick", nullptr, "structure only, not every byte"},
           {"--store", "PATH", "check this directory without a daemon; never writes"}},
          run_verify};
}
Command repair_command() { return {"repair", "drop what is damaged", {}, {}, run_repair}; }
Command gc_command() {
  return {"gc", "merge small segments and remove what nothing uses", {}, {}, run_gc};
}

}  // namespace kvtier::cli
