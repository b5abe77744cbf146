// Sequence: tokens and their rows.
#include <algorithm>

#include "client/python/module.h"

namespace kvtier::python {
namespace {

std::shared_ptr<Sequence> sequence_fork(Sequence& self, std::optional<std::uint64_t> tokens,
                                        const std::optional<std::string>& name, bool private_only) {
  const kvt_sequence_options options = sequence_options(name, private_only);
  kvt_sequence* handle = nullptr;
  self.run([&](kvt_sequence* s) {
    return kvt_sequence_fork(s, tokens.value_or(UINT64_MAX), &options, &handle);
  });
  return wrap_sequence(self.space, handle);
}

std::uint64_t sequence_id(Sequence& self) {
  std::uint64_t id = 0;
  self.run([&](kvt_sequence* s) {
    id = kvt_sequence_id(s);
    return KVT_OK;
  });
  return id;
}

std::uint64_t sequence_length(Sequence& self) {
  std::uint64_t length = 0;
  self.run([&](kvt_sequence* s) {
    length = kvt_sequence_length(s);
    return KVT_OK;
  });
  return length;
}

// [count, 4] uint32: id, position, flags, span.
nb::ndarray<nb::numpy, std::uint32_t, nb::ndim<2>> sequence_tokens(
    Sequence& self, std::uint64_t first, std::optional<std::uint64_t> count) {
  static_assert(sizeof(kvt_token) == 4 * sizeof(std::uint32_t));
  const std::uint64_t length = sequence_length(self);
  if (first > length || count.value_or(0) > length - first)
    invalid("tokens beyond the end of the sequence");
  const std::uint64_t n = count.value_or(length - first);
  auto rows = std::make_unique<kvt_token[]>(n);
  if (n > 0)
    self.run([&](kvt_sequence* s) { return kvt_sequence_tokens(s, first, n, rows.get()); });
  auto* data = reinterpret_cast<std::uint32_t*>(rows.get());
  nb::capsule owner(rows.release(), [](void* p) noexcept { delete[] static_cast<kvt_token*>(p); });
  return {data, {n, 4}, owner};
}

// One bytes object per token.
nb::list sequence_texts(Sequence& self, std::uint64_t first, std::optional<std::uint64_t> count) {
  const std::uint64_t length = sequence_length(self);
  if (first > length || count.value_or(0) > length - first)
    invalid("tokens beyond the end of the sequence");
  const std::uint64_t n = count.value_or(length - first);
  std::vector<std::uint16_t> bytes(n);
  std::string all(n * 8, '\0');
  self.run([&](kvt_sequence* s) {
    std::uint64_t total = 0;
    const auto read = [&] {
      return kvt_sequence_texts(s, first, n, bytes.data(), all.data(), all.size(), &total);
    };
    const kvt_status status = read();
    if (status != KVT_ERROR_TOO_LARGE || total <= all.size()) return status;
    all.resize(total);
    return read();
  });
  nb::list out;
  std::size_t at = 0;
  for (const std::uint16_t size : bytes) {
    out.append(nb::bytes(all.data() + at, size));
    at += size;
  }
  return out;
}

// The texts of an append, one after the other; each a str or bytes.
struct Texts {
  std::vector<std::uint16_t> bytes;
  std::string all;
};
Texts to_texts(const nb::object& source) {
  Texts texts;
  for (const nb::handle text : nb::iter(source)) {
    std::string given;
    if (nb::isinstance<nb::bytes>(text)) {
      const auto raw = nb::cast<nb::bytes>(text);
      given.assign(raw.c_str(), raw.size());
    } else {
      if (!nb::try_cast(text, given)) invalid("texts: each a str or bytes");
    }
    texts.bytes.push_back(
        static_cast<std::uint16_t>(std::min<std::size_t>(given.size(), UINT16_MAX)));
    texts.all += given;
  }
  return texts;
}

void sequence_append(Sequence& self, const nb::object& ids, const nb::object& positions,
                     const nb::object& flags, const nb::object& spans, const nb::object& texts) {
  const std::vector<std::uint32_t> id = to_ids(ids);
  const Texts text = texts.is_none() ? Texts{} : to_texts(texts);
  if (!texts.is_none() && text.bytes.size() != id.size()) invalid("texts: one per id, or none");
  const std::vector<std::uint32_t> position = to_ids(positions, "positions"),
                                   flag = to_ids(flags, "flags"), span = to_ids(spans, "spans");
  for (const auto* list : {&position, &flag, &span}) {
    if (!list->empty() && list->size() != id.size())
      invalid("positions, flags and spans: one per id, or none");
  }
  std::vector<kvt_token> tokens(id.size());
  self.run([&](kvt_sequence* s) {
    // The piece before this one counts: it must be complete, or this call fails with what is
    // missing.
    if (const kvt_status status = kvt_sequence_finish_piece(s); status != KVT_OK) return status;
    const std::uint64_t start = kvt_sequence_length(s);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i].id = id[i];
      tokens[i].position = position.empty() ? static_cast<std::uint32_t>(start + i) : position[i];
      tokens[i].flags = flag.empty() ? 0 : flag[i];
      tokens[i].span = span.empty() ? 0 : span[i];
    }
    const auto count = static_cast<std::uint32_t>(tokens.size());
    return text.bytes.empty() ? kvt_sequence_append(s, tokens.data(), count)
                              : kvt_sequence_append_with_texts(s, tokens.data(), count,
                                                               text.bytes.data(), text.all.data());
  });
}

