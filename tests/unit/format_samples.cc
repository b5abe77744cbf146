#include "tests/unit/format_samples.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace kvtier::samples {

Geometry small_geometry() {
  Geometry geometry;
  geometry.chunk_tokens = 8;
  geometry.heads_per_chunk = 1;
  geometry.layers = {
      {.kind = LayerKind::kFull,
       .rope = RopeState::kAfter,
       .v_transposed = false,
       .dtype = Dtype::kBf16,
       .kv_heads = 2,
       .query_heads = 4,
       .k_row_bytes = 16,
       .v_row_bytes = 16},
      {.kind = LayerKind::kSlidingWindow,
       .rope = RopeState::kAfter,
       .v_transposed = false,
       .dtype = Dtype::kBf16,
       .kv_heads = 2,
       .query_heads = 4,
       .k_row_bytes = 16,
       .v_row_bytes = 16},
      {.kind = LayerKind::kFull,
       .rope = RopeState::kNone,
       .v_transposed = false,
       .dtype = Dtype::kF32,
       .kv_heads = 1,
       .query_heads = 4,
       .k_row_bytes = 16,
       .v_row_bytes = 32},
  };
  KVT_CHECK(geometry.validate().has_value());
  return geometry;
}

TokenRecord token_of(std::uint64_t token, std::uint64_t seed) {
  Random random(seed ^ (token * 0x9E37ull + 1));
  return {.id = static_cast<std::uint32_t>(random.below(49152)),
          .position = static_cast<std::uint32_t>(token),
          .flags = static_cast<std::uint32_t>(random.below(4)),
          .span = static_cast<std::uint32_t>(token / 5)};
}

void fill_row(std::uint64_t seed, std::uint64_t token, std::uint32_t layer, std::uint32_t head,
              bool v, MutableByteSpan row) {
  Random random(seed * 1'000'003 + token * 4099 + layer * 31 + head * 2 + (v ? 1 : 0));
  for (std::byte& one : row) one = static_cast<std::byte>(random.next() >> 13);
}

void visit_rows(const Geometry& geometry, const PlaneLayout& layout, std::uint32_t first,
                std::uint32_t count, const std::function<void(const RowPlace&)>& visit) {
  for (std::uint32_t token = first; token < first + count; ++token)
    for (std::uint32_t layer = 0; layer < geometry.layers.size(); ++layer) {
      const LayerGeometry& one = geometry.layers[layer];
      if (one.kind != LayerKind::kFull) continue;
      for (std::uint32_t head = 0; head < one.kv_heads; ++head) {
        const std::uint32_t in_group = head % geometry.heads_in_group(layer);
        const std::uint64_t base = layout.chunk_offset(layer, token / geometry.chunk_tokens,
                                                       head / geometry.heads_in_group(layer));
        const std::uint32_t row = token % geometry.chunk_tokens;
        visit({base + k_row_offset(geometry, one, in_group, row), one.k_row_bytes, token, layer,
               head, false});
        visit({base + v_row_offset(geometry, one, in_group, row), one.v_row_bytes, token, layer,
               head, true});
      }
    }
}

void fill_plane(const Geometry& geometry, const PlaneLayout& layout, std::uint64_t seed,
                std::uint64_t start, std::uint32_t first, std::uint32_t count, TokenRecord* tokens,
                std::byte* plane) {
  for (std::uint32_t i = first; i < first + count; ++i) tokens[i] = token_of(start + i, seed);
  visit_rows(geometry, layout, first, count, [&](const RowPlace& row) {
    fill_row(seed, start + row.token, row.layer, row.head, row.v,
             {plane + row.offset, row.size_bytes});
  });
}

TokenTexts texts_of(std::uint32_t tokens) {
  static constexpr std::string_view kWords[] = {
      "It", " was", " a", " bright", " cold", "", " April", " \xE2\x80", "\x94", " and", "\n\n"};
  std::vector<std::uint16_t> lengths;
  std::string text;
  for (std::uint32_t i = 0; i < tokens; ++i) {
    const std::string_view word = kWords[i % std::size(kWords)];
    lengths.push_back(static_cast<std::uint16_t>(word.size()));
    text += word;
  }
  TokenTexts texts;
  KVT_CHECK(texts.append(lengths, as_bytes(text)).has_value());
  return texts;
}

