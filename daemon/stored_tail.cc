#include "daemon/stored_tail.h"

#include "daemon/engine_state.h"
#include "daemon/log_reader.h"

namespace kvtier {

void seal_stored_tail(EngineState& engine, SequenceId id, MetaDone done) {
  StoredSequence& sequence = *engine.sequences.all.at(id);
  const auto finish = [&engine, id, done](Result<void> result) {
    done(result);
    work_finished(engine, *engine.sequences.all.at(id));
  };
  const Result<std::shared_ptr<TailMemory>> tail = make_tail_memory(engine, *sequence.space);
  if (!tail) return finish(error(tail.error()));
  load_log(engine, sequence, *tail, [&engine, id, done, finish, tail = *tail](Result<void> loaded) {
    StoredSequence& found = *engine.sequences.all.at(id);
    if (!loaded || found.log.tokens == 0) return finish(loaded);
    learn_chain(engine, found, [&engine, id, done, finish, tail](Result<void> known) {
      if (!known) return finish(known);
      StoredSequence& sealing = *engine.sequences.all.at(id);
      TailWork seal;
      seal.tail = tail;
      seal.count = sealing.log.tokens;
      seal.done = [&engine, id, done](Result<TailResult> sealed) {
        StoredSequence& behind = *engine.sequences.all.at(id);
        if (behind.writer == nullptr) behind.chain_known = false;
        done(sealed ? Result<void>() : error(sealed.error()));
      };
      sealing.work.push_front(std::move(seal));
      work_finished(engine, sealing);
    });
  });
}

}  // namespace kvtier
