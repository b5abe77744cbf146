# The client library against a real daemon that runs as threads of the test.
kvt_test(client_test SOURCES
    unit/client_tail_test.cc unit/client_sequence_test.cc unit/client_seal_test.cc unit/client_view_test.cc unit/client_groups_test.cc
    unit/client_codes_test.cc unit/client_death_test.cc unit/client_odd_input_test.cc
    unit/client_objects_test.cc unit/client_transfer_test.cc unit/client_connection_test.cc unit/client_texts_test.cc unit/client_repair_test.cc
    unit/client_ahead_test.cc unit/client_hints_test.cc unit/client_low_rank_test.cc unit/client_precision_test.cc unit/client_presets_test.cc
  LIBS kvt_client kvt_daemon TIMEOUT 900 LABELS client tsan)

# The example of docs/client.md, linked as a user links it; it and kvtierd run in the next test.
add_executable(kvtier_example_decode ${PROJECT_SOURCE_DIR}/examples/decode.cc)
target_link_libraries(kvtier_example_decode PRIVATE kvtier kvt_options)
kvt_test(client_autostart_test SOURCES unit/client_autostart_test.cc LIBS kvt_client LABELS client)
target_compile_definitions(client_autostart_test PRIVATE
  KVTIERD="$<TARGET_FILE:kvtierd>" EXAMPLE="$<TARGET_FILE:kvtier_example_decode>")
add_dependencies(client_autostart_test kvtierd kvtier_example_decode)

# kvtier.h is C99 and C++17, alone.
add_library(abi_headers OBJECT abi/header_c99.c abi/header_cpp17.cc)
target_include_directories(abi_headers PRIVATE ${PROJECT_SOURCE_DIR}/client/include)
set_target_properties(abi_headers PROPERTIES C_STANDARD 99 C_EXTENSIONS OFF CXX_STANDARD 17)
target_compile_options(abi_headers PRIVATE -Wall -Wextra -pedantic-errors -Werror)

add_test(NAME abi_exports COMMAND ${CMAKE_COMMAND} -DLIBRARY=$<TARGET_FILE:kvtier>
  -DLIST=${CMAKE_CURRENT_SOURCE_DIR}/abi/exports.txt -DNM=${CMAKE_NM} -P ${CMAKE_CURRENT_SOURCE_DIR}/abi/exports.cmake)
if(KVTIER_SANITIZE)
  set(kvt_consumer_flags -fsanitize=${KVTIER_SANITIZE})
endif()
add_test(NAME abi_consumer COMMAND ${CMAKE_COMMAND} -DBUILD=${PROJECT_BINARY_DIR}
  -DSOURCE=${CMAKE_CURRENT_SOURCE_DIR}/abi/consumer -DEXAMPLE=${PROJECT_SOURCE_DIR}/examples/decode.cc
  -DSCRATCH=${CMAKE_CURRENT_BINARY_DIR}/abi_consumer -DC_COMPILER=${CMAKE_C_COMPILER}
  -DCXX_COMPILER=${CMAKE_CXX_COMPILER} -DGENERATOR=${CMAKE_GENERATOR} -DFLAGS=${kvt_consumer_flags}
  -P ${CMAKE_CURRENT_SOURCE_DIR}/abi/consumer.cmake)
add_test(NAME install COMMAND ${CMAKE_COMMAND} -DBUILD=${PROJECT_BINARY_DIR} -DSCRATCH=${CMAKE_CURRENT_BINARY_DIR}/installed
  -P ${CMAKE_CURRENT_SOURCE_DIR}/abi/install.cmake)
set_tests_properties(abi_exports abi_consumer install PROPERTIES LABELS client TIMEOUT 300)
