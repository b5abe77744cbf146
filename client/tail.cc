#include "client/tail.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kHalf = kSegmentTokensMax;
constexpr std::uint32_t kStreamPieceTokens = 64;  // a smaller piece: decoding, not prefill

// Copies `count` rows; both sides strided.
void copy_rows(std::byte* target, std::uint64_t target_stride, const std::byte* source,
               std::uint64_t source_stride, std::uint64_t row_bytes, std::uint32_t count) noexcept {
  if (target_stride == row_bytes && source_stride == row_bytes) {
    std::memcpy(target, source, row_bytes * count);
    return;
  }
  for (std::uint32_t i = 0; i < count; ++i)
    std::memcpy(target + i * target_stride, source + i * source_stride, row_bytes);
}

Tail::Half empty_half(std::uint64_t first_token) {
  Tail::Half half;
  half.state = Tail::HalfState::kFilling;
  half.first_token = first_token;
  return half;
}

}  // namespace

Tail::Tail(const Geometry* geometry, const TailLayout* layout, Mapping memory,
           std::uint64_t first_token, std::uint32_t tail_tokens)
    : geometry_(geometry),
      layout_(layout),
      memory_(std::move(memory)),
      written_(geometry->layers.size() * kWords) {
  halves_[0].state = tail_tokens == kHalf ? HalfState::kFull : HalfState::kFilling;
  halves_[0].tokens = halves_[0].durable_tokens = tail_tokens;
  halves_[0].first_token = first_token;
}

std::uint64_t Tail::first_token() const noexcept {
  return halves_[has_older() ? 1 - active_ : active_].first_token;
}

std::uint64_t Tail::length() const noexcept {
  return halves_[active_].first_token + halves_[active_].tokens;
}

std::uint32_t Tail::halves_needed(std::uint32_t count) const noexcept {
  const Half& active = halves_[active_];
  const std::uint32_t other = 1 - active_;
  if (active.state == HalfState::kFilling && count <= kHalf - active.tokens) return 0;
  return halves_[other].state == HalfState::kFree ? 0 : 1u << other;
}

bool Tail::advance() noexcept {
  if (halves_[active_].state == HalfState::kFilling) return true;
  const std::uint32_t other = 1 - active_;
  if (halves_[other].state != HalfState::kFree) return false;
  const std::uint64_t next = length();
  active_ = other;
  halves_[active_] = empty_half(next);
  free_half_used_ = false;  // it is in use again
  return true;
}

void Tail::begin_piece(std::span<const TokenRecord> tokens, TokenTexts texts) {
  KVT_CHECK(!in_piece() && !tokens.empty() && tokens.size() <= kPieceTokensMax);
  KVT_CHECK(halves_needed(static_cast<std::uint32_t>(tokens.size())) == 0 && advance());
  const bool spills = tokens.size() > kHalf - halves_[active_].tokens;
  if (tokens.size() < kStreamPieceTokens && !spills) give_back_free_half();
  piece_tokens_ = static_cast<std::uint32_t>(tokens.size());
  piece_texts_ = std::move(texts);
  std::fill(written_.begin(), written_.end(), 0);
  std::array<Run, 3> parts;
  const std::uint64_t first = length();
  const std::uint32_t count = runs(first, first + piece_tokens_, &parts);
  for (std::uint32_t i = 0; i < count; ++i)
    std::memcpy(this->tokens(parts[i].half) + parts[i].first_place,
                tokens.data() + (parts[i].first_token - first),
                parts[i].count * sizeof(TokenRecord));
}

void Tail::write(std::uint32_t layer, std::uint32_t first, std::uint32_t count,
                 const StridedRows& k, const StridedRows& v) noexcept {
  const LayerGeometry& shape = geometry_->layers[layer];
  const std::uint32_t chunk_tokens = geometry_->chunk_tokens;
  const std::uint64_t base = length() + first;
  std::array<Run, 3> parts;
  const std::uint32_t run_count = runs(base, base + count, &parts);
  for (std::uint32_t r = 0; r < run_count; ++r) {
    for (std::uint32_t done = 0; done < parts[r].count;) {
      const std::uint32_t place = parts[r].first_place + done;
      const std::uint32_t step =
          std::min(parts[r].count - done, chunk_tokens - place % chunk_tokens);
      const std::uint64_t source = parts[r].first_token - base + done;
      for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
        copy_rows(k_row(parts[r].half, place, layer, head), shape.k_row_bytes,
                  k.data + head * k.head_stride + source * k.token_stride, k.token_stride,
                  shape.k_row_bytes, step);
        copy_rows(v_row(parts[r].half, place, layer, head), shape.v_row_bytes,
                  v.data + head * v.head_stride + source * v.token_stride, v.token_stride,
                  shape.v_row_bytes, step);
      }
      done += step;
    }
  }
  for (std::uint32_t token = first; token < first + count; ++token)
    written_[layer * kWords + token / 64] |= 1ull << (token % 64);
}

