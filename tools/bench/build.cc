// What workers build from a sealed segment of 2,048 tokens, one thread: key codes, clusters, own
// codes and low-rank keys, against the prefill of as many tokens by a model of the same shape, on
// all processors; and the base rendition, in bytes of raw rows.
#include <cmath>
#include <cstring>

#include "base/random.h"
#include "kernels/float16.h"
#include "kernels/registry.h"
#include "tiers/abstract_builder.h"
#include "tiers/codebook_train.h"
#include "tools/bench/bench.h"
#include "tools/bench/model.h"
#include "tools/bench/peer.h"

namespace kvtier::bench {
namespace {

// A segment of SmolLM2-135M's geometry in f16; rows of a head drift, so that neighbours are alike.
struct Sample {
  Sample(const KernelTable* table, std::uint32_t count)
      : kernels(table), geometry(make_geometry()), plane(geometry, count), tokens(count) {
    bytes.resize(static_cast<std::size_t>(plane.size_bytes()));
    for (std::uint32_t i = 0; i < plane.chunks_total(); ++i) {
      const PlaneLayout::ChunkPlace place = plane.place_of(i);
      chunks.push_back(bytes.data() + plane.chunk_offset(place.layer, place.chunk, place.group));
    }
    Random random(3);
    for (std::uint32_t layer = 0; layer < kLayers; ++layer)
      for (std::uint32_t head = 0; head < Shape().kv_heads; ++head)
        for (const auto offset : {k_row_offset, v_row_offset})
          fill(layer, head, count, offset, &random);
  }

  static Geometry make_geometry() {
    const Shape shape;
    LayerGeometry layer;
    layer.dtype = Dtype::kF16;
    layer.kv_heads = shape.kv_heads;
    layer.query_heads = shape.query_heads;
    layer.k_row_bytes = layer.v_row_bytes = shape.row_bytes();
    Geometry geometry;
    geometry.layers.assign(kLayers, layer);
    return geometry;
  }

  void fill(std::uint32_t layer, std::uint32_t head, std::uint32_t tokens,
            decltype(&k_row_offset) offset, Random* random) {
    float drift[kDim] = {};
    for (std::uint32_t t = 0; t < tokens; ++t) {
      std::uint16_t row[kDim];
      for (std::uint32_t d = 0; d < kDim; ++d) {
        drift[d] = 0.95f * drift[d] + static_cast<float>(random->unit() - 0.5);
        row[d] = f32_to_f16(drift[d] + static_cast<float>(random->unit() - 0.5));
      }
      std::byte* chunk = chunks[plane.chunk_index(layer, t / geometry.chunk_tokens, head)];
      std::memcpy(chunk + offset(geometry, geometry.layers[layer], 0, t % geometry.chunk_tokens),
                  row, sizeof(row));
    }
  }

  [[nodiscard]] AbstractSource source(const Codebook* codebook) {
    return {kernels, &geometry, &plane, chunks, codebook};
  }

