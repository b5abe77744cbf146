// The C interface: views.
#include <algorithm>
#include <cstddef>

#include "client/c_abi.h"
#include "client/preset_files.h"
#include "client/view.h"

using kvtier::Result;

struct kvt_view {
  std::shared_ptr<kvtier::View> object;
};

void kvt_view_options_init(kvt_view_options* options) {
  *options = {};
  options->struct_size = sizeof *options;
  options->sinks = 16;
  options->window = 64;
  options->wait_ms = 10000;
}

kvt_status kvt_view_open(kvt_sequence* sequence, const kvt_view_options* options, kvt_view** out) {
  return kvtier::with_sequence(sequence, [&](kvtier::Sequence&) -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(out));
    *out = nullptr;
    kvt_view_options taken;
    kvt_view_options_init(&taken);
    if (options != nullptr) {
      KVT_TRY_VOID(kvtier::take_options(options, &taken, kvt_view_options_init));
    }
    kvtier::ViewOptions wanted;
    wanted.sinks = taken.sinks;
    wanted.window = taken.window;
    wanted.budget = taken.budget;
    wanted.capacity = taken.capacity;
    wanted.wait_ms = taken.wait_ms;
    if (taken.preset != nullptr) wanted.preset = taken.preset;
    KVT_TRY(std::shared_ptr<kvtier::View> view, kvtier::View::open(sequence->object, wanted));
    *out = new kvt_view{std::move(view)};
    return {};
  });
}

kvt_status kvt_presets(const char* preset, char** out_json) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(out_json));
    *out_json = nullptr;
    if (preset == nullptr)
      return kvtier::give_text(kvtier::dump_json(kvtier::list_presets()), out_json);
    KVT_TRY(const kvtier::Json one, kvtier::describe_preset(preset));
    return kvtier::give_text(kvtier::dump_json(one), out_json);
  });
}

void kvt_sequence_observe_queries(kvt_sequence* sequence, uint32_t layer, uint32_t queries,
                                  const float* q) {
  if (q == nullptr || queries == 0) return;
  static_cast<void>(kvtier::with_sequence(sequence, [&](kvtier::Sequence& self) -> Result<void> {
    self.observe_queries(layer, queries, q);
    return {};
  }));
}

void kvt_view_close(kvt_view* view) {
  if (view == nullptr || !view->object->sequence().space().client().check_process()) return;
  delete view;
}

kvt_status kvt_view_attend(kvt_view* view, uint32_t layer, uint32_t queries, const float* q,
                           float scale, float* out, float* lse) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(view, q, out));
    KVT_TRY_VOID(view->object->sequence().space().client().check_process());
    return view->object->attend(layer, queries, q, scale, out, lse);
  });
}

kvt_status kvt_view_look_ahead(kvt_view* view, uint32_t layer, const float* q, float scale) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(view, q));
    KVT_TRY_VOID(view->object->sequence().space().client().check_process());
    return view->object->look_ahead(layer, q, scale);
  });
}

int kvt_view_looks_ahead(const kvt_view* view) {
  return view != nullptr && view->object->looks_ahead() ? 1 : 0;
}

const char* kvt_view_kernels(const kvt_view* view) {
  return view != nullptr ? view->object->kernels().name : "";
}

const char* kvt_view_preset(const kvt_view* view) {
  return view != nullptr ? view->object->preset_text().c_str() : "";
}

kvt_status kvt_view_get_stats(const kvt_view* view, kvt_view_stats* out) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(view, out));
    KVT_TRY_VOID(view->object->sequence().space().client().check_process());
    // `struct_size` says how much of the struct the caller knows; 0 counts as all of the first
    // version, which ended with mass_sum: more would be written behind an older caller's struct.
    constexpr uint32_t kFirstVersionBytes = offsetof(kvt_view_stats, rows_base);
    static_assert(kFirstVersionBytes == 120);
    const uint32_t size = out->struct_size == 0 ? kFirstVersionBytes : out->struct_size;
    if (size < 2 * sizeof(uint32_t))
      return kvtier::error(kvtier::Code::kInvalid, "struct_size is not set");
    const kvtier::ViewStats from = view->object->stats();
    const kvt_view_stats all = {size,
                                0,
                                from.steps,
                                from.selections,
                                from.rows_attended,
                                from.rows_fetched,
                                from.chunks_fetched,
                                from.bytes_host,
                                from.bytes_disk,
                                from.wait_ns,
                                from.client_bytes,
                                from.abstract_bytes,
                                from.units_scored,
                                from.units_missing,
                                from.rows_selected,
                                from.mass_sum,
                                from.rows_base,
                                from.rows_refined,
                                from.steps_refined,
                                from.base_bytes,
                                from.base_mass_sum,
                                from.base_error_sum,
                                from.steps_repeated,
                                from.steps_waited,
                                from.rows_waited,
                                from.bound_steps,
                                from.bound_sum,
                                from.bound_max,
                                from.rows_rebuilt,
                                from.rows_hinted,
                                from.bound_last};
    std::memcpy(out, &all, std::min<std::size_t>(size, sizeof all));
    return {};
  });
}
