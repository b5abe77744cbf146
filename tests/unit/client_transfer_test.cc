// Export, import and compaction beside clients that are at work, and over a catalogue that fails.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "base/fault.h"
#include "kernels/geometry.h"
#include "kernels/layout.h"
#include "tests/unit/client_fixture.h"
#include "tiers/export_format.h"

namespace kvtier::testing {
namespace {

class Transfer : public ClientTest {
 protected:
  void TearDown() override {
    static_cast<void>(arm_faults(""));
    ClientTest::TearDown();
  }
  // The status of a request that may fail.
  kvt_status status_of(const Json& body) {
    char* reply = nullptr;
    const kvt_status status = kvt_client_request(client_, body.dump().c_str(), &reply);
    kvt_free(reply);
    return status;
  }
  // The catalogue opens again a second after it has failed.
  void wait_until_writable(const char* name) {
    for (int i = 0; i < 500; ++i) {
      if (status_of({{"op", "pin"}, {"target", name}, {"pinned", true}}) == KVT_OK) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL() << "the store stays read-only";
  }
  void restart() {
    daemon_->kill();
    daemon_->start();
    kvt_client_close(client_);
    client_ = open_client();
  }
  std::string the_log() const {
    std::string found;
    for (const auto& entry : std::filesystem::directory_iterator(root_ + "/store/logs"))
      found = entry.path();
    return found;
  }
  Json export_to(const char* name, const std::string& file) const {
    return {{"op", "export"}, {"target", name}, {"path", file}};
  }
};

// An export reads the tail log of a sequence that is being written; the writer goes on after it.
TEST_F(Transfer, AnExportLeavesTheWriterAlone) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "live");
  Model model(shape);
  model.append_many(sequence, 1, 2500);  // the second half of the tail
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  const std::string file = root_ + "/live.kvx";
  const Json reply = request(export_to("live", file));
  EXPECT_EQ(reply.value("tokens", 0u), 2500u) << reply.dump();
  model.append_many(sequence, 5000, 700);
  KVT_EXPECT_OK(kvt_sequence_commit(sequence));
  model.expect_equal(sequence);
  const Json again = request({{"op", "import"}, {"path", file}, {"name", "copy"}});
  EXPECT_EQ(again.value("tokens", 0u), 2500u) << again.dump();
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

// Nobody has read the log since the daemon started: the export reads it, and leaves it unread.
TEST_F(Transfer, AnExportOfATailThatNobodyHasOpened) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "tail");
  Model model(shape);
  model.append_many(sequence, 1, 2100);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  daemon_->kill();
  EXPECT_NE(kvt_sequence_close(sequence), KVT_OK);
  kvt_space_close(space);
  daemon_->start();
  const std::string file = root_ + "/tail.kvx";
  EXPECT_EQ(request(export_to("tail", file))["tokens"], 2100);
  EXPECT_EQ(request({{"op", "import"}, {"path", file}, {"name", "copy"}})["tokens"], 2100);
  space = open_space(shape);
  for (const char* name : {"copy", "tail"}) {
    sequence = open_sequence(space, name, true);
    model.expect_equal(sequence);
    KVT_EXPECT_OK(kvt_sequence_close(sequence));
  }
  kvt_space_close(space);
}

// What was committed and cannot be read back is not left out in silence.
TEST_F(Transfer, AnExportOfADamagedTailFails) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "live");
  Model model(shape);
  model.append(sequence, 1, 100);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  {
    std::fstream log(the_log(), std::ios::in | std::ios::out | std::ios::binary);
    log.seekp(4096 + 200);
    log.write("damage", 6);
  }
  const std::string file = root_ + "/live.kvx";
  EXPECT_EQ(status_of(export_to("live", file)), KVT_ERROR_CORRUPT);
  EXPECT_FALSE(std::filesystem::exists(file));
  ASSERT_TRUE(std::filesystem::remove(the_log()));
  EXPECT_EQ(status_of(export_to("live", file)), KVT_ERROR_NOT_FOUND);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));  // sealed out of the tail: nothing is lost
  sequence = open_sequence(space, "live", true);
  model.expect_equal(sequence);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)  // it takes their memory
// A log may be as large as 2,048 tokens make it, over a gibibyte where a token has 4 MiB.
TEST_F(Transfer, ALogAboveAGibibyteIsReadBack) {
  TestShape shape;
  shape.layers = 32;
  shape.kv_heads = shape.query_heads = 16;
  shape.dim = 1024;
  kvt_space* space = open_space(shape, "large tokens", "full");
  kvt_sequence* sequence = create_sequence(space, "large");
  Model model(shape);
  model.append(sequence, 1, 2);
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  daemon_->kill();
  ASSERT_EQ(::truncate(the_log().c_str(), (1 << 30) + 8192), 0);  // zeros behind it: not begun
  daemon_->start();
  model.expect_equal(sequence);
  model.append(sequence, 3, 1);
  KVT_EXPECT_OK(kvt_sequence_commit(sequence));
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}
#endif

TEST_F(Transfer, AnImportThatFailsLeavesNoName) {
  const TestShape shape{};
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "one");
  Model model(shape);
  model.append(sequence, 1, 100);
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  const std::string file = root_ + "/one.kvx";
  request(export_to("one", file));
  for (const char* fault : {"catalogue.write=fail@1", "catalogue.write=fail@2"}) {
    ASSERT_TRUE(arm_faults(fault));
    EXPECT_NE(status_of({{"op", "import"}, {"path", file}, {"name", "copy"}}), KVT_OK) << fault;
    ASSERT_TRUE(arm_faults(""));
    EXPECT_EQ(status_of({{"op", "show"}, {"target", "copy"}}), KVT_ERROR_NOT_FOUND) << fault;
    wait_until_writable("one");
  }
  EXPECT_EQ(request({{"op", "import"}, {"path", file}, {"name", "copy"}})["tokens"], 100);
  ASSERT_EQ(::mkfifo((root_ + "/pipe").c_str(), 0600), 0);  // nobody writes it
  EXPECT_EQ(status_of({{"op", "import"}, {"path", root_ + "/pipe"}}), KVT_ERROR_INVALID);
  kvt_space_close(space);
}

