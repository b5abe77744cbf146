// What a caller, a peer, a file or a configuration must not say: every refusal has the code of its
// cause and a text that says what to do, changes nothing, and leaves the daemon serving others.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>

#include "base/hash.h"
#include "client/ipc/control_channel.h"
#include "client/ipc/frame.h"
#include "client/ipc/shm_layout.h"
#include "client/ipc/unix_socket.h"
#include "tests/fault/fault_store.h"
#include "tiers/format_head.h"

namespace kvtier::testing {
namespace {

// The call was refused with this code and a text that holds `words`.
#define EXPECT_REFUSED(call, code, words)                                   \
  do {                                                                      \
    EXPECT_EQ(call, code) << kvt_last_error();                              \
    EXPECT_NE(std::string(kvt_last_error()).find(words), std::string::npos) \
        << "'" << kvt_last_error() << "' does not say '" << (words) << "'"; \
  } while (false)

class BadInput : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    store_ = new FaultStore;
    ASSERT_TRUE(store_->start()) << store_->log();
  }
  static void TearDownTestSuite() {
    // Whatever was asked of it, it serves, and stops in peace.
    for (const Story& story : kStories) {
      const Reading reading = store_->read(story);
      EXPECT_TRUE(reading.whole(story)) << story.name << ": " << reading.text << reading.wrong;
    }
    store_->close_client();
    EXPECT_TRUE(store_->stop()) << store_->log();
    delete store_;
  }
  void SetUp() override {
    ASSERT_EQ(open_known_client(store_->settings.socket, &client_), KVT_OK);
    ASSERT_EQ(open_known_space(client_, &space_), KVT_OK);
  }
  void TearDown() override {
    kvt_sequence_close(sequence_);
    kvt_space_close(space_);
    kvt_client_close(client_);
  }
  void create() {
    ASSERT_EQ(kvt_sequence_create(space_, nullptr, nullptr, 0, nullptr, &sequence_), KVT_OK);
  }
  // A space as open_known_space's, changed by `change`.
  kvt_status open_other(const std::function<void(kvt_space_options*, kvt_layer*)>& change,
                        kvt_space** out) {
    kvt_layer layers[2] = {};
    for (kvt_layer& layer : layers) {
      layer.kv_heads = kKnownHeads;
      layer.query_heads = kKnownHeads * 2;
      layer.k_row_bytes = layer.v_row_bytes = kKnownDim * 4;
    }
    kvt_space_options options;
    kvt_space_options_init(&options);
    options.model = "known rows";
    options.runtime = "tests";
    options.layers = layers;
    options.layer_count = 2;
    change(&options, layers);
    return kvt_space_open(client_, &options, out);
  }

  static FaultStore* store_;
  kvt_client* client_ = nullptr;
  kvt_space* space_ = nullptr;
  kvt_sequence* sequence_ = nullptr;
};
FaultStore* BadInput::store_ = nullptr;

TEST_F(BadInput, ASequenceOfAnotherSpace) {
  kvt_space* other = nullptr;
  const auto another_model = [](kvt_space_options* options, kvt_layer*) { options->model = "x"; };
  const auto another_shape = [](kvt_space_options*, kvt_layer* layers) {
    layers[1].k_row_bytes = layers[1].v_row_bytes = 64;
  };
  for (const auto& change : {std::function<void(kvt_space_options*, kvt_layer*)>(another_model),
                             std::function<void(kvt_space_options*, kvt_layer*)>(another_shape)}) {
    ASSERT_EQ(open_other(change, &other), KVT_OK);
    EXPECT_REFUSED(kvt_sequence_open(other, "short", 0, 0, &sequence_), KVT_ERROR_WRONG_SPACE,
                   "another model, runtime or layout");
    // Its tokens do not match there either.
    std::vector<std::uint32_t> ids;
    for (std::uint64_t i = 0; i < 200; ++i) ids.push_back(known_token(1, i).id);
    kvt_match match{};
    EXPECT_EQ(kvt_space_match(other, ids.data(), ids.size(), &match), KVT_OK);
    EXPECT_EQ(match.tokens, 0u);
    kvt_space_close(other);
  }
}

