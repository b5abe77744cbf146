#include "tests/fault/fault_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace kvtier::testing {
namespace {

namespace fs = std::filesystem;

DaemonSettings settings_in(const std::string& directory) {
  DaemonSettings settings;
  settings.store = directory + "/store";
  settings.socket = directory + "/run/kvtierd.sock";
  settings.settings = {"host.arena_bytes=16MiB", "host.leased_bytes_per_client_max=8MiB",
                       "host.abstracts_bytes=2MiB", "daemon.workers=2"};
  settings.log_path = directory + "/daemon.log";
  settings.log_level = "warn";
  return settings;
}

kvt_status write_story(kvt_space* space, const Story& story, kvt_sequence** sequence) {
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = story.name;
  kvt_status status = kvt_sequence_create(space, &options, nullptr, 0, nullptr, sequence);
  const std::uint64_t step = story.sealed ? 1024 : 100;
  for (std::uint64_t done = 0; status == KVT_OK && done < story.tokens; done += step) {
    const std::uint64_t count = std::min(step, story.tokens - done);
    status = append_known(*sequence, story.seed, static_cast<std::uint32_t>(count));
    if (status == KVT_OK && !story.sealed) status = kvt_sequence_commit(*sequence);
  }
  return status;
}

// Sealed stories with a daemon that stops in peace, the others with one that is killed.
std::string make_sample(const std::string& directory) {
  const DaemonSettings settings = settings_in(directory);
  for (const bool sealed : {true, false}) {
    DaemonProcess daemon;
    if (!daemon.start(settings)) return "the daemon does not start";
    kvt_client* client = nullptr;
    kvt_space* space = nullptr;
    if (open_known_client(settings.socket, &client) != KVT_OK) return kvt_last_error();
    if (open_known_space(client, &space) != KVT_OK) return kvt_last_error();
    std::vector<kvt_sequence*> open;
    for (const Story& story : kStories) {
      if (story.sealed != sealed) continue;
      kvt_sequence* sequence = nullptr;
      if (write_story(space, story, &sequence) != KVT_OK) return kvt_last_error();
      if (sealed && kvt_sequence_close(sequence) != KVT_OK) return kvt_last_error();
      if (!sealed) open.push_back(sequence);
    }
    if (!sealed) daemon.kill_now();
    for (kvt_sequence* sequence : open) kvt_sequence_close(sequence);
    kvt_space_close(space);
    kvt_client_close(client);
    if (sealed && !daemon.stop()) return "the daemon does not stop";
  }
  return "";
}

const std::string& sample_store() {
  static const ScratchDirectory directory(true);
  static const std::string problem = make_sample(directory.path());
  static const std::string path = directory.path() + "/store";
  if (!problem.empty()) ADD_FAILURE() << "the sample store: " << problem;
  return path;
}

}  // namespace

FaultStore::FaultStore() : settings(settings_in(directory.path())) {
  fs::copy(sample_store(), settings.store, fs::copy_options::recursive);
}

FaultStore::~FaultStore() { close_client(); }

void FaultStore::close_client() {
  kvt_space_close(space_);
  kvt_client_close(client_);
  space_ = nullptr;
  client_ = nullptr;
}

std::vector<std::string> FaultStore::files(const std::string& folder) const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path() + "/" + folder))
    names.push_back(folder + "/" + entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string FaultStore::get(const std::string& name) const {
  return read_text(path() + "/" + name);
}

void FaultStore::put(const std::string& name, const std::string& bytes) const {
  std::ofstream file(path() + "/" + name, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(file.flush().good()) << name;
}

void FaultStore::remove(const std::string& name) const {
  ASSERT_TRUE(fs::remove(path() + "/" + name)) << name;
}

kvt_space* FaultStore::space() {
  if (space_ != nullptr) return space_;
  EXPECT_EQ(open_known_client(settings.socket, &client_), KVT_OK) << kvt_last_error();
  if (client_ == nullptr) return nullptr;
  EXPECT_EQ(open_known_space(client_, &space_), KVT_OK) << kvt_last_error();
  return space_;
}

Json FaultStore::request(const std::string& op) {
  char* text = nullptr;
  if (space() == nullptr ||
      kvt_client_request(client_, ("{\"op\":\"" + op + "\"}").c_str(), &text) != KVT_OK) {
    ADD_FAILURE() << op << ": " << kvt_last_error();
    return Json::object();
  }
  Json reply = parse_json(text).value_or(Json::object());
  kvt_free(text);
  return reply;
}

Reading FaultStore::read(const Story& story) {
  Reading reading;
  kvt_sequence* sequence = nullptr;
  // A tail is replayed for a writer only.
  reading.status = kvt_sequence_open(space(), story.name, 0, story.sealed ? 0 : 1, &sequence);
  if (reading.status == KVT_OK) {
    reading.tokens = kvt_sequence_length(sequence);
    reading.text = check_known(sequence, story.seed, &reading.status);
    if (reading.status == KVT_OK) reading.wrong = reading.text;
    kvt_sequence_close(sequence);
  } else {
    reading.text = kvt_last_error();
  }
  if (reading.status == KVT_ERROR_TIMEOUT || reading.status == KVT_ERROR_DAEMON_LOST)
    reading.wrong = "the daemon did not answer: " + reading.text;
  return reading;
}

kvt_status FaultStore::heal(const Story& story) {
  kvt_sequence* sequence = nullptr;
  kvt_status status = kvt_sequence_open(space(), story.name, 0, 1, &sequence);
  if (status == KVT_ERROR_NOT_FOUND) {
    kvt_sequence_options options;
    kvt_sequence_options_init(&options);
    options.name = story.name;
    status = kvt_sequence_create(space(), &options, nullptr, 0, nullptr, &sequence);
  }
  while (status == KVT_OK && kvt_sequence_length(sequence) < story.tokens) {
    const std::uint64_t left = story.tokens - kvt_sequence_length(sequence);
    status = append_known(sequence, story.seed,
                          static_cast<std::uint32_t>(std::min<std::uint64_t>(left, 1024)));
  }
  if (status == KVT_OK) status = kvt_sequence_commit(sequence);
  const kvt_status closed = kvt_sequence_close(sequence);
  return status == KVT_OK ? closed : status;
}

Json FaultStore::command(const std::string& arguments, int* exit_code) const {
  const CommandResult result = run_kvtier(arguments);
  *exit_code = result.exit_code;
  const std::size_t line = result.output.find("\n{");  // behind what was logged
  const Result<Json> parsed =
      parse_json(line == std::string::npos ? result.output : result.output.substr(line));
  if (!parsed) ADD_FAILURE() << "kvtier " << arguments << ": " << result.output;
  return parsed.value_or(Json::object());
}

Json FaultStore::verify_offline(int* exit_code) const {
  return command("verify --json --store " + path(), exit_code);
}

Json FaultStore::verify(int* exit_code) const {
  return command("verify --json --socket " + settings.socket, exit_code);
}

bool names(const Json& verified, const std::string& object) {
  if (!verified.contains("problems")) return false;
  const Json& problems = verified["problems"];
  return std::any_of(problems.begin(), problems.end(), [&](const Json& problem) {
    return problem.value("object", "").find(object) != std::string::npos &&
           !problem.value("reason", "").empty();
  });
}

}  // namespace kvtier::testing
