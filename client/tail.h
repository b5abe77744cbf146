// Tail: the newest tokens of a writable sequence, in two halves of client-written shared memory,
// and the piece in progress.
//
//   token order:   [older half: full, being sealed]  [active half: being filled]  [spill: rest of
//   the piece in progress]
//
// The older half and the spill are never there at the same time: they are the same half. A half
// leaves kFilling when it is full or sealed short; when its segment is visible it is kFree again.
// Tokens of the piece in progress are not counted until the piece is complete in all full layers.
// The memory of a sealed half is given back once the client no longer streams: while pieces are
// large, both halves are soon filled again, and fresh pages cost as much as the copy.
// Texts of tokens are no part of the shared memory: they are kept here, and told to the daemon
// before it commits or seals a half. Only bookkeeping and rows: the Sequence talks to the daemon.
// One thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/token_texts.h"
#include "base/unique_fd.h"
#include "kernels/layout.h"

namespace kvtier {

// Rows of one layer as a caller has them: row (head, token) at data + head * head_stride + token *
// token_stride.
struct StridedRows {
  const std::byte* data = nullptr;
  std::uint64_t head_stride = 0;
  std::uint64_t token_stride = 0;
};

class Tail {
 public:
  enum class HalfState : std::uint8_t { kFree, kFilling, kFull, kSealing };
  struct Half {
    HalfState state = HalfState::kFree;
    std::uint32_t tokens = 0;          // complete ones
    std::uint64_t first_token = 0;     // in the sequence
    std::uint32_t durable_tokens = 0;  // of them, in the tail log
    std::uint64_t seal = 0;            // kSealing: the request
    TokenTexts texts;                  // of its tokens, from the first on, as far as given
    std::uint32_t texts_told = 0;      // tokens whose texts the daemon has as they are here
    bool any_told = false;             // it has some, of whatever tokens
  };

  // Half 0 holds `tail_tokens` tokens from `first_token` on, all durable.
  Tail(const Geometry* geometry, const TailLayout* layout, Mapping memory,
       std::uint64_t first_token, std::uint32_t tail_tokens);

  // First token in the tail; one past the last complete one.
  [[nodiscard]] std::uint64_t first_token() const noexcept;
  [[nodiscard]] std::uint64_t length() const noexcept;
  [[nodiscard]] std::uint32_t active() const noexcept { return active_; }
  [[nodiscard]] Half& half(std::uint32_t index) noexcept { return halves_[index]; }
  [[nodiscard]] const Half& half(std::uint32_t index) const noexcept { return halves_[index]; }
  // The half before the active one in token order, if it is not free.
  [[nodiscard]] bool has_older() const noexcept {
    return halves_[1 - active_].state != HalfState::kFree;
  }

  // -- the piece in progress
  [[nodiscard]] bool in_piece() const noexcept { return piece_tokens_ != 0; }
  [[nodiscard]] std::uint32_t piece_tokens() const noexcept { return piece_tokens_; }
  // Halves that must be free before a piece of `count` can begin: bit per half; 0: it can.
  [[nodiscard]] std::uint32_t halves_needed(std::uint32_t count) const noexcept;
  void begin_piece(std::span<const TokenRecord> tokens, TokenTexts texts = {});
  // Copies rows of [first, first + count) of the piece. The layer is a full one, the range inside
  // the piece.
  void write(std::uint32_t layer, std::uint32_t first, std::uint32_t count, const StridedRows& k,
             const StridedRows& v) noexcept;
  // The first full layer whose rows are not all written; layers.size() where all are.
  [[nodiscard]] std::uint32_t first_incomplete_layer() const noexcept;
  // Counts the tokens of the complete piece. The active half may be full after it.
  void finish_piece();
  void abort_piece() noexcept { piece_tokens_ = 0; }

  // Tokens that one layer can read: complete ones and the first rows of the piece, as far as
  // written without a gap.
  [[nodiscard]] std::uint64_t visible(std::uint32_t layer) const noexcept;