TEST_F(BadInput, AGeometryThatCannotBe) {
  kvt_space* other = nullptr;
  using Change = std::function<void(kvt_space_options*, kvt_layer*)>;
  const std::pair<Change, kvt_status> changes[] = {
      {[](auto*, kvt_layer* l) { l->kv_heads = 0; }, KVT_ERROR_INVALID},
      {[](auto*, kvt_layer* l) { l->query_heads = 3; }, KVT_ERROR_INVALID},
      {[](auto*, kvt_layer* l) { l->k_row_bytes = 0; }, KVT_ERROR_TOO_LARGE},
      {[](auto*, kvt_layer* l) { l->k_row_bytes = 30; }, KVT_ERROR_INVALID},
      {[](auto*, kvt_layer* l) { l->k_row_bytes = 1u << 20; }, KVT_ERROR_TOO_LARGE},
      {[](auto*, kvt_layer* l) { l->dtype = 9; }, KVT_ERROR_INVALID},
      {[](auto*, kvt_layer* l) { l->kind = 3; }, KVT_ERROR_INVALID},
      {[](kvt_space_options* o, auto*) { o->chunk_tokens = 7; }, KVT_ERROR_INVALID},
      {[](kvt_space_options* o, auto*) { o->layer_count = 0; }, KVT_ERROR_INVALID},
      {[](kvt_space_options* o, auto*) { o->layer_count = 257; }, KVT_ERROR_TOO_LARGE},
      {[](kvt_space_options* o, auto*) { o->preset = "boxes"; }, KVT_ERROR_NOT_FOUND},
      {[](kvt_space_options* o, auto*) { o->model = nullptr; }, KVT_ERROR_INVALID},
      {[](kvt_space_options* o, auto*) { o->struct_size = 3; }, KVT_ERROR_INVALID},
  };
  int number = 0;
  for (const auto& [change, status] : changes) {
    SCOPED_TRACE("change " + std::to_string(number++));
    const kvt_status got = open_other(change, &other);
    EXPECT_EQ(got, status) << kvt_last_error();
    EXPECT_STRNE(kvt_last_error(), "");
    EXPECT_EQ(other, nullptr);
  }
}

TEST_F(BadInput, WrongLengths) {
  create();
  const std::vector<kvt_token> tokens(1025);
  EXPECT_REFUSED(kvt_sequence_append(sequence_, tokens.data(), 0), KVT_ERROR_INVALID,
                 "append 1 to");
  EXPECT_REFUSED(kvt_sequence_append(sequence_, tokens.data(), 1025), KVT_ERROR_INVALID, "1024");
  ASSERT_EQ(append_known(sequence_, 70, 10), KVT_OK);
  ASSERT_EQ(kvt_sequence_append(sequence_, tokens.data(), 4), KVT_OK);
  std::vector<float> rows(kKnownHeads * 8 * kKnownDim);
  const kvt_rows right = {rows.data(), 8 * kKnownDim * 4, kKnownDim * 4};
  EXPECT_EQ(kvt_sequence_write(sequence_, 0, 0, 5, &right, &right), KVT_ERROR_INVALID);
  EXPECT_STRNE(kvt_last_error(), "");
  EXPECT_EQ(kvt_sequence_write(sequence_, 0, 4, 1, &right, &right), KVT_ERROR_INVALID);
  EXPECT_EQ(kvt_sequence_write(sequence_, 2, 0, 4, &right, &right), KVT_ERROR_INVALID);
  EXPECT_EQ(kvt_sequence_write(sequence_, 0, 0, 4, nullptr, &right), KVT_ERROR_INVALID);
  EXPECT_EQ(kvt_sequence_abort_piece(sequence_), KVT_OK);
  EXPECT_REFUSED(kvt_sequence_read(sequence_, 0, 5, 6, rows.data(), rows.data()), KVT_ERROR_INVALID,
                 "10");
  EXPECT_EQ(kvt_sequence_read(sequence_, 7, 0, 1, rows.data(), rows.data()), KVT_ERROR_INVALID);
  std::vector<kvt_token> back(11);
  EXPECT_REFUSED(kvt_sequence_tokens(sequence_, 0, 11, back.data()), KVT_ERROR_INVALID, "10");
  kvt_status status = KVT_OK;
  EXPECT_EQ(check_known(sequence_, 70, &status), "") << "nothing of it was kept";
  EXPECT_EQ(kvt_sequence_length(sequence_), 10u);
}

