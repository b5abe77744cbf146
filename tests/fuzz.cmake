# Fuzz targets: everything that reads bytes of others.
set(corpus ${CMAKE_CURRENT_LIST_DIR}/fuzz/corpus)
set(golden ${CMAKE_CURRENT_LIST_DIR}/golden)
kvt_fuzz(fuzz/ipc_frame_fuzz.cc LIBS kvt_ipc MUTATIONS 100000 CORPUS ${corpus}/ipc_frame)
kvt_fuzz(fuzz/segment_format_fuzz.cc LIBS kvt_format_samples MUTATIONS 20000 CORPUS ${corpus}/segment)
kvt_fuzz(fuzz/tail_log_format_fuzz.cc LIBS kvt_format_samples MUTATIONS 20000 CORPUS ${golden}/tail_log_v1.kvl)
kvt_fuzz(fuzz/sidecar_format_fuzz.cc LIBS kvt_format_samples MUTATIONS 20000 CORPUS ${golden}/sidecar_v1.kva)
kvt_fuzz(fuzz/codebook_format_fuzz.cc LIBS kvt_format_samples MUTATIONS 20000 CORPUS ${golden}/codebook_v1.kvb
         ${corpus}/codebook)
kvt_fuzz(fuzz/object_format_fuzz.cc LIBS kvt_format_samples MUTATIONS 20000 CORPUS ${golden}/object_v1.kvo)
kvt_fuzz(fuzz/export_format_fuzz.cc LIBS kvt_format_samples MUTATIONS 20000 CORPUS ${golden}/export_v1.kvx)
kvt_fuzz(fuzz/catalogue_fuzz.cc LIBS kvt_tiers MUTATIONS 500000 CORPUS ${corpus}/catalogue)
kvt_fuzz(fuzz/options_fuzz.cc LIBS kvt_daemon MUTATIONS 20000 CORPUS ${corpus}/options)
kvt_fuzz(fuzz/preset_fuzz.cc LIBS kvt_retrieval MUTATIONS 20000 CORPUS ${PROJECT_SOURCE_DIR}/examples/presets
         ${corpus}/preset)
kvt_fuzz(fuzz/replay_trace_fuzz.cc LIBS kvt_replay MUTATIONS 20000 CORPUS ${corpus}/replay_trace)
kvt_fuzz(fuzz/control_fuzz.cc LIBS kvt_sim MUTATIONS 20000 CORPUS ${corpus}/control)
kvt_fuzz(fuzz/ring_fuzz.cc LIBS kvt_sim MUTATIONS 20000 CORPUS ${corpus}/ring)

# A planted bug: that its run fails shows that the others could.
kvt_fuzz(fuzz/canary_fuzz.cc LIBS kvt_base MUTATIONS 1 CORPUS ${corpus}/canary)
if(KVTIER_FUZZ)
  set(canary_arguments -runs=2000000 -seed=1)
else()
  set(canary_arguments --mutations 200000)
endif()
add_test(NAME canary_fuzz_fails COMMAND sh -c "! \"$@\"" canary $<TARGET_FILE:canary_fuzz> ${canary_arguments} ${corpus}/canary)
set_tests_properties(canary_fuzz_fails PROPERTIES TIMEOUT 120 LABELS fuzz)
