// Sequences through the C interface, against a real daemon.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <thread>

#include "kernels/registry.h"
#include "tests/unit/client_fixture.h"

namespace kvtier::testing {
namespace {

class SequenceTest : public ClientTest, public ::testing::WithParamInterface<TestShape> {};

TEST_P(SequenceTest, OddPiecesComeBackBitForBit) {
  const TestShape shape = GetParam();
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "book");
  Model model(shape);
  model.append_many(sequence, 1000, 2047);
  model.append(sequence, 5000, 1);  // ends exactly at a half
  model.expect_rows(sequence, 2000, 48);
  model.append_many(sequence, 6000, 4500);  // both halves, several seals
  model.expect_equal(sequence);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  model.append(sequence, 20000, 5);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  model.expect_equal(sequence);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));

  kvt_sequence* reader = open_sequence(space, "book", false);
  model.expect_equal(reader);
  model.expect_rows(reader, 2040, 20);
  KVT_ASSERT_OK(kvt_sequence_close(reader));
  EXPECT_EQ(leased_bytes(), 0u);
  kvt_space_close(space);
}

INSTANTIATE_TEST_SUITE_P(Shapes, SequenceTest,
                         ::testing::Values(TestShape{}, TestShape{3, 1, 8, 64, KVT_DTYPE_F16, 1},
                                           TestShape{2, 3, 3, 24, KVT_DTYPE_F16, 0}));

using Sequences = ClientTest;

TEST_F(Sequences, AWriterIsAloneAndReadersAreMany) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "one");
  Model model(shape);
  model.append(sequence, 1, 10);
  kvt_sequence* other = nullptr;
  EXPECT_EQ(kvt_sequence_open(space, "one", 0, 1, &other), KVT_ERROR_BUSY);
  const std::string says = kvt_last_error();
  EXPECT_NE(says.find("open it here for reading only: by process " + std::to_string(::getpid())),
            std::string::npos)
      << says;
  EXPECT_EQ(other, nullptr);
  EXPECT_EQ(kvt_sequence_open(space, "nobody", 0, 0, &other), KVT_ERROR_NOT_FOUND);
  kvt_sequence* reader = open_sequence(space, "one", false);
  const kvt_token token{1, 0, 0, 0};
  EXPECT_EQ(kvt_sequence_append(reader, &token, 1), KVT_ERROR_PERMISSION);
  EXPECT_EQ(kvt_sequence_commit(reader), KVT_ERROR_PERMISSION);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  EXPECT_EQ(kvt_sequence_length(reader), 10u) << "a reader sees what the writer sealed";
  model.expect_equal(reader);
  KVT_EXPECT_OK(kvt_sequence_close(reader));
  kvt_space_close(space);
}

TEST_F(Sequences, APrefixIsSharedAndTheDifferenceNamed) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* first = create_sequence(space, "first");
  Model model(shape);
  model.append_many(first, 1, 3000);
  KVT_ASSERT_OK(kvt_sequence_close(first));

  std::vector<std::uint32_t> ids = model.ids();
  kvt_match match{};
  KVT_ASSERT_OK(kvt_space_match(space, ids.data(), ids.size(), &match));
  EXPECT_EQ(match.tokens, 3000u);
  EXPECT_EQ(match.reason, 0u);
  ids[2500] ^= 1;
  KVT_ASSERT_OK(kvt_space_match(space, ids.data(), ids.size(), &match));
  EXPECT_EQ(match.tokens, 2500u);
  EXPECT_EQ(match.differs_at, 2500u);
  EXPECT_EQ(match.stored_token, ids[2500] ^ 1);
  EXPECT_EQ(match.reason, 1u);

  kvt_sequence* second = create_sequence(space, nullptr, ids, &match);
  EXPECT_EQ(match.tokens, 2500u);
  Model branch(shape);
  branch.tokens().assign(model.tokens().begin(), model.tokens().begin() + 2500);
  branch.expect_equal(second);
  branch.append_many(second, 90000, 700);
  branch.expect_equal(second);
  KVT_ASSERT_OK(kvt_sequence_close(second));
  kvt_space_close(space);
}

