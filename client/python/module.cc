// The Python module kvtier._kvtier: the C interface (kvtier.h) as classes, one line per method in
// the table below.
//
// Ownership: View -> Sequence -> Space -> Client, each keeps the one it came from alive; close() of
// one closes what came from it first. Arrays go both ways by DLPack and the buffer protocol (numpy,
// torch on the CPU), never copied here. Threads: every call that may block releases the GIL; a
// sequence and its views share one mutex, so that two Python threads wait for each other instead of
// breaking the C contract. The only file that includes nanobind.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvtier/kvtier.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<nb::device::cpu>;
using ConstArray = nb::ndarray<nb::ro, nb::device::cpu>;
using Ids = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatArray = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using ConstFloatArray = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

// ---- errors: one class per family ---------------------------------------------------------------

struct ErrorClass {
  const char* name;
  const char* base;  // null: kvtier.Error
  const char* doc;
  std::vector<kvt_status> codes;
};

const std::vector<ErrorClass>& error_classes() {
  static const std::vector<ErrorClass> classes = {
      {"Miss", nullptr, "Not stored, or not any more.", {KVT_ERROR_MISS}},
      {"Full", nullptr, "A bounded resource has no room.", {KVT_ERROR_FULL, KVT_ERROR_NO_SPACE}},
      {"Timeout", nullptr, "A deadline passed.", {KVT_ERROR_TIMEOUT, KVT_ERROR_CANCELLED}},
      {"Busy", nullptr, "Somebody else holds it; try again.", {KVT_ERROR_BUSY}},
      {"InvalidArgument", nullptr, "An argument is out of its range.", {KVT_ERROR_INVALID}},
      {"Unsupported", nullptr, "This build or machine cannot do it.", {KVT_ERROR_UNSUPPORTED}},
      {"Limit", "InvalidArgument", "A request above a limit.", {KVT_ERROR_TOO_LARGE}},
      {"NotFinite",
       "InvalidArgument",
       "NaN or infinity where numbers must be.",
       {KVT_ERROR_NOT_FINITE}},
      {"NotFound", nullptr, "No such object.", {KVT_ERROR_NOT_FOUND}},
      {"Exists", nullptr, "The name is taken.", {KVT_ERROR_EXISTS}},
      {"WrongSpace", nullptr, "The sequence belongs to another space.", {KVT_ERROR_WRONG_SPACE}},
      {"Permission", nullptr, "Not allowed.", {KVT_ERROR_PERMISSION}},
      {"Stale",
       nullptr,
       "A handle of the past: closed, or used after fork().",
       {KVT_ERROR_STALE, KVT_ERROR_FORK}},
      {"Corrupt",
       nullptr,
       "Bytes that do not hold what they should.",
       {KVT_ERROR_CORRUPT, KVT_ERROR_VERSION, KVT_ERROR_PROTOCOL}},
      {"DeviceError",
       nullptr,
       "The disk reported an error, or cannot be written.",
       {KVT_ERROR_IO, KVT_ERROR_READ_ONLY}},
      {"DaemonLost",
       nullptr,
       "kvtierd went away and did not come back in time.",
       {KVT_ERROR_DAEMON_LOST}},
      {"Internal", nullptr, "A bug in kvtier.", {KVT_ERROR_INTERNAL}},
  };
  return classes;
}

PyObject* g_error = nullptr;  // owned by the module, which is never unloaded
std::unordered_map<kvt_status, PyObject*>& error_by_code() {
  static std::unordered_map<kvt_status, PyObject*> map;
  return map;
}

void make_error_classes(nb::module_& m) {
  g_error = PyErr_NewExceptionWithDoc(
      "kvtier.Error", "Base of all kvtier errors; `code` is the C status.", nullptr, nullptr);
  m.attr("Error") = nb::handle(g_error);
  for (const ErrorClass& c : error_classes()) {
    nb::object base = c.base != nullptr ? nb::object(m.attr(c.base)) : nb::borrow(g_error);
    PyObject* type = PyErr_NewExceptionWithDoc((std::string("kvtier.") + c.name).c_str(), c.doc,
                                               base.ptr(), nullptr);
    m.attr(c.name) = nb::handle(type);
    for (kvt_status code : c.codes) error_by_code()[code] = type;
  }
}

