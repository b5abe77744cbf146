# The command line: scripts with expected exit codes and output (tests/cli/cases).
find_package(Python3 REQUIRED COMPONENTS Interpreter)
add_executable(make_store support/make_store.cc)
target_link_libraries(make_store PRIVATE kvt_options kvt_test_support)
set_target_properties(make_store PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
# The examples of docs/client.md, linked as a user links them; a case of the golden tests runs them.
add_executable(example_session ${PROJECT_SOURCE_DIR}/examples/session.c)
add_executable(example_plugin ${PROJECT_SOURCE_DIR}/examples/plugin.cc)
target_link_libraries(example_session PRIVATE kvtier kvt_options)
target_link_libraries(example_plugin PRIVATE kvtier kvt_options)
set_target_properties(example_session example_plugin PROPERTIES C_STANDARD 99 CXX_STANDARD 17
  RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
add_test(NAME cli_golden COMMAND Python3::Interpreter ${CMAKE_CURRENT_LIST_DIR}/cli/run.py ${PROJECT_BINARY_DIR})
set_tests_properties(cli_golden PROPERTIES TIMEOUT 600)
# 77: there is no browser; tools/check installs one and counts a test that did not run as failed.
add_test(NAME explain_in_a_browser COMMAND Python3::Interpreter ${CMAKE_CURRENT_LIST_DIR}/cli/browser.py ${PROJECT_BINARY_DIR})
set_tests_properties(explain_in_a_browser PROPERTIES TIMEOUT 120 SKIP_RETURN_CODE 77 LABELS "no-sanitizer")
add_test(NAME long_timeouts COMMAND Python3::Interpreter ${CMAKE_CURRENT_LIST_DIR}/tidy/long_timeouts.py ${PROJECT_BINARY_DIR})
add_test(NAME tools_lib COMMAND Python3::Interpreter ${CMAKE_CURRENT_LIST_DIR}/tools/lib_test.py)
set_tests_properties(tools_lib PROPERTIES TIMEOUT 120)
# The benchmarks run; what they measure is for a quiet machine.
add_test(NAME bench_smoke COMMAND kvtier-bench all --smoke --dir ${PROJECT_BINARY_DIR})
# No setting of the user's reaches its daemons: this one would end them.
set_tests_properties(bench_smoke PROPERTIES TIMEOUT 300 LABELS "no-sanitizer" ENVIRONMENT "KVTIER_HOST_ABSTRACTS_BYTES=none")
kvt_test(bench_test SOURCES unit/bench_cold_test.cc ${PROJECT_SOURCE_DIR}/tools/bench/common.cc LIBS kvt_base)

# Traces of what decoders choose.
kvt_test(replay_test SOURCES unit/replay_trace_test.cc unit/replay_generate_test.cc unit/replay_layout_test.cc LIBS kvt_replay)
