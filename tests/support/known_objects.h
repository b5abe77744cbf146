// KnownObjects: values under opaque keys whose bytes follow from a number, through any crash of the
// daemon. Remembers for each key what was acknowledged and what may have taken its place since.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/random.h"
#include "kvtier/kvtier.h"

namespace kvtier::testing {

class KnownObjects {
 public:
  explicit KnownObjects(std::uint64_t seed) : random_(seed) {}

  // A batch of sets of a few of the keys; waits for their results, but not long.
  void set_some(kvt_client* client);
  // Every key has one of the values that it may have; that one it must have from now on. "" or what
  // is wrong.
  [[nodiscard]] std::string check(kvt_client* client);
  [[nodiscard]] std::size_t acknowledged() const { return acknowledged_; }

 private:
  struct Known {
    bool must_exist = false;
    std::vector<std::string> values;
  };
  [[nodiscard]] std::string make_value();

  Random random_;
  std::map<std::string, Known> known_;
  std::size_t acknowledged_ = 0;
};

}  // namespace kvtier::testing