std::uint32_t Tail::first_incomplete_layer() const noexcept {
  const auto layers = static_cast<std::uint32_t>(geometry_->layers.size());
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    if (geometry_->layers[layer].kind != LayerKind::kFull) continue;
    std::uint32_t rows = 0;
    for (std::uint32_t word = 0; word < kWords; ++word)
      rows += static_cast<std::uint32_t>(std::popcount(written_[layer * kWords + word]));
    if (rows != piece_tokens_) return layer;
  }
  return layers;
}

void Tail::finish_piece() {
  const std::uint32_t count = piece_tokens_;
  piece_tokens_ = 0;
  const std::uint32_t here = std::min(count, kHalf - halves_[active_].tokens);
  take_texts(0, here);
  halves_[active_].tokens += here;
  if (halves_[active_].tokens == kHalf) halves_[active_].state = HalfState::kFull;
  if (here == count) return;
  KVT_CHECK(advance());
  take_texts(here, count - here);
  halves_[active_].tokens = count - here;
}

void Tail::take_texts(std::uint32_t first, std::uint32_t count) {
  Half& active = halves_[active_];
  if (piece_texts_.empty() && active.texts.empty()) return;
  active.texts.resize(active.tokens);
  active.texts.append(piece_texts_, first, count);
}

std::uint64_t Tail::visible(std::uint32_t layer) const noexcept {
  std::uint32_t rows = 0;
  while (rows < piece_tokens_ && written(layer, rows)) ++rows;
  return length() + rows;
}

std::uint32_t Tail::runs(std::uint64_t first, std::uint64_t last,
                         std::array<Run, 3>* out) const noexcept {
  const Half& active = halves_[active_];
  const std::uint32_t other = 1 - active_;
  // Where each half's tokens begin and end in the sequence, in token order.
  struct Range {
    std::uint32_t half;
    std::uint64_t begin, end;
  };
  const std::uint64_t active_end =
      active.state == HalfState::kFilling ? active.first_token + kHalf : length();
  const std::array<Range, 3> ranges{{
      {other, has_older() ? halves_[other].first_token : 0, has_older() ? active.first_token : 0},
      {active_, active.first_token, active_end},
      {other, has_older() ? UINT64_MAX : active_end, UINT64_MAX},
  }};
  std::uint32_t count = 0;
  for (const Range& range : ranges) {
    const std::uint64_t begin = std::max(first, range.begin), end = std::min(last, range.end);
    if (begin >= end) continue;
    (*out)[count++] = {range.half, static_cast<std::uint32_t>(begin - range.begin),
                       static_cast<std::uint32_t>(end - begin), begin};
  }
  return count;
}

std::uint64_t Tail::head_page(std::uint32_t half, std::uint32_t layer, std::uint32_t head,
                              std::uint32_t chunk) const noexcept {
  const std::uint32_t group_heads = geometry_->heads_in_group(layer);
  return layout_->plane_offset(half) +
         layout_->plane.chunk_offset(layer, chunk, head / group_heads) +
         k_row_offset(*geometry_, geometry_->layers[layer], head % group_heads, 0);
}

TokenRecord* Tail::tokens(std::uint32_t half) const noexcept {
  return reinterpret_cast<TokenRecord*>(memory_.data() + layout_->tokens_offset(half));
}

std::byte* Tail::k_row(std::uint32_t half, std::uint32_t place, std::uint32_t layer,
                       std::uint32_t head) const noexcept {
  const std::uint64_t row = static_cast<std::uint64_t>(place % geometry_->chunk_tokens) *
                            geometry_->layers[layer].k_row_bytes;
  return memory_.data() + head_page(half, layer, head, place / geometry_->chunk_tokens) + row;
}

std::byte* Tail::v_row(std::uint32_t half, std::uint32_t place, std::uint32_t layer,
                       std::uint32_t head) const noexcept {
  const LayerGeometry& shape = geometry_->layers[layer];
  const std::uint64_t row =
      static_cast<std::uint64_t>(geometry_->chunk_tokens) * shape.k_row_bytes +
      static_cast<std::uint64_t>(place % geometry_->chunk_tokens) * shape.v_row_bytes;
  return memory_.data() + head_page(half, layer, head, place / geometry_->chunk_tokens) + row;
}

void Tail::free_half(std::uint32_t index) noexcept {
  const std::uint64_t next = length();
  if (index == active_) {
    halves_[index] = empty_half(next);
    return give_back(index);
  }
  halves_[index] = Half{};
  free_half_used_ = true;
}

void Tail::give_back(std::uint32_t half) noexcept {
  memory_.free_pages(static_cast<std::size_t>(layout_->tokens_offset(half)),
                     static_cast<std::size_t>(layout_->half_bytes));
}

void Tail::give_back_free_half() noexcept {
  if (!free_half_used_ || has_older() || in_piece()) return;
  free_half_used_ = false;
  give_back(1 - active_);
}

void Tail::cut_active() noexcept {
  KVT_CHECK(!in_piece() && halves_[active_].tokens != 0);
  halves_[active_].state = HalfState::kFull;
}

