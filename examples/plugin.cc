// A store plug-in in miniature: what a server's KV connector does with opaque keys, from an event
// loop, without a thread of its own.
//
//   plugin put KEY TEXT | get KEY | has KEY | drop KEY
#include <poll.h>

#include <cstdio>
#include <string>
#include <vector>

#include "kvtier/kvtier.hpp"

namespace {

// One operation; a connector submits up to 256 in a batch and goes on with its work until the
// descriptor becomes readable.
kvt_object_result run(kvtier::Client& client, std::int32_t verb, const std::string& key,
                      std::string* value) {
  kvt_object object{};
  object.key = key.data();
  object.key_bytes = static_cast<std::uint32_t>(key.size());
  if (value != nullptr) {
    object.value = value->data();
    object.value_bytes = value->size();
  }
  client.submit(verb, {object});
  for (;;) {
    pollfd event{client.objects_event_fd(), POLLIN, 0};
    ::poll(&event, 1, 100);
    const std::vector<kvt_object_result> results = client.poll(0);
    if (!results.empty()) return results.front();
  }
}

int finish(const kvt_object_result& result) {
  if (result.status == KVT_OK) return 0;
  std::fprintf(stderr, "%s\n", kvt_strerror(result.status));
  return 1;
}

int get(kvtier::Client& client, const std::string& key) {
  std::string value(16, '\0');
  kvt_object_result result = run(client, KVT_OBJECT_GET, key, &value);
  if (result.status == KVT_ERROR_TOO_LARGE) {  // says how long it is
    value.resize(result.value_bytes);
    result = run(client, KVT_OBJECT_GET, key, &value);
  }
  if (result.status != KVT_OK) return finish(result);
  std::printf("%.*s\n", static_cast<int>(result.value_bytes), value.data());
  return 0;
}

int usage(const char* program) {
  std::fprintf(stderr, "usage: %s put KEY TEXT | get KEY | has KEY | drop KEY\n", program);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 2) return usage(argv[0]);
  const std::string& key = arguments[1];
  try {
    kvtier::Client client;
    if (arguments[0] == "put" && arguments.size() == 3) {
      std::string value = arguments[2];
      return finish(run(client, KVT_OBJECT_SET, key, &value));
    }
    if (arguments[0] == "get") return get(client, key);
    if (arguments[0] == "has") return finish(run(client, KVT_OBJECT_EXISTS, key, nullptr));
    if (arguments[0] == "drop") return finish(run(client, KVT_OBJECT_DELETE, key, nullptr));
  } catch (const kvtier::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return usage(argv[0]);
}
