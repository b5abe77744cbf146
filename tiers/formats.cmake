find_package(PkgConfig REQUIRED)
pkg_check_modules(KVT_ZSTD REQUIRED IMPORTED_TARGET libzstd)

target_sources(kvt_tiers PRIVATE
  abstract_builder.cc cluster.cc codebook_format.cc codebook_train.cc codec.cc export_format.cc format_head.cc low_rank.cc
  object_format.cc own_codes.cc partition.cc representatives.cc segment_format.cc sidecar_format.cc store_check.cc
  store_check_files.cc store_check_segment.cc store_report.cc tail_log_format.cc)
find_package(Eigen3 3.4 REQUIRED NO_MODULE)
target_link_libraries(kvt_tiers PRIVATE PkgConfig::KVT_ZSTD Eigen3::Eigen)
