// Sequence: appending, writing, sealing, committing.
#include <algorithm>

#include "client/kernel_choice.h"
#include "client/last_error.h"
#include "client/sequence.h"

namespace kvtier {
namespace {

constexpr std::uint64_t kSubmitMs = 10'000;
// A decode step says nothing about the speed of a prefill.
constexpr std::uint32_t kTimedPieceTokensMin = 64;

}  // namespace

Result<void> Sequence::append(std::span<const TokenRecord> tokens, TokenTexts texts) {
  KVT_TRY_VOID(check_writable());
  if (tokens.empty() || tokens.size() > kPieceTokensMax)
    return error_with(Code::kInvalid, "a piece of %zu tokens: append 1 to %u at a time",
                      tokens.size(), kPieceTokensMax);
  if (tail_->in_piece()) {
    KVT_TRY_VOID(finish_piece());
  }
  if (tokens.size() > connection_->limits().sequence_tokens -
                          std::min(length(), connection_->limits().sequence_tokens))
    return error_with(Code::kTooLarge, "a sequence has at most %llu tokens",
                      static_cast<unsigned long long>(connection_->limits().sequence_tokens));
  const auto count = static_cast<std::uint32_t>(tokens.size());
  connection_->check_alive();
  // Without a daemon the tail still takes what fits; what needs the daemon says so.
  const auto alive = refresh(Patience::kFull);
  if (!alive && (alive.error().code != Code::kDaemonLost || tail_->halves_needed(count) != 0))
    return alive;
  if (alive) {
    clear_error_text();
    KVT_TRY_VOID(with_connection(Patience::kFull, [this, count] { return make_room(count); }));
  }
  tail_->begin_piece(tokens, std::move(texts));
  piece_begun_ = std::chrono::steady_clock::now();
  return {};
}

Result<void> Sequence::make_room(std::uint32_t count) {
  KVT_TRY_VOID(take_finished_seals());
  while (const std::uint32_t needed = tail_->halves_needed(count)) {
    const std::uint32_t half = needed >> 1;  // bit 0 or 1
    KVT_TRY_VOID(submit_seals());
    KVT_TRY_VOID(settle_seal(half));
  }
  return {};
}

Result<void> Sequence::check_finite(std::uint32_t layer, std::uint32_t first, std::uint32_t count,
                                    const StridedRows& rows, bool is_key) const {
  static const Result<const KernelTable*> kernels = client_kernels();
  const LayerGeometry& shape = space_->geometry().layers[layer];
  if (shape.dtype == Dtype::kOpaque) return {};
  if (!kernels) return error(kernels.error());
  const std::uint32_t row_bytes = is_key ? shape.k_row_bytes : shape.v_row_bytes;
  const std::uint64_t row_elements = row_bytes / dtype_bytes(shape.dtype);
  const bool contiguous = rows.token_stride == row_bytes;
  const std::uint64_t elements = contiguous ? row_elements * count : row_elements;
  for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
    for (std::uint32_t token = 0; token < (contiguous ? 1 : count); ++token) {
      std::uint64_t bad = 0;
      AllFiniteArgs args;
      args.data = rows.data + head * rows.head_stride + token * rows.token_stride;
      args.count = &elements;
      args.dtype = shape.dtype;
      args.out_index = &bad;
      KVT_TRY_VOID((*kernels)->all_finite(args, nullptr));
      if (bad == elements) continue;
      return error_with(
          Code::kNotFinite,
          "layer %u, token %llu, head %u, element %llu of its %s: NaN or infinity", layer,
          static_cast<unsigned long long>(tail_->length() + first + token + bad / row_elements),
          head, static_cast<unsigned long long>(bad % row_elements), is_key ? "key" : "value");
    }
  }
  return {};
}

Result<void> Sequence::write(std::uint32_t layer, std::uint32_t first, std::uint32_t count,
                             const StridedRows& k, const StridedRows& v) {
  KVT_TRY_VOID(check_writable());
  KVT_TRY_VOID(check_layer(layer));
  const std::uint32_t piece = tail_->piece_tokens();
  if (piece == 0) return error(Code::kInvalid, "no piece was begun: append tokens first");
  if (first > piece || count > piece - first)
    return error_with(Code::kInvalid, "tokens %u to %u: the piece has %u", first, first + count,
                      piece);
  if (k.data == nullptr || v.data == nullptr)
    return error(Code::kInvalid, "k and v must both be given");
  const LayerGeometry& shape = space_->geometry().layers[layer];
  if ((count > 1 && (k.token_stride < shape.k_row_bytes || v.token_stride < shape.v_row_bytes)) ||
      (shape.kv_heads > 1 && (k.head_stride == 0 || v.head_stride == 0)))
    return error_with(Code::kInvalid,
                      "strides are too small: rows of layer %u have %u and %u bytes", layer,
                      shape.k_row_bytes, shape.v_row_bytes);
  if (count == 0) return {};
  KVT_TRY_VOID(check_finite(layer, first, count, k, true));
  KVT_TRY_VOID(check_finite(layer, first, count, v, false));
  tail_->write(layer, first, count, k, v);
  return {};
}

