// What the files of the Python module share: handles, errors, arrays. Only they include nanobind.
//
// module.cc            the module: constants, Match, Layer; calls the bind_ functions below
// module_errors.cc     one exception class per family of C statuses
// module_arrays.cc     token ids and rows, in and out: DLPack and the buffer protocol, never copied
// module_client.cc     Client, admin requests and opaque objects
// module_space.cc      Space
// module_sequence.cc   Sequence
// module_view.cc       View
//
// Ownership: View -> Sequence -> Space -> Client, each keeps the one it came from alive; close() of
// one closes what came from it first. Threads: every call that may block releases the GIL; a
// sequence and its views share one mutex, so that two Python threads wait for each other instead of
// breaking the C contract.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvtier/kvtier.h"

namespace kvtier::python {

namespace nb = nanobind;
using namespace nb::literals;

// ---- errors -------------------------------------------------------------------------------------

void make_error_classes(nb::module_& m);
// Raises the class of `status`, whose `code` it becomes.
[[noreturn]] void raise(kvt_status status, const std::string& text);
[[noreturn]] void invalid(const std::string& text);
// `given` of a constructor, whose wrong numbers kvtier/arguments.py does not see.
template <class T>
T in_range(std::int64_t given, const char* what, std::int64_t least,
           std::int64_t most = std::numeric_limits<T>::max()) {
  if (given < least || given > most)
    invalid(std::string(what) + " must be " + std::to_string(least) + " to " +
            std::to_string(most) + ", not " + std::to_string(given));
  return static_cast<T>(given);
}
// Raises what a C call returned, with the detail of this thread; nothing on KVT_OK.
void check(kvt_status status);

// Runs `call` without the GIL and raises what it returned. The C side keeps its detail per thread,
// so it is read right after.
template <class Call>
void blocking(Call&& call) {
  kvt_status status = KVT_OK;
  {
    nb::gil_scoped_release release;
    status = call();
  }
  check(status);
}

// The index of `word`; raises InvalidArgument with the list.
int pick(const std::string& word, const std::vector<const char*>& words, const char* what);

// ---- arrays -------------------------------------------------------------------------------------

using Array = nb::ndarray<nb::device::cpu>;
using ConstArray = nb::ndarray<nb::ro, nb::device::cpu>;
using FloatArray = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

inline const std::vector<const char*> kDtypes = {"f32", "f16", "bf16", "opaque"};
inline constexpr std::uint32_t kDtypeBytes[] = {4, 2, 2, 1};

struct Layer {
  kvt_layer raw{};
  std::uint32_t k_dim = 0;
  std::uint32_t v_dim = 0;
};

// Token ids from any integer sequence or array; None: none.
std::vector<std::uint32_t> to_ids(const nb::handle& source, const char* what = "token ids");
// Queries as the C side takes them, one after the other: where they lie, or copied if they lie
// otherwise. Other types than float32 are refused: a converted float64 would hide that the caller
// computes in another precision than the rows have. `array` is borrowed.
struct Floats {
  [[nodiscard]] const float* data() const { return copy.empty() ? borrowed : copy.data(); }
  const float* borrowed = nullptr;
  std::vector<float> copy;
};
Floats to_floats(const ConstArray& array, const char* what);
// A [kv_heads, n, dim] array as strided rows.
kvt_rows to_rows(const ConstArray& array, const Layer& layer, std::uint32_t dim, const char* what);

// The caller's array, or a new numpy array, of [kv_heads, count, dim].
struct Target {
  nb::object object;
  void* data;
};
Target make_target(const nb::object& given, const Layer& layer, std::uint64_t count,
                   std::uint32_t dim, const char* what);

// ---- handles ------------------------------------------------------------------------------------

// A thing that can be closed, with the things made from it. `open` turns false under the GIL,
// before the handle goes; who works without the GIL looks again behind its mutex (run() of each
// class).
struct Node {
  virtual ~Node() = default;
  virtual kvt_status close_self() = 0;
  virtual kvt_status drop_self() { return close_self(); }

  void close() {
    if (forked()) return drop();
    for (const std::weak_ptr<Node>& child : std::exchange(children, {})) {
      if (const std::shared_ptr<Node> alive = child.lock()) alive->close();
    }
    if (open.exchange(false)) blocking([this] { return close_self(); });
  }
  void adopt(const std::shared_ptr<Node>& child) {
    std::erase_if(children, [](const std::weak_ptr<Node>& c) { return c.expired(); });
    children.push_back(child);
  }
  // For destructors, which must not throw: what a garbage collected handle could not seal is the
  // tail log's matter.
  void drop() noexcept {
    if (!open.exchange(false)) return;
    nb::gil_scoped_release release;
    (void)drop_self();
  }
  // In a child of fork(): its parent's handles are not its own, and another thread, of which it has
  // no copy, may have held their mutexes.
  [[nodiscard]] bool forked() const noexcept { return ::getpid() != made_in; }
  template <class Mutex>
  [[nodiscard]] std::unique_lock<Mutex> hold(Mutex& mutex) const {
    return forked() ? std::unique_lock<Mutex>() : std::unique_lock<Mutex>(mutex);
  }
  void need_open(const char* what) {
    if (forked()) {
      drop();  // closes the child's copy of the socket, and nothing else
      raise(KVT_ERROR_FORK, std::string(kvt_strerror(KVT_ERROR_FORK)) +
                                ": opened before fork(): open a new client in the child");
    }
    if (!open) raise(KVT_ERROR_STALE, std::string("this ") + what + " is closed");
  }

