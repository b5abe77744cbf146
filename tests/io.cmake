# Disk I/O: every back end against one suite, the scheduler, the simulated disk, the faulty wrapper.
kvt_test(io_conformance SOURCES conformance/io_test.cc conformance/io_faults_test.cc LIBS kvt_tiers
         LABELS tsan)
kvt_test(io_scheduler_test SOURCES unit/io_scheduler_test.cc LIBS kvt_tiers)
kvt_test(io_faulty_test SOURCES unit/io_faulty_test.cc LIBS kvt_tiers)
kvt_test(io_probe_test SOURCES unit/io_probe_test.cc LIBS kvt_tiers)
kvt_test(io_sim_test SOURCES unit/io_sim_test.cc LIBS kvt_tiers)
kvt_test(sim_disk_test SOURCES unit/sim_disk_test.cc LIBS kvt_tiers)
