// A daemon and clients in one process, and a model that knows every row that was ever stored.
//
// Rows are made from a number per token, so that two sequences share a row exactly where they share
// the number. All values are multiples of 1/256 below 2: exact in f32 and f16, and so are the boxes
// over them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/json.h"
#include "daemon/options.h"
#include "daemon/server.h"
#include "kernels/registry.h"
#include "kvtier/kvtier.h"

namespace kvtier::testing {

inline std::string describe(kvt_status status) {
  return std::string(kvt_strerror(status)) + ": " + kvt_last_error();
}
#define KVT_EXPECT_OK(...)                                              \
  do {                                                                  \
    const kvt_status kvt_got = (__VA_ARGS__);                           \
    EXPECT_EQ(kvt_got, KVT_OK) << ::kvtier::testing::describe(kvt_got); \
  } while (false)
#define KVT_ASSERT_OK(...)                                              \
  do {                                                                  \
    const kvt_status kvt_got = (__VA_ARGS__);                           \
    ASSERT_EQ(kvt_got, KVT_OK) << ::kvtier::testing::describe(kvt_got); \
  } while (false)

struct TestShape {
  std::uint32_t layers = 2;
  std::uint16_t kv_heads = 2;
  std::uint16_t query_heads = 4;
  std::uint32_t dim = 16;
  std::uint8_t dtype = KVT_DTYPE_F32;
  std::uint16_t heads_per_chunk = 1;
  std::uint32_t row_bytes() const { return dim * (dtype == KVT_DTYPE_F32 ? 4 : 2); }
};

// Element d of K (which 0) or V (1) of one head.
inline float element(std::uint64_t token, std::uint32_t layer, std::uint32_t head,
                     std::uint32_t which, std::uint32_t d) {
  std::uint64_t x =
      token * 0x9E3779B97F4A7C15ull + layer * 1000003ull + head * 10007ull + which * 101ull + d;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return static_cast<float>(static_cast<std::int64_t>((x ^ (x >> 31)) % 1023) - 511) / 256.0f;
}

// The largest difference; NaN where there is one.
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double far = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double apart = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (std::isnan(apart)) return apart;  // less than nothing
    far = std::max(far, apart);
  }
  return far;
}

inline kvt_view_stats stats_of(const kvt_view* view) {
  kvt_view_stats out{};
  out.struct_size = sizeof out;
  KVT_EXPECT_OK(kvt_view_get_stats(view, &out));
  return out;
}

// The queries of a step in a layer, [query head][dim].
inline std::vector<float> step_queries(const TestShape& shape, std::uint32_t step,
                                       std::uint32_t layer) {
  std::vector<float> q(shape.query_heads * shape.dim);
  for (std::size_t i = 0; i < q.size(); ++i)
    q[i] = element(7 + step, layer, static_cast<std::uint32_t>(i), 2, 0);
  return q;
}

