// What the files of the C interface share: the handles, and the guard around every call.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "client/client.h"
#include "client/last_error.h"
#include "client/sequence.h"
#include "client/space.h"
#include "kvtier/kvtier.h"

struct kvt_client {
  std::shared_ptr<kvtier::Client> object;
};
struct kvt_space {
  std::shared_ptr<kvtier::Space> object;
};
struct kvt_sequence {
  std::shared_ptr<kvtier::Sequence> object;
};

namespace kvtier {

// Runs one call: clears the error text, and turns the result, or an exception, into a code and a
// text.
template <class Call>
kvt_status guarded(Call&& call) noexcept {
  clear_error_text();
  try {
    const Result<void> done = call();
    if (done) return KVT_OK;
    describe_error(done.error());
    return static_cast<kvt_status>(done.error().code);
  } catch (const std::bad_alloc&) {
    set_error_text("out of memory");
    return KVT_ERROR_FULL;
  } catch (const std::exception& failure) {
    set_error_text("internal error: %s", failure.what());
    return KVT_ERROR_INTERNAL;
  }
}

template <class... Pointers>
Result<void> check_pointers(const Pointers*... pointers) noexcept {
  if (((pointers != nullptr) && ...)) return {};
  return error(Code::kInvalid, "a pointer that must be given is null");
}

// For kvt_free.
inline Result<void> give_text(const std::string& text, char** out) noexcept {
  *out = static_cast<char*>(std::malloc(text.size() + 1));
  if (*out == nullptr) return error(Code::kFull, "out of memory");
  std::memcpy(*out, text.c_str(), text.size() + 1);
  return {};
}

// Copies an options struct that may be of an older, shorter version of kvtier.h; what it lacks
// keeps its default.
template <class Options>
Result<void> take_options(const Options* given, Options* out, void (*init)(Options*)) noexcept {
  if (given->struct_size < sizeof given->struct_size || given->struct_size > 4096)
    return error(Code::kInvalid,
                 "struct_size is not set: fill the options by their init function first");
  init(out);
  const std::size_t size = given->struct_size < sizeof *out ? given->struct_size : sizeof *out;
  std::memcpy(static_cast<void*>(out), given, size);
  return {};
}

template <class Call>
kvt_status with_sequence(kvt_sequence* sequence, Call&& call) noexcept {
  return guarded([&]() -> Result<void> {
    KVT_TRY_VOID(check_pointers(sequence));
    KVT_TRY_VOID(sequence->object->space().client().check_process());
    return call(*sequence->object);
  });
}

}  // namespace kvtier
