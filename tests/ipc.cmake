kvt_test(ipc_layout_test SOURCES unit/ipc_layout_test.cc LIBS kvt_ipc)
target_compile_definitions(ipc_layout_test PRIVATE KVT_GOLDEN_FILE="${CMAKE_CURRENT_LIST_DIR}/golden/shm_layout.txt")
kvt_test(ipc_ring_test SOURCES unit/ipc_ring_test.cc LIBS kvt_ipc LABELS tsan)
kvt_test(ipc_ring_stress_test SOURCES unit/ipc_ring_stress_test.cc LIBS kvt_ipc LABELS tsan TIMEOUT 180)
