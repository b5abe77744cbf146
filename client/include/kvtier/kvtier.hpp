// kvtier.hpp: C++17 over kvtier.h. Handles that close themselves, and exceptions instead of codes.
// Header only.
//
// Every class owns one handle of kvtier.h and can be moved, not copied; get() gives the handle for
// what is not wrapped. A failed call throws kvtier::Error with the code and the text of
// kvt_last_error(). Threads as in kvtier.h: a Client from several, a Sequence and its views from
// one at a time. Since 0.1.
#ifndef KVTIER_KVTIER_HPP_
#define KVTIER_KVTIER_HPP_

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kvtier/kvtier.h"

namespace kvtier {

class Error : public std::runtime_error {
 public:
  Error(kvt_status status, const std::string& text)
      : std::runtime_error(std::string(kvt_strerror(status)) + ": " + text), status_(status) {}
  // A KVT_ERROR_* number.
  kvt_status status() const noexcept { return status_; }

 private:
  kvt_status status_;
};

inline void check(kvt_status status) {
  if (status != KVT_OK) throw Error(status, kvt_last_error());
}

// Options with their defaults: `auto options = kvtier::defaults(kvt_view_options_init);`
template <class Options>
Options defaults(void (*init)(Options*)) {
  Options options;
  init(&options);
  return options;
}

// The presets that views take, as JSON: see kvt_presets.
inline std::string presets(const char* preset = nullptr) {
  char* text = nullptr;
  check(kvt_presets(preset, &text));
  std::string out(text);
  kvt_free(text);
  return out;
}

class Sequence;

class View {
 public:
  View(kvt_sequence* sequence, const kvt_view_options& options) {
    kvt_view* made = nullptr;
    check(kvt_view_open(sequence, &options, &made));
    handle_.reset(made);
  }
  // See kvt_view_attend.
  void attend(std::uint32_t layer, std::uint32_t queries, const float* q, float scale, float* out,
              float* lse = nullptr) {
    check(kvt_view_attend(handle_.get(), layer, queries, q, scale, out, lse));
  }
  // See kvt_view_look_ahead.
  void look_ahead(std::uint32_t layer, const float* q, float scale) {
    check(kvt_view_look_ahead(handle_.get(), layer, q, scale));
  }
  bool looks_ahead() const noexcept { return kvt_view_looks_ahead(handle_.get()) != 0; }
  const char* kernels() const noexcept { return kvt_view_kernels(handle_.get()); }
  const char* preset() const noexcept { return kvt_view_preset(handle_.get()); }
  kvt_view_stats stats() const {
    kvt_view_stats out{};
    out.struct_size = sizeof out;
    check(kvt_view_get_stats(handle_.get(), &out));
    return out;
  }
  kvt_view* get() const noexcept { return handle_.get(); }

 private:
  struct Close {
    void operator()(kvt_view* view) const noexcept { kvt_view_close(view); }
  };
  std::unique_ptr<kvt_view, Close> handle_;
};

class Sequence {
 public:
  explicit Sequence(kvt_sequence* handle) noexcept : handle_(handle) {}

  std::uint64_t id() const noexcept { return kvt_sequence_id(handle_.get()); }
  std::uint64_t length() const noexcept { return kvt_sequence_length(handle_.get()); }
  std::vector<kvt_token> tokens(std::uint64_t first, std::uint64_t count) {
    std::vector<kvt_token> out(static_cast<std::size_t>(count));
    check(kvt_sequence_tokens(handle_.get(), first, count, out.data()));
    return out;
  }
  void append(const std::vector<kvt_token>& tokens) {
    append(tokens.data(), static_cast<std::uint32_t>(tokens.size()));
  }
  void append(const kvt_token* tokens, std::uint32_t count) {
    check(kvt_sequence_append(handle_.get(), tokens, count));
  }
  // With a text of each token; see kvt_sequence_append_with_texts.
  void append(const std::vector<kvt_token>& tokens, const std::vector<std::string>& texts) {
    if (texts.size() != tokens.size()) throw Error(KVT_ERROR_INVALID, "one text per token");
    std::string all;
    std::vector<std::uint16_t> bytes;
    for (const std::string& text : texts) {
      bytes.push_back(static_cast<std::uint16_t>(text.size() < 0xFFFF ? text.size() : 0xFFFF));
      all += text;
    }
    check(kvt_sequence_append_with_texts(handle_.get(), tokens.data(),
                                         static_cast<std::uint32_t>(tokens.size()), bytes.data(),
                                         all.data()));
  }
  std::vector<std::string> texts(std::uint64_t first, std::uint64_t count) {
    std::vector<std::uint16_t> bytes(static_cast<std::size_t>(count));
    std::string all(static_cast<std::size_t>(count) * 8, '\0');
    std::uint64_t total = 0;
    const auto read = [&] {
      return kvt_sequence_texts(handle_.get(), first, count, bytes.data(), all.data(), all.size(),
                                &total);
    };
    kvt_status status = read();
    if (status == KVT_ERROR_TOO_LARGE && total > all.size()) {
      all.resize(static_cast<std::size_t>(total));
      status = read();
    }
    check(status);
    std::vector<std::string> out;
    std::size_t at = 0;
    for (const std::uint16_t size : bytes) {
      out.emplace_back(all, at, size);
      at += size;
    }
    return out;
  }
  void write(std::uint32_t layer, std::uint32_t first, std::uint32_t count, const kvt_rows& k,
             const kvt_rows& v) {
    check(kvt_sequence_write(handle_.get(), layer, first, count, &k, &v));
  }
  void finish_piece() { check(kvt_sequence_finish_piece(handle_.get())); }
  void abort_piece() { check(kvt_sequence_abort_piece(handle_.get())); }
  void commit() { check(kvt_sequence_commit(handle_.get())); }
  void truncate(std::uint64_t tokens) { check(kvt_sequence_truncate(handle_.get(), tokens)); }
  void read(std::uint32_t layer, std::uint64_t first, std::uint64_t count, void* k, void* v) {
    check(kvt_sequence_read(handle_.get(), layer, first, count, k, v));
  }
  // The first `tokens` tokens (UINT64_MAX: all) as a new sequence; an empty name: nameless.
  Sequence fork(std::uint64_t tokens = UINT64_MAX, const std::string& name = {}) {
    kvt_sequence_options options = defaults(kvt_sequence_options_init);
    options.name = name.empty() ? nullptr : name.c_str();
    kvt_sequence* made = nullptr;
    check(kvt_sequence_fork(handle_.get(), tokens, &options, &made));
    return Sequence(made);
  }
  View view(const kvt_view_options& options) const { return View(handle_.get(), options); }
  // Exact attention over everything.
  View view() const { return View(handle_.get(), defaults(kvt_view_options_init)); }
  // Seals what is in the tail, and says if that failed; the destructor does the same in silence
  // where the daemon runs, and starts none.
  void close() { check(kvt_sequence_close(handle_.release())); }
  kvt_sequence* get() const noexcept { return handle_.get(); }

