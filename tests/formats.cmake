# Formats: unit tests and golden files. The samples are one small library, used by golden test, fuzz targets and store check.
add_library(kvt_format_samples STATIC unit/format_samples.cc)
target_link_libraries(kvt_format_samples PUBLIC kvt_tiers)

kvt_test(geometry_test SOURCES unit/geometry_test.cc LIBS kvt_format_samples)
kvt_test(codec_test SOURCES unit/codec_test.cc LIBS kvt_format_samples)
kvt_test(segment_format_test SOURCES unit/segment_format_test.cc LIBS kvt_format_samples)
kvt_test(tail_log_format_test SOURCES unit/tail_log_format_test.cc LIBS kvt_format_samples)
kvt_test(sidecar_format_test SOURCES unit/sidecar_format_test.cc LIBS kvt_format_samples)
kvt_test(export_format_test SOURCES unit/export_format_test.cc LIBS kvt_format_samples)
kvt_test(format_golden_test SOURCES unit/format_golden_test.cc LIBS kvt_format_samples)
target_compile_definitions(format_golden_test PRIVATE KVT_GOLDEN_DIR="${PROJECT_SOURCE_DIR}/tests/golden")
kvt_test(store_check_test SOURCES unit/store_check_test.cc LIBS kvt_format_samples TIMEOUT 300)

# Fuzz targets over golden files, corpus and seeded mutations of them. For a real fuzzer: clang++ -fsanitize=fuzzer without
# replay_main.cc.
function(kvt_format_fuzz name source)
  add_executable(${name} ${source} fuzz/replay_main.cc)
  target_link_libraries(${name} PRIVATE kvt_options kvt_format_samples)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} --mutations 20000 ${ARGN})
  set_tests_properties(${name} PROPERTIES TIMEOUT 120 LABELS fuzz)
endfunction()
set(golden ${CMAKE_CURRENT_LIST_DIR}/golden)
kvt_format_fuzz(segment_format_fuzz fuzz/segment_format_fuzz.cc ${CMAKE_CURRENT_LIST_DIR}/fuzz/corpus/segment)
kvt_format_fuzz(tail_log_format_fuzz fuzz/tail_log_format_fuzz.cc ${golden}/tail_log_v1.kvl)
kvt_format_fuzz(sidecar_format_fuzz fuzz/sidecar_format_fuzz.cc ${golden}/sidecar_v1.kva)
kvt_format_fuzz(export_format_fuzz fuzz/export_format_fuzz.cc ${golden}/export_v1.kvx)
