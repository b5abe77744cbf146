#include "tests/crash/dying_client.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <utility>
#include <vector>

#include "base/json.h"
#include "tests/support/known_rows.h"

namespace kvtier::testing {
namespace {

// Closes at the end of a call what it opened.
struct Opened {
  ~Opened() {
    kvt_view_close(view);
    kvt_sequence_close(fork);
    kvt_sequence_close(sequence);
  }
  kvt_sequence *sequence = nullptr, *fork = nullptr;
  kvt_view* view = nullptr;
};

kvt_status asked(const Life& life, const Json& request, std::string* answer = nullptr) {
  char* reply = nullptr;
  const kvt_status status = kvt_client_request(life.client, dump_json(request).c_str(), &reply);
  if (answer != nullptr && reply != nullptr) *answer = reply;
  kvt_free(reply);
  return status;
}

bool open_shared(const Life& life, Opened* opened) {
  return kvt_sequence_open(life.space, "bystander", 0, 0, &opened->sequence) == KVT_OK;
}

bool open_view(kvt_sequence* sequence, const char* preset, kvt_view** view) {
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.preset = preset;
  options.budget = 128;
  return kvt_view_open(sequence, &options, view) == KVT_OK;
}

std::vector<float> some_queries(const Life& life, std::uint32_t layer) {
  std::vector<float> q(kKnownHeads * 2 * kKnownDim);
  for (std::uint32_t i = 0; i < q.size(); ++i)
    q[i] = 4 * known_value(life.seed, layer, i, life.turn, 0, false);
  return q;
}

bool attend(const Life& life, kvt_view* view) {
  std::vector<float> out(kKnownHeads * 2 * kKnownDim);
  for (std::uint32_t layer = 0; layer < kKnownLayers; ++layer) {
    const std::vector<float> q = some_queries(life, layer);
    if (kvt_view_attend(view, layer, 1, q.data(), 0.3f, out.data(), nullptr) != KVT_OK)
      return false;
  }
  return true;
}

bool live_read(Life& life) {
  Opened opened;
  kvt_status status = KVT_OK;
  return open_shared(life, &opened) && check_known(opened.sequence, 1, &status).empty();
}

bool live_attend(Life& life) {
  Opened opened;
  return open_shared(life, &opened) && open_view(opened.sequence, "quest", &opened.view) &&
         attend(life, opened.view);
}

std::string ahead_preset(const std::string& directory) { return directory + "/ahead.toml"; }

// Between guess and step the client computes and holds what has come.
bool live_look_ahead(Life& life) {
  Opened opened;
  if (!open_shared(life, &opened) ||
      !open_view(opened.sequence, ahead_preset(life.directory).c_str(), &opened.view) ||
      !attend(life, opened.view))
    return false;
  ++life.turn;
  for (std::uint32_t layer = 0; layer < kKnownLayers; ++layer)
    if (kvt_view_look_ahead(opened.view, layer, some_queries(life, layer).data(), 0.3f) != KVT_OK)
      return false;
  ::usleep(10'000);
  return attend(life, opened.view);
}

bool live_match(Life& life) {
  std::vector<std::uint32_t> ids;
  for (std::uint64_t t = 0; t < 1000; ++t) ids.push_back(known_token(1, t).id);
  kvt_match match{};
  return kvt_space_match(life.space, ids.data(), ids.size(), &match) == KVT_OK &&
         match.tokens == ids.size();
}

bool live_fork(Life& life) {
  Opened opened;
  return open_shared(life, &opened) &&
         kvt_sequence_fork(opened.sequence, 100, nullptr, &opened.fork) == KVT_OK;
}

bool create(const Life& life, const char* name, std::uint32_t tokens, Opened* opened) {
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = name;
  return kvt_sequence_create(life.space, &options, nullptr, 0, nullptr, &opened->sequence) ==
             KVT_OK &&
         append_known(opened->sequence, life.seed, tokens) == KVT_OK;
}

bool live_commit(Life& life) {
  Opened opened;
  return create(life, nullptr, 700, &opened) && kvt_sequence_commit(opened.sequence) == KVT_OK;
}

bool live_truncate(Life& life) {
  Opened opened;
  return create(life, nullptr, 300, &opened) && kvt_sequence_commit(opened.sequence) == KVT_OK &&
         kvt_sequence_truncate(opened.sequence, 200) == KVT_OK;
}

bool live_named(Life& life) {
  const std::string name = "child " + std::to_string(life.seed) + " " + std::to_string(life.turn);
  {
    Opened opened;
    if (!create(life, name.c_str(), 50, &opened)) return false;
  }
  return asked(life, {{"op", "rm"}, {"target", name}}) == KVT_OK;
}

bool live_texts(Life& life) {
  Opened opened;
  constexpr std::uint64_t kFirst = 900, kCount = 400;  // over the end of a piece
  std::vector<std::uint16_t> bytes(kCount);
  std::string texts(kCount * 16, '\0'), expected;
  std::uint64_t total = 0;
  for (std::uint64_t t = 0; t < kCount; ++t) expected += known_text(1, kFirst + t);
  return open_shared(life, &opened) &&
         kvt_sequence_texts(opened.sequence, kFirst, kCount, bytes.data(), texts.data(),
                            texts.size(), &total) == KVT_OK &&
         texts.substr(0, total) == expected;
}

bool live_warm(Life& life) {
  return asked(life, {{"op", "warm"}, {"target", "bystander"}}) == KVT_OK;
}

bool live_pin(Life& life) {
  for (const bool pinned : {true, false})
    if (asked(life, {{"op", "pin"}, {"target", "bystander"}, {"pinned", pinned}}) != KVT_OK)
      return false;
  return true;
}

bool live_export(Life& life) {
  const std::string name = "copy " + std::to_string(life.seed) + " " + std::to_string(life.turn);
  const std::string path = life.directory + "/" + name + ".kvx";
  const bool done =
      asked(life, {{"op", "export"}, {"target", "bystander"}, {"path", path}}) == KVT_OK &&
      asked(life, {{"op", "import"}, {"path", path}, {"name", name}}) == KVT_OK &&
      asked(life, {{"op", "rm"}, {"target", name}}) == KVT_OK;
  ::unlink(path.c_str());
  return done;
}

// The job of one that died goes on.
bool live_reindex(Life& life) {
  const kvt_status status = asked(life, {{"op", "reindex"}, {"target", "bystander"}});
  return status == KVT_OK || status == KVT_ERROR_BUSY;
}

bool live_objects(Life& life) {
  const std::string key = "child " + std::to_string(life.seed);
  std::string value(100'000, static_cast<char>('a' + life.turn % 26));
  const std::string before = value;
  for (const std::int32_t verb :
       {KVT_OBJECT_SET, KVT_OBJECT_EXISTS, KVT_OBJECT_GET, KVT_OBJECT_DELETE}) {
    const kvt_object object{key.data(), static_cast<std::uint32_t>(key.size()), 0, value.data(),
                            value.size()};
    std::uint64_t batch = 0;
    if (kvt_objects_submit(life.client, verb, &object, 1, &batch) != KVT_OK) return false;
    kvt_object_result result{};
    std::uint32_t count = 0;
    while (count == 0)
      if (kvt_objects_poll(life.client, &result, 1, 1000, &count) != KVT_OK) return false;
    if (result.status != KVT_OK) return false;
  }
  return value == before;
}

// In a space that has no codebook yet; the training of one that died goes on.
bool live_calibrate(Life& life) {
  const std::string model = "child " + std::to_string(life.seed) + " " + std::to_string(life.turn);
  Life other = life;
  if (open_known_space(life.client, &other.space, model.c_str()) != KVT_OK) return false;
  bool done = false;
  {
    Opened stored, opened;
    std::string codebooks;
    done = create(other, model.c_str(), 100, &stored) &&
           kvt_sequence_close(std::exchange(stored.sequence, nullptr)) == KVT_OK &&
           kvt_sequence_open(other.space, model.c_str(), 0, 0, &opened.sequence) == KVT_OK &&
           open_view(opened.sequence, "codes", &opened.view) && attend(life, opened.view) &&
           asked(life, {{"op", "codebooks"}}, &codebooks) == KVT_OK &&
           codebooks.find(model) != std::string::npos;
  }
  done = asked(life, {{"op", "rm"}, {"target", model}}) == KVT_OK && done;
  kvt_space_close(other.space);
  return done;
}

struct Call {
  const char* name;
  bool (*run)(Life&);
};
constexpr Call kCalls[] = {
    {"read", live_read},         {"attend", live_attend},   {"look ahead", live_look_ahead},
    {"match", live_match},       {"fork", live_fork},       {"commit", live_commit},
    {"truncate", live_truncate}, {"named", live_named},     {"objects", live_objects},
    {"texts", live_texts},       {"warm", live_warm},       {"pin", live_pin},
    {"export", live_export},     {"reindex", live_reindex}, {"calibrate", live_calibrate},
};
static_assert(std::size(kCalls) == kCallCount);

}  // namespace

const char* call_name(std::size_t call) noexcept { return kCalls[call].name; }

void write_presets(const std::string& directory) {
  std::ofstream(ahead_preset(directory)) << "base = \"quest\"\nfetch = \"ahead\"\n";
}

[[noreturn]] void live(const std::string& socket, Life life, std::size_t first, Told* told) {
  if (::fork() == 0) {  // keeps nothing but what it inherited before the client opened
    ::pause();
    ::_exit(0);
  }
  if (open_known_client(socket, &life.client) != KVT_OK ||
      open_known_space(life.client, &life.space) != KVT_OK)
    ::_exit(1);
  // A forked child of a connected client holds its socket open.
  const pid_t holder = ::fork();
  if (holder == 0) {
    ::sleep(2);
    ::_exit(0);
  }
  told->connected = 1;
  for (std::size_t call = first;; call = (call + 1) % kCallCount, ++life.turn) {
    told->current = static_cast<std::uint32_t>(call);
    const auto begun = std::chrono::steady_clock::now();
    if (kCalls[call].run(life)) {
      told->took_us[call] =
          static_cast<std::uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                         std::chrono::steady_clock::now() - begun)
                                         .count());
      ++told->finished[call];
      continue;
    }
    ++told->failed[call];
    std::snprintf(told->reason[call], sizeof told->reason[call], "%s", kvt_last_error());
  }
}

}  // namespace kvtier::testing
