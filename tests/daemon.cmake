# The engine in one thread over a simulated disk.
add_library(kvt_sim STATIC sim/sim_world.cc sim/sim_client.cc sim/sim_objects.cc sim/store_model.cc sim/store_life.cc sim/store_sim.cc sim/store_sim_upkeep.cc)
target_link_libraries(kvt_sim PUBLIC kvt_options kvt_daemon)
kvt_test(engine_test SOURCES unit/engine_test.cc unit/engine_async_test.cc unit/engine_calibration_test.cc unit/engine_disk_test.cc unit/engine_hints_test.cc unit/engine_kept_files_test.cc unit/engine_large_commit_test.cc unit/engine_maintenance_test.cc unit/engine_objects_test.cc unit/engine_policy_test.cc unit/engine_reads_test.cc unit/engine_reindex_test.cc unit/engine_sidecars_test.cc unit/engine_slow_disk_test.cc LIBS kvt_sim)

# The random life of a store; KVT_SIM_SEEDS for more seeds.
kvt_test(sim_test SOURCES sim/sim_test.cc sim/sim_mutation_test.cc sim/sim_objects_test.cc LIBS kvt_sim LABELS sim TIMEOUT 600)