 private:
  struct Close {
    void operator()(kvt_sequence* sequence) const noexcept { kvt_sequence_drop(sequence); }
  };
  std::unique_ptr<kvt_sequence, Close> handle_;
};

class Space {
 public:
  explicit Space(kvt_space* handle) noexcept : handle_(handle) {}

  kvt_match match(const std::vector<std::uint32_t>& ids) const {
    kvt_match out{};
    check(kvt_space_match(handle_.get(), ids.data(), ids.size(), &out));
    return out;
  }
  // A new sequence that shares the longest stored prefix of `ids`; length() says how long it is.
  Sequence create(const std::string& name = {}, const std::vector<std::uint32_t>& ids = {},
                  kvt_match* match = nullptr) {
    kvt_sequence_options options = defaults(kvt_sequence_options_init);
    options.name = name.empty() ? nullptr : name.c_str();
    return create(options, ids, match);
  }
  // With options, for a private one: `options.private_only = 1`.
  Sequence create(const kvt_sequence_options& options, const std::vector<std::uint32_t>& ids = {},
                  kvt_match* match = nullptr) {
    kvt_sequence* made = nullptr;
    check(kvt_sequence_create(handle_.get(), &options, ids.data(), ids.size(), match, &made));
    return Sequence(made);
  }
  Sequence open(const std::string& name, bool writable) {
    kvt_sequence* made = nullptr;
    check(kvt_sequence_open(handle_.get(), name.c_str(), 0, writable ? 1 : 0, &made));
    return Sequence(made);
  }
  Sequence open(std::uint64_t id, bool writable) {
    kvt_sequence* made = nullptr;
    check(kvt_sequence_open(handle_.get(), nullptr, id, writable ? 1 : 0, &made));
    return Sequence(made);
  }
  kvt_space* get() const noexcept { return handle_.get(); }

 private:
  struct Close {
    void operator()(kvt_space* space) const noexcept { kvt_space_close(space); }
  };
  std::unique_ptr<kvt_space, Close> handle_;
};

class Client {
 public:
  Client() : Client(defaults(kvt_client_options_init)) {}
  explicit Client(const kvt_client_options& options) {
    kvt_client* made = nullptr;
    check(kvt_client_open(&options, &made));
    handle_.reset(made);
  }
  Space open_space(const kvt_space_options& options) {
    kvt_space* made = nullptr;
    check(kvt_space_open(handle_.get(), &options, &made));
    return Space(made);
  }
  // One admin request of docs/protocol.md as JSON; the reply as JSON.
  std::string request(const std::string& json) {
    char* reply = nullptr;
    check(kvt_client_request(handle_.get(), json.c_str(), &reply));
    std::string out(reply);
    kvt_free(reply);
    return out;
  }
  // Opaque keys: see kvt_objects_submit. Keys are copied, values are the caller's until their
  // result is polled.
  std::uint64_t submit(std::int32_t verb, const std::vector<kvt_object>& objects) {
    std::uint64_t batch = 0;
    check(kvt_objects_submit(handle_.get(), verb, objects.data(),
                             static_cast<std::uint32_t>(objects.size()), &batch));
    return batch;
  }
  // Results that are there, waiting for the first at most `timeout_ms`.
  std::vector<kvt_object_result> poll(std::uint32_t timeout_ms, std::uint32_t room = 256) {
    std::vector<kvt_object_result> out(room);
    std::uint32_t count = 0;
    check(kvt_objects_poll(handle_.get(), out.data(), room, timeout_ms, &count));
    out.resize(count);
    return out;
  }
  int objects_event_fd() const noexcept { return kvt_objects_event_fd(handle_.get()); }
  kvt_client* get() const noexcept { return handle_.get(); }

 private:
  struct Close {
    void operator()(kvt_client* client) const noexcept { kvt_client_close(client); }
  };
  std::unique_ptr<kvt_client, Close> handle_;
};

}  // namespace kvtier

#endif  // KVTIER_KVTIER_HPP_