// One segment of ten tokens.
void write_export(const std::string& path, const std::string& name,
                  LayerKind last = LayerKind::kFull) {
  ExportDescription description;
  description.fingerprint.model = "imported";
  description.fingerprint.runtime = "test/1";
  LayerGeometry layer;
  layer.kv_heads = layer.query_heads = 1;
  layer.k_row_bytes = layer.v_row_bytes = 64;
  description.fingerprint.geometry.layers = {layer, layer};
  description.fingerprint.geometry.layers[1].kind = last;
  description.name = name;
  description.tokens = 10;
  description.segments = 1;
  std::ofstream file(path, std::ios::binary);
  ExportWriter writer(
      [&](ByteSpan bytes) -> Result<void> {
        file.write(reinterpret_cast<const char*>(bytes.data()),
                   static_cast<std::streamsize>(bytes.size()));
        return {};
      },
      CodecId::kRaw);
  ASSERT_TRUE(writer.begin(description));
  ASSERT_TRUE(writer.begin_segment({0, std::vector<TokenRecord>(10), {}, {}}));
  const Geometry& geometry = description.fingerprint.geometry;
  const std::vector<std::byte> chunk(static_cast<std::size_t>(geometry.chunk_bytes(0)));
  for (std::uint32_t i = 0; i < PlaneLayout(geometry, 10).chunks_total(); ++i)
    ASSERT_TRUE(writer.add_chunk(chunk));
  ASSERT_TRUE(writer.finish());
}

TEST_F(Transfer, ANameInsideAFileIsCheckedAsAnyOther) {
  const std::string file = root_ + "/in.kvx";
  for (const char* name : {"a/b", "line\nbreak", "1234", " a", "a "}) {
    write_export(file, name);
    ASSERT_FALSE(HasFatalFailure());
    EXPECT_EQ(status_of({{"op", "import"}, {"path", file}}), KVT_ERROR_INVALID) << name;
    EXPECT_TRUE(request({{"op", "ls"}})["spaces"].empty()) << name;
  }
  EXPECT_EQ(request({{"op", "import"}, {"path", file}, {"name", "good"}})["name"], "good");
  write_export(file, "fine");
  EXPECT_EQ(request({{"op", "import"}, {"path", file}})["name"], "fine");
}

TEST_F(Transfer, AFileWhoseLayersNeedSnapshotsIsRefused) {
  const std::string file = root_ + "/in.kvx";
  write_export(file, "hybrid", LayerKind::kSnapshot);
  ASSERT_FALSE(HasFatalFailure());
  EXPECT_EQ(status_of({{"op", "import"}, {"path", file}}), KVT_ERROR_UNSUPPORTED);
  EXPECT_TRUE(request({{"op", "ls"}})["spaces"].empty());
}

// The catalogue fails at each batch of a compaction in turn. The sequence is whole at once, after
// another compaction, which removes what nobody uses, and after a restart.
TEST_F(Transfer, ACompactionThatFailsAnywhereLosesNothing) {
  const TestShape shape{};
  {
    kvt_space* space = open_space(shape);
    KVT_ASSERT_OK(kvt_sequence_close(create_sequence(space, "witness")));
    kvt_space_close(space);
  }
  // Batches that the closes before left to write are counted, too, so a swap does not end it.
  int failed = 0, done = 0;
  for (int batch = 1; batch <= 8; ++batch) {
    const std::string name = "chat" + std::to_string(batch);
    Model model(shape);
    kvt_space* space = open_space(shape);
    for (int i = 0; i < 3; ++i) {
      kvt_sequence* sequence =
          i == 0 ? create_sequence(space, name.c_str()) : open_sequence(space, name.c_str(), true);
      model.append(sequence, static_cast<std::uint64_t>(batch * 1000 + i * 100), 70);
      KVT_ASSERT_OK(kvt_sequence_close(sequence));
    }
    const auto segments = [&] {
      Json ids = Json::array();
      const Json show = request({{"op", "show"}, {"target", name}});
      for (const Json& segment : show["segments"]) ids.push_back(segment["segment"]);
      return ids;
    };
    const Json before = segments();
    ASSERT_TRUE(arm_faults("catalogue.write=fail@" + std::to_string(batch)));
    const bool swapped = request({{"op", "gc"}})["segments_compacted"] != 0;
    ASSERT_TRUE(arm_faults(""));
    const Json after = segments();
    EXPECT_EQ(after.size(), swapped ? 1u : 3u);
    EXPECT_TRUE(swapped || after == before) << "seen before it is durable";
    wait_until_writable("witness");  // and nothing of this sequence is written anew
    const auto expect_whole = [&] {
      kvt_sequence* sequence = open_sequence(space, name.c_str(), false);
      model.expect_equal(sequence);
      KVT_EXPECT_OK(kvt_sequence_close(sequence));
    };
    expect_whole();
    static_cast<void>(request({{"op", "gc"}}));
    expect_whole();
    kvt_space_close(space);
    restart();
    space = open_space(shape);
    expect_whole();
    kvt_space_close(space);
    ++(swapped ? done : failed);
  }
  EXPECT_GE(failed, 2) << "the seal and the swap";
  EXPECT_GE(done, 1);
}

}  // namespace
}  // namespace kvtier::testing
