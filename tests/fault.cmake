# Faults and bad input: a real daemon over damaged stores, on a hostile machine, and what it must
# refuse.
add_library(kvt_fault_support STATIC fault/fault_store.cc fault/regions.cc)
target_link_libraries(kvt_fault_support PUBLIC kvt_options kvt_test_support kvt_tiers GTest::gtest)
add_dependencies(kvt_fault_support kvtierd kvtier_cli)

kvt_test(damaged_files_test SOURCES fault/damaged_files_test.cc LIBS kvt_fault_support
         LABELS fault TIMEOUT 600)
kvt_test(damaged_catalogue_test SOURCES fault/damaged_catalogue_test.cc LIBS kvt_fault_support
         LABELS fault TIMEOUT 600)
kvt_test(hostile_machine_test SOURCES fault/hostile_machine_test.cc LIBS kvt_fault_support
         LABELS fault TIMEOUT 600)
kvt_test(bad_input_test SOURCES fault/bad_input_test.cc LIBS kvt_fault_support
         LABELS fault TIMEOUT 300)
