# Catalogue, prefix index, arenas, eviction.
kvt_test(catalogue_test SOURCES unit/catalogue_test.cc LIBS kvt_tiers)
kvt_test(catalogue_sim_test SOURCES unit/catalogue_sim_test.cc LIBS kvt_tiers TIMEOUT 300)
kvt_test(prefix_index_test SOURCES unit/prefix_index_test.cc LIBS kvt_tiers)
kvt_test(host_arena_test SOURCES unit/host_arena_test.cc LIBS kvt_tiers)
kvt_test(eviction_test SOURCES unit/eviction_test.cc LIBS kvt_tiers)
kvt_test(catalogue_rows_test SOURCES unit/catalogue_rows_test.cc LIBS kvt_tiers)
target_compile_definitions(catalogue_rows_test PRIVATE KVT_CORPUS_DIR="${CMAKE_CURRENT_LIST_DIR}/fuzz/corpus/catalogue")

# Fuzz target over its corpus and seeded mutations of it.
add_executable(catalogue_fuzz ${CMAKE_CURRENT_LIST_DIR}/fuzz/catalogue_fuzz.cc ${CMAKE_CURRENT_LIST_DIR}/fuzz/replay_main.cc)
target_link_libraries(catalogue_fuzz PRIVATE kvt_options kvt_tiers)
set_target_properties(catalogue_fuzz PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
add_test(NAME catalogue_fuzz COMMAND catalogue_fuzz --mutations 500000 ${CMAKE_CURRENT_LIST_DIR}/fuzz/corpus/catalogue)
set_tests_properties(catalogue_fuzz PROPERTIES TIMEOUT 120 LABELS fuzz)