void sequence_write(Sequence& self, std::uint32_t layer, std::uint32_t first, const ConstArray& k,
                    const ConstArray& v) {
  const Layer& geometry = self.space->layer(layer);
  const kvt_rows k_rows = to_rows(k, geometry, geometry.k_dim, "k");
  const kvt_rows v_rows = to_rows(v, geometry, geometry.v_dim, "v");
  if (k.shape(1) != v.shape(1)) invalid("k and v differ in length");
  if (k.shape(1) > UINT32_MAX) invalid("more rows than a piece can hold");
  const auto count = static_cast<std::uint32_t>(k.shape(1));
  self.run([&](kvt_sequence* s) {
    return kvt_sequence_write(s, layer, first, count, &k_rows, &v_rows);
  });
}

nb::tuple sequence_read(Sequence& self, std::uint32_t layer, std::uint64_t first,
                        std::uint64_t count, const nb::object& k, const nb::object& v) {
  const Layer& geometry = self.space->layer(layer);
  if (count > (std::uint64_t{1} << 32)) invalid("count above 2^32");
  const Target keys = make_target(k, geometry, count, geometry.k_dim, "k");
  const Target values = make_target(v, geometry, count, geometry.v_dim, "v");
  self.run([&](kvt_sequence* s) {
    return kvt_sequence_read(s, layer, first, count, keys.data, values.data);
  });
  return nb::make_tuple(keys.object, values.object);
}

void sequence_observe_queries(Sequence& self, std::uint32_t layer, const ConstArray& q) {
  const Layer& geometry = self.space->layer(layer);
  if (q.ndim() != 3 || q.shape(1) != geometry.raw.query_heads || q.shape(2) != geometry.k_dim)
    invalid("q must be [queries, query_heads, dim] = [.., " +
            std::to_string(geometry.raw.query_heads) + ", " + std::to_string(geometry.k_dim) + "]");
  const Floats floats = to_floats(q, "q");
  self.run([&](kvt_sequence* s) {
    kvt_sequence_observe_queries(s, layer, static_cast<std::uint32_t>(q.shape(0)), floats.data());
    return KVT_OK;
  });
}

}  // namespace

void bind_sequence(nb::module_& m) {
  auto sequence = nb::class_<Sequence>(m, "Sequence");
  sequence.def_prop_ro("id", &sequence_id)
      .def_ro("space", &Sequence::space)
      .def_prop_ro("length", &sequence_length)
      .def("__len__", &sequence_length)
      .def_prop_ro("layer_count", [](const Sequence& self) { return self.space->layers.size(); })
      .def_prop_ro("match", [](const Sequence& self) { return self.match; })
      .def("tokens", &sequence_tokens, "first"_a = 0, "count"_a = nb::none())
      .def("texts", &sequence_texts, "first"_a = 0, "count"_a = nb::none())
      .def("append", &sequence_append, "ids"_a, "positions"_a = nb::none(), "flags"_a = nb::none(),
           "spans"_a = nb::none(), "texts"_a = nb::none())
      .def("write", &sequence_write, "layer"_a, "first"_a, "k"_a, "v"_a)
      .def("read", &sequence_read, "layer"_a, "first"_a, "count"_a, "k"_a = nb::none(),
           "v"_a = nb::none())
      .def("observe_queries", &sequence_observe_queries, "layer"_a, "q"_a)
      .def("finish_piece", [](Sequence& self) { self.run(kvt_sequence_finish_piece); })
      .def("abort_piece", [](Sequence& self) { self.run(kvt_sequence_abort_piece); })
      .def("commit", [](Sequence& self) { self.run(kvt_sequence_commit); })
      .def(
          "truncate",
          [](Sequence& self, std::uint64_t tokens) {
            self.run([&](kvt_sequence* s) { return kvt_sequence_truncate(s, tokens); });
          },
          "tokens"_a)
      .def("fork", &sequence_fork, "tokens"_a = nb::none(), "name"_a = nb::none(),
           "private"_a = false)
      .def("view", &sequence_view, nb::kw_only(), "budget"_a = 0, "sinks"_a = 16, "window"_a = 64,
           "capacity"_a = 0, "preset"_a = "", "wait_ms"_a = 10000);
  closable(sequence);
}

}  // namespace kvtier::python