SegmentMeta make_meta(SegmentId id, std::uint32_t tokens, std::uint64_t start_token,
                      std::uint64_t seed) {
  SegmentMeta meta;
  meta.id = id;
  meta.space = kSpace;
  meta.fingerprint = kFingerprint;
  meta.geometry = small_geometry();
  if (start_token != 0) {
    meta.parent = SegmentId{id.value - 1};
    meta.parent_visible =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(start_token, kSegmentTokensMax));
    meta.previous_chain = {start_token * 7, start_token * 11};
  }
  meta.start_token = start_token;
  meta.created_unix_ns = 1'700'000'000'000'000'000ull + id.value;
  for (std::uint32_t i = 0; i < tokens; ++i) meta.tokens.push_back(token_of(start_token + i, seed));
  meta.texts = texts_of(tokens);
  meta.snapshot.resize(33);
  fill_row(seed, 0, 1, 0, false, meta.snapshot);
  return meta;
}

std::vector<std::byte> make_segment_file(SegmentMeta* meta, std::uint64_t seed, CodecId codec) {
  const PlaneLayout layout(meta->geometry, static_cast<std::uint32_t>(meta->tokens.size()));
  std::vector<std::byte> plane(layout.size_bytes());
  std::vector<TokenRecord> tokens(meta->tokens.size());
  fill_plane(meta->geometry, layout, seed, meta->start_token, 0,
             static_cast<std::uint32_t>(tokens.size()), tokens.data(), plane.data());
  place_raw_chunks(meta);
  std::uint64_t offset = segment_meta_bytes(*meta);
  std::vector<std::byte> file(offset);
  for (std::uint32_t i = 0; i < meta->chunks.size(); ++i) {
    const PlaneLayout::ChunkPlace place = layout.place_of(i);
    const ByteSpan raw{plane.data() + layout.chunk_offset(place.layer, place.chunk, place.group),
                       meta->geometry.chunk_bytes(place.layer)};
    ChunkEntry& chunk = meta->chunks[i];
    const std::vector<std::byte> stored = encode_chunk(
        codec, raw, dtype_bytes(meta->geometry.layers[place.layer].dtype), &chunk.codec);
    chunk.offset = offset;
    chunk.stored_bytes = static_cast<std::uint32_t>(stored.size());
    chunk.checksum = chunk_checksum(meta->id, i, stored);
    file.insert(file.end(), stored.begin(), stored.end());
    file.resize(align_up<std::size_t>(file.size(), kDiskAlign));
    offset = file.size();
  }
  const std::vector<std::byte> head = encode_segment_meta(*meta);
  std::copy(head.begin(), head.end(), file.begin());
  return file;
}

std::vector<std::byte> make_sidecar(SegmentId segment, const Geometry& geometry,
                                    std::uint32_t tokens, std::uint64_t seed) {
  const AbstractSpec spec = *parse_abstract_spec("box/pages:4");
  const std::uint32_t units = spec.units_of(tokens);
  const AbstractLayout layout(geometry, spec, tokens, units);
  std::vector<std::byte> payload(layout.size_bytes());
  fill_row(seed, segment.value, 0, 0, false, payload);
  return encode_sidecar({.segment = segment,
                         .fingerprint = kFingerprint,
                         .kind = spec.packed(),
                         .version = 1,
                         .units = units,
                         .tokens = tokens},
                        payload);
}

Geometry codebook_geometry() {
  LayerGeometry layer;
  layer.kv_heads = layer.query_heads = 2;
  layer.k_row_bytes = layer.v_row_bytes = 32;
  Geometry geometry;
  geometry.layers = {layer, layer};
  return geometry;
}

std::vector<std::byte> make_codebook() {
  constexpr std::uint32_t kDim = 8;
  constexpr std::size_t kNumbers = kDim + 2 * kDim * kDim + kCodeEntries * kDim;
  const AbstractSpec spec = *parse_abstract_spec("codes:4/tokens");
  const CodebookLayout layout(codebook_geometry(), spec);
  std::vector<std::byte> payload(static_cast<std::size_t>(layout.size_bytes()));
  CodebookHeader header;
  header.spec = spec.packed();
  header.id = 5;
  std::memcpy(payload.data(), &header, sizeof(header));
  for (std::uint32_t i = 0; i < 4; ++i) {
    const HeadCodebook head = layout.head(payload.data(), i / 2, i % 2);
    const std::size_t at =
        static_cast<std::size_t>(reinterpret_cast<const std::byte*>(head.mean) - payload.data());
    for (std::size_t n = 0; n < kNumbers; ++n) {
      const float number = static_cast<float>((n * 7 + i) % 33) / 16.0f - 1.0f;
      std::memcpy(payload.data() + at + n * 4, &number, sizeof(number));
    }
    // first of two sub-quantisers, then their dims.
    const std::uint16_t lists[] = {0, 4, 8, 0, 1, 2, 3, 4, 5, 6, 7};
    std::memcpy(payload.data() + at + kNumbers * 4, lists, sizeof(lists));
  }
  return encode_codebook({kSpace, kFingerprint, spec.packed(), header.id, 0, 0}, payload);
}