Result<void> Sequence::finish_piece() {
  KVT_TRY_VOID(check_writable());
  if (!tail_->in_piece()) return {};
  const std::uint32_t missing = tail_->first_incomplete_layer();
  if (missing < space_->geometry().layers.size())
    return error_with(
        Code::kInvalid,
        "the piece is not complete: layer %u lacks rows (write them, or abort the piece)", missing);
  const std::uint32_t tokens = tail_->piece_tokens();
  if (tokens >= kTimedPieceTokensMin) {
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(
                        std::chrono::steady_clock::now() - piece_begun_)
                        .count();
    const std::uint64_t each = static_cast<std::uint64_t>(ns) / tokens;
    compute_ns_per_token_ =
        compute_ns_per_token_ == 0 ? each : (compute_ns_per_token_ * 3 + each) / 4;
  }
  tail_->finish_piece();
  if (connection_->lost()) return {};  // sealed after the next reconnect
  const auto submitted = submit_seals();
  if (!submitted && submitted.error().code != Code::kDaemonLost) return submitted;
  return {};
}

Result<void> Sequence::abort_piece() {
  KVT_TRY_VOID(check_writable());
  tail_->abort_piece();
  return {};
}

// ---- seals --------------------------------------------------------------------------------------

// Before the daemon takes `tokens` tokens of the half.
Result<void> Sequence::tell_texts(std::uint32_t half, std::uint32_t tokens) {
  TokenTexts texts;
  if (!tail_->texts_to_tell(half, tokens, &texts)) return {};
  Tail::Half& told = tail_->half(half);
  KVT_TRY_VOID(connection_->call(Json{{"op", "set_texts"},
                                      {"handle", handle_},
                                      {"half", half},
                                      {"first", told.texts_told},
                                      {"count", tokens - told.texts_told}},
                                 texts.encode(), 0, space_->client().deadline()));
  told.texts_told = tokens;
  told.any_told = true;
  return {};
}

Result<void> Sequence::submit_seal(std::uint32_t half) {
  KVT_TRY_VOID(tell_texts(half, tail_->half(half).tokens));
  Submission submission{};
  submission.op = static_cast<std::uint16_t>(Op::kSeal);
  submission.priority = static_cast<std::uint8_t>(Priority::kDemand);
  submission.sequence = handle_;
  submission.half = half;
  submission.count = tail_->half(half).tokens;
  submission.value1 = tail_->half(half).first_token;
  // Admission may decline the rest of a tail, never a full half: another one follows it.
  submission.value0 = closing_ && submission.count < kSegmentTokensMax ? 1 : 0;
  KVT_TRY(tail_->half(half).seal, connection_->submit(submission, Deadline::after_ms(kSubmitMs)));
  tail_->half(half).state = Tail::HalfState::kSealing;
  return {};
}

Result<void> Sequence::submit_seals() {
  if (!tail_) return {};
  const std::uint32_t active = tail_->active();
  for (const std::uint32_t half : {1 - active, active}) {
    if (tail_->half(half).state != Tail::HalfState::kFull) continue;
    KVT_TRY_VOID(submit_seal(half));
  }
  return {};
}

Result<void> Sequence::settle_seal(std::uint32_t half) {
  Tail::Half& sealing = tail_->half(half);
  if (sealing.state != Tail::HalfState::kSealing) return {};
  // The daemon seals whether anybody waits or not.
  KVT_TRY(const Completion done,
          connection_->wait(sealing.seal, Deadline::after_ms(kDiskMs), /*keep=*/true));
  const auto code = static_cast<Code>(done.status);
  if (code != Code::kOk) {
    sealing.state = Tail::HalfState::kFull;  // ours again; the next call asks again
    return error(code,
                 code == Code::kNoSpace
                     ? "the store is full, by store.disk_bytes_max or its disk: the tail cannot be "
                       "sealed (`kvtier rm`, `kvtier gc`, or raise that setting)"
                     : "the daemon could not seal the tail (see its log)");
  }
  if (closing_ && done.value0 == 0) {  // nobody asked for it to be kept, and writes are scarce
    tail_->free_half(half);
    return {};
  }
  const std::uint64_t end = sealing.first_token + sealing.tokens;
  KVT_TRY_VOID(refresh_directory());
  if (directory_.tokens() < end)
    return error(Code::kProtocol, "a segment was sealed but is not in the directory");
  row_durable_ = true;
  tail_->free_half(half);
  return {};
}

