#include "tiers/catalogue_rows.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/fault.h"
#include "base/hash.h"
#include "base/limits.h"
#include "kernels/abstract_spec.h"

namespace kvtier::catalogue_rows {

namespace {

constexpr std::size_t kTextBytesMax = 64 * 1024;  // model, runtime, detail
constexpr std::size_t kBlocksMax = kSegmentTokensMax / kBlockTokens;

std::uint64_t seed_of(std::string_view key) { return hash64(as_bytes(key)); }

void write_text(ByteWriter* writer, std::string_view text) {
  writer->write(static_cast<std::uint32_t>(text.size()));
  writer->write_bytes(as_bytes(text));
}

bool read_text(ByteReader* reader, std::size_t bytes_max, std::string* text) {
  const auto length = reader->read<std::uint32_t>();
  if (length > bytes_max) return false;
  const ByteSpan bytes = reader->read_bytes(length);
  text->assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return reader->ok();
}

std::vector<std::byte> finish(std::string_view key, ByteWriter* writer) {
  writer->write(hash64(writer->view(), seed_of(key)));
  return writer->take();
}

ByteWriter begin() {
  ByteWriter writer;
  // A row of a kvtier that is newer than this one: tests make it so.
  const bool newer = KVT_FAULT("catalogue.newer_row");
  writer.write(static_cast<std::uint8_t>(newer ? kVersion + 1 : kVersion));
  return writer;
}

// The fields of a value whose checksum and version are right.
Result<ByteSpan> open_value(std::string_view key, ByteSpan value) {
  constexpr std::size_t kOverhead = sizeof(kVersion) + sizeof(std::uint64_t);
  if (value.size() < kOverhead) return error(Code::kCorrupt, "catalogue row: too short");
  ByteReader sum(value.last(sizeof(std::uint64_t)));
  const ByteSpan body = value.first(value.size() - sizeof(std::uint64_t));
  if (sum.read<std::uint64_t>() != hash64(body, seed_of(key)))
    return error(Code::kCorrupt, "catalogue row: checksum differs");
  const auto version = std::to_integer<std::uint8_t>(body[0]);
  if (version > kVersion) return error(Code::kVersion, "catalogue row: written by a newer kvtierd");
  if (version != kVersion) return error(Code::kCorrupt, "catalogue row: no such version");
  return body.subspan(1);
}

Result<std::uint64_t> id_of(Kind kind, std::string_view key) {
  if (key.size() != 9 || key[0] != static_cast<char>(kind))
    return error(Code::kCorrupt, "catalogue row: key is malformed");
  std::uint64_t id = 0;
  for (const char c : key.substr(1)) id = id << 8 | static_cast<std::uint8_t>(c);
  if (id == 0) return error(Code::kCorrupt, "catalogue row: id 0");
  return id;
}

Result<std::string_view> text_of(Kind kind, std::string_view key, std::size_t bytes_max) {
  if (key.empty() || key[0] != static_cast<char>(kind) || key.size() - 1 > bytes_max)
    return error(Code::kCorrupt, "catalogue row: key is malformed");
  return key.substr(1);
}

auto malformed() { return error(Code::kCorrupt, "catalogue row: malformed"); }

}  // namespace

std::string key_of(Kind kind, std::uint64_t id) {
  std::string key(9, static_cast<char>(kind));
  for (std::size_t i = 0; i < 8; ++i) key[1 + i] = static_cast<char>(id >> (56 - 8 * i));
  return key;
}

std::string key_of(Kind kind, std::string_view text) {
  std::string key(1, static_cast<char>(kind));
  return key.append(text);
}

std::vector<std::byte> encode(std::string_view key, const SpaceRow& row) {
  KVT_CHECK(row.model.size() <= kTextBytesMax && row.runtime.size() <= kTextBytesMax &&
            row.detail.size() <= kTextBytesMax && row.abstracts.size() <= kSpaceAbstractsMax &&
            row.codebooks.size() <= kSpaceAbstractsMax &&
            row.rotation.frequencies.size() <= kHeadDimMax);
  ByteWriter writer = begin();
  writer.write(row.digest);
  writer.write(static_cast<std::uint32_t>(row.abstracts.size()));
  for (const std::uint32_t abstract : row.abstracts) writer.write(abstract);
  writer.write(static_cast<std::uint32_t>(row.codebooks.size()));
  for (const SpaceRow::Codebook& codebook : row.codebooks) {
    writer.write(codebook.abstract);
    writer.write(codebook.id);
  }
  writer.write(static_cast<std::uint8_t>(row.private_only));
  writer.write(row.created_unix_ns);
  write_text(&writer, row.model);
  write_text(&writer, row.runtime);
  write_text(&writer, row.detail);
  encode_geometry(row.geometry, &writer);
  if (row.rotation.known()) {
    writer.write(static_cast<std::uint8_t>(row.rotation.pairing));
    writer.write(static_cast<std::uint32_t>(row.rotation.frequencies.size()));
    for (const float frequency : row.rotation.frequencies) writer.write(frequency);
  }
  return finish(key, &writer);
}

// False where a list is longer than allowed or names an abstract twice, or one that is none.
bool read_abstracts(ByteReader* reader, SpaceRow* row) {
  const auto count = reader->read<std::uint32_t>();
  if (count > kSpaceAbstractsMax) return false;
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto abstract = reader->read<std::uint32_t>();
    if (!unpack_abstract_spec(abstract) || abstract == 0 ||
        std::find(row->abstracts.begin(), row->abstracts.end(), abstract) != row->abstracts.end())
      return false;
    row->abstracts.push_back(abstract);
  }
  const auto codebooks = reader->read<std::uint32_t>();
  if (codebooks > kSpaceAbstractsMax) return false;
  for (std::uint32_t i = 0; i < codebooks; ++i) {
    SpaceRow::Codebook codebook;
    codebook.abstract = reader->read<std::uint32_t>();
    codebook.id = reader->read<std::uint64_t>();
    if (codebook.id == 0) return false;
    row->codebooks.push_back(codebook);
  }
  return reader->ok();
}

