kvt_test(kernels_scalar_test SOURCES unit/kernels_scalar_test.cc LIBS kvt_kernels)
kvt_test(kernels_codes_test SOURCES unit/kernels_codes_test.cc LIBS kvt_kernels)
kvt_test(kernels_base_test SOURCES unit/kernels_base_test.cc LIBS kvt_kernels)
kvt_test(kernels_registry_test SOURCES unit/kernels_registry_test.cc LIBS kvt_kernels)
kvt_test(kernels_conformance_test SOURCES conformance/kernels_test.cc conformance/kernels_base_test.cc conformance/kernels_codes_test.cc
         conformance/kernels_low_rank_test.cc conformance/kernels_offsets_test.cc conformance/kernels_selection_test.cc LIBS kvt_kernels
         TIMEOUT 300)
kvt_test(retrieval_selector_test SOURCES unit/retrieval_selector_test.cc unit/retrieval_parts_test.cc
         unit/retrieval_preset_test.cc unit/retrieval_trigger_test.cc
         unit/retrieval_tree_search_test.cc unit/retrieval_preset_text_test.cc
         unit/retrieval_certified_test.cc LIBS kvt_retrieval)
kvt_test(retrieval_slot_cache_test SOURCES unit/retrieval_slot_cache_test.cc LIBS kvt_device)
