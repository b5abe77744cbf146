add_executable(kvtier-bench
  bench/main.cc bench/common.cc bench/disk.cc bench/fetch.cc bench/kernels.cc bench/match.cc bench/model.cc
  bench/open.cc bench/restore.cc bench/ring.cc bench/write.cc)
target_include_directories(kvtier-bench PRIVATE ${PROJECT_SOURCE_DIR}/client/include)
target_link_libraries(kvtier-bench PRIVATE kvt_client kvt_kernels kvt_tiers kvt_ipc kvt_base CLI11::CLI11)
install(TARGETS kvtier-bench)