  const KernelTable* kernels;
  Geometry geometry;
  PlaneLayout plane;
  std::vector<std::byte> bytes;
  std::vector<std::byte*> chunks;
  std::vector<TokenRecord> tokens;
};

Result<Codebook> train(Sample* sample, AbstractSpec spec, std::uint32_t tokens) {
  Codebook codebook{1, CodebookLayout(sample->geometry, spec), {}};
  codebook.payload.resize(static_cast<std::size_t>(codebook.layout.size_bytes()));
  CodebookHeader header;
  header.spec = spec.packed();
  header.id = 1;
  std::memcpy(codebook.payload.data(), &header, sizeof(header));
  std::vector<float> keys;
  for (std::uint32_t layer = 0; layer < kLayers; ++layer)
    for (std::uint32_t head = 0; head < Shape().kv_heads; ++head) {
      if (!read_keys(sample->source(nullptr), layer, head, tokens, &keys))
        return error(Code::kInternal, "keys cannot be read");
      const HeadCodebook part = codebook.layout.head(codebook.payload.data(), layer, head);
      KVT_TRY_VOID(train_head({kDim, part.book.subspaces, keys, {}, 1}, part));
    }
  return codebook;
}

// Tokens per second of one thread: by the clock, as its peer, which runs on all processors, is
// timed; or what has no peer by processor time.
Measure builder(Sample* sample, AbstractSpec spec, const Codebook* codebook, std::uint32_t tokens,
                double (*now)() = seconds_now) {
  return [=]() -> Result<double> {
    const Rotation rotation{Rotation::Pairing::kHalves, std::vector<float>(kDim / 2, 0.01f)};
    const AbstractPlan plan = plan_abstract(sample->geometry, spec, sample->tokens, rotation);
    std::vector<std::byte> payload(static_cast<std::size_t>(plan.layout.size_bytes()));
    const double start = now();
    begin_abstract(plan, codebook != nullptr ? codebook->id : 0, payload);
    if (!build_abstract_layers(sample->source(codebook), plan, 0, kLayers, payload))
      return error(Code::kInternal, "the abstracts cannot be built");
    return tokens / (now() - start);
  };
}

}  // namespace

Result<void> bench_build(const Context& context, std::vector<Figure>* figures) {
  const std::uint32_t tokens = context.smoke() ? 512 : kSegmentTokensMax;
  KVT_TRY(const KernelTable* const kernels, select_kernels(""));
  Sample sample(kernels, tokens);
  const AbstractSpec codes = *parse_abstract_spec("codes:4/tokens");
  const AbstractSpec clusters = *parse_abstract_spec("mean/clusters:16");
  const AbstractSpec own_codes = *parse_abstract_spec("own-codes:2/tokens");
  const AbstractSpec low_rank = *parse_abstract_spec("low-rank:10/tokens");
  const AbstractSpec base = *parse_abstract_spec("base:44/tokens");
  KVT_TRY(const Codebook codebook, train(&sample, codes, tokens));
  std::vector<Measure> measures = {
      builder(&sample, codes, &codebook, tokens), builder(&sample, clusters, nullptr, tokens),
      builder(&sample, own_codes, nullptr, tokens), builder(&sample, low_rank, nullptr, tokens),
      builder(&sample, base, nullptr, tokens, thread_seconds_now)};
  Result<Peer> peer = Peer::start(context.smoke() ? "" : context.python_path);
  if (peer && !peer->ask("model")) peer = error(Code::kNotFound, "no transformers: no prefill");
  if (peer)
    measures.push_back([&]() -> Result<double> {
      KVT_TRY(const double seconds, peer->ask("prefill " + std::to_string(tokens)));
      return tokens / seconds;
    });
  KVT_TRY(const auto columns, interleave(context.rounds(), measures));
  const auto add = [&](const char* metric, std::size_t ours, double goal) {
    Figure figure =
        peer ? compare(metric, columns[ours], columns[5]) : bounded(metric, columns[ours], 1.0);
    figure.unit = "tokens/s";
    figure.ceiling_name = peer ? "tokens/s prefill, all cores" : "";
    figure.better = Better::kHigher;
    figure.goal = peer ? goal : 0;
    figure.note = peer ? "one worker, 2,048 tokens, 30 layers" : peer.error().message();
    figures->push_back(figure);
  };
  add("build key codes of a segment", 0, 10);
  add("build clusters of a segment", 1, 3);
  add("build own codes of a segment", 2, 3);
  add("build low-rank keys of a segment", 3, 3);

  std::vector<double> raw = columns[4];
  for (double& rate : raw) rate *= static_cast<double>(Shape().token_bytes());
  Figure figure = bounded("build the base rendition of a segment", raw, 1e9);
  scale(&figure, 1e-9);
  figure.unit = "GB/s";
  figure.ceiling_name = "GB/s of raw bytes, the least that is wanted";
  figure.better = Better::kHigher;
  figure.goal = 1.0;
  figure.note = "one worker, K and V at 4 bits, 2,048 tokens, 30 layers";
  figures->push_back(figure);
  return {};
}

}  // namespace kvtier::bench
