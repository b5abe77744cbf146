# Catalogue (RocksDB), prefix index, arenas and eviction. RocksDB's headers and types stay inside catalogue*.cc.
find_path(KVT_ROCKSDB_INCLUDE rocksdb/db.h REQUIRED)
find_library(KVT_ROCKSDB_LIBRARY rocksdb REQUIRED)

target_sources(kvt_tiers PRIVATE
  abstract_arena.cc
  catalogue.cc
  catalogue_env.h
  catalogue_env_sim.cc
  catalogue_env_sim.h
  catalogue_rows.cc
  catalogue_rows.h
  eviction.cc
  host_arena.cc
  prefix_index.cc
  store_lock.cc
  store_rebuild.cc)
target_include_directories(kvt_tiers SYSTEM PRIVATE ${KVT_ROCKSDB_INCLUDE})
target_link_libraries(kvt_tiers PRIVATE ${KVT_ROCKSDB_LIBRARY})
