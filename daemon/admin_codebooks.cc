// codebooks: what the key codes of each space refer to. Files are read and checked for it, one
// after the other, and nothing is loaded.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "daemon/admin.h"
#include "daemon/codebooks.h"
#include "daemon/engine_state.h"

namespace kvtier {
namespace {

struct Listing {
  struct Item {
    const StoredSpace* space = nullptr;
    AbstractSpec spec;
    std::uint64_t id = 0;  // 0: none yet
  };
  std::vector<Item> items;
  std::size_t next = 0;
  Json list = Json::array();
  ControlDone done;
};

// Whether it serves now. A file that cannot be used says why in "problem".
const char* state_name(CodebookState state) {
  switch (state) {
    case CodebookState::kReady:
      return "in use";
    case CodebookState::kTraining:
      return "in training";
    case CodebookState::kLoading:
    case CodebookState::kAbsent:
    case CodebookState::kFailed:
      break;
  }
  return "stored";
}

Json entry_of(EngineState& engine, const Listing::Item& item, const Codebook* codebook) {
  Json entry{{"space", item.space->row.id.value},
             {"model", item.space->row.model},
             {"kind", item.spec.text()},
             {"id", item.id},
             {"state", state_name(codebook_of(engine, *item.space, item.spec).state)}};
  if (item.space->in_memory_only(item.id)) entry["in_memory"] = true;
  if (codebook == nullptr) return entry;
  CodebookHeader header;
  std::memcpy(&header, codebook->payload.data(), sizeof(header));
  entry["keys_per_head"] = header.training_rows;
  entry["query_tokens"] = header.training_queries;
  entry["positions"] = header.positions;
  entry["bytes"] = codebook->payload.size();
  return entry;
}

// To stats and doctor, from now on.
void note_problem(EngineState& engine, const Listing::Item& item, const Status& status) {
  const char*& problem = codebook_of(engine, *item.space, item.spec).problem;
  if (status.ok()) problem = nullptr;
  if (status.code == Code::kNotFound || status.code == Code::kCorrupt) problem = status.message();
}

void next_item(EngineState& engine, const std::shared_ptr<Listing>& listing) {
  while (listing->next < listing->items.size()) {
    const Listing::Item item = listing->items[listing->next++];
    const SpaceCodebook& held = codebook_of(engine, *item.space, item.spec);
    if (held.codebook != nullptr || item.id == 0 || item.space->in_memory_only(item.id)) {
      listing->list.push_back(entry_of(engine, item, held.codebook.get()));
      continue;
    }
    return read_codebook(engine, *item.space, item.spec, item.id,
                         [&engine, listing, item](Result<std::shared_ptr<const Codebook>> read) {
                           Json entry = entry_of(engine, item, read ? read->get() : nullptr);
                           if (!read) entry["problem"] = read.error().message();
                           note_problem(engine, item, read ? Status{} : read.error());
                           listing->list.push_back(std::move(entry));
                           next_item(engine, listing);
                         });
  }
  listing->done(ControlReply{Json{{"codebooks", std::move(listing->list)}}, {}, {}});
}

void op_codebooks(EngineState& engine, Session&, ControlRequest, ControlDone done) {
  auto listing = std::make_shared<Listing>();
  for (const auto& [id, space] : engine.spaces)
    for (std::uint32_t lane = 0; lane < space->lanes(); ++lane) {
      const AbstractSpec spec = space->lane_spec(lane);
      if (spec.abstract != AbstractKind::kCodes) continue;
      const std::uint64_t codebook = codebook_id(*space, spec);
      const CodebookState state = codebook_of(engine, *space, spec).state;
      if (codebook != 0 || state == CodebookState::kTraining)
        listing->items.push_back({space.get(), spec, codebook});
    }
  std::sort(listing->items.begin(), listing->items.end(), [](const auto& a, const auto& b) {
    return std::pair(a.space->row.id.value, a.id) < std::pair(b.space->row.id.value, b.id);
  });
  listing->done = std::move(done);
  next_item(engine, listing);
}

}  // namespace

std::span<const ControlOp> codebook_ops() {
  static constexpr ControlOp kOps[] = {{"codebooks", false, op_codebooks}};
  return kOps;
}

}  // namespace kvtier
