// One exception class per family of C statuses.
#include "client/python/module.h"

namespace kvtier::python {
namespace {

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
      {"Busy", nullptr, "Another client, or this one, holds it; try again.", {KVT_ERROR_BUSY}},
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

}  // namespace

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

void raise(kvt_status status, const std::string& text) {
  const auto found = error_by_code().find(status);
  nb::handle type = found != error_by_code().end() ? found->second : g_error;
  nb::object error = nb::steal(PyObject_CallFunction(type.ptr(), "s", text.c_str()));
  error.attr("code") = status;
  PyErr_SetObject(type.ptr(), error.ptr());
  throw nb::python_error();
}

void invalid(const std::string& text) { raise(KVT_ERROR_INVALID, text); }

void check(kvt_status status) {
  if (status == KVT_OK) return;
  std::string text = kvt_strerror(status);
  const char* detail = kvt_last_error();
  if (detail[0] != '\0') text += std::string(": ") + detail;
  raise(status, text);
}

int pick(const std::string& word, const std::vector<const char*>& words, const char* what) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (word == words[i]) return static_cast<int>(i);
  }
  std::string list;
  for (const char* w : words) list += std::string(list.empty() ? "" : ", ") + w;
  invalid(std::string(what) + " \"" + word + "\": one of " + list);
}

}  // namespace kvtier::python