// What may follow a space's geometry.
bool read_rotation(ByteReader* reader, Rotation* rotation) {
  if (reader->remaining() == 0) return true;
  const auto pairing = reader->read<std::uint8_t>();
  const auto count = reader->read<std::uint32_t>();
  if (pairing == 0 || pairing > 2 || count == 0 || count > kHeadDimMax) return false;
  rotation->pairing = static_cast<Rotation::Pairing>(pairing);
  for (std::uint32_t i = 0; i < count && reader->ok(); ++i) {
    rotation->frequencies.push_back(reader->read<float>());
    if (!std::isfinite(rotation->frequencies.back())) return false;
  }
  return true;
}

Result<SpaceRow> decode_space(std::string_view key, ByteSpan value) {
  SpaceRow row;
  KVT_TRY(row.id.value, id_of(Kind::kSpace, key));
  KVT_TRY(const ByteSpan fields, open_value(key, value));
  ByteReader reader(fields);
  row.digest = reader.read<BlockHash>();
  if (!read_abstracts(&reader, &row)) return malformed();
  const auto private_only = reader.read<std::uint8_t>();
  row.private_only = private_only == 1;
  row.created_unix_ns = reader.read<std::uint64_t>();
  if (!read_text(&reader, kTextBytesMax, &row.model) ||
      !read_text(&reader, kTextBytesMax, &row.runtime) ||
      !read_text(&reader, kTextBytesMax, &row.detail) || private_only > 1)
    return malformed();
  auto geometry = decode_geometry(&reader);
  if (!geometry || !read_rotation(&reader, &row.rotation) || !reader.ok() ||
      reader.remaining() != 0)
    return malformed();
  row.geometry = std::move(*geometry);
  return row;
}

std::vector<std::byte> encode(std::string_view key, const SegmentRow& row) {
  KVT_CHECK(row.tokens <= kSegmentTokensMax && row.blocks.size() <= kBlocksMax);
  ByteWriter writer = begin();
  writer.write(row.space);
  writer.write(row.parent);
  writer.write(row.parent_visible);
  writer.write(row.start_token);
  writer.write(row.tokens);
  writer.write(row.file_bytes);
  writer.write(row.created_unix_ns);
  writer.write(row.last_used_unix_ns);
  writer.write(static_cast<std::uint8_t>(row.bad));
  writer.write(static_cast<std::uint32_t>(row.blocks.size()));
  writer.write_bytes(std::as_bytes(std::span(row.blocks)));
  return finish(key, &writer);
}

Result<SegmentRow> decode_segment(std::string_view key, ByteSpan value) {
  SegmentRow row;
  KVT_TRY(row.id.value, id_of(Kind::kSegment, key));
  KVT_TRY(const ByteSpan fields, open_value(key, value));
  ByteReader reader(fields);
  row.space = reader.read<SpaceId>();
  row.parent = reader.read<SegmentId>();
  row.parent_visible = reader.read<std::uint32_t>();
  row.start_token = reader.read<std::uint64_t>();
  row.tokens = reader.read<std::uint32_t>();
  row.file_bytes = reader.read<std::uint64_t>();
  row.created_unix_ns = reader.read<std::uint64_t>();
  row.last_used_unix_ns = reader.read<std::uint64_t>();
  const auto bad = reader.read<std::uint8_t>();
  row.bad = bad == 1;
  const auto count = reader.read<std::uint32_t>();
  if (!reader.ok() || bad > 1 || row.tokens > kSegmentTokensMax || count > kBlocksMax ||
      reader.remaining() != count * sizeof(BlockHash))
    return malformed();
  row.blocks.resize(count);
  for (BlockHash& block : row.blocks) block = reader.read<BlockHash>();
  return row;
}

namespace {

constexpr unsigned kPinned = 1, kProvisional = 2;  // flags of a sequence's row

}  // namespace

