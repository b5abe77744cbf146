// One decode step without the model: K and V of a token written, attention of all layers; float32,
// everything in host memory. The peer is SDPA on a preallocated cache in torch, as it is called
// with grouped queries or with each group folded into its KV head, whichever is faster.
#include <cstdio>

#include "tools/bench/bench.h"
#include "tools/bench/model.h"
#include "tools/bench/peer.h"

namespace kvtier::bench {
namespace {

Result<double> decode_step(kvt_sequence* sequence, kvt_view* view, Writer* writer) {
  Shape shape;
  shape.dtype = KVT_DTYPE_F32;
  std::vector<float> q(std::size_t{shape.query_heads} * kDim, 0.05f), out(q.size());
  const kvt_token token = writer->next_token(kvt_sequence_length(sequence));
  const double start = seconds_now();
  KVT_TRY_VOID(check(kvt_sequence_append(sequence, &token, 1)));
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    KVT_TRY_VOID(writer->write_layer(sequence, layer, 1));
    q[layer] = -q[layer];  // another query in every layer
    KVT_TRY_VOID(check(kvt_view_attend(view, layer, 1, q.data(), 0.125f, out.data(), nullptr)));
  }
  KVT_TRY_VOID(check(kvt_sequence_finish_piece(sequence)));
  return (seconds_now() - start) * 1e3;
}

}  // namespace

Result<void> bench_decode(const Context& context, std::vector<Figure>* figures) {
  Shape shape;
  shape.dtype = KVT_DTYPE_F32;
  const std::uint64_t tokens = context.smoke() ? 4096 : 7168;
  KVT_TRY(const SessionStore store, session_store(context, shape, tokens));
  KVT_TRY(const OwnDaemon daemon, OwnDaemon::start(context, store.path, {}));
  KVT_TRY(const ClientPtr client, open_client(daemon.socket()));
  KVT_TRY(const SpacePtr space, open_space(client.get(), shape));
  KVT_TRY(const SequencePtr sequence, open_sequence(space.get(), "session", true));
  KVT_TRY(const ViewPtr budget, open_view(sequence.get(), 1024));
  KVT_TRY(const ViewPtr all, open_view(sequence.get(), 0));
  Writer writer(shape);
  const auto step = [&](kvt_view* view) {
    return [&, view] { return decode_step(sequence.get(), view, &writer); };
  };
  KVT_TRY_VOID(step(budget.get())());  // from disk
  KVT_TRY_VOID(step(all.get())());
  std::vector<Measure> measures = {step(budget.get()), step(all.get())};
  Result<Peer> peer = Peer::start(context.smoke() ? "" : context.python_path);
  if (peer) {
    KVT_TRY_VOID(peer->ask("allocate " + std::to_string(tokens)));
    for (const char* word : {"sdpa", "folded"}) {
      KVT_TRY_VOID(peer->ask(word));
      measures.push_back([&, word]() -> Result<double> {
        KVT_TRY(const double seconds, peer->ask(word));
        return seconds * 1e3;
      });
    }
  }
  KVT_TRY(const auto columns, interleave(context.rounds(21, 61), measures));
  const auto add = [&](const char* metric, std::size_t ours, std::size_t theirs,
                       const char* ceiling_name, const std::string& note) {
    Figure figure = compare(metric, columns[ours], columns[theirs]);
    figure.unit = "ms";
    figure.ceiling_name = ceiling_name;
    figure.note = note;
    figures->push_back(figure);
  };
  if (peer) {
    const double gqa = median(columns[2]), folded = median(columns[3]);
    const std::size_t best = folded < gqa ? 3 : 2;
    const char* name = best == 3 ? "ms SDPA, groups folded" : "ms SDPA, preallocated cache";
    char note[96];
    std::snprintf(note, sizeof note, "KV part, 30 layers; SDPA %.3g ms, groups folded %.3g ms", gqa,
                  folded);
    add("decode step, budget = all", 1, best, name, note);
    add("decode step, budget 1,024", 0, best, name, note);
  } else {
    add("decode step, budget 1,024", 0, 1, "ms budget = all",
        context.smoke() ? "" : peer.error().message());
  }
  return {};
}

}  // namespace kvtier::bench
