// Codebooks and clusters: what training finds in keys whose structure is known, and the file
// format.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/random.h"
#include "kernels/float16.h"
#include "kernels/registry.h"
#include "tests/unit/format_samples.h"
#include "tiers/abstract_builder.h"
#include "tiers/cluster.h"
#include "tiers/codebook_format.h"
#include "tiers/codebook_train.h"
#include "tiers/format_head.h"
#include "tiers/own_codes.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kDim = 32;

Geometry one_head() {
  Geometry geometry;
  LayerGeometry layer;
  layer.kv_heads = layer.query_heads = 1;
  layer.k_row_bytes = layer.v_row_bytes = kDim * 4;
  geometry.layers = {layer};
  return geometry;
}

AbstractSpec codes() { return *parse_abstract_spec("codes:4/tokens"); }

double gauss(Random* random) {
  double sum = -6.0;
  for (int i = 0; i < 12; ++i) sum += random->unit();
  return sum;
}

// Keys that vary much in a few directions, mixed over all dimensions, around a mean.
std::vector<float> mixed_rows(std::size_t count, std::uint64_t seed) {
  Random mixing(7);
  std::vector<double> mix(std::size_t{kDim} * kDim);
  for (double& x : mix) x = gauss(&mixing);
  Random random(seed);
  std::vector<float> rows;
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<double> row(kDim, 3.0);
    for (std::uint32_t axis = 0; axis < kDim; ++axis) {
      const double value = gauss(&random) * std::pow(0.8, axis);
      for (std::uint32_t d = 0; d < kDim; ++d) row[d] += value * mix[axis * kDim + d];
    }
    for (const double x : row) rows.push_back(static_cast<float>(x));
  }
  return rows;
}

struct Trained {
  explicit Trained(std::span<const float> keys, std::span<const float> queries,
                   std::uint64_t seed = 1)
      : layout(one_head(), codes()), payload(static_cast<std::size_t>(layout.size_bytes())) {
    CodebookHeader header;
    header.spec = codes().packed();
    header.id = 5;
    std::memcpy(payload.data(), &header, sizeof(header));
    part = layout.head(payload.data(), 0, 0);
    result = train_head({kDim, part.book.subspaces, keys, queries, seed}, part);
  }
  CodebookLayout layout;
  std::vector<std::byte> payload;
  HeadCodebook part;
  Result<void> result;
};

// Scores of a query by codes, and exactly, both less their mean.
struct Scores {
  std::vector<double> coded, exact;
  double error() const {
    double gap = 0.0, size = 0.0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      gap += (coded[i] - exact[i]) * (coded[i] - exact[i]);
      size += exact[i] * exact[i];
    }
    return std::sqrt(gap / size);
  }
};
Scores score(const HeadCodebook& part, std::span<const float> keys, const float* query) {
  std::vector<float> moved(keys.size());
  move_keys(part, kDim, keys, moved);
  const auto* entries = reinterpret_cast<const float*>(part.book.entries);
  Scores out;
  for (std::size_t at = 0; at < keys.size(); at += kDim) {
    double exact = 0.0, coded = 0.0;
    for (std::uint32_t d = 0; d < kDim; ++d)
      exact += static_cast<double>(query[d]) * static_cast<double>(keys[at + d]);
    for (std::uint32_t m = 0; m < part.book.subspaces; ++m) {
      const std::uint32_t first = part.book.first[m], size = part.book.first[m + 1] - first;
      double best = HUGE_VAL, value = 0.0;
      for (std::uint32_t j = 0; j < kCodeEntries; ++j) {
        double far = 0.0, product = 0.0;
        for (std::uint32_t i = 0; i < size; ++i) {
          const std::uint32_t axis = part.book.dims[first + i];
          const double entry = static_cast<double>(entries[kCodeEntries * first + j * size + i]);
          const double gap = static_cast<double>(moved[at + axis]) - entry;
          double z = 0.0;
          for (std::uint32_t d = 0; d < kDim; ++d)
            z += static_cast<double>(query[d]) *
                 static_cast<double>(part.query_map[d * kDim + axis]);
          far += gap * gap;
          product += z * entry;
        }
        if (far < best) best = far, value = product;
      }
      coded += value;
    }
    out.exact.push_back(exact);
    out.coded.push_back(coded);
  }
  for (auto* list : {&out.exact, &out.coded}) {
    const double mean =
        std::accumulate(list->begin(), list->end(), 0.0) / static_cast<double>(list->size());
    for (double& x : *list) x -= mean;
  }
  return out;
}

