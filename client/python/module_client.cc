// Client: the daemon, admin requests, opaque objects.
#include <algorithm>

#include "client/python/module.h"

namespace kvtier::python {
namespace {

std::shared_ptr<Client> open_client(const std::optional<std::string>& socket_path, bool autostart,
                                    const std::optional<std::string>& daemon_path,
                                    const std::optional<std::string>& name,
                                    std::int64_t timeout_ms) {
  kvt_client_options options;
  kvt_client_options_init(&options);
  options.socket_path = or_null(socket_path);
  options.autostart = autostart ? 1 : 0;
  options.daemon_path = or_null(daemon_path);
  options.name = or_null(name);
  options.timeout_ms = in_range<std::uint32_t>(timeout_ms, "timeout_ms", 0);
  auto client = std::make_shared<Client>();
  client->open = false;
  blocking([&] { return kvt_client_open(&options, &client->handle); });
  client->open = true;
  return client;
}

nb::object client_request(Client& self, const nb::dict& request) {
  nb::module_ json = nb::module_::import_("json");
  const std::string text = nb::cast<std::string>(json.attr("dumps")(request));
  char* reply = nullptr;
  self.run([&](kvt_client* client) { return kvt_client_request(client, text.c_str(), &reply); });
  const std::string copy = reply != nullptr ? reply : "null";
  kvt_free(reply);
  return json.attr("loads")(copy);
}

// One value: contiguous, and for get writable; never a converted copy, which the C side would fill
// in vain.
Client::Value take_value(const nb::object& value, bool writable) {
  Client::Value readable;
  nb::ndarray<nb::c_contig, nb::device::cpu> room;
  if (writable && nb::try_cast(value, room, false)) return Client::Value(room);
  if (writable || !nb::try_cast(value, readable, false)) {
    invalid(writable ? "values of get: contiguous, writable arrays or buffers"
                     : "values of set: contiguous arrays or buffers");
  }
  return readable;
}

std::uint64_t objects_submit(Client& self, const std::string& verb,
                             const std::vector<nb::bytes>& keys,
                             std::optional<std::vector<nb::object>> values) {
  const int number = pick(verb, {"set", "get", "exists", "delete"}, "verb");
  const bool wants_values = number <= KVT_OBJECT_GET;
  if (values.has_value() != wants_values || (values && values->size() != keys.size())) {
    invalid("set and get take one value buffer per key; exists and delete none");
  }
  Client::Batch batch;
  std::vector<kvt_object> objects(keys.size());
  for (const nb::bytes& key : keys) batch.keys.emplace_back(key.c_str(), key.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    objects[i].key = batch.keys[i].data();
    objects[i].key_bytes =
        static_cast<std::uint32_t>(std::min<std::size_t>(batch.keys[i].size(), UINT32_MAX));
    if (!wants_values) continue;
    batch.values.push_back(take_value((*values)[i], number == KVT_OBJECT_GET));
    // The C struct serves set and get; set only reads.
    objects[i].value = const_cast<void*>(batch.values[i].data());
    objects[i].value_bytes = batch.values[i].nbytes();
  }
  batch.left = keys.size();
  std::uint64_t id = 0;
  self.run([&](kvt_client* client) {
    // Held over both: another thread may poll results of this batch at once.
    const std::lock_guard<std::mutex> lock(self.batches_mutex);
    const kvt_status status = kvt_objects_submit(client, number, objects.data(),
                                                 static_cast<std::uint32_t>(objects.size()), &id);
    if (status == KVT_OK) self.batches.emplace(id, std::move(batch));
    return status;
  });
  return id;
}

nb::list objects_poll(Client& self, std::uint32_t room, std::uint32_t timeout_ms) {
  std::vector<kvt_object_result> results(std::min<std::uint32_t>(room, 4096));
  std::vector<Client::Batch> finished;  // let go with the GIL held
  std::uint32_t count = 0;
  self.run([&](kvt_client* client) {
    const kvt_status status = kvt_objects_poll(
        client, results.data(), static_cast<std::uint32_t>(results.size()), timeout_ms, &count);
    const std::lock_guard<std::mutex> lock(self.batches_mutex);
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto found = self.batches.find(results[i].batch);
      if (found == self.batches.end() || --found->second.left != 0) continue;
      finished.push_back(std::move(found->second));
      self.batches.erase(found);
    }
    return status;
  });
  nb::list list;
  for (std::uint32_t i = 0; i < count; ++i) {
    const kvt_object_result& r = results[i];
    list.append(nb::make_tuple(r.batch, r.index, r.status, r.value_bytes));
  }
  return list;
}

int objects_event_fd(Client& self) {
  int fd = -1;
  self.run([&](kvt_client* client) {
    fd = kvt_objects_event_fd(client);
    return KVT_OK;
  });
  return fd;
}

}  // namespace

void bind_client(nb::module_& m) {
  auto client = nb::class_<Client>(m, "Client");
  client
      .def(nb::new_(&open_client), "socket_path"_a = nb::none(), "autostart"_a = true,
           "daemon_path"_a = nb::none(), "name"_a = nb::none(), "timeout_ms"_a = 10000)
      .def("request", &client_request, "request"_a)
      .def("open_space", &open_space, nb::kw_only(), "model"_a, "runtime"_a, "layers"_a,
           "detail"_a = "", "chunk_tokens"_a = 32, "heads_per_chunk"_a = 1, "preset"_a = nb::none(),
           "private"_a = false, "rope_pairing"_a = "none",
           "rope_frequencies"_a = std::vector<float>(), "rope_positions"_a = 0)
      .def("objects_submit", &objects_submit, "verb"_a, "keys"_a, "values"_a = nb::none())
      .def("objects_poll", &objects_poll, "room"_a = 256, "timeout_ms"_a = 0)
      .def("objects_event_fd", &objects_event_fd);
  closable(client);
}

}  // namespace kvtier::python