TEST_F(Sequences, ForksGoTheirOwnWay) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* trunk = create_sequence(space, "trunk");
  Model model(shape);
  model.append_many(trunk, 1, 2300);
  kvt_sequence *whole = nullptr, *part = nullptr;
  KVT_ASSERT_OK(kvt_sequence_fork(trunk, UINT64_MAX, nullptr, &whole));
  KVT_ASSERT_OK(kvt_sequence_fork(trunk, 2100, nullptr, &part));
  Model whole_model = model, part_model = model;
  part_model.tokens().resize(2100);
  model.append(trunk, 50000, 10);
  whole_model.append(whole, 60000, 20);
  part_model.append(part, 70000, 30);
  model.expect_equal(trunk);
  whole_model.expect_equal(whole);
  part_model.expect_equal(part);
  EXPECT_NE(kvt_sequence_id(whole), kvt_sequence_id(trunk));
  for (kvt_sequence* sequence : {trunk, whole, part}) KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(Sequences, TruncateAnywhereThenGoOn) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "cut");
  Model model(shape);
  model.append_many(sequence, 1, 5000);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  model.append(sequence, 9000, 50);
  std::uint64_t number = 100000;
  // Uncommitted tail, committed tail, exactly the sealed end, inside a segment, inside the first
  // block, nothing.
  for (const std::uint64_t length : {5020u, 4700u, 4096u, 3000u, 70u, 0u}) {
    KVT_ASSERT_OK(kvt_sequence_truncate(sequence, length));
    model.tokens().resize(length);
    model.append(sequence, number += 10000, 33);
    model.expect_equal(sequence);
    KVT_ASSERT_OK(kvt_sequence_commit(sequence));
    model.expect_equal(sequence);
    KVT_ASSERT_OK(kvt_sequence_truncate(sequence, length));
    model.tokens().resize(length);
  }
  EXPECT_EQ(kvt_sequence_truncate(sequence, 1), KVT_ERROR_INVALID);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(Sequences, WhatIsNotFiniteIsRefusedAndNamed) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, nullptr);
  Model model(shape);
  model.append(sequence, 1, 17);
  kvt_token tokens[3] = {{1, 17, 0, 0}, {2, 18, 0, 0}, {3, 19, 0, 0}};
  KVT_ASSERT_OK(kvt_sequence_append(sequence, tokens, 3));
  std::vector<float> rows(2 * 3 * 16, 1.0f);
  const kvt_rows good{rows.data(), 3 * 64, 64};
  std::vector<float> with_nan = rows;
  with_nan[(1 * 3 + 2) * 16 + 5] = std::numeric_limits<float>::quiet_NaN();
  const kvt_rows bad{with_nan.data(), 3 * 64, 64};
  KVT_ASSERT_OK(kvt_sequence_write(sequence, 0, 0, 3, &good, &good));
  EXPECT_EQ(kvt_sequence_write(sequence, 1, 0, 3, &good, &bad), KVT_ERROR_NOT_FINITE);
  EXPECT_STREQ(kvt_last_error(),
               "layer 1, token 19, head 1, element 5 of its value: NaN or infinity");
  EXPECT_EQ(kvt_sequence_finish_piece(sequence), KVT_ERROR_INVALID)
      << "nothing of the refused call is kept";
  EXPECT_EQ(kvt_sequence_length(sequence), 17u);
  KVT_ASSERT_OK(kvt_sequence_abort_piece(sequence));
  model.append(sequence, 77, 3);
  model.expect_equal(sequence);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(Sequences, SpacesNeverMeet) {
  const TestShape shape{};
  kvt_space* one = open_space(shape, "model-one");
  kvt_space* two = open_space(shape, "model-two");
  kvt_sequence* sequence = create_sequence(one, "mine");
  Model model(shape);
  model.append_many(sequence, 1, 2100);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  kvt_sequence* other = nullptr;
  EXPECT_EQ(kvt_sequence_open(two, "mine", 0, 0, &other), KVT_ERROR_WRONG_SPACE);
  kvt_match match{};
  const std::vector<std::uint32_t> ids = model.ids();
  KVT_ASSERT_OK(kvt_space_match(two, ids.data(), ids.size(), &match));
  EXPECT_EQ(match.tokens, 0u);
  EXPECT_EQ(match.reason, 3u);
  kvt_space_close(one);
  kvt_space_close(two);
}