TEST(Codebook, ScoresOfCodesAreNearTheExactOnes) {
  const std::vector<float> keys = mixed_rows(1500, 1), others = mixed_rows(200, 2);
  const std::vector<float> queries = mixed_rows(64, 3);
  const Trained trained(keys, queries);
  ASSERT_TRUE(trained.result);
  ASSERT_TRUE(trained.layout.check_contents(trained.payload.data()));
  double error = 0.0;
  for (std::size_t i = 0; i < 8; ++i)
    error += score(trained.part, others, queries.data() + i * kDim).error();
  EXPECT_LT(error / 8, 0.2);
  // 8 codes of 4 bits cannot be exact.
  EXPECT_GT(error / 8, 1e-3);
}

TEST(Codebook, TheMapsAreInverse) {
  const std::vector<float> keys = mixed_rows(500, 1), queries = mixed_rows(40, 3);
  const Trained trained(keys, queries);
  for (std::uint32_t i = 0; i < kDim; ++i)
    for (std::uint32_t j = 0; j < kDim; ++j) {
      double sum = 0.0;
      for (std::uint32_t d = 0; d < kDim; ++d)
        sum += static_cast<double>(trained.part.encode[i * kDim + d]) *
               static_cast<double>(trained.part.query_map[j * kDim + d]);
      EXPECT_NEAR(sum, i == j ? 1.0 : 0.0, 2e-2) << i << " " << j;
    }
}

// Queries that look along one dimension only: there codes must be better than without knowing it.
TEST(Codebook, ErrorsCountAsTheQueriesSeeThem) {
  const std::vector<float> keys = mixed_rows(1500, 1), others = mixed_rows(200, 2);
  std::vector<float> queries(40 * kDim, 0.0f);
  for (std::size_t i = 0; i < 40; ++i) queries[i * kDim + 9] = i % 2 == 0 ? 1.0f : -2.0f;
  const Trained seen(keys, queries), blind(keys, {});
  ASSERT_TRUE(seen.result && blind.result);
  EXPECT_LT(score(seen.part, others, queries.data()).error(),
            0.7 * score(blind.part, others, queries.data()).error());
}

TEST(Codebook, TheSameSeedGivesTheSameBytes) {
  const std::vector<float> keys = mixed_rows(300, 1);
  EXPECT_EQ(Trained(keys, {}, 4).payload, Trained(keys, {}, 4).payload);
  EXPECT_NE(Trained(keys, {}, 4).payload, Trained(keys, {}, 5).payload);
}

TEST(Codebook, OddKeys) {
  std::vector<float> same(64 * kDim, 1.5f);
  const Trained equal(same, {});
  ASSERT_TRUE(equal.result) << "all keys equal";
  EXPECT_TRUE(equal.layout.check_contents(equal.payload.data()));
  EXPECT_EQ(Trained(std::vector<float>(15 * kDim, 1.0f), {}).result.error().code, Code::kInvalid);
  same[77] = NAN;
  EXPECT_EQ(Trained(same, {}).result.error().code, Code::kInvalid);
}

