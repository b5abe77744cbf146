# Tests of tiers/, one list per part.
include(${CMAKE_CURRENT_LIST_DIR}/io.cmake OPTIONAL)
include(${CMAKE_CURRENT_LIST_DIR}/formats.cmake OPTIONAL)
include(${CMAKE_CURRENT_LIST_DIR}/catalogue.cmake OPTIONAL)
