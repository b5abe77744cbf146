// What a worker does for a seal: copies a half of a tail out of client memory, once, and computes
// all that the segment file says about it. Workers; they touch nothing but their job.
#pragma once

#include "daemon/sealer.h"

namespace kvtier {

// Tokens, their blocks, and where everything will lie in the file.
void copy_seal_tokens(SealJob& job);

// Some layers, whose chunks lie side by side in the file.
struct SealSlice {
  std::uint32_t first_layer = 0, last_layer = 0;
  std::uint32_t first_chunk = 0, last_chunk = 0;
  std::vector<std::size_t> failed;  // numbers of abstracts that could not be built
};
// Copies the chunks of these layers, with their checksums, and builds their abstracts.
void copy_seal_slice(SealJob& job, SealSlice* slice);

void encode_seal_meta(SealJob& job);

}  // namespace kvtier