TEST(Rope, TurningKeepsLengthsAndFindsTheBase) {
  RopeSpec rope;
  for (int p = 0; p < 12; ++p) rope.frequencies.push_back(std::pow(0.5f, static_cast<float>(p)));
  for (const RopeSpec::Pairing pairing :
       {RopeSpec::Pairing::kHalves, RopeSpec::Pairing::kNeighbours}) {
    rope.pairing = pairing;
    const std::vector<float> base = mixed_rows(5, 9);
    // Turned from 0 to unknown positions, and, from those being called 0, back to position 0 only.
    rope.positions = 1;
    std::vector<float> rows = base;
    const std::vector<std::uint32_t> zero(5, 0);
    turn_to_positions(rope, zero, kDim, 1, rows);
    EXPECT_EQ(rows, base) << "from 0 to 0";
    rope.positions = 1000;
    turn_to_positions(rope, zero, kDim, 1, rows);
    EXPECT_NE(rows, base);
    for (std::size_t i = 0; i < 5; ++i) {
      const std::size_t turned = 24;
      for (std::size_t d = turned; d < kDim; ++d)
        EXPECT_EQ(rows[i * kDim + d], base[i * kDim + d]) << "dimensions that do not turn";
      double before = 0.0, after = 0.0;
      for (std::size_t d = 0; d < kDim; ++d) {
        before += std::pow(static_cast<double>(base[i * kDim + d]), 2);
        after += std::pow(static_cast<double>(rows[i * kDim + d]), 2);
      }
      EXPECT_NEAR(after, before, 1e-4 * before);
    }
  }
}

TEST(CodebookFormat, RoundTripsAndRefusesDamage) {
  const Trained trained(mixed_rows(300, 1), {});
  const CodebookFileHeader header{SpaceId{9}, samples::kFingerprint, codes().packed(), 5, 0, 0};
  const std::vector<std::byte> file = encode_codebook(header, trained.payload);
  EXPECT_EQ(file.size() % kDiskAlign, 0u);
  const Result<CodebookFileHeader> parsed = parse_codebook_header(file);
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->id, 5u);
  const Result<ByteSpan> payload = check_codebook(*parsed, one_head(), file);
  ASSERT_TRUE(payload);
  EXPECT_TRUE(
      std::equal(payload->begin(), payload->end(), trained.payload.begin(), trained.payload.end()));
  for (std::size_t at = 0; at < file.size(); at += 97) {
    std::vector<std::byte> broken = file;
    broken[at] ^= std::byte{1};
    const Result<CodebookFileHeader> again = parse_codebook_header(broken);
    const bool padding = at >= 4096 + trained.payload.size();
    EXPECT_TRUE(padding || !again || !check_codebook(*again, one_head(), broken)) << at;
  }
  EXPECT_FALSE(check_codebook(*parsed, one_head(), ByteSpan(file).first(file.size() - 4096)));
  Geometry other = one_head();
  other.layers.push_back(other.layers[0]);
  EXPECT_FALSE(check_codebook(*parsed, other, file)) << "of another geometry";
  EXPECT_EQ(codebook_name_of(codebook_path(SpaceId{9}, 5).substr(10))->id, 5u);
  EXPECT_FALSE(codebook_name_of("0000000000000009-0000000000000000.kvb"));
}

// A head has room for one entry per dim: what says that there are four of each is not followed.
TEST(CodebookFormat, EntriesBehindTheLastHeadAreNotRead) {
  const CodebookLayout layout(samples::codebook_geometry(), codes());
  const std::vector<std::byte> file = samples::make_codebook();
  const std::span<const std::byte> sound =
      std::span(file).subspan(kHeadBytes, static_cast<std::size_t>(layout.size_bytes()));
  // At the end of a page behind which nothing may be read.
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t bytes = (sound.size() + page - 1) / page * page;
  void* map =
      ::mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(map, MAP_FAILED);
  std::byte* payload = static_cast<std::byte*>(map) + bytes - sound.size();
  ASSERT_EQ(::mprotect(static_cast<std::byte*>(map) + bytes, page, PROT_NONE), 0);
  std::memcpy(payload, sound.data(), sound.size());
  EXPECT_TRUE(layout.check_contents(payload));
  const CodeBook last = layout.head(payload, 1, 1).book;
  const auto total = static_cast<std::uint16_t>(kCodeDimsFactorMax * last.dim);
  const std::ptrdiff_t at =
      reinterpret_cast<const std::byte*>(last.first + last.subspaces) - payload;
  std::memcpy(payload + at, &total, sizeof(total));
  EXPECT_EQ(layout.check_contents(payload).error().code, Code::kCorrupt);
  ::munmap(map, bytes + page);
}

