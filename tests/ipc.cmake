kvt_test(ipc_layout_test SOURCES unit/ipc_layout_test.cc LIBS kvt_ipc)
target_compile_definitions(ipc_layout_test PRIVATE KVT_GOLDEN_FILE="${CMAKE_CURRENT_LIST_DIR}/golden/shm_layout.txt")
kvt_test(ipc_ring_test SOURCES unit/ipc_ring_test.cc LIBS kvt_ipc LABELS tsan)
kvt_test(ipc_ring_stress_test SOURCES unit/ipc_ring_stress_test.cc LIBS kvt_ipc LABELS tsan TIMEOUT 180)
kvt_test(ipc_wait_test SOURCES unit/ipc_wait_test.cc LIBS kvt_ipc LABELS tsan)
kvt_test(ipc_paths_test SOURCES unit/ipc_paths_test.cc LIBS kvt_ipc)
kvt_test(ipc_frame_test SOURCES unit/ipc_frame_test.cc LIBS kvt_ipc)
kvt_test(ipc_control_test SOURCES unit/ipc_control_test.cc LIBS kvt_ipc LABELS tsan)

# The fuzz target over its corpus and seeded mutations of it. For a real fuzzer: clang++ -fsanitize=fuzzer without
# replay_main.cc.
add_executable(ipc_frame_fuzz fuzz/ipc_frame_fuzz.cc fuzz/replay_main.cc)
target_link_libraries(ipc_frame_fuzz PRIVATE kvt_options kvt_ipc)
set_target_properties(ipc_frame_fuzz PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
add_test(NAME ipc_frame_fuzz COMMAND ipc_frame_fuzz --mutations 100000 ${CMAKE_CURRENT_LIST_DIR}/fuzz/corpus/ipc_frame)
set_tests_properties(ipc_frame_fuzz PROPERTIES TIMEOUT 120 LABELS fuzz)