// A stored prefix would come back without the state of such a layer.
TEST_F(Sequences, LayersThatNeedSnapshotsAreRefused) {
  std::vector<kvt_layer> layers(2);
  for (kvt_layer& layer : layers) {
    layer.dtype = KVT_DTYPE_F32;
    layer.kv_heads = layer.query_heads = 1;
    layer.k_row_bytes = layer.v_row_bytes = 64;
  }
  kvt_space_options options;
  kvt_space_options_init(&options);
  options.model = "hybrid";
  options.runtime = "test/1";
  options.layers = layers.data();
  options.layer_count = 2;
  for (const bool window : {true, false}) {
    layers[1].kind = window ? 1 : 2;
    kvt_space* space = nullptr;
    EXPECT_EQ(kvt_space_open(client_, &options, &space), KVT_ERROR_UNSUPPORTED);
    EXPECT_EQ(space, nullptr);
    EXPECT_NE(std::string(kvt_last_error())
                  .find(window ? "layer 1 attends to a sliding window" : "layer 1 is recurrent"),
              std::string::npos)
        << kvt_last_error();
  }
  EXPECT_TRUE(request({{"op", "ls"}})["spaces"].empty());
}

TEST_F(Sequences, WrongArgumentsSayWhatToDo) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, nullptr);
  EXPECT_EQ(kvt_sequence_append(sequence, nullptr, 1), KVT_ERROR_INVALID);
  const std::vector<kvt_token> many(1025);
  EXPECT_EQ(kvt_sequence_append(sequence, many.data(), 1025), KVT_ERROR_INVALID);
  EXPECT_NE(std::string(kvt_last_error()).find("1 to 1024"), std::string::npos);
  std::vector<std::byte> rows(64 * 16);
  const kvt_rows strided{rows.data(), 64, 64};
  EXPECT_EQ(kvt_sequence_write(sequence, 0, 0, 1, &strided, &strided), KVT_ERROR_INVALID)
      << "no piece";
  KVT_ASSERT_OK(kvt_sequence_append(sequence, many.data(), 4));
  EXPECT_EQ(kvt_sequence_write(sequence, 2, 0, 4, &strided, &strided), KVT_ERROR_INVALID)
      << "no such layer";
  EXPECT_EQ(kvt_sequence_write(sequence, 0, 3, 2, &strided, &strided), KVT_ERROR_INVALID)
      << "outside the piece";
  EXPECT_EQ(kvt_sequence_append(sequence, many.data(), 1), KVT_ERROR_INVALID)
      << "the piece is not complete";
  EXPECT_EQ(kvt_sequence_read(sequence, 0, 0, 1, rows.data(), rows.data()), KVT_ERROR_INVALID)
      << "not written";
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_options empty;
  kvt_space_options_init(&empty);
  kvt_space* none = nullptr;
  EXPECT_EQ(kvt_space_open(client_, &empty, &none), KVT_ERROR_INVALID);
  empty.struct_size = 0;
  EXPECT_EQ(kvt_space_open(client_, &empty, &none), KVT_ERROR_INVALID);
  EXPECT_NE(std::string(kvt_last_error()).find("struct_size"), std::string::npos);
  kvt_space_close(space);
}

