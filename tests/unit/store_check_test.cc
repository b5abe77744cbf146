// Store check: a sound store is sound; every changed byte, cut, swap and missing file is named;
// nothing is written.
#include "tiers/store_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "base/hash.h"
#include "base/random.h"
#include "tests/unit/format_samples.h"
#include "tiers/codebook_format.h"
#include "tiers/codebook_train.h"
#include "tiers/sim_disk.h"

namespace kvtier {
namespace {

const std::uint32_t kKind = parse_abstract_spec("box/pages:4")->packed();  // of make_sidecar

constexpr std::uint64_t kSeed = 31;
constexpr SequenceId kSequence{0x77};

// A space with key codes, and a codebook of it, trained on random keys.
constexpr SpaceId kCodesSpace{0x99};
Geometry codes_geometry() {
  LayerGeometry layer;
  layer.kv_heads = layer.query_heads = 2;
  layer.k_row_bytes = layer.v_row_bytes = 16 * 4;
  Geometry geometry;
  geometry.layers = {layer};
  return geometry;
}
std::vector<std::byte> make_codebook(std::uint64_t id) {
  const AbstractSpec spec = *parse_abstract_spec("codes:4/tokens");
  const CodebookLayout layout(codes_geometry(), spec);
  std::vector<std::byte> payload(static_cast<std::size_t>(layout.size_bytes()));
  CodebookHeader header;
  header.spec = spec.packed();
  header.id = id;
  std::memcpy(payload.data(), &header, sizeof(header));
  Random random(kSeed);
  for (std::uint32_t head = 0; head < 2; ++head) {
    std::vector<float> keys(std::size_t{64} * layout.dim(0));
    for (float& x : keys) x = static_cast<float>(random.unit() - 0.5);
    const HeadCodebook part = layout.head(payload.data(), 0, head);
    EXPECT_TRUE(train_head({layout.dim(0), part.book.subspaces, keys, {}, 1}, part));
  }
  CodebookFileHeader file;
  file.space = kCodesSpace;
  file.fingerprint = samples::kFingerprint;
  file.spec = spec.packed();
  file.id = id;
  return encode_codebook(file, payload);
}

// A store of two segments, their abstracts, a codebook, and a sequence of both with a tail log, on
// a simulated disk.
class StoreCheck : public ::testing::Test {
 protected:
  StoreCheck() : disk_(SimDiskOptions{.latency_ns_max = 1}) {
    for (const char* directory : {"segments", "logs", "sidecars", "codebooks", "objects"})
      EXPECT_TRUE(disk_.make_directory(directory).has_value());
    SpaceRow space;
    space.id = samples::kSpace;
    space.digest = samples::kFingerprint;
    space.geometry = samples::small_geometry();
    space.abstracts = {kKind};
    rows_.spaces.push_back(space);
    first_ = add_segment(SegmentId{1}, 70, 0);
    second_ = add_segment(SegmentId{2}, 11, 70);
    SequenceRow sequence;
    sequence.id = kSequence;
    sequence.space = samples::kSpace;
    sequence.parts = {{SegmentId{1}, 70}, {SegmentId{2}, 9}};
    sequence.log_generation = 3;
    rows_.sequences.push_back(sequence);
    log_ = tail_log_path(kSequence, 3);
    put(log_, samples::make_log(samples::make_log_header(kSequence, 3, 79),
                                samples::small_geometry(), kSeed, {3, 1, 33}));
    space.id = kCodesSpace;
    space.geometry = codes_geometry();
    space.abstracts = {parse_abstract_spec("codes:4/tokens")->packed()};
    space.codebooks = {{space.abstracts[0], 9}};
    rows_.spaces.push_back(space);
    codebook_ = codebook_path(kCodesSpace, 9);
    put(codebook_, make_codebook(9));
    object_ = object_path(5);
    const std::vector<std::byte> object = samples::make_object(5, "key", 5000, kSeed);
    put(object_, object);
    rows_.objects.push_back({.key = "key",
                             .file = 5,
                             .value_bytes = 5000,
                             .checksum = parse_object_header(object)->checksum});
  }