std::vector<std::byte> encode(std::string_view key, const SequenceRow& row) {
  KVT_CHECK(row.name.size() <= kNameBytesMax && row.parts.size() <= kSequenceSegmentsMax);
  ByteWriter writer = begin();
  writer.write(row.space);
  writer.write(row.log_generation);
  writer.write(
      static_cast<std::uint8_t>((row.pinned ? kPinned : 0) | (row.provisional ? kProvisional : 0)));
  writer.write(row.expires_unix_s);
  writer.write(row.created_unix_ns);
  writer.write(row.last_used_unix_ns);
  write_text(&writer, row.name);
  writer.write(static_cast<std::uint32_t>(row.parts.size()));
  for (const SequenceRow::Part& part : row.parts) {
    writer.write(part.segment);
    writer.write(part.visible_tokens);
  }
  return finish(key, &writer);
}

Result<SequenceRow> decode_sequence(std::string_view key, ByteSpan value) {
  SequenceRow row;
  KVT_TRY(row.id.value, id_of(Kind::kSequence, key));
  KVT_TRY(const ByteSpan fields, open_value(key, value));
  ByteReader reader(fields);
  row.space = reader.read<SpaceId>();
  row.log_generation = reader.read<std::uint64_t>();
  const auto flags = reader.read<std::uint8_t>();
  row.pinned = (flags & kPinned) != 0;
  row.provisional = (flags & kProvisional) != 0;
  row.expires_unix_s = reader.read<std::uint64_t>();
  row.created_unix_ns = reader.read<std::uint64_t>();
  row.last_used_unix_ns = reader.read<std::uint64_t>();
  if (!read_text(&reader, kNameBytesMax, &row.name)) return malformed();
  const auto count = reader.read<std::uint32_t>();
  constexpr std::size_t kPartBytes = sizeof(std::uint64_t) + sizeof(std::uint32_t);
  if (!reader.ok() || flags > (kPinned | kProvisional) || count > kSequenceSegmentsMax ||
      reader.remaining() != count * kPartBytes)
    return malformed();
  row.parts.resize(count);
  for (SequenceRow::Part& part : row.parts) {
    part.segment = reader.read<SegmentId>();
    part.visible_tokens = reader.read<std::uint32_t>();
  }
  return row;
}

std::vector<std::byte> encode(std::string_view key, const ObjectRow& row) {
  KVT_CHECK(row.key.size() <= kObjectKeyBytesMax && row.value_bytes <= kObjectBytesMax);
  ByteWriter writer = begin();
  writer.write(row.file);
  writer.write(row.value_bytes);
  writer.write(row.checksum);
  writer.write(row.stored_unix_ns);
  return finish(key, &writer);
}

Result<ObjectRow> decode_object(std::string_view key, ByteSpan value) {
  ObjectRow row;
  KVT_TRY(row.key, text_of(Kind::kObject, key, kObjectKeyBytesMax));
  KVT_TRY(const ByteSpan fields, open_value(key, value));
  ByteReader reader(fields);
  row.file = reader.read<std::uint64_t>();
  row.value_bytes = reader.read<std::uint64_t>();
  row.checksum = reader.read<std::uint64_t>();
  row.stored_unix_ns = reader.read<std::uint64_t>();
  if (!reader.ok() || reader.remaining() != 0 || row.value_bytes > kObjectBytesMax)
    return malformed();
  return row;
}

std::vector<std::byte> encode(std::string_view key, std::uint64_t number) {
  KVT_CHECK(key.size() - 1 <= kNameBytesMax);
  ByteWriter writer = begin();
  writer.write(number);
  return finish(key, &writer);
}

Result<std::uint64_t> decode_number(std::string_view key, ByteSpan value) {
  KVT_TRY_VOID(text_of(Kind::kNumber, key, kNameBytesMax));
  KVT_TRY(const ByteSpan fields, open_value(key, value));
  ByteReader reader(fields);
  const auto number = reader.read<std::uint64_t>();
  if (!reader.ok() || reader.remaining() != 0) return malformed();
  return number;
}

namespace {

// Gives a decoded row to its place, or the reason why there is none to `damaged`.
template <class Row>
void deliver(std::string_view key, Result<Row> row, const std::function<void(Row)>& place,
             const CatalogueVisitor& visitor) {
  if (row && place) place(std::move(*row));
  if (!row && visitor.damaged) visitor.damaged(std::string(key), row.error());
}

}  // namespace

void visit(std::string_view key, ByteSpan value, const CatalogueVisitor& visitor) {
  switch (key.empty() ? Kind{} : static_cast<Kind>(key[0])) {
    case Kind::kSpace:
      return deliver(key, decode_space(key, value), visitor.space, visitor);
    case Kind::kSegment:
      return deliver(key, decode_segment(key, value), visitor.segment, visitor);
    case Kind::kSequence:
      return deliver(key, decode_sequence(key, value), visitor.sequence, visitor);
    case Kind::kObject:
      return deliver(key, decode_object(key, value), visitor.object, visitor);
    case Kind::kNumber: {
      const std::function<void(std::uint64_t)> place = [&](std::uint64_t number) {
        if (visitor.number) visitor.number(key.substr(1), number);
      };
      return deliver(key, decode_number(key, value), place, visitor);
    }
  }
  if (visitor.damaged)
    visitor.damaged(std::string(key), Status{Code::kCorrupt, 0, "catalogue row: no such kind"});
}

}  // namespace kvtier::catalogue_rows