[[noreturn]] void raise(kvt_status status, const std::string& text) {
  const auto found = error_by_code().find(status);
  nb::handle type = found != error_by_code().end() ? found->second : g_error;
  nb::object error = nb::steal(PyObject_CallFunction(type.ptr(), "s", text.c_str()));
  error.attr("code") = status;
  PyErr_SetObject(type.ptr(), error.ptr());
  throw nb::python_error();
}

[[noreturn]] void invalid(const std::string& text) { raise(KVT_ERROR_INVALID, text); }

void check(kvt_status status) {
  if (status == KVT_OK) return;
  std::string text = kvt_strerror(status);
  const char* detail = kvt_last_error();
  if (detail[0] != '\0') text += std::string(": ") + detail;
  raise(status, text);
}

// Runs `call` without the GIL and raises what it returned. kvt_last_error is per thread, so it is
// read right after.
template <class Call>
void blocking(Call&& call) {
  kvt_status status = KVT_OK;
  {
    nb::gil_scoped_release release;
    status = call();
  }
  check(status);
}

// ---- handles ------------------------------------------------------------------------------------

// A thing that can be closed, with the things made from it.
struct Node {
  virtual ~Node() = default;
  virtual kvt_status close_self() = 0;

  void close() {
    for (const std::weak_ptr<Node>& child : children) {
      if (const std::shared_ptr<Node> alive = child.lock()) alive->close();
    }
    children.clear();
    if (!open) return;
    open = false;
    blocking([this] { return close_self(); });
  }
  void adopt(const std::shared_ptr<Node>& child) {
    std::erase_if(children, [](const std::weak_ptr<Node>& c) { return c.expired(); });
    children.push_back(child);
  }
  // For destructors, which must not throw: what a garbage collected handle could not seal is the
  // tail log's matter.
  void drop() noexcept {
    if (!open) return;
    open = false;
    nb::gil_scoped_release release;
    (void)close_self();
  }
  void need_open(const char* what) const {
    if (!open) raise(KVT_ERROR_STALE, std::string("this ") + what + " is closed");
  }

  bool open = true;
  std::vector<std::weak_ptr<Node>> children;
};

struct Client final : Node {
  ~Client() override { drop(); }
  kvt_status close_self() override {
    kvt_client_close(handle);
    return KVT_OK;
  }
  kvt_client* get() const {
    need_open("client");
    return handle;
  }
  kvt_client* handle = nullptr;
  // Keys and values of batches that were submitted and not yet polled: the C side reads and writes
  // them.
  struct Batch {
    std::vector<std::string> keys;
    std::vector<Array> values;
    std::size_t left = 0;
  };
  std::unordered_map<std::uint64_t, Batch> batches;
};

struct Layer {
  kvt_layer raw{};
  std::uint32_t k_dim = 0;
  std::uint32_t v_dim = 0;
};

struct Space final : Node {
  ~Space() override { drop(); }
  kvt_status close_self() override {
    kvt_space_close(handle);
    return KVT_OK;
  }
  kvt_space* get() const {
    need_open("space");
    return handle;
  }
  const Layer& layer(std::uint32_t index) const {
    if (index >= layers.size()) {
      invalid("layer " + std::to_string(index) + " of " + std::to_string(layers.size()));
    }
    return layers[index];
  }
  kvt_space* handle = nullptr;
  std::shared_ptr<Client> client;
  std::vector<Layer> layers;
};

struct Sequence final : Node {
  ~Sequence() override { drop(); }
  kvt_status close_self() override {
    const std::lock_guard<std::mutex> lock(mutex);
    return kvt_sequence_close(handle);
  }
  kvt_sequence* get() const {
    need_open("sequence");
    return handle;
  }
  template <class Call>
  void run(Call&& call) {
    kvt_sequence* h = get();
    blocking([&] {
      const std::lock_guard<std::mutex> lock(mutex);
      return call(h);
    });
  }
  kvt_sequence* handle = nullptr;
  std::shared_ptr<Space> space;
  std::optional<kvt_match> match;
  std::mutex mutex;
};

struct View final : Node {
  ~View() override { drop(); }
  kvt_status close_self() override {
    const std::lock_guard<std::mutex> lock(sequence->mutex);
    kvt_view_close(handle);
    return KVT_OK;
  }
  kvt_view* get() const {
    need_open("view");
    return handle;
  }
  kvt_view* handle = nullptr;
  std::shared_ptr<Sequence> sequence;
};

// ---- client and space ---------------------------------------------------------------------------

const char* or_null(const std::optional<std::string>& text) {
  return text ? text->c_str() : nullptr;
}

