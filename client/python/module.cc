// The Python module kvtier._kvtier: the C interface (kvtier.h) as classes, one line per method in
// the tables of the module_*.cc files; module.h says who is where.
#include "client/python/module.h"

namespace kvtier::python {
namespace {

constexpr std::int64_t kDimMax = 1 << 16;

Layer make_layer(std::int64_t kv_heads, std::int64_t query_heads, std::int64_t dim,
                 const std::string& dtype, std::optional<std::int64_t> v_dim,
                 const std::string& kind, const std::string& rope) {
  Layer layer;
  layer.k_dim = in_range<std::uint32_t>(dim, "dim", 1, kDimMax);
  layer.v_dim = in_range<std::uint32_t>(v_dim.value_or(dim), "v_dim", 1, kDimMax);
  layer.raw.dtype = static_cast<std::uint8_t>(pick(dtype, kDtypes, "dtype"));
  layer.raw.kind = static_cast<std::uint8_t>(pick(kind, {"full", "sliding", "recurrent"}, "kind"));
  layer.raw.rope = static_cast<std::uint8_t>(pick(rope, {"after", "before", "none"}, "rope"));
  layer.raw.kv_heads = in_range<std::uint16_t>(kv_heads, "kv_heads", 1);
  layer.raw.query_heads = in_range<std::uint16_t>(query_heads, "query_heads", 1);
  if (query_heads % kv_heads != 0)
    invalid("query_heads must be a multiple of kv_heads, " + std::to_string(kv_heads) + ", not " +
            std::to_string(query_heads));
  layer.raw.k_row_bytes = layer.k_dim * kDtypeBytes[layer.raw.dtype];
  layer.raw.v_row_bytes = layer.v_dim * kDtypeBytes[layer.raw.dtype];
  return layer;
}

// As kvt_presets; what is broken is found in its list, or raised where it is asked for.
nb::object presets(const std::optional<std::string>& preset) {
  char* text = nullptr;
  blocking([&] { return kvt_presets(or_null(preset), &text); });
  const std::string copy = text;
  kvt_free(text);
  return nb::module_::import_("json").attr("loads")(copy);
}

}  // namespace
}  // namespace kvtier::python

NB_MODULE(_kvtier, m) {
  using namespace kvtier::python;
  make_error_classes(m);
  m.def("version", &kvt_version);
  m.def("abi_version", &kvt_abi_version);
  m.def("strerror", &kvt_strerror, "status"_a);
  m.def("presets", &presets, "preset"_a = nb::none());
  m.attr("BUDGET_PROFILE") = KVT_BUDGET_PROFILE;

  nb::class_<kvt_match>(m, "Match")
      .def_ro("tokens", &kvt_match::tokens)
      .def_ro("differs_at", &kvt_match::differs_at)
      .def_prop_ro("stored_token",
                   [](const kvt_match& self) {
                     return self.stored_token == UINT32_MAX ? std::nullopt
                                                            : std::optional(self.stored_token);
                   })
      .def_prop_ro("reason", [](const kvt_match& self) {
        static const char* names[] = {"all matched", "token differs", "nothing stored beyond",
                                      "nothing stored", "slower to load"};
        return self.reason < 5 ? names[self.reason] : "unknown";
      });

  nb::class_<Layer>(m, "Layer")
      .def(
          "__init__",
          [](Layer* self, std::int64_t kv_heads, std::int64_t query_heads, std::int64_t dim,
             const std::string& dtype, std::optional<std::int64_t> v_dim, const std::string& kind,
             const std::string& rope) {
            new (self) Layer(make_layer(kv_heads, query_heads, dim, dtype, v_dim, kind, rope));
          },
          nb::kw_only(), "kv_heads"_a, "query_heads"_a, "dim"_a, "dtype"_a = "f32",
          "v_dim"_a = nb::none(), "kind"_a = "full", "rope"_a = "after")
      .def_prop_ro("kv_heads", [](const Layer& self) { return self.raw.kv_heads; })
      .def_prop_ro("query_heads", [](const Layer& self) { return self.raw.query_heads; })
      .def_prop_ro("dtype", [](const Layer& self) { return kDtypes[self.raw.dtype]; })
      .def_ro("dim", &Layer::k_dim)
      .def_ro("v_dim", &Layer::v_dim);

  bind_client(m);
  bind_space(m);
  bind_sequence(m);
  bind_view(m);
}
