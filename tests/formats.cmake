# Formats: unit tests and golden files. The samples are one small library, used by golden test, fuzz targets and store check.
add_library(kvt_format_samples STATIC unit/format_samples.cc)
target_link_libraries(kvt_format_samples PUBLIC kvt_tiers)

kvt_test(geometry_test SOURCES unit/geometry_test.cc LIBS kvt_format_samples)
kvt_test(codec_test SOURCES unit/codec_test.cc LIBS kvt_format_samples)
kvt_test(segment_format_test SOURCES unit/segment_format_test.cc LIBS kvt_format_samples)
kvt_test(tail_log_format_test SOURCES unit/tail_log_format_test.cc LIBS kvt_format_samples)
kvt_test(sidecar_format_test SOURCES unit/sidecar_format_test.cc LIBS kvt_format_samples)
kvt_test(object_format_test SOURCES unit/object_format_test.cc LIBS kvt_format_samples)
kvt_test(export_format_test SOURCES unit/export_format_test.cc LIBS kvt_format_samples)
kvt_test(format_golden_test SOURCES unit/format_golden_test.cc LIBS kvt_format_samples)
target_compile_definitions(format_golden_test PRIVATE KVT_GOLDEN_DIR="${PROJECT_SOURCE_DIR}/tests/golden")
kvt_test(store_check_test SOURCES unit/store_check_test.cc LIBS kvt_format_samples TIMEOUT 300)
