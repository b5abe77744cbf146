#include "tiers/abstract_builder.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "tiers/cluster.h"
#include "tiers/codebook_train.h"
#include "tiers/low_rank.h"
#include "tiers/own_codes.h"
#include "tiers/representatives.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kSinkTokens = 16;

// Rows of one head of a segment.
struct HeadRows {
  std::vector<std::uint64_t> pages;
  RowPages rows;
  std::uint32_t dim = 0;
};

HeadRows rows_of_head(const AbstractSource& source, std::uint32_t layer, std::uint32_t head) {
  const Geometry& geometry = *source.geometry;
  const LayerGeometry& shape = geometry.layers[layer];
  const std::uint32_t heads = geometry.heads_in_group(layer);
  HeadRows out;
  out.pages.resize(source.plane->chunks_per_layer());
  for (std::uint32_t chunk = 0; chunk < out.pages.size(); ++chunk) {
    const std::byte* bytes = source.chunks[source.plane->chunk_index(layer, chunk, head / heads)];
    out.pages[chunk] =
        reinterpret_cast<std::uint64_t>(bytes) + k_row_offset(geometry, shape, head % heads, 0);
  }
  out.rows.pages = out.pages.data();
  out.rows.page_tokens = geometry.chunk_tokens;
  out.rows.k_stride = shape.k_row_bytes;
  out.rows.v_offset = std::uint64_t{geometry.chunk_tokens} * shape.k_row_bytes;
  out.rows.v_stride = shape.v_row_bytes;
  out.rows.dtype = shape.dtype;
  out.dim = shape.k_row_bytes / dtype_bytes(shape.dtype);
  return out;
}

// Keys in the codebook's coordinates, then their codes.
bool build_codes(const AbstractSource& source, const AbstractPlan& plan, std::uint32_t layer,
                 std::uint32_t head, std::byte* data) {
  if (source.codebook == nullptr) return false;
  const std::uint64_t tokens = plan.layout.tokens();
  const std::uint32_t dim = source.codebook->layout.dim(layer);
  std::vector<float> keys;
  if (!read_keys(source, layer, head, plan.layout.tokens(), &keys)) return false;
  std::vector<float> moved(keys.size());
  const HeadCodebook part =
      source.codebook->layout.head(source.codebook->payload.data(), layer, head);
  move_keys(part, dim, keys, moved);
  const std::uint64_t page = reinterpret_cast<std::uintptr_t>(moved.data());
  EncodeCodesArgs args;
  args.book = part.book;
  args.rows.pages = &page;
  args.rows.page_tokens = tokens;
  args.rows.k_stride = dim * sizeof(float);
  args.rows.v_stride = args.rows.k_stride;
  args.rows.dtype = Dtype::kF32;
  args.token_count = &tokens;
  args.out = reinterpret_cast<std::uint8_t*>(data);
  return source.kernels->encode_codes(args, nullptr).has_value();
}

bool build_own_codes_of(const AbstractSource& source, const AbstractPlan& plan, std::uint32_t layer,
                        std::uint32_t head, std::byte* data) {
  std::vector<float> keys;
  if (!read_keys(source, layer, head, plan.layout.tokens(), &keys)) return false;
  const auto layout = own_code_layout(plan.spec, keys.size() / plan.layout.tokens());
  return build_own_codes(*source.kernels, layout, keys, plan.sinks, data);
}

bool build_base(const AbstractSource& source, const AbstractPlan& plan, std::uint32_t layer,
                std::uint32_t head, std::byte* data) {
  const Result<BaseFormat> format = base_format(plan.spec, source.geometry->layers[layer]);
  if (!format) return false;
  const HeadRows rows = rows_of_head(source, layer, head);
  const std::uint64_t tokens = plan.layout.tokens();
  EncodeBaseArgs args;
  args.rows = rows.rows;
  args.token_count = &tokens;
  args.format = *format;
  args.out = data;
  return source.kernels->encode_base(args, nullptr).has_value();
}

