// Arguments of the operations on key codes (kernels/code_layout.h, kernels/own_code_layout.h). The
// rules of kernels/kernel_table.h hold.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "kernels/code_layout.h"
#include "kernels/row_pages.h"

namespace kvtier {

// Codes of one (layer, KV head) in pieces, as segments lie in sidecars and arenas: piece p at base
// + pieces[p] has tokens [starts[p], starts[p + 1]), each piece in whole blocks of its own. With a
// null base pieces are addresses.
struct CodePieces {
  const std::byte* base = nullptr;
  const std::uint64_t* pieces = nullptr;
  const std::uint64_t* starts = nullptr;  // [*count + 1] tokens, ascending; as a rule from 0
  const std::uint64_t* count = nullptr;
  std::uint32_t subspaces = 0;
};

// Tables of the products of queries with a codebook's entries:
//   out[i * out_stride + m * 16 + j] = sum over dims d of m of q[i][d] * entry[m][j][d]
// so that a key's approximate score is the sum over m of table[m][its code].
struct CodeTablesArgs {
  CodeBook book;
  const float* q = nullptr;    // query i at q + i * q_stride
  std::uint64_t q_stride = 0;  // in floats
  std::uint32_t queries = 0;
  float* out = nullptr;          // f32 [queries][subspaces][16]
  std::uint64_t out_stride = 0;  // in floats
  [[nodiscard]] Result<void> validate() const noexcept;
};

// Scores of the tokens t of all pieces from 8-bit tables: out[i * out_stride + t].
//
// Of query i's table, let low[m] and range[m] be the smallest entry of sub-quantiser m and the
// distance to the largest; scale = max(range) / 255, rounded up to 10 significant bits, at least
// 2^-100; bias = sum of low[m], in double, rounded to f32. An entry becomes the byte
// nearest((entry - low[m]) * (1 / scale)), ties to even, and
//   score = bias + scale * (sum over m of the byte that m's code names)
// where the product is exact. All back ends give these bits. 64 * 255 fits in 16 bits: no sum can
// overflow. A score is off the exact sum by at most out_error[i], about subspaces * scale / 2. A
// table with a NaN or an infinity, or whose range overflows, gives NaN for scores and error.
struct ScoreCodesArgs {
  CodePieces codes;
  const float* tables =
      nullptr;  // as code_tables writes them; query i at tables + i * table_stride
  std::uint64_t table_stride = 0;  // in floats
  std::uint32_t queries = 0;
  float* out = nullptr;
  std::uint64_t out_stride = 0;  // in floats
  float* out_error = nullptr;    // f32 [queries]; null: not wanted
  [[nodiscard]] Result<void> validate() const noexcept;
};

// Exact scores of chosen tokens, by their numbers in `codes` (in any order, repeats allowed):
// out[i * out_stride + n] = sum over m, in f32 in this order from 0, of the table entry that the
// code of tokens[n] names. All back ends give the same bits.
struct RescoreCodesArgs {
  CodePieces codes;
  const std::uint32_t* tokens = nullptr;
  const std::uint64_t* token_count = nullptr;
  const float* tables = nullptr;
  std::uint64_t table_stride = 0;  // in floats
  std::uint32_t queries = 0;
  float* out = nullptr;
  std::uint64_t out_stride = 0;  // in floats
  [[nodiscard]] Result<void> validate() const noexcept;
};

// Scores of tokens [0, *token_count) of one segment by own codes (kernels/own_code_layout.h):
//   out[i * out_stride + t] = sum over m, in f32 in this order from 0, of the entry of query i's
//                             table m that t's code names
// All back ends give the same bits.
struct ScoreOwnCodesArgs {
  const std::uint8_t* codes = nullptr;  // [own_code_bytes(*token_count, subspaces)]
  const std::uint64_t* token_count = nullptr;
  std::uint32_t subspaces = 0;
  const float* tables = nullptr;   // f32 [queries][subspaces][64]; query i at + i * table_stride
  std::uint64_t table_stride = 0;  // in floats
  std::uint32_t queries = 0;
  float* out = nullptr;
  std::uint64_t out_stride = 0;  // in floats
  [[nodiscard]] Result<void> validate() const noexcept;
};

// Codes of tokens [0, *token_count) of the K rows, one piece. Keys and entries are first multiplied
// by sqrt(weight), dim by dim. Then sub-quantiser by sub-quantiser the entry nearest to what the
// earlier ones left of the key: the least sum, over its dims in their order, of (left - entry)^2;
// ties go to the lower entry. Each step is rounded to f32, so all back ends give the same codes. A
// key that is not finite gets any codes.
struct EncodeCodesArgs {
  CodeBook book;
  RowPages rows;  // K only
  const std::uint64_t* token_count = nullptr;
  const float* weights = nullptr;  // f32 [book.dim], 0 or more; null: all 1
  std::uint8_t* out = nullptr;     // [code_bytes(*token_count, book.subspaces)]
  [[nodiscard]] Result<void> validate() const noexcept;
};

}  // namespace kvtier