TEST_F(Sequences, ThePieceInProgressCanBeReadWhereItIsWritten) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, nullptr);
  Model model(shape);
  model.append_many(sequence, 1, 2040);
  for (std::uint32_t i = 0; i < 20; ++i)
    model.tokens().push_back(7000 + i);  // straddles the halves
  std::vector<kvt_token> records(20);
  KVT_ASSERT_OK(kvt_sequence_append(sequence, records.data(), 20));
  model.write(sequence, 0, 2040, 20);
  EXPECT_EQ(kvt_sequence_length(sequence), 2040u);
  const std::vector<std::byte> k = model.rows(0, 0, 2030, 30), v = model.rows(0, 1, 2030, 30);
  std::vector<std::byte> got_k(k.size()), got_v(v.size());
  KVT_ASSERT_OK(kvt_sequence_read(sequence, 0, 2030, 30, got_k.data(), got_v.data()));
  EXPECT_TRUE(got_k == k && got_v == v);
  EXPECT_EQ(kvt_sequence_read(sequence, 1, 2030, 30, got_k.data(), got_v.data()),
            KVT_ERROR_INVALID);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(Sequences, ThreadsShareAClient) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      kvt_sequence* sequence = create_sequence(space, nullptr);
      Model model(shape);
      for (int round = 0; round < 3; ++round) {
        model.append_many(sequence, t * 1'000'000 + static_cast<std::uint64_t>(round) * 10'000,
                          900);
        KVT_EXPECT_OK(kvt_sequence_commit(sequence));
        model.expect_equal(sequence);
      }
      KVT_EXPECT_OK(kvt_sequence_close(sequence));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(leased_bytes(), 0u);
  kvt_space_close(space);
}

TEST_F(Sequences, AReaderReadsWhatTheWriterReplaced) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "rewritten");
  Model model(shape);
  model.append_many(sequence, 1, 2048);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  kvt_sequence* reader = open_sequence(space, "rewritten", false);
  model.expect_rows(reader, 1000, 1000);
  KVT_ASSERT_OK(kvt_sequence_truncate(sequence, 1500));
  model.tokens().resize(1500);
  model.append_many(sequence, 500'000, 548);
  KVT_ASSERT_OK(kvt_sequence_close(sequence));
  model.expect_rows(reader, 1000, 1000);
  KVT_EXPECT_OK(kvt_sequence_close(reader));
  kvt_space_close(space);
}

// Also where the same space exists already and is not private.
TEST_F(Sequences, APrivateSpaceIsPrivate) {
  const TestShape shape{};
  kvt_space* open = open_space(shape);
  kvt_space* closed = open_space(shape, "test-model", "quest", true);
  kvt_sequence* sequence = create_sequence(closed, "secret");
  Model model(shape);
  model.append(sequence, 1, 200);
  EXPECT_EQ(kvt_sequence_commit(sequence), KVT_ERROR_UNSUPPORTED);
  kvt_sequence* fork = nullptr;
  KVT_ASSERT_OK(kvt_sequence_fork(sequence, 100, nullptr, &fork));
  EXPECT_EQ(kvt_sequence_commit(fork), KVT_ERROR_UNSUPPORTED);
  KVT_EXPECT_OK(kvt_sequence_close(fork));
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  sequence = create_sequence(open, "public");
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(open);
  kvt_space_close(closed);
}

// A client that wants nothing of it on disk decides for itself only.
TEST_F(Sequences, APrivateSpaceIsOpenToOthers) {
  const TestShape shape{};
  kvt_space* closed = open_space(shape, "whose model", "quest", true);
  kvt_sequence* secret = create_sequence(closed, "secret");
  Model model(shape), open_model(shape);
  model.append(secret, 1, 100);
  kvt_space* open = open_space(shape, "whose model");
  kvt_sequence* sequence = create_sequence(open, "public");
  open_model.append(sequence, 2, 100);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  EXPECT_EQ(kvt_sequence_commit(secret), KVT_ERROR_UNSUPPORTED);
  kvt_sequence* later = create_sequence(closed, "secret too");
  EXPECT_EQ(kvt_sequence_commit(later), KVT_ERROR_UNSUPPORTED);
  kvt_sequence* shared = open_sequence(closed, "public", false);
  kvt_sequence* fork = nullptr;
  KVT_ASSERT_OK(kvt_sequence_fork(shared, 0, nullptr, &fork));
  EXPECT_EQ(kvt_sequence_commit(fork), KVT_ERROR_UNSUPPORTED);
  for (kvt_sequence* one : {later, shared, fork, secret, sequence})
    KVT_EXPECT_OK(kvt_sequence_close(one));
  daemon_->kill();
  daemon_->start();
  sequence = open_sequence(open, "public", false);
  open_model.expect_equal(sequence);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(open);
  kvt_space_close(closed);
}