// Units of one head by its keys: clusters, and of segments what the model wrote behind them.
bool cluster_head(const AbstractSource& source, const AbstractPlan& plan, std::uint32_t layer,
                  std::uint32_t head, Clusters* out) {
  std::vector<float> rows;
  if (!read_keys(source, layer, head, plan.layout.tokens(), &rows)) return false;
  const auto dim = static_cast<std::uint32_t>(rows.size() / plan.layout.tokens());
  if (plan.spec.partition == PartitionKind::kClusters)
    return cluster_keys(*source.kernels, dim, plan.layout.units(), rows, out);
  const OutputUnits& output = plan.output;
  for (std::size_t i = 0; i < output.others.size(); ++i)  // ascending: nothing is read too late
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(std::size_t{output.others[i]} * dim),
                dim, rows.begin() + static_cast<std::ptrdiff_t>(i * dim));
  rows.resize(output.others.size() * dim);
  out->starts = {0};
  const auto others = static_cast<std::uint32_t>(output.others.size());
  if (others != 0 && !cluster_keys(*source.kernels, dim, plan.spec.units_of(others), rows, out))
    return false;
  for (std::uint32_t& member : out->members) member = output.others[member];
  out->members.insert(out->members.end(), output.tokens.begin(), output.tokens.end());
  for (std::size_t i = 1; i < output.starts.size(); ++i)
    out->starts.push_back(others + output.starts[i]);
  return true;
}

void write_list(const std::vector<std::uint32_t>& list, std::byte* place) {
  auto* out = reinterpret_cast<std::uint16_t*>(place);
  for (const std::uint32_t value : list) *out++ = static_cast<std::uint16_t>(value);
}

// Keys of the units that `args` lists, or of its pages.
bool build_keys(const AbstractSource& source, const AbstractPlan& plan, std::uint32_t layer,
                std::uint32_t head, const BuildAbstractArgs& args) {
  const std::uint32_t tokens = plan.layout.tokens(), count = plan.layout.units();
  std::vector<float> keys;
  if (!read_keys(source, layer, head, tokens, &keys)) return false;
  std::vector<std::uint32_t> pages;
  for (std::uint32_t unit = 0; args.starts == nullptr && unit <= count; ++unit)
    pages.push_back(std::min(unit * args.unit_tokens, tokens));
  KeyUnits units;
  units.keys = keys;
  units.dim = args.dim;
  units.starts = {args.starts != nullptr ? args.starts : pages.data(), std::size_t{count} + 1};
  if (args.members != nullptr) units.members = {args.members, tokens};
  build_representatives(units, plan.spec.parameter, args.out);
  return true;
}

// One head of anything else: vectors over units as the plan or the clusters cut them.
bool build_vectors(const AbstractSource& source, const AbstractPlan& plan, std::uint32_t layer,
                   std::uint32_t head, MutableByteSpan payload) {
  const HeadRows keys = rows_of_head(source, layer, head);
  const AbstractLayout::HeadBlock block = plan.layout.head(layer, head);
  const std::uint64_t tokens = plan.layout.tokens(), units = plan.layout.units();
  Clusters clusters;
  BuildAbstractArgs args;
  args.rows = keys.rows;
  args.token_count = &tokens;
  args.unit_tokens = plan.spec.unit_tokens;
  args.dim = keys.dim;
  args.kind = plan.spec.abstract;
  args.out = reinterpret_cast<std::uint16_t*>(payload.data() + block.data);
  if (!plan.starts.empty()) {
    args.starts = plan.starts.data();
    args.unit_count = &units;
  }
  if (plan.spec.by_head()) {
    if (!cluster_head(source, plan, layer, head, &clusters)) return false;
    write_list(clusters.members, payload.data() + block.members);
    write_list(clusters.starts, payload.data() + block.starts);
    args.starts = clusters.starts.data();
    args.members = clusters.members.data();
    args.unit_count = &units;
  }
  if (args.kind == AbstractKind::kRepresentatives)
    return build_keys(source, plan, layer, head, args);
  if (!source.kernels->build_abstract(args, nullptr)) return false;
  // Levels of boxes: the box of the two below.
  for (std::uint32_t level = 1; level <= plan.spec.parameter && args.kind == AbstractKind::kBox;
       ++level) {
    args.unit_tokens = std::uint32_t{plan.spec.unit_tokens} << level;
    args.out = reinterpret_cast<std::uint16_t*>(payload.data() + block.data +
                                                plan.layout.level_offset(layer, level));
    if (!source.kernels->build_abstract(args, nullptr)) return false;
  }
  return true;
}