std::vector<std::byte> make_object(std::uint64_t file, const std::string& key,
                                   std::uint32_t value_bytes, std::uint64_t seed) {
  std::vector<std::byte> value(value_bytes);
  fill_row(seed, file, 0, 0, false, value);
  ByteWriter writer;
  writer.write_bytes(
      encode_object_header({file, key, value_bytes, object_checksum(file, key, value)}));
  writer.write_bytes(value);
  writer.pad_to(kDiskAlign);
  return writer.take();
}

TailLogHeader make_log_header(SequenceId sequence, std::uint64_t generation,
                              std::uint64_t base_token) {
  return {.sequence = sequence,
          .space = kSpace,
          .generation = generation,
          .base_token = base_token,
          .fingerprint = kFingerprint};
}

std::vector<std::byte> make_log(const TailLogHeader& header, const Geometry& geometry,
                                std::uint64_t seed, const std::vector<std::uint32_t>& counts) {
  const PlaneLayout layout(geometry, kSegmentTokensMax);
  std::vector<TokenRecord> tokens(kSegmentTokensMax);
  std::vector<std::byte> plane(layout.size_bytes());
  std::vector<std::byte> file = encode_tail_log_header(header);
  TailRecordSource source{.header = &header,
                          .geometry = &geometry,
                          .layout = &layout,
                          .tokens = tokens.data(),
                          .plane = plane.data()};
  TokenTexts texts;
  for (const std::uint32_t count : counts) {
    source.count = count;
    source.start_token = header.base_token + source.first;
    texts = texts_of(source.order % 2 == 0 ? 0 : count);  // every second record has some
    source.texts = &texts;
    source.begins_commit = source.order % 3 != 1;  // the second belongs to the commit of the first
    fill_plane(geometry, layout, seed, header.base_token, source.first, count, tokens.data(),
               plane.data());
    const std::vector<std::byte> record = encode_tail_record(source);
    file.insert(file.end(), record.begin(), record.end());
    source.first += count;
    ++source.order;
  }
  return file;
}

std::vector<std::byte> make_export(const std::vector<std::uint32_t>& counts, std::uint64_t seed,
                                   CodecId codec) {
  std::vector<std::byte> file;
  ExportWriter writer(
      [&](ByteSpan bytes) -> Result<void> {
        file.insert(file.end(), bytes.begin(), bytes.end());
        return {};
      },
      codec);
  ExportDescription description;
  description.abstracts = {parse_abstract_spec("box/pages:16")->packed()};
  description.fingerprint = {.model = "sha256:feed",
                             .runtime = "transformers-5/1",
                             .detail = "theta=10000",
                             .geometry = small_geometry()};
  description.name = "a chat";
  description.segments = static_cast<std::uint32_t>(counts.size());
  for (const std::uint32_t count : counts) description.tokens += count;
  description.created_unix_ns = 1'700'000'000'000'000'000ull;
  const Geometry& geometry = description.fingerprint.geometry;
  KVT_CHECK(writer.begin(description).has_value());
  std::uint64_t start = 0;
  for (const std::uint32_t count : counts) {
    const SegmentMeta meta = make_meta(SegmentId{1}, count, start, seed);
    KVT_CHECK(writer
                  .begin_segment({.start_token = start,
                                  .tokens = meta.tokens,
                                  .texts = meta.texts,
                                  .snapshot = meta.snapshot})
                  .has_value());
    const PlaneLayout layout(geometry, count);
    std::vector<std::byte> plane(layout.size_bytes(), std::byte{0xEE});  // what must not come out
    std::vector<TokenRecord> tokens(count);
    fill_plane(geometry, layout, seed, start, 0, count, tokens.data(), plane.data());
    for (std::uint32_t i = 0; i < layout.chunks_total(); ++i) {
      const PlaneLayout::ChunkPlace place = layout.place_of(i);
      KVT_CHECK(
          writer
              .add_chunk({plane.data() + layout.chunk_offset(place.layer, place.chunk, place.group),
                          geometry.chunk_bytes(place.layer)})
              .has_value());
    }
    start += count;
  }
  KVT_CHECK(writer.finish().has_value());
  KVT_CHECK(writer.written_bytes() == file.size());
  return file;
}

}  // namespace kvtier::samples
