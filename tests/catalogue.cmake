# Catalogue, prefix index, arenas, eviction.
kvt_test(catalogue_test SOURCES unit/catalogue_test.cc LIBS kvt_tiers)
kvt_test(catalogue_sim_test SOURCES unit/catalogue_sim_test.cc LIBS kvt_tiers TIMEOUT 300)
kvt_test(prefix_index_test SOURCES unit/prefix_index_test.cc LIBS kvt_tiers)
kvt_test(host_arena_test SOURCES unit/host_arena_test.cc LIBS kvt_tiers)
kvt_test(eviction_test SOURCES unit/eviction_test.cc LIBS kvt_tiers)
kvt_test(catalogue_rows_test SOURCES unit/catalogue_rows_test.cc LIBS kvt_tiers)
target_compile_definitions(catalogue_rows_test PRIVATE KVT_CORPUS_DIR="${CMAKE_CURRENT_LIST_DIR}/fuzz/corpus/catalogue")
