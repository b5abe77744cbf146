// Export file: round trips, tokens that must not leak, every changed byte and cut, frames moved,
// misuse.
#include "tiers/export_format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "base/hash.h"
#include "base/random.h"
#include "tests/unit/format_samples.h"
#include "tiers/format_head.h"

namespace kvtier {
namespace {

const std::vector<std::uint32_t> kCounts = {16, 3};
constexpr std::uint64_t kSeed = 21;

ExportSource source_of(const std::vector<std::byte>& file) {
  return {.size_bytes = file.size(),
          .read = [&file](std::uint64_t offset, MutableByteSpan target) -> Result<void> {
            if (offset > file.size() || target.size() > file.size() - offset)
              return error(Code::kIo, "short");
            std::copy_n(file.begin() + static_cast<std::ptrdiff_t>(offset), target.size(),
                        target.begin());
            return {};
          }};
}

Code open_code(const std::vector<std::byte>& file) {
  const Result<ExportReader> reader = ExportReader::open(source_of(file));
  return reader ? Code::kOk : reader.error().code;
}

// Offsets of all frames, and of the end.
std::vector<std::size_t> frames_of(const std::vector<std::byte>& file) {
  std::vector<std::size_t> offsets = {kExportHeadBytes};
  while (offsets.back() < file.size()) {
    std::uint64_t payload = 0;
    std::memcpy(&payload, file.data() + offsets.back() + 16, sizeof(payload));
    offsets.push_back(offsets.back() + kExportFrameHeaderBytes + payload);
  }
  return offsets;
}

void expect_content(ExportReader& reader, const std::vector<std::uint32_t>& counts) {
  const Geometry geometry = samples::small_geometry();
  std::uint64_t start = 0;
  ASSERT_EQ(reader.segments(), counts.size());
  for (std::uint32_t i = 0; i < counts.size(); ++i) {
    const SegmentMeta meta = samples::make_meta(SegmentId{1}, counts[i], start, kSeed);
    const Result<ExportSegment> segment = reader.read_segment(i);
    ASSERT_TRUE(segment.has_value()) << segment.error().message();
    EXPECT_EQ(segment->start_token, start);
    EXPECT_EQ(segment->tokens, meta.tokens);
    EXPECT_EQ(segment->texts, meta.texts);
    EXPECT_EQ(segment->snapshot, meta.snapshot);
    const PlaneLayout layout(geometry, counts[i]);
    std::vector<std::byte> expected(layout.size_bytes()), plane(layout.size_bytes());
    std::vector<TokenRecord> tokens(counts[i]);
    samples::fill_plane(geometry, layout, kSeed, start, 0, counts[i], tokens.data(),
                        expected.data());
    std::uint32_t visited = 0;
    const Result<void> read =
        reader.read_chunks(i, [&](std::uint32_t index, ByteSpan raw) -> Result<void> {
          EXPECT_EQ(index, visited++);
          const PlaneLayout::ChunkPlace place = layout.place_of(index);
          std::copy(raw.begin(), raw.end(),
                    plane.begin() + static_cast<std::ptrdiff_t>(layout.chunk_offset(
                                        place.layer, place.chunk, place.group)));
          return {};
        });
    ASSERT_TRUE(read.has_value());
    EXPECT_EQ(visited, layout.chunks_total());
    EXPECT_EQ(
        plane,
        expected);  // rows behind the last token too: zeros, not what the writer's memory held
    start += counts[i];
  }
}

TEST(ExportFormat, RoundTripsWithBothCodecs) {
  for (const CodecId codec : {CodecId::kRaw, CodecId::kZstd})
    for (const std::vector<std::uint32_t>& counts :
         {kCounts, std::vector<std::uint32_t>{}, std::vector<std::uint32_t>{1},
          std::vector<std::uint32_t>{2048, 8, 9}}) {
      const std::vector<std::byte> file = samples::make_export(counts, kSeed, codec);
      Result<ExportReader> reader = ExportReader::open(source_of(file));
      ASSERT_TRUE(reader.has_value()) << reader.error().message();
      const ExportDescription& description = reader->description();
      EXPECT_EQ(description.name, "a chat");
      EXPECT_EQ(description.fingerprint.model, "sha256:feed");
      EXPECT_EQ(description.fingerprint.runtime, "transformers-5/1");
      EXPECT_EQ(description.fingerprint.detail, "theta=10000");
      EXPECT_EQ(description.fingerprint.geometry, samples::small_geometry());
      EXPECT_EQ(description.abstracts,
                (std::vector<std::uint32_t>{parse_abstract_spec("box/pages:16")->packed()}));
      expect_content(*reader, counts);
    }
}

TEST(ExportFormat, ZstdMakesItSmallerWhereRowsRepeat) {
  // The last chunk of each layer is mostly zeros here.
  EXPECT_LT(samples::make_export({1, 1, 1}, kSeed, CodecId::kZstd).size(),
            samples::make_export({1, 1, 1}, kSeed, CodecId::kRaw).size());
}

TEST(ExportFormat, EveryChangedByteIsFound) {
  for (const CodecId codec : {CodecId::kRaw, CodecId::kZstd}) {
    std::vector<std::byte> file = samples::make_export(kCounts, kSeed, codec);
    Random random(5);
    for (std::size_t i = 0; i < file.size(); ++i) {
      const auto change = static_cast<std::byte>(1 + random.below(255));
      file[i] ^= change;
      ASSERT_EQ(open_code(file), Code::kCorrupt) << "byte " << i;
      file[i] ^= change;
    }
    EXPECT_EQ(open_code(file), Code::kOk);
  }
}

TEST(ExportFormat, EveryCutIsFound) {
  const std::vector<std::byte> file = samples::make_export({9}, kSeed, CodecId::kRaw);
  for (std::size_t size = 0; size < file.size(); ++size) {
    const std::vector<std::byte> cut(file.begin(),
                                     file.begin() + static_cast<std::ptrdiff_t>(size));
    ASSERT_EQ(open_code(cut), Code::kCorrupt) << size;
  }
  std::vector<std::byte> longer = file;
  longer.push_back(std::byte{0});
  EXPECT_EQ(open_code(longer), Code::kCorrupt);
}

TEST(ExportFormat, FramesMissingTwiceSwappedOrForeignAreFound) {
  const std::vector<std::byte> file = samples::make_export(kCounts, kSeed, CodecId::kRaw);
  const std::vector<std::byte> other = samples::make_export(kCounts, kSeed + 1, CodecId::kRaw);
  const std::vector<std::size_t> at = frames_of(file);
  ASSERT_EQ(frames_of(other), at);
  const auto piece = [&](const std::vector<std::byte>& from, std::size_t frame) {
    return std::vector<std::byte>(from.begin() + static_cast<std::ptrdiff_t>(at[frame]),
                                  from.begin() + static_cast<std::ptrdiff_t>(at[frame + 1]));
  };
  const auto rebuilt = [&](const std::vector<std::vector<std::byte>>& pieces) {
    std::vector<std::byte> out(file.begin(), file.begin() + kExportHeadBytes);
    for (const std::vector<std::byte>& one : pieces) out.insert(out.end(), one.begin(), one.end());
    return out;
  };
  std::vector<std::vector<std::byte>> all;
  for (std::size_t i = 0; i + 1 < at.size(); ++i) all.push_back(piece(file, i));
  ASSERT_EQ(rebuilt(all), file);
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::vector<std::vector<std::byte>> changed = all;
    changed.erase(changed.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_EQ(open_code(rebuilt(changed)), Code::kCorrupt) << "without frame " << i;
    changed = all;
    changed.insert(changed.begin() + static_cast<std::ptrdiff_t>(i), all[i]);
    EXPECT_EQ(open_code(rebuilt(changed)), Code::kCorrupt) << "frame " << i << " twice";
    changed = all;
    changed[i] = piece(other, i);
    if (i != 0) {
      EXPECT_EQ(open_code(rebuilt(changed)), Code::kCorrupt) << "foreign frame " << i;
    }
    if (i + 1 < all.size()) {
      changed = all;
      std::swap(changed[i], changed[i + 1]);
      EXPECT_EQ(open_code(rebuilt(changed)), Code::kCorrupt) << "frames swapped at " << i;
    }
  }
}

TEST(ExportFormat, ANewerVersionAndAnotherSpaceAreToldApart) {
  std::vector<std::byte> file = samples::make_export(kCounts, kSeed, CodecId::kRaw);
  const auto sign = [&] {
    const std::uint64_t checksum = hash64(ByteSpan(file).first(kHeadChecksumOffset));
    std::memcpy(file.data() + kHeadChecksumOffset, &checksum, sizeof(checksum));
  };
  file[8] = std::byte{2};
  sign();
  EXPECT_EQ(open_code(file), Code::kVersion);
  file[8] = std::byte{1};
  file[16] ^= std::byte{1};  // the digest
  sign();
  EXPECT_EQ(open_code(file), Code::kCorrupt);
}

TEST(ExportFormat, ErrorsOfTheSourceAndCancelling) {
  const std::vector<std::byte> file = samples::make_export(kCounts, kSeed, CodecId::kRaw);
  for (int allowed = 0;; ++allowed) {
    int calls = 0;
    ExportSource source = source_of(file);
    source.read = [&, read = source.read](std::uint64_t offset,
                                          MutableByteSpan target) -> Result<void> {
      if (calls++ == allowed) return error(Code::kIo, "injected");
      return read(offset, target);
    };
    const Result<ExportReader> reader = ExportReader::open(source);
    if (reader) {
      EXPECT_GT(allowed, 20);
      break;
    }
    ASSERT_EQ(reader.error().code, Code::kIo);
  }
  EXPECT_EQ(ExportReader::open(source_of(file), [](std::uint64_t) { return false; }).error().code,
            Code::kCancelled);
}

TEST(ExportFormat, ASourceThatChangesAfterOpenIsNotBelieved) {
  std::vector<std::byte> file = samples::make_export(kCounts, kSeed, CodecId::kRaw);
  Result<ExportReader> reader = ExportReader::open(source_of(file));
  ASSERT_TRUE(reader.has_value());
  const std::vector<std::size_t> at = frames_of(file);
  file[at[1] + kExportFrameHeaderBytes + 30] ^= std::byte{1};
  EXPECT_EQ(reader->read_segment(0).error().code, Code::kCorrupt);
  file[at[1] + kExportFrameHeaderBytes + 30] ^= std::byte{1};
  file[at[3] - 1] ^= std::byte{1};  // of the segment's first chunk
  EXPECT_TRUE(reader->read_segment(0).has_value());
  EXPECT_EQ(reader->read_chunks(0, [](std::uint32_t, ByteSpan) -> Result<void> { return {}; })
                .error()
                .code,
            Code::kCorrupt);
  EXPECT_EQ(reader->read_segment(2).error().code, Code::kInvalid);
}

// A whole file with right checksums may still name abstracts that there are not.
TEST(ExportFormat, AbstractsThatAreNoneAreRefused) {
  const std::uint32_t boxes = parse_abstract_spec("box/pages:16")->packed();
  for (const auto& [abstracts, code] :
       {std::pair{std::vector<std::uint32_t>{boxes}, Code::kOk},
        std::pair{std::vector<std::uint32_t>{boxes, 0xFFFFFFFF}, Code::kCorrupt},
        std::pair{std::vector<std::uint32_t>{0}, Code::kCorrupt},
        std::pair{std::vector<std::uint32_t>{boxes, boxes}, Code::kCorrupt},
        std::pair{std::vector<std::uint32_t>(17, boxes), Code::kCorrupt}}) {
    std::vector<std::byte> file;
    ExportWriter writer(
        [&file](ByteSpan piece) -> Result<void> {
          file.insert(file.end(), piece.begin(), piece.end());
          return {};
        },
        CodecId::kRaw);
    ExportDescription description;
    description.fingerprint.geometry = samples::small_geometry();
    description.abstracts = abstracts;
    ASSERT_TRUE(writer.begin(description).has_value());
    ASSERT_TRUE(writer.finish().has_value());
    const Result<ExportReader> reader = ExportReader::open(source_of(file));
    EXPECT_EQ(reader ? Code::kOk : reader.error().code, code) << abstracts.size();
  }
}

TEST(ExportWriter, MisuseAndWrongSumsAreInvalid) {
  std::size_t bytes = 0;
  const ExportSink count = [&](ByteSpan piece) -> Result<void> {
    bytes += piece.size();
    return {};
  };
  ExportDescription description;
  description.fingerprint.geometry = samples::small_geometry();
  description.tokens = 8;
  description.segments = 1;
  ExportSegment segment;
  segment.tokens.resize(8);
  {
    ExportWriter writer(count, CodecId::kRaw);
    EXPECT_EQ(writer.begin_segment(segment).error().code, Code::kInvalid);
    EXPECT_EQ(writer.add_chunk({}).error().code, Code::kInvalid);
    EXPECT_EQ(writer.finish().error().code, Code::kInvalid);
    EXPECT_EQ(bytes, 0u);
    ASSERT_TRUE(writer.begin(description).has_value());
    EXPECT_EQ(writer.begin(description).error().code, Code::kInvalid);
    EXPECT_EQ(writer.finish().error().code, Code::kInvalid);  // a segment is missing
    ExportSegment wrong = segment;
    wrong.start_token = 1;
    EXPECT_EQ(writer.begin_segment(wrong).error().code, Code::kInvalid);
    wrong = segment;
    wrong.tokens.resize(9);
    EXPECT_EQ(writer.begin_segment(wrong).error().code, Code::kInvalid);
    ASSERT_TRUE(writer.begin_segment(segment).has_value());
    EXPECT_EQ(writer.begin_segment(segment).error().code, Code::kInvalid);  // chunks are missing
    EXPECT_EQ(writer.add_chunk(std::vector<std::byte>(255)).error().code, Code::kInvalid);
    ASSERT_TRUE(writer.add_chunk(std::vector<std::byte>(256)).has_value());
    EXPECT_EQ(writer.finish().error().code, Code::kInvalid);
  }
  ExportDescription bad = description;
  bad.name.assign(kNameBytesMax + 1, 'x');
  EXPECT_EQ(ExportWriter(count, CodecId::kRaw).begin(bad).error().code, Code::kTooLarge);
  bad = description;
  bad.fingerprint.detail.assign(kExportTextBytesMax + 1, 'x');
  EXPECT_EQ(ExportWriter(count, CodecId::kRaw).begin(bad).error().code, Code::kTooLarge);
  bad = description;
  bad.fingerprint.geometry.layers.clear();
  EXPECT_EQ(ExportWriter(count, CodecId::kRaw).begin(bad).error().code, Code::kInvalid);
}

TEST(ExportWriter, ASinkThatFailedIsNotWrittenTo) {
  int calls = 0;
  ExportWriter writer(
      [&](ByteSpan) -> Result<void> {
        ++calls;
        return error(Code::kNoSpace, "injected");
      },
      CodecId::kRaw);
  ExportDescription description;
  description.fingerprint.geometry = samples::small_geometry();
  EXPECT_EQ(writer.begin(description).error().code, Code::kNoSpace);
  EXPECT_FALSE(writer.finish().has_value());
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace kvtier
