# The engine in one thread over a simulated disk.
add_library(kvt_sim STATIC sim/sim_world.cc sim/sim_client.cc)
target_link_libraries(kvt_sim PUBLIC kvt_options kvt_daemon)
kvt_test(engine_test SOURCES unit/engine_test.cc LIBS kvt_sim)