void Sequence::abandon_seals() noexcept {
  for (const std::uint32_t half : {0u, 1u})
    if (tail_ && tail_->half(half).state == Tail::HalfState::kSealing)
      connection_->abandon(tail_->half(half).seal);
}

Result<void> Sequence::take_finished_seals() {
  if (!tail_) return {};
  const std::uint32_t active = tail_->active();
  for (const std::uint32_t half : {1 - active, active}) {
    const Tail::Half& sealing = tail_->half(half);
    if (sealing.state != Tail::HalfState::kSealing) continue;
    if (!connection_->poll(sealing.seal)) break;  // in order
    const auto settled = settle_seal(half);
    // A failed seal stays in the tail and is reported by whoever needs the room or the durability.
    if (!settled && settled.error().code == Code::kProtocol) return settled;
    if (!settled) break;
  }
  return {};
}

Result<void> Sequence::settle_all_seals() {
  if (!tail_) return {};
  KVT_TRY_VOID(submit_seals());
  const std::uint32_t active = tail_->active();
  KVT_TRY_VOID(settle_seal(1 - active));
  return settle_seal(active);
}

Result<void> Sequence::seal_everything(Patience patience) {
  if (!tail_) return {};
  KVT_TRY_VOID(refresh(patience));
  const Tail::Half& active = tail_->half(tail_->active());
  if (active.state == Tail::HalfState::kFilling && active.tokens != 0) tail_->cut_active();
  return settle_all_seals();
}

// ---- commit -------------------------------------------------------------------------------------

Result<void> Sequence::commit() {
  KVT_TRY_VOID(check_writable());
  if (private_) return error(Code::kUnsupported, "a private sequence is never written to disk");
  if (tail_->in_piece()) {
    KVT_TRY_VOID(finish_piece());
  }
  connection_->check_alive();  // where nothing is to be sent, nobody else finds out
  return with_connection(Patience::kFull, [this] { return commit_once(); });
}

Result<void> Sequence::commit_once(bool again) {
  // A seal that has failed is asked for again, before what follows it.
  KVT_TRY_VOID(refresh(Patience::kFull));
  KVT_TRY_VOID(submit_seals());
  Tail::Half& active = tail_->half(tail_->active());
  if (active.state != Tail::HalfState::kFilling || active.tokens == active.durable_tokens) {
    KVT_TRY_VOID(settle_all_seals());
    // Nothing was written here yet: a sequence of shared tokens only may be in no catalogue.
    if (row_durable_) return {};
  }
  KVT_TRY_VOID(tell_texts(tail_->active(), active.tokens));
  Submission submission{};
  submission.op = static_cast<std::uint16_t>(Op::kCommit);
  submission.priority = static_cast<std::uint8_t>(Priority::kCommit);
  submission.sequence = handle_;
  submission.half = tail_->active();
  submission.count = active.tokens;
  submission.value1 = active.first_token;
  KVT_TRY(const Ticket ticket, connection_->submit(submission, Deadline::after_ms(kSubmitMs)));
  KVT_TRY(const Completion done, connection_->wait(ticket, Deadline::after_ms(kDiskMs)));
  const auto code = static_cast<Code>(done.status);
  if (code == Code::kOk && done.value1 >= length()) {
    row_durable_ = true;
    active.durable_tokens = active.tokens;
    return take_finished_seals();
  }
  if (code == Code::kOk)
    return error(Code::kProtocol, "the daemon committed fewer tokens than asked for");
  // A commit behind a failed seal is cancelled: the seal, asked for again, has the reason.
  KVT_TRY_VOID(settle_all_seals());
  if (code == Code::kCancelled && !again) return commit_once(true);
  return error(code,
               code == Code::kNoSpace
                   ? "the store is full, by store.disk_bytes_max or its disk: nothing more can be "
                     "committed (`kvtier rm`, `kvtier gc`, or raise that setting)"
                   : nullptr);
}

}  // namespace kvtier
