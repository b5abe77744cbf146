// View: attention over a sequence.
#include <cmath>

#include "client/python/module.h"

namespace kvtier::python {
namespace {

nb::tuple view_attend(View& self, std::uint32_t layer, const ConstArray& q,
                      std::optional<float> scale, const nb::object& out, const nb::object& lse) {
  const Layer& geometry = self.sequence->space->layer(layer);
  const bool single = q.ndim() == 2;
  const std::size_t queries = single ? 1 : q.ndim() == 3 ? q.shape(0) : 0;
  const std::size_t heads = geometry.raw.query_heads;
  if (queries == 0 || queries > UINT32_MAX || q.shape(q.ndim() - 2) != heads ||
      q.shape(q.ndim() - 1) != geometry.k_dim) {
    invalid("q must be [queries, query_heads, dim] or [query_heads, dim] = [" +
            std::to_string(heads) + ", " + std::to_string(geometry.k_dim) + "]");
  }
  const Floats floats = to_floats(q, "q");
  const auto numpy_empty = [&](std::vector<std::size_t> shape) {
    if (!single) shape.insert(shape.begin(), queries);
    return nb::object(
        nb::module_::import_("numpy").attr("empty")(nb::cast(shape), "dtype"_a = "float32"));
  };
  const nb::object out_object = out.is_none() ? numpy_empty({heads, geometry.v_dim}) : out;
  const nb::object lse_object = lse.is_none() ? numpy_empty({heads}) : lse;
  // Never converted: what is written to a copy would be lost.
  FloatArray out_array, lse_array;
  if (!nb::try_cast(out_object, out_array, false) || !nb::try_cast(lse_object, lse_array, false) ||
      out_array.size() != queries * heads * geometry.v_dim || lse_array.size() != queries * heads) {
    invalid(
        "out must be [.., query_heads, v_dim] and lse [.., query_heads], float32 and contiguous");
  }
  const float factor = scale.value_or(1.0F / std::sqrt(static_cast<float>(geometry.k_dim)));
  self.run([&](kvt_view* view) {
    return kvt_view_attend(view, layer, static_cast<std::uint32_t>(queries), floats.data(), factor,
                           out_array.data(), lse_array.data());
  });
  return nb::make_tuple(out_object, lse_object);
}

void view_look_ahead(View& self, std::uint32_t layer, const ConstArray& q,
                     std::optional<float> scale) {
  const Layer& geometry = self.sequence->space->layer(layer);
  if (q.ndim() != 2 || q.shape(0) != geometry.raw.query_heads || q.shape(1) != geometry.k_dim)
    invalid("q must be [query_heads, dim] = [" + std::to_string(geometry.raw.query_heads) + ", " +
            std::to_string(geometry.k_dim) + "]");
  const Floats floats = to_floats(q, "q");
  const float factor = scale.value_or(1.0F / std::sqrt(static_cast<float>(geometry.k_dim)));
  self.run([&](kvt_view* view) { return kvt_view_look_ahead(view, layer, floats.data(), factor); });
}

const char* view_kernels(View& self) {
  const char* name = "";
  self.run([&](kvt_view* view) {
    name = kvt_view_kernels(view);
    return KVT_OK;
  });
  return name;
}

bool view_looks_ahead(View& self) {
  bool looks = false;
  self.run([&](kvt_view* view) {
    looks = kvt_view_looks_ahead(view) != 0;
    return KVT_OK;
  });
  return looks;
}

nb::dict view_stats(View& self) {
  kvt_view_stats stats{};
  stats.struct_size = sizeof(stats);
  std::string preset;
  self.run([&](kvt_view* view) {
    preset = kvt_view_preset(view);
    return kvt_view_get_stats(view, &stats);
  });
  nb::dict d;
  d["steps"] = stats.steps;
  d["selections"] = stats.selections;
  d["rows_attended"] = stats.rows_attended;
  d["rows_fetched"] = stats.rows_fetched;
  d["chunks_fetched"] = stats.chunks_fetched;
  d["bytes_host"] = stats.bytes_host;
  d["bytes_disk"] = stats.bytes_disk;
  d["wait_ns"] = stats.wait_ns;
  d["client_bytes"] = stats.client_bytes;
  d["abstract_bytes"] = stats.abstract_bytes;
  d["units_scored"] = stats.units_scored;
  d["units_missing"] = stats.units_missing;
  d["rows_selected"] = stats.rows_selected;
  d["mass_sum"] = stats.mass_sum;
  d["rows_base"] = stats.rows_base;
  d["rows_refined"] = stats.rows_refined;
  d["steps_refined"] = stats.steps_refined;
  d["base_bytes"] = stats.base_bytes;
  d["base_mass_sum"] = stats.base_mass_sum;
  d["base_error_sum"] = stats.base_error_sum;
  d["steps_repeated"] = stats.steps_repeated;
  d["steps_waited"] = stats.steps_waited;
  d["rows_waited"] = stats.rows_waited;
  d["bound_steps"] = stats.bound_steps;
  d["bound_sum"] = stats.bound_sum;
  d["bound_max"] = stats.bound_max;
  d["rows_rebuilt"] = stats.rows_rebuilt;
  d["rows_hinted"] = stats.rows_hinted;
  d["bound_last"] = stats.bound_last;
  d["preset"] = preset;
  return d;
}

}  // namespace

std::shared_ptr<View> sequence_view(const std::shared_ptr<Sequence>& self, std::uint64_t budget,
                                    std::uint32_t sinks, std::uint32_t window,
                                    std::uint64_t capacity, const std::string& preset,
                                    std::uint32_t wait_ms) {
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.budget = budget;
  options.sinks = sinks;
  options.window = window;
  options.capacity = capacity;
  options.preset = preset.c_str();
  options.wait_ms = wait_ms;
  auto view = std::make_shared<View>();
  view->open = false;
  view->sequence = self;
  self->run([&](kvt_sequence* s) { return kvt_view_open(s, &options, &view->handle); });
  view->open = true;
  self->adopt(view);
  return view;
}

void bind_view(nb::module_& m) {
  auto view = nb::class_<View>(m, "View");
  view.def("attend", &view_attend, "layer"_a, "q"_a, "scale"_a = nb::none(), "out"_a = nb::none(),
           "lse"_a = nb::none())
      .def("look_ahead", &view_look_ahead, "layer"_a, "q"_a, "scale"_a = nb::none())
      .def_prop_ro("looks_ahead", &view_looks_ahead)
      .def_prop_ro("kernels", &view_kernels)
      .def("stats", &view_stats);
  closable(view);
}

}  // namespace kvtier::python