// One step of every layer, [layer][query head][dim]; before each, where given, a guess: the queries
// of step `guess`.
constexpr float kStepScale = 0.25f;
constexpr std::uint32_t kNoGuess = UINT32_MAX;
// As a decoder does after the daemon died: again, for as long as the next one is not there yet.
inline kvt_status attend_again(kvt_view* view, std::uint32_t layer, std::uint32_t queries,
                               const float* q, float scale, float* out, float* lse) {
  kvt_status status = KVT_ERROR_DAEMON_LOST;
  for (int i = 0; i < 2000 && status == KVT_ERROR_DAEMON_LOST; ++i) {
    if (i != 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    status = kvt_view_attend(view, layer, queries, q, scale, out, lse);
  }
  return status;
}

inline std::vector<float> run_step(const TestShape& shape, kvt_view* view, std::uint32_t step = 0,
                                   std::uint32_t guess = kNoGuess) {
  std::vector<float> all, out(shape.query_heads * shape.dim);
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
    if (guess != kNoGuess)
      KVT_EXPECT_OK(
          kvt_view_look_ahead(view, layer, step_queries(shape, guess, layer).data(), kStepScale));
    KVT_EXPECT_OK(attend_again(view, layer, 1, step_queries(shape, step, layer).data(), kStepScale,
                               out.data(), nullptr));
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

class Daemon {
 public:
  explicit Daemon(const std::string& root) : root_(root) { start(); }
  void start() {
    ServerOptions options;
    options.daemon = default_options();
    options.daemon.store_path = root_ + "/store";
    options.daemon.socket_path = socket();
    options.daemon.host_bytes = 64ull << 20;
    options.daemon.leased_bytes_per_client_max = 16ull << 20;
    options.daemon.abstracts_bytes = abstracts_bytes;
    options.daemon.io_backend = "threads";
    options.daemon.idle_seal_s = 0;
    if (disk_bytes_max != 0) options.daemon.disk_bytes_max = disk_bytes_max;
    if (scarce_writes) options.daemon.disk_write_bytes_per_day = 1;
    auto server = Server::start(options);
    ASSERT_TRUE(server) << server.error().message();
    server_ = *std::move(server);
  }
  // As a crash.
  void kill() {
    server_->abandon();
    server_->wait();
    server_.reset();
  }
  void stop() { server_.reset(); }
  std::string socket() const { return root_ + "/run/kvtierd.sock"; }

  // From the next start on.
  bool scarce_writes = false;
  std::uint64_t abstracts_bytes = 16ull << 20;
  std::uint64_t disk_bytes_max = 0;  // 0: as the default

 private:
  std::string root_;
  std::unique_ptr<Server> server_;
};

class ClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "kvtier-client-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    daemon_ = std::make_unique<Daemon>(root_);
    ASSERT_FALSE(HasFatalFailure());
    client_ = open_client();
  }
  void TearDown() override {
    kvt_client_close(client_);
    daemon_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }

  kvt_client* open_client() {
    const std::string socket = daemon_->socket();
    kvt_client_options options;
    kvt_client_options_init(&options);
    options.socket_path = socket.c_str();
    options.autostart = 0;
    options.name = "client_test";
    kvt_client* client = nullptr;
    KVT_EXPECT_OK(kvt_client_open(&options, &client));
    return client;
  }
  kvt_space* open_space(const TestShape& shape, const char* model = "test-model",
                        const char* preset = "quest", bool private_only = false) {
    std::vector<kvt_layer> layers(shape.layers);
    for (kvt_layer& layer : layers) {
      layer.kind = 0;
      layer.dtype = shape.dtype;
      layer.kv_heads = shape.kv_heads;
      layer.query_heads = shape.query_heads;
      layer.k_row_bytes = layer.v_row_bytes = shape.row_bytes();
    }
    kvt_space_options options;
    kvt_space_options_init(&options);
    options.model = model;
    options.runtime = "test/1";
    options.heads_per_chunk = shape.heads_per_chunk;
    options.preset = preset;
    options.private_only = private_only ? 1 : 0;
    options.layers = layers.data();
    options.layer_count = shape.layers;
    options.rope_pairing = frequencies_.empty() ? 0 : 1;
    options.rope_positions = 1 << 16;
    options.rope_frequency_count = static_cast<std::uint32_t>(frequencies_.size());
    options.rope_frequencies = frequencies_.data();
    kvt_space* space = nullptr;
    KVT_EXPECT_OK(kvt_space_open(client_, &options, &space));
    return space;
  }
  Json request(const Json& body) {
    char* reply = nullptr;
    KVT_EXPECT_OK(kvt_client_request(client_, body.dump().c_str(), &reply));
    const Json parsed = reply != nullptr ? Json::parse(reply) : Json();
    kvt_free(reply);
    return parsed;
  }
  // Leases of all clients end when their answers are used.
  std::uint64_t leased_bytes() {
    std::uint64_t sum = 0;
    const Json status = request({{"op", "status"}});
    for (const Json& client : status["clients"]) sum += client["leased_bytes"].get<std::uint64_t>();
    return sum;
  }

  std::string root_;
  std::unique_ptr<Daemon> daemon_;
  kvt_client* client_ = nullptr;
  std::vector<float> frequencies_;  // of spaces that are opened from here on; empty: not known
};

// What a sequence must hold: a number per token.
class Model {
 public:
  explicit Model(const TestShape& shape) : shape_(shape) {}
  const TestShape& shape() const { return shape_; }
  std::vector<std::uint64_t>& tokens() { return tokens_; }
  const std::vector<std::uint64_t>& tokens() const { return tokens_; }
  static std::uint32_t id_of(std::uint64_t token) {
    return static_cast<std::uint32_t>(token * 2654435761u >> 8);
  }
  std::vector<std::uint32_t> ids() const {
    std::vector<std::uint32_t> out;
    for (const std::uint64_t token : tokens_) out.push_back(id_of(token));
    return out;
  }