  std::string add_segment(SegmentId id, std::uint32_t tokens, std::uint64_t start) {
    SegmentMeta meta = samples::make_meta(id, tokens, start, kSeed);
    const std::vector<std::byte> file = samples::make_segment_file(&meta, kSeed);
    put(segment_path(id), file);
    put(sidecar_path(id, kKind), samples::make_sidecar(id, meta.geometry, tokens, kSeed));
    SegmentRow row;
    row.id = id;
    row.space = meta.space;
    row.parent = meta.parent;
    row.parent_visible = meta.parent_visible;
    row.start_token = start;
    row.tokens = tokens;
    row.file_bytes = file.size();
    row.blocks.resize((start + tokens) / kBlockTokens - start / kBlockTokens);
    rows_.segments.push_back(row);
    return segment_path(id);
  }
  void put(const std::string& path, const std::vector<std::byte>& bytes) {
    ASSERT_TRUE(disk_.create(path, false).has_value());
    ASSERT_TRUE(disk_.resize(path, 0).has_value());
    ASSERT_TRUE(disk_.write(path, 0, bytes).has_value());
    ASSERT_TRUE(disk_.sync(path).has_value());
  }
  std::vector<std::byte> get(const std::string& path) {
    std::vector<std::byte> bytes(*disk_.size_bytes(path));
    std::uint64_t got = 0;
    EXPECT_TRUE(disk_.read(path, 0, bytes, &got).has_value());
    EXPECT_EQ(got, bytes.size());
    return bytes;
  }
  StoreReport check(bool deep = true, bool with_rows = true) {
    const std::unique_ptr<Io> io = make_sim_io(disk_, clock_);
    return check_store(*io, with_rows ? &rows_ : nullptr, {.deep = deep, .progress = {}});
  }
  // Findings of a path as "kind/severity/region" lines.
  static std::vector<std::string> named(const StoreReport& report, const std::string& path) {
    std::vector<std::string> lines;
    for (const Finding& one : report.findings) {
      EXPECT_FALSE(one.what.empty());
      if (one.path == path)
        lines.push_back(std::string(finding_kind_name(one.kind)) + "/" +
                        finding_severity_name(one.severity) + "/" + one.region);
    }
    return lines;
  }
  void expect_one(const std::string& path, const std::string& line, bool deep = true) {
    const StoreReport report = check(deep);
    EXPECT_EQ(named(report, path), std::vector<std::string>{line});
  }