void Tail::truncate(std::uint64_t length) {
  piece_tokens_ = 0;
  Half& active = halves_[active_];
  KVT_CHECK(length >= active.first_token && length <= active.first_token + active.tokens);
  active.tokens = static_cast<std::uint32_t>(length - active.first_token);
  active.durable_tokens = std::min(active.durable_tokens, active.tokens);
  if (active.texts.tokens() > active.tokens) active.texts.resize(active.tokens);
  active.texts_told = std::min(active.texts_told, active.tokens);
  active.state = HalfState::kFilling;
}

void Tail::restart(std::uint64_t length) noexcept {
  piece_tokens_ = 0;
  active_ = 0;
  halves_ = {};
  halves_[0] = empty_half(length);
  free_half_used_ = false;
  give_back(0);
  give_back(1);
}

void Tail::copy_tokens(std::uint64_t first, std::uint64_t last, TokenRecord* out) const noexcept {
  if (first == last) return;
  std::array<Run, 3> parts;
  const std::uint32_t count = runs(first, last, &parts);
  for (std::uint32_t i = 0; i < count; ++i)
    std::memcpy(out + (parts[i].first_token - first), tokens(parts[i].half) + parts[i].first_place,
                parts[i].count * sizeof(TokenRecord));
}

void Tail::mark(std::uint64_t token, std::uint32_t flags) noexcept {
  if (token < first_token() || token >= length() + piece_tokens_) return;
  std::array<Run, 3> part;
  KVT_CHECK(runs(token, token + 1, &part) == 1);
  const Half& half = halves_[part[0].half];
  if (half.state != HalfState::kFilling || part[0].first_place < half.durable_tokens) return;
  tokens(part[0].half)[part[0].first_place].flags |= flags;
}

void Tail::append_texts(std::uint64_t first, std::uint64_t last, TokenTexts* out) const {
  if (first == last) return;
  std::array<Run, 3> parts;
  const std::uint32_t count = runs(first, last, &parts);
  for (std::uint32_t i = 0; i < count; ++i)
    out->append(halves_[parts[i].half].texts, parts[i].first_place, parts[i].count);
}

bool Tail::texts_to_tell(std::uint32_t index, std::uint32_t tokens, TokenTexts* out) const {
  const Half& half = halves_[index];
  if (half.texts_told >= tokens || (half.texts.empty() && !half.any_told)) return false;
  out->append(half.texts, half.texts_told, tokens - half.texts_told);
  return true;
}

void Tail::append_token(const Tail& old, std::uint64_t token, std::uint64_t first) noexcept {
  std::array<Run, 3> part;
  KVT_CHECK(old.runs(token, token + 1, &part) == 1);
  const auto index = static_cast<std::uint32_t>(token - first);
  const std::uint32_t half = index / kHalf, place = index % kHalf;
  tokens(half)[place] = old.tokens(part[0].half)[part[0].first_place];
  for (std::uint32_t layer = 0; layer < geometry_->layers.size(); ++layer) {
    const LayerGeometry& shape = geometry_->layers[layer];
    if (shape.kind != LayerKind::kFull) continue;
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
      std::memcpy(k_row(half, place, layer, head),
                  old.k_row(part[0].half, part[0].first_place, layer, head), shape.k_row_bytes);
      std::memcpy(v_row(half, place, layer, head),
                  old.v_row(part[0].half, part[0].first_place, layer, head), shape.v_row_bytes);
    }
  }
}

void Tail::replay(const Tail& old) {
  const std::uint64_t first = first_token();
  const std::uint64_t complete = old.length();
  const std::uint64_t end = complete + old.piece_tokens_;
  KVT_CHECK(active_ == 0 && end - first <= 2 * kHalf);
  for (std::uint64_t token = length(); token < end; ++token) append_token(old, token, first);
  const auto count = static_cast<std::uint32_t>(complete - first);
  halves_[0].tokens = std::min(count, kHalf);
  halves_[0].state = halves_[0].tokens == kHalf ? HalfState::kFull : HalfState::kFilling;
  if (count > kHalf || (count == kHalf && old.in_piece())) {
    halves_[1] = empty_half(first + kHalf);
    halves_[1].tokens = count - kHalf;
    if (count == 2 * kHalf) halves_[1].state = HalfState::kFull;
    active_ = 1;
  }
  // The daemon may have texts of the tokens that it brought back: they are told again with the
  // rest.
  TokenTexts texts;
  old.append_texts(first, complete, &texts);
  for (Half& half : halves_) {
    half.texts = {};
    if (!texts.empty() && half.state != HalfState::kFree)
      half.texts.append(texts, static_cast<std::uint32_t>(half.first_token - first), half.tokens);
    half.any_told = !texts.empty();
  }
  piece_tokens_ = old.piece_tokens_;
  piece_texts_ = old.piece_texts_;
  written_ = old.written_;
}

}  // namespace kvtier
