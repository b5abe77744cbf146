// CatalogueEnv: the RocksDB Env that a catalogue runs on. Internal: RocksDB's headers enter here,
// so only catalogue*.cc may include this file.
#pragma once

#include <rocksdb/env.h>

#include <memory>
#include <utility>

namespace kvtier {

class CatalogueEnv {
 public:
  // `stepwise`: no work of RocksDB may run while no call of ours is in progress. The catalogue then
  // flushes inside write() and waits for the background to come to rest, and never compacts.
  CatalogueEnv(std::unique_ptr<rocksdb::Env> env, bool stepwise)
      : env_(std::move(env)), stepwise_(stepwise) {}
  virtual ~CatalogueEnv() = default;
  CatalogueEnv(const CatalogueEnv&) = delete;
  CatalogueEnv& operator=(const CatalogueEnv&) = delete;
  // A catalogue is about to open: a new process, to a simulated disk.
  virtual void start() {}
  [[nodiscard]] rocksdb::Env* env() const noexcept { return env_.get(); }
  [[nodiscard]] bool stepwise() const noexcept { return stepwise_; }

 private:
  std::unique_ptr<rocksdb::Env> env_;
  bool stepwise_;
};

}  // namespace kvtier