TEST_F(BadInput, RowsThatAreNoNumbers) {
  create();
  ASSERT_EQ(append_known(sequence_, 71, 10), KVT_OK);
  const std::vector<kvt_token> tokens(3);
  std::vector<float> good(kKnownHeads * 3 * kKnownDim, 0.5f);
  for (const float value : {std::nanf(""), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
    std::vector<float> bad = good;
    bad[(1 * 3 + 2) * kKnownDim + 5] = value;  // head 1, token 2
    const kvt_rows right = {good.data(), 3 * kKnownDim * 4, kKnownDim * 4};
    const kvt_rows wrong = {bad.data(), 3 * kKnownDim * 4, kKnownDim * 4};
    ASSERT_EQ(kvt_sequence_append(sequence_, tokens.data(), 3), KVT_OK);
    EXPECT_REFUSED(kvt_sequence_write(sequence_, 1, 0, 3, &wrong, &right), KVT_ERROR_NOT_FINITE,
                   "layer 1");
    EXPECT_REFUSED(kvt_sequence_write(sequence_, 1, 0, 3, &right, &wrong), KVT_ERROR_NOT_FINITE,
                   "token");
    EXPECT_NE(kvt_sequence_finish_piece(sequence_), KVT_OK) << "a piece without its rows ended";
    ASSERT_EQ(kvt_sequence_abort_piece(sequence_), KVT_OK);
  }
  kvt_status status = KVT_OK;
  EXPECT_EQ(check_known(sequence_, 71, &status), "");
  EXPECT_EQ(kvt_sequence_length(sequence_), 10u);
}

TEST_F(BadInput, ViewsThatCannotBe) {
  ASSERT_EQ(kvt_sequence_open(space_, "short", 0, 0, &sequence_), KVT_OK);
  kvt_view* view = nullptr;
  const auto open = [&](const auto& change) {
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.preset = "quest";
    change(&options);
    return kvt_view_open(sequence_, &options, &view);
  };
  EXPECT_REFUSED(open([](kvt_view_options* o) { o->budget = 8; }), KVT_ERROR_INVALID,
                 "below the 16 sinks: raise it");
  EXPECT_REFUSED(open([](kvt_view_options* o) { o->budget = 1ull << 40; }), KVT_ERROR_TOO_LARGE,
                 "use 0 for everything");
  EXPECT_NE(open([](kvt_view_options* o) { o->preset = "best"; }), KVT_OK);
  EXPECT_NE(std::string(kvt_last_error()).find("no such preset: best; there are "),
            std::string::npos);
  EXPECT_EQ(view, nullptr);
  ASSERT_EQ(open([](kvt_view_options* o) { o->budget = 64; }), KVT_OK);
  std::vector<float> q(4 * kKnownDim), out(q.size());
  EXPECT_EQ(kvt_view_attend(view, 2, 1, q.data(), 1, out.data(), nullptr), KVT_ERROR_INVALID);
  EXPECT_EQ(kvt_view_attend(view, 0, 0, q.data(), 1, out.data(), nullptr), KVT_ERROR_INVALID);
  EXPECT_EQ(kvt_view_attend(view, 0, 1, nullptr, 1, out.data(), nullptr), KVT_ERROR_INVALID);
  q[3] = std::nanf("");
  EXPECT_REFUSED(kvt_view_attend(view, 0, 1, q.data(), 1, out.data(), nullptr),
                 KVT_ERROR_NOT_FINITE, "query 0, head 0");
  kvt_view_close(view);
}

TEST_F(BadInput, NamesAndTargets) {
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  const std::string long_name(300, 'n');
  for (const char* name : {"17", "a/b", "a\nb", " ", " a", "a ", "a\xC2\x85-", long_name.c_str()}) {
    options.name = name;
    EXPECT_NE(kvt_sequence_create(space_, &options, nullptr, 0, nullptr, &sequence_), KVT_OK);
    EXPECT_STRNE(kvt_last_error(), "") << name;
  }
  options.name = "short";
  EXPECT_REFUSED(kvt_sequence_create(space_, &options, nullptr, 0, nullptr, &sequence_),
                 KVT_ERROR_EXISTS, "choose another, or open it");
  EXPECT_REFUSED(kvt_sequence_open(space_, "nobody", 0, 0, &sequence_), KVT_ERROR_NOT_FOUND,
                 "no such sequence");
  char* reply = nullptr;
  EXPECT_REFUSED(kvt_client_request(client_, "{\"op\":\"dance\"}", &reply), KVT_ERROR_UNSUPPORTED,
                 "no such operation");
  EXPECT_NE(kvt_client_request(client_, "not json", &reply), KVT_OK);
  EXPECT_NE(kvt_client_request(client_, "{\"op\":\"show\",\"target\":[1]}", &reply), KVT_OK);
  EXPECT_STRNE(kvt_last_error(), "");
}

// ---- the wire -----------------------------------------------------------------------------------

UniqueFd raw_socket(const std::string& path) {
  Result<UniqueFd> socket = connect_unix(path, Deadline::after_ms(5000));
  EXPECT_TRUE(socket);
  return socket ? std::move(*socket) : UniqueFd();
}

Json hello_with(std::uint64_t version) {
  return Json{{"op", "hello"}, {"version", version}, {"name", "t"}, {"pid", 1}, {"data", false}};
}

TEST_F(BadInput, HelloOfAnotherVersion) {
  ControlChannel channel(raw_socket(store_->settings.socket));
  const auto answer =
      channel.call(hello_with(kProtocolVersion + 1), {}, 0, Deadline::after_ms(5000));
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, Code::kVersion);
  EXPECT_NE(channel.error_text().find("install the same version of both"), std::string::npos)
      << channel.error_text();
}

