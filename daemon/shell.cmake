find_package(Boost 1.81 REQUIRED)
target_sources(kvt_daemon PRIVATE
  options.cc control_server.cc server.cc compaction.cc
  admin_codebooks.cc admin_maintenance.cc admin_repair.cc admin_report.cc admin_stats.cc admin_transfer.cc
  admin_verify.cc store_items.cc)
target_include_directories(kvt_daemon SYSTEM PRIVATE ${Boost_INCLUDE_DIRS})
target_compile_definitions(kvt_daemon PUBLIC KVT_VERSION="${PROJECT_VERSION}")

add_executable(kvtierd main.cc)
target_link_libraries(kvtierd PRIVATE kvt_daemon)
install(TARGETS kvtierd)