// All heads of a layer.
bool build_low_rank(const AbstractSource& source, const AbstractPlan& plan, std::uint32_t layer,
                    MutableByteSpan payload) {
  const std::uint32_t tokens = plan.layout.tokens();
  const auto shape = low_rank_shape(plan.spec, *source.geometry, layer, tokens);
  const bool turned = source.geometry->layers[layer].rope == RopeState::kAfter;
  if (!shape || (turned && !plan.rotation.known())) return false;
  std::vector<float> keys(std::size_t{tokens} * shape->width()), of_head;
  LowRankPlaces places;
  places.coefficients =
      reinterpret_cast<std::uint16_t*>(payload.data() + plan.layout.head(layer, 0).shared);
  const auto row = [&](std::size_t token, std::size_t head) {
    return keys.data() + token * shape->width() + head * shape->dim;
  };
  for (std::uint32_t head = 0; head < shape->heads; ++head) {
    if (!read_keys(source, layer, head, tokens, &of_head)) return false;
    for (std::size_t t = 0; t < tokens; ++t)
      std::copy_n(of_head.data() + t * shape->dim, shape->dim, row(t, head));
    places.bases.push_back(
        reinterpret_cast<std::uint16_t*>(payload.data() + plan.layout.head(layer, head).data));
  }
  const std::vector<float>& frequencies = plan.rotation.frequencies;
  const std::uint32_t pairs =
      turned ? turned_pairs(static_cast<std::uint32_t>(frequencies.size()), shape->dim) : 0;
  Turns turns(frequencies);
  std::vector<float> turn(2 * frequencies.size());
  for (std::size_t t = 0; t < tokens && pairs != 0; ++t) {
    turns.at(plan.positions[t], turn.data());
    for (std::uint32_t head = 0; head < shape->heads; ++head)
      turn_row(plan.rotation.pairing, pairs, turn.data(), true, row(t, head));
  }
  return factorise_keys(*shape, keys, places);
}

// What turns low-rank keys, behind the header.
void write_turns(const AbstractPlan& plan, MutableByteSpan payload) {
  const std::vector<float>& frequencies = plan.rotation.frequencies;
  LowRankTurns turns;
  // More than any layer has pairs turn none (turned_pairs).
  if (plan.rotation.known() && frequencies.size() <= plan.layout.turns_room()) {
    turns.pairing = static_cast<std::uint32_t>(plan.rotation.pairing);
    turns.pairs = static_cast<std::uint32_t>(frequencies.size());
    std::memcpy(payload.data() + plan.layout.turns_offset() + sizeof turns, frequencies.data(),
                frequencies.size() * sizeof(float));
  }
  std::memcpy(payload.data() + plan.layout.turns_offset(), &turns, sizeof turns);
  std::memcpy(payload.data() + plan.layout.positions_offset(), plan.positions.data(),
              plan.positions.size() * sizeof(std::uint32_t));
}

bool build_head(const AbstractSource& source, const AbstractPlan& plan, std::uint32_t layer,
                std::uint32_t head, MutableByteSpan payload) {
  std::byte* data = payload.data() + plan.layout.head(layer, head).data;
  switch (plan.spec.abstract) {
    case AbstractKind::kCodes:
      return build_codes(source, plan, layer, head, data);
    case AbstractKind::kOwnCodes:
      return build_own_codes_of(source, plan, layer, head, data);
    case AbstractKind::kBase:
      return build_base(source, plan, layer, head, data);
    default:
      return build_vectors(source, plan, layer, head, payload);
  }
}

}  // namespace