  // A run of tokens that lie side by side in one half.
  struct Run {
    std::uint32_t half = 0;
    std::uint32_t first_place = 0;  // in the half
    std::uint32_t count = 0;
    std::uint64_t first_token = 0;  // in the sequence
  };
  // Tokens [first, last) as at most three runs in token order; both in [first_token(), length() +
  // piece_tokens()].
  [[nodiscard]] std::uint32_t runs(std::uint64_t first, std::uint64_t last,
                                   std::array<Run, 3>* out) const noexcept;

  // The records of tokens [first, last), as runs() takes them; the texts of complete ones.
  void copy_tokens(std::uint64_t first, std::uint64_t last, TokenRecord* out) const noexcept;
  void append_texts(std::uint64_t first, std::uint64_t last, TokenTexts* out) const;
  // What the daemon must be told of the half's texts before it takes `tokens` tokens of it: those
  // of [half.texts_told, tokens). False where it knows all that there is.
  [[nodiscard]] bool texts_to_tell(std::uint32_t index, std::uint32_t tokens,
                                   TokenTexts* out) const;

  [[nodiscard]] std::byte* data() const noexcept { return memory_.data(); }
  // Offsets in data() of chunk starts of one (layer, head), as RowPages wants them.
  [[nodiscard]] std::uint64_t head_page(std::uint32_t half, std::uint32_t layer, std::uint32_t head,
                                        std::uint32_t chunk) const noexcept;
  [[nodiscard]] TokenRecord* tokens(std::uint32_t half) const noexcept;
  // Address of the K row of a token of the half; the V row.
  [[nodiscard]] std::byte* k_row(std::uint32_t half, std::uint32_t place, std::uint32_t layer,
                                 std::uint32_t head) const noexcept;
  [[nodiscard]] std::byte* v_row(std::uint32_t half, std::uint32_t place, std::uint32_t layer,
                                 std::uint32_t head) const noexcept;

  // Adds to the flags of a token that nobody else has seen: of the piece, or complete but neither
  // durable nor on its way into a segment. Others stay as they are.
  void mark(std::uint64_t token, std::uint32_t flags) noexcept;

  // The seal of a half completed: it is free; where it was the active one, it is filled from its
  // beginning.
  void free_half(std::uint32_t index) noexcept;
  // The memory of a free half goes back to the system, if it was used since.
  void give_back_free_half() noexcept;
  // Makes the active half kFull before it is full, so that it can be sealed. No piece in progress.
  void cut_active() noexcept;
  // Makes a free half the active one where the active is not kFilling; false if none is free.
  bool advance() noexcept;
  // Drops the tokens from `length` on (not before the active half's first) and the piece in
  // progress.
  void truncate(std::uint64_t length);

  // Empty, from half 0 on, after `length` tokens.
  void restart(std::uint64_t length) noexcept;

  // Copies the tokens and rows of `old` from this tail's end on, with the piece in progress and its
  // written marks. Both of one geometry; this one fresh.
  void replay(const Tail& old);

 private:
  void give_back(std::uint32_t half) noexcept;
  void take_texts(std::uint32_t first, std::uint32_t count);  // of the piece, behind the half's
  void append_token(const Tail& old, std::uint64_t token, std::uint64_t first) noexcept;
  [[nodiscard]] bool written(std::uint32_t layer, std::uint32_t token) const noexcept {
    return (written_[layer * kWords + token / 64] >> (token % 64) & 1) != 0;
  }

  static constexpr std::uint32_t kWords = kPieceTokensMax / 64;

  const Geometry* geometry_;
  const TailLayout* layout_;
  Mapping memory_;
  std::array<Half, 2> halves_;
  std::uint32_t active_ = 0;
  bool free_half_used_ = false;  // the half that is not active holds pages that nobody reads
  std::uint32_t piece_tokens_ = 0;
  TokenTexts piece_texts_;
  std::vector<std::uint64_t> written_;  // [layer][kWords]: a bit per token of the piece
};

}  // namespace kvtier
