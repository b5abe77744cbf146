#include "daemon/admission.h"

#include <algorithm>
#include <vector>

#include "client/ipc/shared_copy.h"
#include "daemon/engine_state.h"

namespace kvtier {

namespace {

bool writes_are_scarce(EngineState& engine) {
  update_write_budget(engine);
  const std::uint64_t budget = engine.options.disk_write_bytes_per_day;
  return budget != 0 && engine.write_budget.bytes >= budget / 2;
}

// The hash of the first block that the tail completes; false where it completes none.
bool first_new_block(const StoredSequence& sequence, const TailWork& work, BlockHash* hash) {
  const std::size_t missing = kBlockTokens - sequence.open_ids.size();
  if (work.count < missing) return false;
  std::vector<TokenRecord> records(missing);
  copy_from_shared(records.data(), work.tail->tokens(work.half), missing * sizeof(TokenRecord));
  std::vector<std::uint32_t> ids = sequence.open_ids;
  for (const TokenRecord& record : records) ids.push_back(record.id);
  *hash = sequence.space->index.extend(sequence.chain, ids);
  return true;
}

}  // namespace

bool admit_at_close(EngineState& engine, const StoredSequence& sequence, const TailWork& work) {
  const bool asked_for = !sequence.row.name.empty() || sequence.row.pinned ||
                         sequence.log.generation != 0 || sequence.is_private;
  if (!engine.options.admission || asked_for || !sequence.chain_known || !writes_are_scarce(engine))
    return true;
  Admission& admission = engine.admission;
  BlockHash hash;
  if (first_new_block(sequence, work, &hash)) {
    if (admission.seen.count(hash) != 0 || engine.miss_log.ghosts.count(hash) != 0) {
      ++admission.second_uses;
      return true;
    }
    admission.seen.insert(hash);
    admission.order.push_back(hash);
    if (admission.order.size() > kSeenBlocksMax) {
      admission.seen.erase(admission.order.front());
      admission.order.pop_front();
    }
  }
  ++admission.declined;
  admission.declined_tokens += work.count;
  return false;
}

}  // namespace kvtier
