#include "base/json.h"

namespace kvtier {

Result<Json> parse_json(std::string_view text) {
  bool too_deep = false;
  Json value = Json::parse(
      text,
      [&too_deep](int depth, Json::parse_event_t, Json&) {
        too_deep = too_deep || depth > 32;
        return !too_deep;
      },
      /*allow_exceptions=*/false);
  if (too_deep || value.is_discarded() || !value.is_structured())
    return error(Code::kProtocol, "not a JSON object");
  return value;
}

Result<std::uint64_t> json_uint(const Json& object, const char* key, std::uint64_t fallback,
                                std::uint64_t max) {
  const auto field = object.find(key);
  if (field == object.end() || field->is_null()) return fallback;
  if (!field->is_number_unsigned())
    return error(Code::kInvalid, "a field must be a number, 0 or more");
  const auto value = field->get<std::uint64_t>();
  if (value > max) return error(Code::kTooLarge, "a field is above its limit");
  return value;
}

Result<bool> json_bool(const Json& object, const char* key, bool fallback) {
  const auto field = object.find(key);
  if (field == object.end() || field->is_null()) return fallback;
  if (!field->is_boolean()) return error(Code::kInvalid, "a field must be true or false");
  return field->get<bool>();
}

Result<std::string> json_string(const Json& object, const char* key, std::string_view fallback,
                                std::size_t bytes_max) {
  const auto field = object.find(key);
  if (field == object.end() || field->is_null()) return std::string(fallback);
  if (!field->is_string()) return error(Code::kInvalid, "a field must be a text");
  const auto& value = field->get_ref<const std::string&>();
  if (value.size() > bytes_max) return error(Code::kTooLarge, "a text is too long");
  return value;
}

std::string dump_json(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace kvtier
