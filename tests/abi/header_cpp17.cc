// kvtier.hpp compiles as C++17, alone, and its classes move.
#include "kvtier/kvtier.hpp"

#include <type_traits>

static_assert(std::is_nothrow_move_constructible<kvtier::Client>::value, "");
static_assert(std::is_nothrow_move_constructible<kvtier::Sequence>::value, "");
static_assert(!std::is_copy_constructible<kvtier::View>::value, "");

std::uint64_t kvtier_header_as_cpp17(kvtier::Space& space) { return space.create("x").length(); }