  const pid_t made_in = ::getpid();
  std::atomic<bool> open = true;
  std::vector<std::weak_ptr<Node>> children;  // guarded by the GIL
};

// A C handle that several threads may use at the same time; close() waits for their calls.
template <class Handle>
struct SharedNode : Node {
  explicit SharedNode(const char* name) : what(name) {}
  template <class Call>
  void run(Call&& call) {
    need_open(what);
    blocking([&] {
      const std::shared_lock<std::shared_mutex> lock(gate);
      return open ? call(handle) : KVT_ERROR_STALE;
    });
  }

  const char* const what;
  Handle* handle = nullptr;
  std::shared_mutex gate;
};

struct Client final : SharedNode<kvt_client> {
  Client() : SharedNode("client") {}
  ~Client() override { drop(); }
  using Value = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
  // Keys and values of batches that were submitted and not yet polled: the C side reads and writes
  // them. While a value's view is held, a bytearray cannot move its memory.
  struct Batch {
    std::vector<std::string> keys;
    std::vector<Value> values;
    std::size_t left = 0;
  };
  kvt_status close_self() override {
    std::unordered_map<std::uint64_t, Batch> unread;
    {
      const auto lock = hold(gate);
      kvt_client_close(handle);
      if (lock) unread.swap(batches);
    }
    const nb::gil_scoped_acquire gil;
    unread.clear();
    return KVT_OK;
  }
  std::mutex batches_mutex;
  std::unordered_map<std::uint64_t, Batch> batches;  // guarded by batches_mutex
};

struct Space final : SharedNode<kvt_space> {
  Space() : SharedNode("space") {}
  ~Space() override { drop(); }
  kvt_status close_self() override {
    const auto lock = hold(gate);
    kvt_space_close(handle);
    return KVT_OK;
  }
  const Layer& layer(std::uint32_t index) const {
    if (index >= layers.size()) {
      invalid("layer " + std::to_string(index) + " of " + std::to_string(layers.size()));
    }
    return layers[index];
  }
  std::shared_ptr<Client> client;
  std::vector<Layer> layers;
};

struct Sequence final : Node {
  ~Sequence() override { drop(); }
  kvt_status close_self() override {
    const auto lock = hold(mutex);
    return kvt_sequence_close(handle);
  }
  kvt_status drop_self() override {
    const auto lock = hold(mutex);
    return kvt_sequence_drop(handle);
  }
  template <class Call>
  void run(Call&& call) {
    need_open("sequence");
    blocking([&] {
      const std::lock_guard<std::mutex> lock(mutex);
      return open ? call(handle) : KVT_ERROR_STALE;
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
    const auto lock = hold(sequence->mutex);
    kvt_view_close(handle);
    return KVT_OK;
  }
  template <class Call>
  void run(Call&& call) {
    need_open("view");
    blocking([&] {
      const std::lock_guard<std::mutex> lock(sequence->mutex);
      return open ? call(handle) : KVT_ERROR_STALE;
    });
  }
  kvt_view* handle = nullptr;
  std::shared_ptr<Sequence> sequence;
};

template <class T>
void closable(nb::class_<T>& type) {
  type.def("close", [](T& self) { self.close(); })
      .def("__enter__", [](const std::shared_ptr<T>& self) { return self; })
      .def("__exit__", [](T& self, const nb::args&) { self.close(); })
      .def_prop_ro("closed", [](const T& self) { return !self.open.load(); });
}

inline const char* or_null(const std::optional<std::string>& text) {
  return text ? text->c_str() : nullptr;
}
// Options of the sequences that create and fork make; `name` is borrowed.
kvt_sequence_options sequence_options(const std::optional<std::string>& name, bool private_only);
std::shared_ptr<Sequence> wrap_sequence(const std::shared_ptr<Space>& space, kvt_sequence* handle);
std::shared_ptr<Space> open_space(const std::shared_ptr<Client>& client, const std::string& model,
                                  const std::string& runtime, const std::vector<Layer>& layers,
                                  const std::string& detail, std::uint16_t chunk_tokens,
                                  std::uint16_t heads_per_chunk,
                                  const std::optional<std::string>& preset, bool private_only,
                                  const std::string& rope_pairing,
                                  const std::vector<float>& rope_frequencies,
                                  std::uint32_t rope_positions);
std::shared_ptr<View> sequence_view(const std::shared_ptr<Sequence>& self, std::uint64_t budget,
                                    std::uint32_t sinks, std::uint32_t window,
                                    std::uint64_t capacity, const std::string& preset,
                                    std::uint32_t wait_ms);

void bind_client(nb::module_& m);
void bind_space(nb::module_& m);
void bind_sequence(nb::module_& m);
void bind_view(nb::module_& m);

}  // namespace kvtier::python