  SimDisk disk_;
  VirtualClock clock_;
  StoreRows rows_;
  std::string first_, second_, log_, codebook_, object_;
};

TEST_F(StoreCheck, ASoundStoreIsSoundAndUnchanged) {
  const std::vector<std::byte> before = get(first_);
  for (const bool deep : {false, true})
    for (const bool with_rows : {false, true}) {
      const StoreReport report = check(deep, with_rows);
      EXPECT_TRUE(report.sound());
      EXPECT_TRUE(report.findings.empty())
          << report.findings[0].path << ": " << report.findings[0].what;
      EXPECT_EQ(report.segments, 2u);
      EXPECT_EQ(report.sidecars, 2u);
      EXPECT_EQ(report.logs, 1u);
      EXPECT_EQ(report.codebooks, 1u);
      EXPECT_EQ(report.objects, 1u);
      EXPECT_EQ(report.tokens, 81u);
      EXPECT_EQ(report.chunks, 9u * 3 + 2 * 3);
      EXPECT_EQ(report.chunks_checked, deep ? report.chunks : 0u);
      EXPECT_EQ(report.records, deep ? 3u : 0u);
      EXPECT_EQ(report.file_bytes, disk_.used_bytes());
    }
  EXPECT_EQ(get(first_), before);
}

TEST_F(StoreCheck, AnEmptyStoreIsSound) {
  SimDisk empty{SimDiskOptions{}};
  const std::unique_ptr<Io> io = make_sim_io(empty, clock_);
  EXPECT_TRUE(check_store(*io, nullptr, {.deep = true, .progress = {}}).findings.empty());
}

TEST_F(StoreCheck, ADamagedCodebookIsNamed) {
  const std::vector<std::byte> right = get(codebook_);
  CodebookFileHeader header = *parse_codebook_header(right);
  const std::uint64_t end = 4096 + header.payload_bytes;  // what is behind it is padding
  for (std::uint64_t at = 0; at < end; at += at < 512 || at >= 4096 ? 13 : 1) {
    disk_.rot(codebook_, at, static_cast<std::uint32_t>(at % 8));
    EXPECT_EQ(named(check(false, true), codebook_).size(), 1u) << "byte " << at;
    disk_.rot(codebook_, at, static_cast<std::uint32_t>(at % 8));
  }
  EXPECT_TRUE(check(true, true).sound());
  put(codebook_, make_codebook(8));
  EXPECT_EQ(named(check(false, true), codebook_).size(), 1u) << "another one under its name";
}

// It is made anew from stored keys, and so are the codes that refer to it: no damage.
TEST_F(StoreCheck, ALostCodebookLeavesTheStoreSound) {
  const std::unique_ptr<Io> io = make_sim_io(disk_, clock_);
  EXPECT_TRUE(check_codebooks(*io, rows_).findings.empty());
  disk_.rot(codebook_, 5000, 2);
  expect_one(codebook_, "damaged/warning/payload", false);
  EXPECT_TRUE(check().sound());
  ASSERT_TRUE(disk_.unlink(codebook_).has_value());
  expect_one(codebook_, "missing/warning/", false);
  EXPECT_TRUE(check().sound());
  EXPECT_EQ(named(check_codebooks(*io, rows_), codebook_),
            std::vector<std::string>{"missing/warning/"});
}

// Every byte of metadata, and of every page its first 512 and then every 64th, in a store of that
// file alone.
TEST_F(StoreCheck, EveryFlippedByteIsNamed) {
  for (const std::string& path : {second_, log_, sidecar_path(SegmentId{2}, kKind), object_}) {
    SimDisk one_file{SimDiskOptions{.latency_ns_max = 1}};
    for (const char* directory : {"segments", "logs", "sidecars", "codebooks", "objects"})
      ASSERT_TRUE(one_file.make_directory(directory).has_value());
    const std::vector<std::byte> file = get(path);
    ASSERT_TRUE(one_file.create(path, true).has_value());
    ASSERT_TRUE(one_file.write(path, 0, file).has_value());
    ASSERT_TRUE(one_file.sync(path).has_value());
    const std::unique_ptr<Io> io = make_sim_io(one_file, clock_);
    const StoreCheckOptions options{.deep = true, .progress = {}};
    const std::uint64_t without = check_store(*io, nullptr, options).findings.size();
    EXPECT_EQ(without, path.starts_with("sidecars") ? 1u : 0u);  // its segment is not there
    for (std::uint64_t at = 0; at < file.size(); ++at) {
      if (at >= 8192 && at % 4096 >= 512 && at % 64 != 0) continue;
      one_file.rot(path, at, static_cast<std::uint32_t>(at % 8));
      const StoreReport report = check_store(*io, nullptr, options);
      ASSERT_GT(report.findings.size(), without) << path << " byte " << at;
      ASSERT_EQ(report.findings[0].path, path);
      if (at < 8192 && path == second_) {
        ASSERT_FALSE(report.sound()) << "byte " << at;
      }
      one_file.rot(path, at, static_cast<std::uint32_t>(at % 8));
    }
    EXPECT_EQ(check_store(*io, nullptr, options).findings.size(), without);
  }
}

TEST_F(StoreCheck, RegionsAreNamedAndTheRestIsStillRead) {
  const std::uint64_t chunks_at = parse_segment_header(get(first_)).value();
  disk_.rot(first_, 16, 0);  // the id, in the header
  StoreReport report = check();
  EXPECT_EQ(named(report, first_), std::vector<std::string>{"damaged/damage/header"});
  EXPECT_EQ(report.chunks_checked, 33u);  // the chunk table vouches for itself
  disk_.rot(first_, 16, 0);

  disk_.rot(first_, 4096, 0);  // geometry
  report = check();
  EXPECT_EQ(named(report, first_), std::vector<std::string>{"damaged/damage/geometry"});
  EXPECT_EQ(report.chunks_checked, 33u);
  disk_.rot(first_, 4096, 0);

  disk_.rot(first_, chunks_at + 4096 * 10 + 5, 3);  // layer 0, chunk 5, head 0
  report = check();
  EXPECT_EQ(named(report, first_),
            std::vector<std::string>{
                "damaged/damage/chunk 10 (layer 0, group 0, tokens 40-47 of the segment)"});
  EXPECT_TRUE(check(false).sound());  // structure only
  disk_.rot(first_, chunks_at + 4096 * 10 + 5, 3);

  disk_.rot(first_, chunks_at + 4095, 0);
  expect_one(first_,
             "damaged/warning/chunk 0 (layer 0, group 0, tokens 0-7 of the segment), padding");
}

TEST_F(StoreCheck, CutsAndExtraBytes) {
  const std::vector<std::byte> file = get(first_);
  for (const std::size_t size : {std::size_t{0}, std::size_t{100}, std::size_t{4096},
                                 std::size_t{5000}, file.size() - 4096, file.size() - 1}) {
    ASSERT_TRUE(disk_.resize(first_, size).has_value());
    for (const bool deep : {false, true}) {
      const StoreReport report = check(deep);
      EXPECT_FALSE(report.sound()) << size;
      EXPECT_GE(named(report, first_).size(), 1u) << size;
    }
    put(first_, file);
  }
  ASSERT_TRUE(disk_.resize(first_, file.size() + 4096).has_value());
  expect_one(first_, "mismatch/warning/length");
}

TEST_F(StoreCheck, SwappedFilesAreNamed) {
  const std::vector<std::byte> a = get(first_), b = get(second_);
  put(first_, b);
  put(second_, a);
  const StoreReport report = check();
  EXPECT_EQ(named(report, first_), std::vector<std::string>{"mismatch/damage/header"});
  EXPECT_EQ(named(report, second_), std::vector<std::string>{"mismatch/damage/header"});
  put(first_, a);
  put(second_, b);
  const std::string x = sidecar_path(SegmentId{1}, kKind), y = sidecar_path(SegmentId{2}, kKind);
  put(x, get(y));
  expect_one(x, "mismatch/warning/header", false);
  put(x, samples::make_sidecar(SegmentId{1}, samples::small_geometry(), 70, kSeed));
  put(log_, samples::make_log(samples::make_log_header(SequenceId{0x78}, 3, 79),
                              samples::small_geometry(), kSeed, {3}));
  expect_one(log_, "mismatch/damage/header", false);
}

TEST_F(StoreCheck, MissingFilesAreNamed) {
  ASSERT_TRUE(disk_.unlink(first_).has_value());
  ASSERT_TRUE(disk_.unlink(log_).has_value());
  ASSERT_TRUE(disk_.unlink(sidecar_path(SegmentId{2}, kKind)).has_value());
  const StoreReport report = check(false);
  EXPECT_EQ(named(report, first_), std::vector<std::string>{"missing/damage/"});
  EXPECT_EQ(named(report, log_), std::vector<std::string>{"missing/damage/"});
  EXPECT_EQ(named(report, sidecar_path(SegmentId{2}, kKind)),
            std::vector<std::string>{"missing/warning/"});
  EXPECT_EQ(named(report, sidecar_path(SegmentId{1}, kKind)),
            std::vector<std::string>{"orphan/warning/"});
  EXPECT_TRUE(check(false, false).sound());
}

TEST_F(StoreCheck, OrphansAreWarningsOnly) {
  put("segments/0000000000000009.kvs", get(first_));
  put("segments/notes.txt", {});
  put("sidecars/core", {});
  put(tail_log_path(kSequence, 2), {});
  put(tail_log_path(SequenceId{0x99}, 1), {});
  put("logs/x.kvl", {});
  const StoreReport report = check(false);
  for (const char* path : {"segments/notes.txt", "sidecars/core", "logs/x.kvl"})
    EXPECT_EQ(named(report, path), std::vector<std::string>{"orphan/warning/"}) << path;
  EXPECT_EQ(named(report, tail_log_path(kSequence, 2)),
            std::vector<std::string>{"orphan/warning/"});
  EXPECT_EQ(named(report, tail_log_path(SequenceId{0x99}, 1)),
            std::vector<std::string>{"orphan/warning/"});
  EXPECT_EQ(named(report, "segments/0000000000000009.kvs"),
            (std::vector<std::string>{"orphan/warning/"}));
}

TEST_F(StoreCheck, ObjectsAreComparedWithTheirRows) {
  const std::vector<std::byte> good = get(object_);
  disk_.rot(object_, 4096 + 4999, 2);
  expect_one(object_, "damaged/damage/value");
  EXPECT_TRUE(check(false).sound());  // structure only
  put(object_, samples::make_object(6, "key", 5000, kSeed));
  expect_one(object_, "mismatch/damage/header", false);
  put(object_, samples::make_object(5, "yek", 5000, kSeed));
  EXPECT_EQ(named(check(), object_).size(), 2u);  // another key, and so another checksum
  put(object_, samples::make_object(5, "key", 5001, kSeed));
  expect_one(object_, "mismatch/damage/header");
  put(object_, good);
  ASSERT_TRUE(disk_.resize(object_, 8192).has_value());
  expect_one(object_, "damaged/damage/length", false);
  ASSERT_TRUE(disk_.unlink(object_).has_value());
  expect_one(object_, "missing/damage/", false);
  put(object_, good);
  put(object_path(6), std::vector<std::byte>(100));  // never published: it may be anything
  put("objects/notes", {});
  expect_one(object_path(6), "orphan/warning/");
  expect_one("objects/notes", "orphan/warning/");
  EXPECT_TRUE(check().sound());
}

TEST_F(StoreCheck, ATornLogIsAWarningAndAHoleIsDamage) {
  const std::vector<std::byte> good = get(log_);
  std::vector<std::byte> torn = good;
  std::fill(torn.end() - 4096, torn.end(), std::byte{0xDD});
  put(log_, torn);
  expect_one(log_, "torn/warning/record 2");
  EXPECT_TRUE(check().sound());
  EXPECT_EQ(check().records, 2u);
  torn = good;
  torn[4096 + 70] ^= std::byte{1};  // the first record; sound ones follow
  put(log_, torn);
  expect_one(log_, "damaged/damage/record 0");
  // Only of the same commit: a power cut may keep any of what was written at once.
  const TailLogHeader header = samples::make_log_header(kSequence, 3, 79);
  torn = samples::make_log(header, samples::small_geometry(), kSeed, {3, 3});
  std::fill(torn.begin() + 4096, torn.begin() + 8192, std::byte{0});
  put(log_, torn);
  EXPECT_EQ(check().findings.at(0).kind, FindingKind::kTorn);
  torn = good;
  torn.resize(torn.size() + 8192);  // reserved space
  put(log_, torn);
  EXPECT_TRUE(check().findings.empty());
  put(log_, samples::make_log(samples::make_log_header(kSequence, 3, 78), samples::small_geometry(),
                              kSeed, {3}));
  expect_one(log_, "mismatch/damage/header");
}

TEST_F(StoreCheck, RowsThatDoNotFitTheirFiles) {
  struct Case {
    const char* what;
    std::string path;
    std::string line;
    std::function<void(StoreRows*)> change;
  };
  const std::string sequence = "catalogue/sequence/0000000000000077";
  const std::string row = "catalogue/segment/0000000000000002";
  const Case cases[] = {
      {"parent", second_, "mismatch/damage/header",
       [](StoreRows* r) { r->segments[1].parent_visible = 3; }},
      {"start", second_, "mismatch/damage/header",
       [](StoreRows* r) { r->segments[1].start_token = 69; }},
      {"tokens", second_, "mismatch/damage/header",
       [](StoreRows* r) { r->segments[1].tokens = 12; }},
      {"length", second_, "mismatch/damage/header",
       [](StoreRows* r) { r->segments[1].file_bytes += 4096; }},
      {"blocks", second_, "mismatch/damage/header",
       [](StoreRows* r) { r->segments[1].blocks.resize(2); }},
      {"digest", second_, "mismatch/damage/header",
       [](StoreRows* r) { r->spaces[0].digest.low ^= 1; }},
      {"geometry", second_, "mismatch/damage/geometry",
       [](StoreRows* r) { r->spaces[0].geometry.layers[1].query_heads = 2; }},
      {"bad", second_, "damaged/note/", [](StoreRows* r) { r->segments[1].bad = true; }},
      {"no row", second_, "orphan/warning/", [](StoreRows* r) { r->segments.pop_back(); }},
      {"part without row", sequence, "missing/damage/",
       [](StoreRows* r) { r->segments.pop_back(); }},
      {"parent without row", row, "missing/warning/",
       [](StoreRows* r) { r->segments.erase(r->segments.begin()); }},
      {"no space", row, "missing/damage/", [](StoreRows* r) { r->spaces.clear(); }},
      {"sequence without space", sequence, "missing/damage/",
       [](StoreRows* r) { r->spaces.clear(); }},
      {"too many visible", sequence, "mismatch/damage/parts",
       [](StoreRows* r) { r->sequences[0].parts[1].visible_tokens = 12; }},
      {"none visible", sequence, "mismatch/damage/parts",
       [](StoreRows* r) { r->sequences[0].parts[1].visible_tokens = 0; }},
      {"hole between parts", sequence, "mismatch/damage/parts",
       [](StoreRows* r) { r->sequences[0].parts[0].visible_tokens = 64; }},
      {"part of another space", sequence, "mismatch/damage/parts",
       [](StoreRows* r) { r->segments[1].space = SpaceId{8}; }},
      {"damaged row", "catalogue/segment 5", "damaged/damage/",
       [](StoreRows* r) {
         r->damaged.push_back({"segment 5", {Code::kCorrupt, 0, "its checksum is wrong"}});
       }},
  };
  const StoreRows good = rows_;
  for (const Case& one : cases) {
    rows_ = good;
    one.change(&rows_);
    const std::vector<std::string> lines = named(check(false), one.path);
    EXPECT_NE(std::ranges::find(lines, one.line), lines.end()) << one.what;
  }
}

TEST_F(StoreCheck, ReadErrorsAreFindings) {
  disk_.set_error_rates(1, 0);
  const StoreReport report = check();
  EXPECT_FALSE(report.sound());
  EXPECT_EQ(named(report, first_), std::vector<std::string>{"unreadable/damage/header"});
  disk_.set_error_rates(0, 0);
  EXPECT_TRUE(check().sound());
}

TEST_F(StoreCheck, ProgressIsToldAndCancels) {
  const std::unique_ptr<Io> io = make_sim_io(disk_, clock_);
  std::uint64_t last = 0, total = 0;
  StoreReport report =
      check_store(*io, &rows_, {.deep = true, .progress = [&](auto done, auto files, auto) {
                                  EXPECT_GE(done, last);
                                  last = done;
                                  total = files;
                                  return true;
                                }});
  EXPECT_EQ(last, 7u);
  EXPECT_EQ(total, 7u);
  EXPECT_FALSE(report.cancelled);
  report =
      check_store(*io, &rows_, {.deep = true, .progress = [](auto, auto, auto) { return false; }});
  EXPECT_TRUE(report.cancelled);
  EXPECT_FALSE(report.sound());
  EXPECT_LT(report.segments, 2u);
}

TEST_F(StoreCheck, FindingsAreBounded) {
  const std::uint64_t chunks_at = parse_segment_header(get(first_)).value();
  for (std::uint64_t i = 0; i < 27; ++i) disk_.rot(first_, chunks_at + i * 4096, 1);
  const std::unique_ptr<Io> io = make_sim_io(disk_, clock_);
  const StoreReport report =
      check_store(*io, &rows_, {.deep = true, .findings_max = 5, .progress = {}});
  EXPECT_EQ(report.findings.size(), 5u);
  EXPECT_EQ(report.damage, 27u);
}

// With the real catalogue and the real file system.
TEST(StoreCheckOnDisk, RowsComeFromTheCatalogue) {
  char name[] = "/tmp/kvtier-check-XXXXXX";
  ASSERT_NE(::mkdtemp(name), nullptr);
  const std::filesystem::path root(name);
  {
    Result<std::unique_ptr<Catalogue>> made = Catalogue::open(
        {.path = (root / "catalogue").string(), .env = nullptr, .read_only = false});
    ASSERT_TRUE(made.has_value()) << made.error().message();
    CatalogueBatch batch;
    SegmentRow row;
    row.id = SegmentId{7};
    row.space = samples::kSpace;
    row.tokens = 3;
    batch.put_segment(row);
    ASSERT_TRUE((*made)->write(std::move(batch), true).has_value());
  }
  Result<std::unique_ptr<Catalogue>> catalogue =
      Catalogue::open({.path = (root / "catalogue").string(), .env = nullptr, .read_only = true});
  ASSERT_TRUE(catalogue.has_value()) << catalogue.error().message();
  const Result<StoreRows> rows = load_store_rows(**catalogue);
  ASSERT_TRUE(rows.has_value());
  ASSERT_EQ(rows->segments.size(), 1u);
  Result<std::unique_ptr<Io>> io = make_io({.root = root.string(), .backend = "threads"});
  ASSERT_TRUE(io.has_value());
  const StoreReport report = check_store(**io, &*rows, {.deep = true, .progress = {}});
  EXPECT_EQ(report.damage, 2u);  // no file, no space
  catalogue->reset();
  std::filesystem::remove_all(root);
}

}  // namespace
}  // namespace kvtier
