#include "tests/support/known_objects.h"

#include <algorithm>

namespace kvtier::testing {

namespace {

constexpr std::uint32_t kKeys = 6;
constexpr std::uint64_t kValueBytesMax = 300'000;

kvt_object object_of(const std::string& key, std::string* value) {
  return {key.data(), static_cast<std::uint32_t>(key.size()), 0, value->data(), value->size()};
}

}  // namespace

std::string KnownObjects::make_value() {
  std::string value(static_cast<std::size_t>(random_.below(kValueBytesMax)), '\0');
  std::uint64_t state = random_.next();
  for (char& c : value) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    c = static_cast<char>(state >> 56);
  }
  return value;
}

void KnownObjects::set_some(kvt_client* client) {
  std::vector<std::string> keys, values;
  const std::uint64_t first = random_.below(kKeys);
  for (std::uint64_t i = 0; i < 3; ++i) {
    keys.push_back("key " + std::to_string((first + i) % kKeys));
    values.push_back(make_value());
    known_[keys.back()].values.push_back(values.back());
  }
  std::vector<kvt_object> objects;
  for (std::size_t i = 0; i < keys.size(); ++i) objects.push_back(object_of(keys[i], &values[i]));
  std::uint64_t batch = 0;
  if (kvt_objects_submit(client, KVT_OBJECT_SET, objects.data(), 3, &batch) != KVT_OK) return;
  std::uint32_t done = 0;
  for (int i = 0; i < 10 && done < keys.size(); ++i) {
    kvt_object_result results[3];
    std::uint32_t count = 0;
    if (kvt_objects_poll(client, results, 3, 100, &count) != KVT_OK) return;
    for (std::uint32_t r = 0; r < count; ++r) {
      if (results[r].batch != batch) continue;
      ++done;
      if (results[r].status != KVT_OK) continue;
      ++acknowledged_;
      known_[keys[results[r].index]] = {true, {values[results[r].index]}};
    }
  }
}

std::string KnownObjects::check(kvt_client* client) {
  for (auto& [key, known] : known_) {
    std::string room(kValueBytesMax, '\0');
    kvt_object object = object_of(key, &room);
    std::uint64_t batch = 0;
    if (kvt_objects_submit(client, KVT_OBJECT_GET, &object, 1, &batch) != KVT_OK)
      return key + ": " + kvt_last_error();
    kvt_object_result result{};
    std::uint32_t count = 0;
    for (int i = 0; i < 100 && (count == 0 || result.batch != batch); ++i)
      if (kvt_objects_poll(client, &result, 1, 100, &count) != KVT_OK)
        return key + ": " + kvt_last_error();
    if (count == 0) return key + ": no answer";
    if (result.status == KVT_ERROR_MISS && !known.must_exist) {
      known.values.clear();
      continue;
    }
    if (result.status != KVT_OK) return key + ": status " + std::to_string(result.status);
    room.resize(static_cast<std::size_t>(result.value_bytes));
    if (std::find(known.values.begin(), known.values.end(), room) == known.values.end())
      return key + ": WRONG BYTES SERVED";
    known = {true, {room}};
  }
  return "";
}

}  // namespace kvtier::testing
