# Catalogue, prefix index, arenas, eviction.
kvt_test(catalogue_test SOURCES unit/catalogue_test.cc LIBS kvt_tiers)