bool read_keys(const AbstractSource& source, std::uint32_t layer, std::uint32_t head,
               std::uint32_t tokens, std::vector<float>* out) {
  const HeadRows keys = rows_of_head(source, layer, head);
  out->resize(std::size_t{tokens} * keys.dim);
  for (std::uint32_t first = 0; first < tokens; first += source.geometry->chunk_tokens) {
    const std::uint64_t count =
        std::uint64_t{std::min<std::uint32_t>(source.geometry->chunk_tokens, tokens - first)} *
        keys.dim;
    ConvertArgs args;
    args.source =
        reinterpret_cast<const std::byte*>(keys.pages[first / source.geometry->chunk_tokens]);
    args.source_dtype = keys.rows.dtype;
    args.count = &count;
    args.target = reinterpret_cast<std::byte*>(out->data() + std::size_t{first} * keys.dim);
    args.target_dtype = Dtype::kF32;
    if (!source.kernels->convert(args, nullptr)) return false;
  }
  return true;
}

AbstractPlan plan_abstract(const Geometry& geometry, AbstractSpec spec,
                           std::span<const TokenRecord> tokens, const Rotation& rotation) {
  std::vector<std::uint32_t> starts;
  if (spec.partition == PartitionKind::kSentences) starts = cut_sentences(tokens, spec.unit_tokens);
  if (spec.partition == PartitionKind::kSpans) starts = cut_spans(tokens, spec.unit_tokens);
  const auto count = static_cast<std::uint32_t>(tokens.size());
  std::uint32_t units =
      starts.empty() ? spec.units_of(count) : static_cast<std::uint32_t>(starts.size() - 1);
  OutputUnits output;
  if (spec.partition == PartitionKind::kSegments) {
    output = cut_output(tokens, spec.unit_tokens);
    units = spec.units_of(static_cast<std::uint32_t>(output.others.size())) +
            static_cast<std::uint32_t>(output.starts.size() - 1);
  }
  const bool begins = count > 2 * kSinkTokens && tokens.front().position == 0;
  AbstractPlan plan{spec,
                    std::move(starts),
                    AbstractLayout(geometry, spec, count, units),
                    std::move(output),
                    begins ? kSinkTokens : 0,
                    {},
                    {}};
  if (spec.abstract == AbstractKind::kLowRank) {
    plan.rotation = rotation;
    for (const TokenRecord& token : tokens) plan.positions.push_back(token.position);
  }
  return plan;
}

bool needs_rotation(const Geometry& geometry, AbstractSpec spec) {
  for (std::uint32_t layer = 0; layer < geometry.layers.size(); ++layer)
    if (geometry.layers[layer].kind == LayerKind::kFull &&
        geometry.layers[layer].rope == RopeState::kAfter &&
        low_rank_shape(spec, geometry, layer, 1))
      return true;
  return false;
}

void begin_abstract(const AbstractPlan& plan, std::uint64_t codebook, MutableByteSpan payload) {
  KVT_CHECK(payload.size() == plan.layout.size_bytes() && !payload.empty());
  AbstractHeader header;
  header.spec = plan.spec.packed();
  header.tokens = plan.layout.tokens();
  header.units = plan.layout.units();
  header.version = kAbstractVersion;
  header.codebook = codebook;
  std::memcpy(payload.data(), &header, sizeof(header));
  if (plan.layout.turns_offset() != 0) write_turns(plan, payload);
  if (plan.starts.empty()) return;
  write_list(plan.starts, payload.data() + plan.layout.starts_offset());
}

bool build_abstract_layers(const AbstractSource& source, const AbstractPlan& plan,
                           std::uint32_t first, std::uint32_t last, MutableByteSpan payload) {
  KVT_CHECK(payload.size() == plan.layout.size_bytes());
  for (std::uint32_t layer = first; layer < last; ++layer) {
    if (!plan.layout.has_layer(layer)) continue;
    if (plan.spec.abstract == AbstractKind::kLowRank) {
      if (!build_low_rank(source, plan, layer, payload)) return false;
      continue;
    }
    for (std::uint32_t head = 0; head < source.geometry->layers[layer].kv_heads; ++head)
      if (!build_head(source, plan, layer, head, payload)) return false;
  }
  return true;
}

}  // namespace kvtier