  // [head][token][dim] of tokens [first, first + count).
  std::vector<std::byte> rows(std::uint32_t layer, std::uint32_t which, std::uint64_t first,
                              std::uint64_t count) const {
    std::vector<float> values;
    for (std::uint32_t head = 0; head < shape_.kv_heads; ++head)
      for (std::uint64_t i = first; i < first + count; ++i)
        for (std::uint32_t d = 0; d < shape_.dim; ++d)
          values.push_back(element(tokens_[i], layer, head, which, d));
    std::vector<std::byte> out(values.size() * shape_.row_bytes() / shape_.dim);
    const std::uint64_t elements = values.size();
    ConvertArgs args;
    args.source = reinterpret_cast<const std::byte*>(values.data());
    args.count = &elements;
    args.target = out.data();
    args.target_dtype = static_cast<Dtype>(shape_.dtype);
    EXPECT_TRUE(all_kernels().back()->convert(args, nullptr));
    return out;
  }

  // Appends tokens numbered from `number` to the sequence and writes their rows, layer by layer.
  void append(kvt_sequence* sequence, std::uint64_t number, std::uint32_t count,
              bool finish = true) {
    std::vector<kvt_token> records;
    const std::uint64_t first = tokens_.size();
    for (std::uint32_t i = 0; i < count; ++i) {
      tokens_.push_back(number + i);
      records.push_back({id_of(number + i), static_cast<std::uint32_t>(first + i), i % 4, 7});
    }
    KVT_ASSERT_OK(kvt_sequence_append(sequence, records.data(), count));
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
      write(sequence, layer, first, count);
    if (finish) KVT_ASSERT_OK(kvt_sequence_finish_piece(sequence));
  }
  void write(kvt_sequence* sequence, std::uint32_t layer, std::uint64_t first,
             std::uint32_t count) const {
    const std::vector<std::byte> k = rows(layer, 0, first, count), v = rows(layer, 1, first, count);
    const kvt_rows k_rows{k.data(), std::uint64_t{count} * shape_.row_bytes(), shape_.row_bytes()};
    const kvt_rows v_rows{v.data(), std::uint64_t{count} * shape_.row_bytes(), shape_.row_bytes()};
    KVT_ASSERT_OK(kvt_sequence_write(sequence, layer, 0, count, &k_rows, &v_rows));
  }
  // Appends in pieces of odd sizes.
  void append_many(kvt_sequence* sequence, std::uint64_t number, std::uint64_t count) {
    static constexpr std::uint32_t kPieces[] = {1, 7, 1024, 513, 64, 1000, 3, 31};
    for (std::size_t i = 0; count > 0; ++i) {
      const auto piece = static_cast<std::uint32_t>(std::min<std::uint64_t>(count, kPieces[i % 8]));
      append(sequence, number, piece);
      number += piece;
      count -= piece;
    }
  }

  // Every row and token record, bit for bit.
  void expect_equal(kvt_sequence* sequence) const {
    ASSERT_EQ(kvt_sequence_length(sequence), tokens_.size());
    expect_rows(sequence, 0, tokens_.size());
    std::vector<kvt_token> records(tokens_.size());
    KVT_ASSERT_OK(kvt_sequence_tokens(sequence, 0, records.size(), records.data()));
    for (std::size_t i = 0; i < records.size(); ++i) {
      ASSERT_EQ(records[i].id, id_of(tokens_[i])) << "token " << i;
      ASSERT_EQ(records[i].position, i);
    }
  }
  void expect_rows(kvt_sequence* sequence, std::uint64_t first, std::uint64_t count) const {
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
      const std::vector<std::byte> k = rows(layer, 0, first, count),
                                   v = rows(layer, 1, first, count);
      std::vector<std::byte> got_k(k.size(), std::byte{0xAA}), got_v(v.size(), std::byte{0xAA});
      KVT_ASSERT_OK(kvt_sequence_read(sequence, layer, first, count, got_k.data(), got_v.data()));
      ASSERT_TRUE(got_k == k) << "K of layer " << layer << ", tokens from " << first;
      ASSERT_TRUE(got_v == v) << "V of layer " << layer << ", tokens from " << first;
    }
  }

 private:
  TestShape shape_;
  std::vector<std::uint64_t> tokens_;
};

inline kvt_sequence* create_sequence(kvt_space* space, const char* name,
                                     const std::vector<std::uint32_t>& ids = {},
                                     kvt_match* match = nullptr) {
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = name;
  kvt_sequence* sequence = nullptr;
  KVT_EXPECT_OK(kvt_sequence_create(space, &options, ids.data(), ids.size(), match, &sequence));
  return sequence;
}

inline kvt_sequence* open_sequence(kvt_space* space, const char* name, bool writable) {
  kvt_sequence* sequence = nullptr;
  KVT_EXPECT_OK(kvt_sequence_open(space, name, 0, writable ? 1 : 0, &sequence));
  return sequence;
}

}  // namespace kvtier::testing