std::shared_ptr<Client> open_client(const std::optional<std::string>& socket_path, bool autostart,
                                    const std::optional<std::string>& daemon_path,
                                    const std::optional<std::string>& name,
                                    std::uint32_t timeout_ms) {
  kvt_client_options options;
  kvt_client_options_init(&options);
  options.socket_path = or_null(socket_path);
  options.autostart = autostart ? 1 : 0;
  options.daemon_path = or_null(daemon_path);
  options.name = or_null(name);
  options.timeout_ms = timeout_ms;
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
  kvt_client* handle = self.get();
  blocking([&] { return kvt_client_request(handle, text.c_str(), &reply); });
  const std::string copy = reply != nullptr ? reply : "null";
  kvt_free(reply);
  return json.attr("loads")(copy);
}

int pick(const std::string& word, const std::vector<const char*>& words, const char* what) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (word == words[i]) return static_cast<int>(i);
  }
  std::string list;
  for (const char* w : words) list += std::string(list.empty() ? "" : ", ") + w;
  invalid(std::string(what) + " \"" + word + "\": one of " + list);
}

const std::vector<const char*> kDtypes = {"f32", "f16", "bf16", "opaque"};
constexpr std::uint32_t kDtypeBytes[] = {4, 2, 2, 1};

Layer make_layer(std::uint16_t kv_heads, std::uint16_t query_heads, std::uint32_t dim,
                 const std::string& dtype, std::optional<std::uint32_t> v_dim,
                 const std::string& kind, const std::string& rope) {
  Layer layer;
  layer.k_dim = dim;
  layer.v_dim = v_dim.value_or(dim);
  layer.raw.dtype = static_cast<std::uint8_t>(pick(dtype, kDtypes, "dtype"));
  if (layer.k_dim > 1U << 16 || layer.v_dim > 1U << 16) invalid("dim above 65536");
  layer.raw.kind = static_cast<std::uint8_t>(pick(kind, {"full", "sliding", "recurrent"}, "kind"));
  layer.raw.rope = static_cast<std::uint8_t>(pick(rope, {"after", "before", "none"}, "rope"));
  layer.raw.kv_heads = kv_heads;
  layer.raw.query_heads = query_heads;
  layer.raw.k_row_bytes = layer.k_dim * kDtypeBytes[layer.raw.dtype];
  layer.raw.v_row_bytes = layer.v_dim * kDtypeBytes[layer.raw.dtype];
  return layer;
}

std::shared_ptr<Space> open_space(const std::shared_ptr<Client>& client, const std::string& model,
                                  const std::string& runtime, const std::vector<Layer>& layers,
                                  const std::string& detail, std::uint16_t chunk_tokens,
                                  std::uint16_t heads_per_chunk, std::uint16_t unit_tokens,
                                  const std::string& abstracts, bool private_only) {
  kvt_space_options options;
  kvt_space_options_init(&options);
  std::vector<kvt_layer> raw;
  raw.reserve(layers.size());
  for (const Layer& layer : layers) raw.push_back(layer.raw);
  options.chunk_tokens = chunk_tokens;
  options.heads_per_chunk = heads_per_chunk;
  options.unit_tokens = unit_tokens;
  options.abstract_kind =
      static_cast<std::uint32_t>(pick(abstracts, {"none", "box", "mean"}, "abstracts"));
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
  kvt_client* handle = client->get();
  blocking([&] { return kvt_space_open(handle, &options, &space->handle); });
  space->open = true;
  client->adopt(space);
  return space;
}

// Token ids from any integer sequence or array.
std::vector<std::uint32_t> to_ids(const nb::handle& source) {
  if (source.is_none()) return {};
  Ids array;
  if (nb::try_cast(source, array)) return {array.data(), array.data() + array.size()};
  nb::object list =
      nb::hasattr(source, "tolist") ? nb::object(source.attr("tolist")()) : nb::borrow(source);
  std::vector<std::uint32_t> ids;
  if (!nb::try_cast(list, ids))
    invalid("token ids: a flat sequence of integers from 0 to 2^32 - 1");
  return ids;
}

