// Peer: a Python process with torch, which measures what the issue of saved caches and attention
// looks like without kvtier (peer.py). One thread.
#pragma once

#include <cstdio>
#include <string>

#include "base/result.h"

namespace kvtier::bench {

class Peer {
 public:
  // Starts `python` on peer.py and waits until torch is loaded. kNotFound where `python` is empty
  // or has no torch or safetensors.
  [[nodiscard]] static Result<Peer> start(const std::string& python);
  Peer(Peer&& other) noexcept;
  Peer& operator=(Peer&&) = delete;
  ~Peer();  // ends it
  // One line of peer.py's table; the number of its answer.
  [[nodiscard]] Result<double> ask(const std::string& line);

 private:
  Peer() = default;
  [[nodiscard]] Result<double> answer();

  int pid_ = -1;
  FILE* to_ = nullptr;
  FILE* from_ = nullptr;
};

}  // namespace kvtier::bench