// ---- own codes ----

struct OwnCoded {
  OwnCoded(const KernelTable& kernels, std::span<const float> keys, std::uint32_t subspaces,
           std::uint32_t untrained = 0)
      : layout(OwnCodeLayout::of(subspaces, kDim)),
        bytes(static_cast<std::size_t>(layout.size_bytes(keys.size() / kDim))),
        built(build_own_codes(kernels, layout, keys, untrained, bytes.data())) {}
  // What stands for a key.
  std::vector<float> decode(std::size_t token) const {
    std::vector<float> out;
    const auto* codes = reinterpret_cast<const std::uint8_t*>(bytes.data() + layout.codes_offset());
    for (std::uint32_t m = 0; m < layout.subspaces; ++m) {
      const auto* entries =
          reinterpret_cast<const std::uint16_t*>(bytes.data() + layout.entries_offset(m));
      const std::uint32_t code = own_code_at(codes, token, layout.subspaces, m);
      for (std::uint32_t d = 0; d < layout.width(m); ++d)
        out.push_back(f16_to_f32(entries[code * layout.width(m) + d]));
    }
    return out;
  }
  // Mean squared distance of keys [begin, n) to what stands for them, of their variance.
  double error(std::span<const float> keys, std::size_t begin = 0) const {
    double gap = 0.0, size = 0.0;
    for (std::size_t t = begin; t < keys.size() / kDim; ++t) {
      const std::vector<float> decoded = decode(t);
      for (std::uint32_t d = 0; d < kDim; ++d) {
        gap += std::pow(static_cast<double>(decoded[d] - keys[t * kDim + d]), 2);
        size += std::pow(static_cast<double>(keys[t * kDim + d]) - 3.0, 2);
      }
    }
    return gap / size;
  }
  OwnCodeLayout layout;
  std::vector<std::byte> bytes;
  bool built;
};

TEST(OwnCodes, StandNearTheirKeys) {
  const std::vector<float> keys = mixed_rows(1500, 1);
  for (const KernelTable* kernels : all_kernels()) {
    const OwnCoded two(*kernels, keys, 2), four(*kernels, keys, 4);
    ASSERT_TRUE(two.built && four.built);
    EXPECT_LT(two.error(keys), 0.35);
    EXPECT_LT(four.error(keys), 0.85 * two.error(keys)) << "more codes, less error";
    EXPECT_EQ(two.bytes, OwnCoded(*kernels, keys, 2).bytes) << "deterministic";
    // Every key has the entry that is nearest to it.
    for (const std::size_t t : {0u, 700u, 1499u}) {
      const std::vector<float> decoded = two.decode(t);
      const auto* entries = reinterpret_cast<const std::uint16_t*>(two.bytes.data());
      double own = 0.0, best = HUGE_VAL;
      for (std::uint32_t d = 0; d < 16; ++d)
        own += std::pow(static_cast<double>(decoded[d] - keys[t * kDim + d]), 2);
      for (std::uint32_t j = 0; j < kOwnCodeEntries; ++j) {
        double far = 0.0;
        for (std::uint32_t d = 0; d < 16; ++d)
          far += std::pow(static_cast<double>(f16_to_f32(entries[j * 16 + d]) - keys[t * kDim + d]),
                          2);
        best = std::min(best, far);
      }
      EXPECT_NEAR(own, best, 0.02 * best + 1e-3);
    }
  }
}