kvt_match space_match(Space& self, const nb::object& ids) {
  const std::vector<std::uint32_t> list = to_ids(ids);
  kvt_match match{};
  kvt_space* handle = self.get();
  blocking([&] { return kvt_space_match(handle, list.data(), list.size(), &match); });
  return match;
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

std::shared_ptr<Sequence> space_create(const std::shared_ptr<Space>& self, const nb::object& ids,
                                       const std::optional<std::string>& name, bool private_only) {
  const std::vector<std::uint32_t> list = to_ids(ids);
  const kvt_sequence_options options = sequence_options(name, private_only);
  kvt_match match{};
  kvt_sequence* handle = nullptr;
  kvt_space* space = self->get();
  blocking([&] {
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
  kvt_space* space = self->get();
  blocking([&] {
    return kvt_sequence_open(space, or_null(name), id.value_or(0), writable ? 1 : 0, &handle);
  });
  return wrap_sequence(self, handle);
}

// ---- sequence -----------------------------------------------------------------------------------

std::shared_ptr<Sequence> sequence_fork(Sequence& self, std::optional<std::uint64_t> tokens,
                                        const std::optional<std::string>& name, bool private_only) {
  const kvt_sequence_options options = sequence_options(name, private_only);
  kvt_sequence* handle = nullptr;
  self.run([&](kvt_sequence* s) {
    return kvt_sequence_fork(s, tokens.value_or(UINT64_MAX), &options, &handle);
  });
  return wrap_sequence(self.space, handle);
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

void sequence_append(Sequence& self, const nb::object& ids, const nb::object& positions,
                     const nb::object& flags, const nb::object& spans) {
  const std::vector<std::uint32_t> id = to_ids(ids);
  const std::vector<std::uint32_t> position = to_ids(positions), flag = to_ids(flags),
                                   span = to_ids(spans);
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
    return kvt_sequence_append(s, tokens.data(), static_cast<std::uint32_t>(tokens.size()));
  });
}

void check_dtype(const nb::dlpack::dtype& dtype, const Layer& layer, const char* what) {
  using Kind = nb::dlpack::dtype_code;
  const auto code = static_cast<Kind>(dtype.code);
  bool right = false;
  switch (layer.raw.dtype) {
    case KVT_DTYPE_F32:
      right = code == Kind::Float && dtype.bits == 32;
      break;
    case KVT_DTYPE_F16:
      right = code == Kind::Float && dtype.bits == 16;
      break;
    case KVT_DTYPE_BF16:
      right = dtype.bits == 16 && (code == Kind::Bfloat || code == Kind::UInt);
      break;
    default:
      right = dtype.bits == 8;
  }
  if (!right || dtype.lanes != 1)
    invalid(std::string(what) + ": this layer holds " + kDtypes[layer.raw.dtype]);
}

std::string shape_text(std::uint64_t heads, std::uint64_t count, std::uint64_t dim) {
  return "[" + std::to_string(heads) + ", " + std::to_string(count) + ", " + std::to_string(dim) +
         "]";
}

// A [kv_heads, n, dim] array as strided rows.
kvt_rows to_rows(const ConstArray& array, const Layer& layer, std::uint32_t dim, const char* what) {
  if (array.ndim() != 3 || array.shape(0) != layer.raw.kv_heads || array.shape(2) != dim) {
    invalid(std::string(what) + " must be " +
            shape_text(layer.raw.kv_heads, array.ndim() > 1 ? array.shape(1) : 0, dim));
  }
  check_dtype(array.dtype(), layer, what);
  if (dim > 1 && array.stride(2) != 1)
    invalid(std::string(what) + ": the last dimension must be contiguous");
  if (array.stride(0) < 0 || array.stride(1) < 0) invalid(std::string(what) + ": negative strides");
  const std::uint64_t item = kDtypeBytes[layer.raw.dtype];
  return {array.data(), static_cast<std::uint64_t>(array.stride(0)) * item,
          static_cast<std::uint64_t>(array.stride(1)) * item};
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

// The caller's array, or a new numpy array, of [kv_heads, count, dim].
struct Target {
  nb::object object;
  void* data;
};

Target make_target(const nb::object& given, const Layer& layer, std::uint64_t count,
                   std::uint32_t dim, const char* what) {
  const std::uint64_t heads = layer.raw.kv_heads;
  if (given.is_none()) {
    static const char* names[] = {"float32", "float16", "uint16", "uint8"};
    nb::object array = nb::module_::import_("numpy").attr("empty")(
        nb::make_tuple(heads, count, dim), "dtype"_a = names[layer.raw.dtype]);
    return {array, nb::cast<Array>(array).data()};
  }
  const auto array = nb::cast<Array>(given);
  std::uint64_t expected = heads * count * dim;
  if (array.ndim() != 3 || array.shape(0) != heads || array.shape(1) != count ||
      array.shape(2) != dim) {
    invalid(std::string(what) + " must be " + shape_text(heads, count, dim));
  }
  check_dtype(array.dtype(), layer, what);
  for (int axis = 0; axis < 3; ++axis) {
    expected /= std::max<std::uint64_t>(array.shape(static_cast<std::size_t>(axis)), 1);
    const auto step = static_cast<std::uint64_t>(array.stride(static_cast<std::size_t>(axis)));
    if (array.shape(static_cast<std::size_t>(axis)) > 1 && step != expected) {
      invalid(std::string(what) + " must be contiguous");
    }
  }
  return {given, array.data()};
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

// ---- view ---------------------------------------------------------------------------------------

std::shared_ptr<View> sequence_view(const std::shared_ptr<Sequence>& self, std::uint64_t budget,
                                    std::uint32_t sinks, std::uint32_t window,
                                    std::uint64_t capacity, const std::string& preset) {
  kvt_view_options options;
  kvt_view_options_init(&options);
  options.budget = budget;
  options.sinks = sinks;
  options.window = window;
  options.capacity = capacity;
  options.preset = preset.c_str();
  auto view = std::make_shared<View>();
  view->open = false;
  view->sequence = self;
  self->run([&](kvt_sequence* s) { return kvt_view_open(s, &options, &view->handle); });
  view->open = true;
  self->adopt(view);
  return view;
}

nb::tuple view_attend(View& self, std::uint32_t layer, const ConstFloatArray& q,
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
  const auto numpy_empty = [&](std::vector<std::size_t> shape) {
    if (!single) shape.insert(shape.begin(), queries);
    return nb::object(
        nb::module_::import_("numpy").attr("empty")(nb::cast(shape), "dtype"_a = "float32"));
  };
  const nb::object out_object = out.is_none() ? numpy_empty({heads, geometry.v_dim}) : out;
  const nb::object lse_object = lse.is_none() ? numpy_empty({heads}) : lse;
  const auto out_array = nb::cast<FloatArray>(out_object);
  const auto lse_array = nb::cast<FloatArray>(lse_object);
  if (out_array.size() != queries * heads * geometry.v_dim || lse_array.size() != queries * heads) {
    invalid("out must be [.., query_heads, v_dim] and lse [.., query_heads]");
  }
  const float factor = scale.value_or(1.0F / std::sqrt(static_cast<float>(geometry.k_dim)));
  kvt_view* view = self.get();
  self.sequence->run([&](kvt_sequence*) {
    return kvt_view_attend(view, layer, static_cast<std::uint32_t>(queries), q.data(), factor,
                           out_array.data(), lse_array.data());
  });
  return nb::make_tuple(out_object, lse_object);
}

nb::dict view_stats(View& self) {
  kvt_view_stats stats{};
  stats.struct_size = sizeof(stats);
  check(kvt_view_get_stats(self.get(), &stats));
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
  return d;
}

// ---- opaque objects -----------------------------------------------------------------------------

std::uint64_t objects_submit(Client& self, const std::string& verb,
                             const std::vector<nb::bytes>& keys,
                             std::optional<std::vector<Array>> values) {
  const int number = pick(verb, {"set", "get", "exists", "delete"}, "verb");
  const bool wants_values = number <= KVT_OBJECT_GET;
  if (values.has_value() != wants_values || (values && values->size() != keys.size())) {
    invalid("set and get take one value buffer per key; exists and delete none");
  }
  Client::Batch batch;
  std::vector<kvt_object> objects(keys.size());
  for (const nb::bytes& key : keys) batch.keys.emplace_back(key.c_str(), key.size());
  if (values) batch.values = std::move(*values);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    objects[i].key = batch.keys[i].data();
    objects[i].key_bytes =
        static_cast<std::uint32_t>(std::min<std::size_t>(batch.keys[i].size(), UINT32_MAX));
    if (!wants_values) continue;
    objects[i].value = batch.values[i].data();
    objects[i].value_bytes = batch.values[i].nbytes();
  }
  batch.left = keys.size();
  std::uint64_t id = 0;
  check(kvt_objects_submit(self.get(), number, objects.data(),
                           static_cast<std::uint32_t>(objects.size()), &id));
  self.batches.emplace(id, std::move(batch));
  return id;
}

nb::list objects_poll(Client& self, std::uint32_t room, std::uint32_t timeout_ms) {
  std::vector<kvt_object_result> results(std::min<std::uint32_t>(room, 4096));
  std::uint32_t count = 0;
  kvt_client* handle = self.get();
  blocking([&] {
    return kvt_objects_poll(handle, results.data(), static_cast<std::uint32_t>(results.size()),
                            timeout_ms, &count);
  });
  nb::list list;
  for (std::uint32_t i = 0; i < count; ++i) {
    const kvt_object_result& r = results[i];
    list.append(nb::make_tuple(r.batch, r.index, r.status, r.value_bytes));
    const auto found = self.batches.find(r.batch);
    if (found != self.batches.end() && --found->second.left == 0) self.batches.erase(found);
  }
  return list;
}

template <class T>
void closable(nb::class_<T>& type) {
  type.def("close", [](T& self) { self.close(); })
      .def("__enter__", [](const std::shared_ptr<T>& self) { return self; })
      .def("__exit__", [](T& self, const nb::args&) { self.close(); })
      .def_prop_ro("closed", [](const T& self) { return !self.open; });
}

}  // namespace

NB_MODULE(_kvtier, m) {
  make_error_classes(m);
  m.def("version", &kvt_version);
  m.def("abi_version", &kvt_abi_version);
  m.def("strerror", &kvt_strerror, "status"_a);

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
                                      "nothing stored"};
        return self.reason < 4 ? names[self.reason] : "unknown";
      });

  nb::class_<Layer>(m, "Layer")
      .def(
          "__init__",
          [](Layer* self, std::uint16_t kv_heads, std::uint16_t query_heads, std::uint32_t dim,
             const std::string& dtype, std::optional<std::uint32_t> v_dim, const std::string& kind,
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

  auto client = nb::class_<Client>(m, "Client");
  client
      .def(nb::new_(&open_client), "socket_path"_a = nb::none(), "autostart"_a = true,
           "daemon_path"_a = nb::none(), "name"_a = nb::none(), "timeout_ms"_a = 10000)
      .def("request", &client_request, "request"_a)
      .def("open_space", &open_space, nb::kw_only(), "model"_a, "runtime"_a, "layers"_a,
           "detail"_a = "", "chunk_tokens"_a = 32, "heads_per_chunk"_a = 1, "unit_tokens"_a = 16,
           "abstracts"_a = "box", "private"_a = false)
      .def("objects_submit", &objects_submit, "verb"_a, "keys"_a, "values"_a = nb::none())
      .def("objects_poll", &objects_poll, "room"_a = 256, "timeout_ms"_a = 0)
      .def("objects_event_fd", [](Client& self) { return kvt_objects_event_fd(self.get()); });
  closable(client);

  auto space = nb::class_<Space>(m, "Space");
  space.def("match", &space_match, "ids"_a)
      .def("create", &space_create, "ids"_a = nb::none(), "name"_a = nb::none(),
           "private"_a = false)
      .def("open", &space_open_sequence, "name"_a = nb::none(), "id"_a = nb::none(),
           "writable"_a = true)
      .def_ro("layers", &Space::layers)
      .def_prop_ro("dtype", [](const Space& self) { return kDtypes[self.layer(0).raw.dtype]; });
  closable(space);

  auto sequence = nb::class_<Sequence>(m, "Sequence");
  sequence.def_prop_ro("id", [](Sequence& self) { return kvt_sequence_id(self.get()); })
      .def_prop_ro("length", &sequence_length)
      .def("__len__", &sequence_length)
      .def_prop_ro("layer_count", [](const Sequence& self) { return self.space->layers.size(); })
      .def_prop_ro("match", [](const Sequence& self) { return self.match; })
      .def("tokens", &sequence_tokens, "first"_a = 0, "count"_a = nb::none())
      .def("append", &sequence_append, "ids"_a, "positions"_a = nb::none(), "flags"_a = nb::none(),
           "spans"_a = nb::none())
      .def("write", &sequence_write, "layer"_a, "first"_a, "k"_a, "v"_a)
      .def("read", &sequence_read, "layer"_a, "first"_a, "count"_a, "k"_a = nb::none(),
           "v"_a = nb::none())
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
           "capacity"_a = 0, "preset"_a = "quest");
  closable(sequence);

  auto view = nb::class_<View>(m, "View");
  view.def("attend", &view_attend, "layer"_a, "q"_a, "scale"_a = nb::none(), "out"_a = nb::none(),
           "lse"_a = nb::none())
      .def("stats", &view_stats);
  closable(view);
}
