# Catalogue, prefix index, arenas, eviction.
kvt_test(catalogue_test SOURCES unit/catalogue_test.cc LIBS kvt_tiers)
kvt_test(catalogue_sim_test SOURCES unit/catalogue_sim_test.cc LIBS kvt_tiers TIMEOUT 300)
