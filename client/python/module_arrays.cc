// Arrays both ways: numpy, torch on the CPU, and whatever else speaks DLPack or the buffer
// protocol.
#include <algorithm>
#include <unordered_map>

#include "client/python/module.h"

namespace kvtier::python {
namespace {

using Ids = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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

std::string dtype_text(const nb::dlpack::dtype& dtype) {
  using Kind = nb::dlpack::dtype_code;
  static const std::unordered_map<int, const char*> names = {
      {static_cast<int>(Kind::Int), "int"},
      {static_cast<int>(Kind::UInt), "uint"},
      {static_cast<int>(Kind::Float), "float"},
      {static_cast<int>(Kind::Bfloat), "bfloat"},
      {static_cast<int>(Kind::Bool), "bool"}};
  const auto found = names.find(dtype.code);
  return found == names.end() ? "another type" : found->second + std::to_string(dtype.bits);
}

}  // namespace

Floats to_floats(const ConstArray& array, const char* what) {
  if (array.dtype() != nb::dtype<float>())
    invalid(std::string(what) + ": float32 is wanted, this is " + dtype_text(array.dtype()));
  Floats floats;
  floats.borrowed = static_cast<const float*>(array.data());
  std::int64_t packed = 1;
  bool as_it_lies = true;
  for (std::size_t axis = array.ndim(); axis-- > 0;) {
    as_it_lies = as_it_lies && (array.shape(axis) == 1 || array.stride(axis) == packed);
    packed *= static_cast<std::int64_t>(array.shape(axis));
  }
  if (as_it_lies) return floats;
  floats.copy.resize(array.size());
  for (std::size_t i = 0; i < floats.copy.size(); ++i) {
    std::int64_t at = 0;
    std::size_t rest = i;
    for (std::size_t axis = array.ndim(); axis-- > 0; rest /= array.shape(axis))
      at += static_cast<std::int64_t>(rest % array.shape(axis)) * array.stride(axis);
    floats.copy[i] = floats.borrowed[at];
  }
  return floats;
}

std::vector<std::uint32_t> to_ids(const nb::handle& source, const char* what) {
  if (source.is_none()) return {};
  Ids array;
  if (nb::try_cast(source, array)) return {array.data(), array.data() + array.size()};
  nb::object list =
      nb::hasattr(source, "tolist") ? nb::object(source.attr("tolist")()) : nb::borrow(source);
  std::vector<std::uint32_t> ids;
  if (!nb::try_cast(list, ids))
    invalid(std::string(what) + ": a flat sequence of integers from 0 to 2^32 - 1");
  return ids;
}

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

Target make_target(const nb::object& given, const Layer& layer, std::uint64_t count,
                   std::uint32_t dim, const char* what) {
  const std::uint64_t heads = layer.raw.kv_heads;
  if (given.is_none()) {
    static const char* names[] = {"float32", "float16", "uint16", "uint8"};
    nb::object array = nb::module_::import_("numpy").attr("empty")(
        nb::make_tuple(heads, count, dim), "dtype"_a = names[layer.raw.dtype]);
    return {array, nb::cast<Array>(array).data()};
  }
  Array array;
  if (!nb::try_cast(given, array, false))
    invalid(std::string(what) + " must be an array that can be written to, on the CPU");
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

}  // namespace kvtier::python