TEST(OwnCodes, FewKeysAreEntriesThemselves) {
  const KernelTable* kernels = *select_kernels("scalar");
  for (const std::size_t count : {1u, 5u, 64u}) {
    const std::vector<float> keys = mixed_rows(count, 2);
    const OwnCoded coded(*kernels, keys, 2);
    ASSERT_TRUE(coded.built);
    EXPECT_LT(coded.error(keys), 1e-5) << count << " keys";
  }
}

TEST(OwnCodes, EqualKeysAndWhatIsNotTrainedOn) {
  const KernelTable* kernels = *select_kernels("scalar");
  for (const float value : {0.0f, 1.5f}) {
    const OwnCoded equal(*kernels, std::vector<float>(100 * kDim, value), 2);
    ASSERT_TRUE(equal.built);
    EXPECT_EQ(equal.decode(99), std::vector<float>(kDim, value));
  }
  // Sinks far away from everything would have entries of their own.
  std::vector<float> keys = mixed_rows(500, 1);
  for (std::size_t i = 0; i < 16 * kDim; ++i) keys[i] = keys[i] * 40.0f;
  const OwnCoded with(*kernels, keys, 2), without(*kernels, keys, 2, 16);
  ASSERT_TRUE(with.built && without.built);
  EXPECT_LT(without.error(keys, 16), with.error(keys, 16));
  EXPECT_GT(without.error(keys), 2.0 * with.error(keys));
  EXPECT_TRUE(OwnCoded(*kernels, mixed_rows(3, 1), 2, 16).built) << "all of them would be left out";
}

// ---- clusters ----

TEST(Clusters, GroupDirections) {
  constexpr std::uint32_t kCount = 90;
  std::vector<float> keys(std::size_t{kCount} * 8, 0.0f);
  Random random(1);
  for (std::uint32_t i = 0; i < kCount; ++i) {
    keys[i * 8 + i % 3] = 1.0f + static_cast<float>(random.unit());  // three directions by turns
    keys[i * 8 + 7] = 0.05f * static_cast<float>(random.unit());
  }
  for (const KernelTable* kernels : all_kernels()) {
    if (!kernels->available()) continue;
    std::vector<float> rows = keys;
    Clusters clusters;
    ASSERT_TRUE(cluster_keys(*kernels, 8, 7, rows, &clusters));
    ASSERT_EQ(clusters.starts.size(), 8u);
    EXPECT_EQ(clusters.starts.back(), kCount);
    std::vector<std::uint32_t> seen = clusters.members;
    std::sort(seen.begin(), seen.end());
    for (std::uint32_t i = 0; i < kCount; ++i) EXPECT_EQ(seen[i], i);
    for (std::uint32_t c = 0; c < 7; ++c)
      for (std::uint32_t i = clusters.starts[c] + 1; i < clusters.starts[c + 1]; ++i) {
        EXPECT_GT(clusters.members[i], clusters.members[i - 1]);
        EXPECT_EQ(clusters.members[i] % 3, clusters.members[i - 1] % 3) << "another direction";
      }
  }
}

TEST(Clusters, EqualKeysAndKeysOfLengthZero) {
  const KernelTable* kernels = *select_kernels("scalar");
  for (const float value : {0.0f, 2.0f}) {
    std::vector<float> keys(64 * 8, value);
    Clusters clusters;
    ASSERT_TRUE(cluster_keys(*kernels, 8, 4, keys, &clusters));
    EXPECT_EQ(clusters.starts.back(), 64u);
  }
  std::vector<float> one(8, 1.0f);
  Clusters clusters;
  ASSERT_TRUE(cluster_keys(*kernels, 8, 1, one, &clusters));
  EXPECT_EQ(clusters.members, std::vector<std::uint32_t>{0});
}

}  // namespace
}  // namespace kvtier