TEST_F(Sequences, TheEnvironmentChoosesTheKernels) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "chat");
  Model model(shape);
  model.append_many(sequence, 1, 100);
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.preset = "full";
  for (const KernelTable* table : all_kernels()) {
    ASSERT_EQ(::setenv("KVTIER_KERNELS", table->name, 1), 0);
    kvt_view* view = nullptr;
    KVT_ASSERT_OK(kvt_view_open(sequence, &options, &view));
    EXPECT_STREQ(kvt_view_kernels(view), table->name);
    const std::vector<float> q(std::size_t{shape.query_heads} * shape.dim, 0.1f);
    std::vector<float> out(q.size());
    KVT_EXPECT_OK(kvt_view_attend(view, 0, 1, q.data(), 0.3f, out.data(), nullptr));
    EXPECT_STREQ(kernel_trace().table, table->name);
    kvt_view_close(view);
  }
  ASSERT_EQ(::setenv("KVTIER_KERNELS", "quantum", 1), 0);
  kvt_view* view = nullptr;
  EXPECT_EQ(kvt_view_open(sequence, &options, &view), KVT_ERROR_NOT_FOUND);
  EXPECT_NE(std::string(kvt_last_error()).find("KVTIER_KERNELS is \"quantum\""), std::string::npos)
      << kvt_last_error();
  EXPECT_NE(std::string(kvt_last_error()).find("scalar"), std::string::npos) << kvt_last_error();
  ::unsetenv("KVTIER_KERNELS");
  KVT_EXPECT_OK(kvt_view_open(sequence, &options, &view));
  EXPECT_STREQ(kvt_view_kernels(view), all_kernels().front()->name);
  kvt_view_close(view);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(Sequences, AForkedChildIsTold) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, nullptr);
  Model model(shape);
  model.append(sequence, 1, 10);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const kvt_token token{1, 0, 0, 0};
    const bool told = kvt_sequence_append(sequence, &token, 1) == KVT_ERROR_FORK &&
                      kvt_sequence_commit(sequence) == KVT_ERROR_FORK &&
                      kvt_sequence_close(sequence) == KVT_ERROR_FORK;
    kvt_space_close(space);
    kvt_client_close(client_);
    ::_exit(told ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  model.append(sequence, 11, 10);
  model.expect_equal(sequence);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

TEST_F(Sequences, HandlesMayCloseInAnyOrder) {
  kvt_client* client = open_client();
  std::swap(client, client_);
  kvt_space* space = open_space(TestShape{});
  kvt_sequence* sequence = create_sequence(space, nullptr);
  kvt_view* view = nullptr;
  KVT_ASSERT_OK(kvt_view_open(sequence, nullptr, &view));
  std::swap(client, client_);
  kvt_client_close(client);
  kvt_space_close(space);
  const kvt_token token{1, 0, 0, 0};
  EXPECT_EQ(kvt_sequence_append(sequence, &token, 1), KVT_ERROR_STALE);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  const float q[64] = {};
  float out[64];
  EXPECT_EQ(kvt_view_attend(view, 0, 1, q, 1.0f, out, nullptr), KVT_ERROR_STALE);
  kvt_view_close(view);
}

}  // namespace
}  // namespace kvtier::testing