TEST_F(BadInput, FieldsOfTheWrongKindOrAboveTheirLimit) {
  ControlChannel channel(raw_socket(store_->settings.socket));
  ASSERT_TRUE(channel.call(hello_with(kProtocolVersion), {}, 0, Deadline::after_ms(5000)));
  for (const char* text :
       {R"({"op":"verify","deep":7})", R"({"op":"warm","target":"short","priority":9})",
        R"({"op":"expire","target":"short","at_unix_s":-1})", R"({"op":"rename","target":"short"})",
        R"({"op":"pin","target":"short","pinned":"yes"})", R"({"op":"export","target":"short"})",
        R"({"op":"export","target":"short","path":"relative"})",
        R"({"op":"import","path":"/nowhere"})", R"({"op":"create","space":1})",
        R"({"op":"fork","space":1,"name":"short"})", R"({"op":5})", R"({"no":"op"})"}) {
    const Result<Json> request = parse_json(text);
    ASSERT_TRUE(request);
    const auto answer = channel.call(*request, {}, 0, Deadline::after_ms(5000));
    EXPECT_FALSE(answer) << text;
    EXPECT_FALSE(channel.error_text().empty()) << text;
    ASSERT_TRUE(channel.usable()) << text;
  }
}

// Frames that break the rules end the connection, at once and only that one.
TEST_F(BadInput, FramesThatBreakTheRules) {
  const auto frame = [](std::uint32_t magic, std::uint32_t json, std::uint32_t payload,
                        std::uint32_t fds, const std::string& body) {
    std::string bytes(16, '\0');
    for (const auto& [at, value] :
         {std::pair<int, std::uint32_t>{0, magic}, {4, json}, {8, payload}, {12, fds}})
      std::memcpy(bytes.data() + at, &value, 4);
    return bytes + body;
  };
  constexpr std::uint32_t kMagic = 0x4354564B;
  const std::string hello = dump_json(hello_with(kProtocolVersion));
  const auto size = static_cast<std::uint32_t>(hello.size());
  const std::string frames[] = {
      frame(0x12345678, size, 0, 0, hello),
      frame(kMagic, 0, 0, 0, ""),
      frame(kMagic, (1u << 20) + 1, 0, 0, ""),
      frame(kMagic, size, 0xFFFFFFFF, 0, hello),
      frame(kMagic, size, 0, 1, hello),
      frame(kMagic, size, 0, 17, hello),
      frame(kMagic, 2, 0, 0, "[]"),
      frame(kMagic, 4, 0, 0, "{]{]"),
      frame(kMagic, 14, 0, 0, "{\"op\":\"stats\"}"),
      frame(kMagic, 64, 0, 0, std::string(32, '[') + std::string(32, ']'))};
  for (std::size_t i = 0; i < std::size(frames); ++i) {
    SCOPED_TRACE("frame " + std::to_string(i));
    const UniqueFd socket = raw_socket(store_->settings.socket);
    ASSERT_EQ(::send(socket.get(), frames[i].data(), frames[i].size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(frames[i].size()));
    char bytes[4096];
    ssize_t got = 1;
    pollfd watched{socket.get(), POLLIN, 0};
    while (got > 0 && ::poll(&watched, 1, 5000) > 0)
      got = ::recv(socket.get(), bytes, sizeof bytes, 0);
    EXPECT_TRUE(got == 0 || errno == ECONNRESET) << "the connection stays: errno " << errno;
  }
  EXPECT_TRUE(store_->request("status").contains("pid")) << "others are not served any more";
  store_->close_client();
}

// ---- configuration ------------------------------------------------------------------------------

TEST_F(BadInput, SettingsThatCannotBe) {
  const ScratchDirectory directory;
  const auto refused = [&](const std::string& toml, std::vector<std::string> settings) {
    const std::string path = directory.path() + "/kvtierd.toml";
    std::ofstream(path) << toml;
    DaemonSettings wanted;
    wanted.store = directory.path() + "/store";
    wanted.socket = directory.path() + "/run/kvtierd.sock";
    wanted.config = path;
    wanted.settings = std::move(settings);
    wanted.log_path = directory.path() + "/log";
    DaemonProcess daemon;
    EXPECT_FALSE(daemon.start(wanted)) << toml;
    EXPECT_TRUE(WIFEXITED(daemon.last_status()) && WEXITSTATUS(daemon.last_status()) == 2);
    return read_text(wanted.log_path);
  };
  const auto expect = [](const std::string& said, const std::string& words) {
    EXPECT_NE(said.find(words), std::string::npos) << said;
  };
  std::string said = refused("[host]\narena_byte = 5\n", {});
  expect(said, "unknown key 'host.arena_byte'");
  expect(said, "'host.arena_bytes'");
  expect(said, "line 2");
  expect(refused("[host]\narena_bytes = -5\n", {}), "host.arena_bytes = -5: must be");
  expect(refused("[host]\narena_bytes = \"many\"\n", {}), "a size such as \"8 GiB\"");
  expect(refused("[disk]\nbackend = \"tape\"\n", {}), "choose one of auto|io_uring|threads");
  expect(refused("loose = 1\n", {}), "unknown key");
  expect(refused("[host\n", {}), "kvtierd.toml");
  expect(refused("", {"disk.depth=0"}), "disk.depth = 0: must be 1 to");
  expect(refused("", {"disk.dept=1"}), "'disk.depth'");
  expect(refused("", {"disk.depth"}), "KEY=VALUE");
  expect(refused("", {"host.arena_bytes=2MiB", "host.leased_bytes_per_client_max=3MiB"}),
         "= 3145728 is above host.arena_bytes = 2097152: lower it");
}

// ---- files of a newer version -------------------------------------------------------------------

// The head of a file with another version and a right checksum.
std::string with_version(std::string bytes, std::uint32_t version) {
  std::memcpy(bytes.data() + kHeadMagicBytes, &version, sizeof version);
  const std::uint64_t sum = hash64(as_bytes(bytes).first(kHeadChecksumOffset));
  std::memcpy(bytes.data() + kHeadChecksumOffset, &sum, sizeof sum);
  return bytes;
}

class NewerFiles : public ::testing::Test {
 protected:
  // Over a store with such a file: refused by name, never repaired away, and whole again for
  // whoever can read it.
  void live(const std::string& file, const char* story_name) {
    SCOPED_TRACE(file);
    const std::string right = store_.get(file), newer = with_version(right, 2);
    store_.put(file, newer);
    int exit_code = -1;
    EXPECT_NE(store_.verify_offline(&exit_code).dump().find("newer"), std::string::npos);
    ASSERT_TRUE(store_.start()) << store_.log();
    for (const Story& story : kStories) {
      const Reading reading = store_.read(story);
      EXPECT_EQ(reading.wrong, "");
      if (std::string(story.name) != story_name) {
        EXPECT_TRUE(reading.whole(story)) << story.name << reading.text;
        continue;
      }
      EXPECT_EQ(reading.status, KVT_ERROR_VERSION) << reading.text;
      EXPECT_NE(reading.text.find("newer kvtier"), std::string::npos) << reading.text;
    }
    EXPECT_GT(store_.request("stats")["misses"].value("newer", 0u), 0u);
    store_.close_client();
    EXPECT_NE(store_.verify(&exit_code).dump().find("newer kvtier"), std::string::npos);
    static_cast<void>(
        store_.command("repair --json --socket " + store_.settings.socket, &exit_code));
    ASSERT_TRUE(store_.stop());
    EXPECT_EQ(store_.get(file), newer) << "somebody else's file was touched";
    store_.put(file, right);
    ASSERT_TRUE(store_.start());
    for (const Story& story : kStories) {
      const Reading reading = store_.read(story);
      EXPECT_TRUE(reading.whole(story)) << story.name << ": " << reading.text << reading.wrong;
    }
  }
  FaultStore store_;
};

TEST_F(NewerFiles, Segment) { live(store_.files("segments")[0], "short"); }
TEST_F(NewerFiles, TailLog) { live(store_.files("logs")[0], "tail"); }

TEST_F(NewerFiles, SidecarIsDerivedAndMadeAgain) {
  const std::string file = store_.files("sidecars")[0];
  store_.put(file, with_version(store_.get(file), 2));
  ASSERT_TRUE(store_.start());
  for (const Story& story : kStories) EXPECT_TRUE(store_.read(story).whole(story)) << story.name;
  std::uint64_t rebuilt = 0;
  for (const Story& story : kStories) {  // a view wants the abstracts of what it reads
    kvt_sequence* sequence = nullptr;
    kvt_view* view = nullptr;
    kvt_view_options options;
    kvt_view_options_init(&options);
    options.preset = "quest";
    options.budget = 64;
    ASSERT_EQ(kvt_sequence_open(store_.space(), story.name, 0, 0, &sequence), KVT_OK);
    ASSERT_EQ(kvt_view_open(sequence, &options, &view), KVT_OK) << kvt_last_error();
    for (int i = 0; i < 100 && rebuilt == 0; ++i, ::usleep(5000))
      rebuilt = store_.request("stats")["abstracts"].value("rebuilt", 0u);
    kvt_view_close(view);
    kvt_sequence_close(sequence);
  }
  EXPECT_GT(rebuilt, 0u);
}

TEST_F(NewerFiles, Export) {
  ASSERT_TRUE(store_.start());
  const std::string file = store_.directory.path() + "/short.kvx";
  const std::string socket = " --socket " + store_.settings.socket;
  ASSERT_EQ(run_kvtier("export short " + file + socket).exit_code, 0);
  const std::string newer = with_version(read_text(file), 2);
  std::ofstream(file, std::ios::binary | std::ios::trunc) << newer;
  const CommandResult result = run_kvtier("import " + file + " --name again" + socket);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.output.find("newer kvtier"), std::string::npos) << result.output;
}

}  // namespace
}  // namespace kvtier::testing
