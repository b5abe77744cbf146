// Space: one model, runtime and layout.
#include "client/python/module.h"

namespace kvtier::python {
namespace {

kvt_match space_match(Space& self, const nb::object& ids) {
  const std::vector<std::uint32_t> list = to_ids(ids);
  kvt_match match{};
  self.run([&](kvt_space* s) { return kvt_space_match(s, list.data(), list.size(), &match); });
  return match;
}

std::shared_ptr<Sequence> space_create(const std::shared_ptr<Space>& self, const nb::object& ids,
                                       const std::optional<std::string>& name, bool private_only) {
  const std::vector<std::uint32_t> list = to_ids(ids);
  const kvt_sequence_options options = sequence_options(name, private_only);
  kvt_match match{};
  kvt_sequence* handle = nullptr;
  self->run([&](kvt_space* space) {
    return kvt_sequence_create(space, &options, list.data(), list.size(), &match, &handle);
  });
  auto sequence = wrap_sequence(self, handle);
  sequence->match = match;
  return sequence;
}

std::shared_ptr<Sequence> space_open_sequence(const std::shared_ptr<Space>& self,
                                              const std::optional<std::string>& name,
                                              std::optional<std::uint64_t> id, bool writable) {
  if (name.has_value() == id.has_value()) invalid("open a sequence by its name or by its id");
  kvt_sequence* handle = nullptr;
  self->run([&](kvt_space* space) {
    return kvt_sequence_open(space, or_null(name), id.value_or(0), writable ? 1 : 0, &handle);
  });
  return wrap_sequence(self, handle);
}

}  // namespace

std::shared_ptr<Space> open_space(const std::shared_ptr<Client>& client, const std::string& model,
                                  const std::string& runtime, const std::vector<Layer>& layers,
                                  const std::string& detail, std::uint16_t chunk_tokens,
                                  std::uint16_t heads_per_chunk,
                                  const std::optional<std::string>& preset, bool private_only,
                                  const std::string& rope_pairing,
                                  const std::vector<float>& rope_frequencies,
                                  std::uint32_t rope_positions) {
  kvt_space_options options;
  kvt_space_options_init(&options);
  std::vector<kvt_layer> raw;
  raw.reserve(layers.size());
  for (const Layer& layer : layers) raw.push_back(layer.raw);
  options.chunk_tokens = chunk_tokens;
  options.heads_per_chunk = heads_per_chunk;
  options.preset = or_null(preset);
  options.rope_pairing = static_cast<std::uint32_t>(
      pick(rope_pairing, {"none", "halves", "neighbours"}, "rope_pairing"));
  options.rope_frequencies = rope_frequencies.data();
  options.rope_frequency_count = static_cast<std::uint32_t>(rope_frequencies.size());
  options.rope_positions = rope_positions;
  options.model = model.c_str();
  options.runtime = runtime.c_str();
  options.detail = detail.c_str();
  options.layers = raw.data();
  options.layer_count = static_cast<std::uint32_t>(raw.size());
  options.private_only = private_only ? 1 : 0;
  auto space = std::make_shared<Space>();
  space->open = false;
  space->client = client;
  space->layers = layers;
  client->run([&](kvt_client* c) { return kvt_space_open(c, &options, &space->handle); });
  space->open = true;
  client->adopt(space);
  return space;
}

kvt_sequence_options sequence_options(const std::optional<std::string>& name, bool private_only) {
  kvt_sequence_options options;
  kvt_sequence_options_init(&options);
  options.name = or_null(name);
  options.private_only = private_only ? 1 : 0;
  return options;
}

std::shared_ptr<Sequence> wrap_sequence(const std::shared_ptr<Space>& space, kvt_sequence* handle) {
  auto sequence = std::make_shared<Sequence>();
  sequence->handle = handle;
  sequence->space = space;
  space->adopt(sequence);
  return sequence;
}

void bind_space(nb::module_& m) {
  auto space = nb::class_<Space>(m, "Space");
  space.def("match", &space_match, "ids"_a)
      .def("create", &space_create, "ids"_a = nb::none(), "name"_a = nb::none(),
           "private"_a = false)
      .def("open", &space_open_sequence, "name"_a = nb::none(), "id"_a = nb::none(),
           "writable"_a = true)
      .def_ro("client", &Space::client)
      .def_ro("layers", &Space::layers)
      .def_prop_ro("dtype", [](const Space& self) { return kDtypes[self.layer(0).raw.dtype]; });
  closable(space);
}

}  // namespace kvtier::python
