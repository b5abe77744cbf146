# peer.py goes into the program as text.
file(READ ${CMAKE_CURRENT_SOURCE_DIR}/bench/peer.py KVT_PEER_TEXT)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/bench/peer.py)
configure_file(bench/peer_text.cc.in ${CMAKE_CURRENT_BINARY_DIR}/peer_text.cc @ONLY)

# Traces of what decoders choose: made, read, and what caches have to do with them.
add_library(kvt_replay STATIC bench/replay_bound.cc bench/replay_count.cc bench/replay_figures.cc bench/replay_fit.cc
  bench/replay_generate.cc bench/replay_law.cc bench/replay_layout.cc bench/replay_trace.cc)
target_link_libraries(kvt_replay PUBLIC kvt_device kvt_tiers kvt_base PRIVATE kvt_options)

add_executable(kvtier-bench
  bench/main.cc bench/build.cc bench/common.cc bench/commit.cc bench/decode.cc bench/disk.cc bench/fetch.cc bench/idle.cc
  bench/kernels.cc bench/tree.cc
  bench/match.cc bench/model.cc bench/open.cc bench/own_daemon.cc bench/peer.cc bench/plain_file.cc bench/replay.cc
  bench/replay_layout_figures.cc bench/replay_policies.cc bench/replay_store.cc bench/restore.cc bench/resume.cc bench/ring.cc bench/seal.cc ${CMAKE_CURRENT_BINARY_DIR}/peer_text.cc)
target_include_directories(kvtier-bench PRIVATE ${PROJECT_SOURCE_DIR}/client/include)
target_link_libraries(kvtier-bench PRIVATE kvt_replay kvt_client kvt_kernels kvt_tiers kvt_ipc kvt_base CLI11::CLI11)
install(TARGETS kvtier-bench)
