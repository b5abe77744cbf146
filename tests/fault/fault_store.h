// FaultStore: a small store of known rows, made once by a real daemon and copied for each test that
// damages it; and what tests ask of it afterwards. One thread.
//
// In it: `short` and `other` (one segment of 200 tokens each: files of one length), `long` (a full
// segment and one behind it), `tail` and `tail2` (three commits of 100 tokens in a tail log, the
// daemon killed behind them).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "tests/support/daemon_process.h"
#include "tests/support/known_rows.h"

namespace kvtier::testing {

struct Story {
  const char* name;
  std::uint64_t seed;
  std::uint64_t tokens;
  bool sealed;
};
inline constexpr Story kStories[] = {{"short", 1, 200, true},
                                     {"other", 2, 200, true},
                                     {"long", 3, 2048 + 200, true},
                                     {"tail", 4, 300, false},
                                     {"tail2", 5, 300, false}};

// What came of reading a story. `wrong` says that a row was not the one that was stored, or that
// the client hung: never allowed.
struct Reading {
  kvt_status status = KVT_OK;
  std::uint64_t tokens = 0;  // the sequence has
  std::string text;          // of the error
  std::string wrong;
  [[nodiscard]] bool whole(const Story& story) const {
    return status == KVT_OK && wrong.empty() && tokens == story.tokens;
  }
};

class FaultStore {
 public:
  FaultStore();  // a fresh copy, no daemon
  ~FaultStore();
  FaultStore(const FaultStore&) = delete;
  FaultStore& operator=(const FaultStore&) = delete;

  [[nodiscard]] const std::string& path() const noexcept { return settings.store; }
  // "segments/..." and the like, sorted.
  [[nodiscard]] std::vector<std::string> files(const std::string& folder) const;
  [[nodiscard]] std::string get(const std::string& name) const;
  void put(const std::string& name, const std::string& bytes) const;
  void remove(const std::string& name) const;

  bool start() { return daemon.start(settings); }
  bool stop() { return daemon.stop(); }
  // What it said on standard error since the last start.
  [[nodiscard]] std::string log() const { return read_text(settings.log_path); }

  // With the daemon running. A client is opened where there is none.
  Reading read(const Story& story);
  // Appends what the story lacks, under its name, and commits.
  kvt_status heal(const Story& story);
  Json request(const std::string& op);
  [[nodiscard]] kvt_space* space();
  void close_client();
  // `kvtier verify` of the directory or of the daemon; *exit_code 0 or 3.
  [[nodiscard]] Json verify_offline(int* exit_code) const;
  [[nodiscard]] Json verify(int* exit_code) const;
  [[nodiscard]] Json command(const std::string& arguments, int* exit_code) const;

  const ScratchDirectory directory{true};
  DaemonSettings settings;
  DaemonProcess daemon;

 private:
  kvt_client* client_ = nullptr;
  kvt_space* space_ = nullptr;
};

// Whether one of the problems of a verify names this object.
[[nodiscard]] bool names(const Json& verified, const std::string& object);

}  // namespace kvtier::testing
