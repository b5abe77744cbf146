# Disk I/O: the interface's back ends, the scheduler, the simulated disk. liburing is known to io_uring.cc alone.
find_library(KVT_URING_LIBRARY uring REQUIRED)
find_path(KVT_URING_INCLUDE liburing.h REQUIRED)
target_sources(kvt_tiers PRIVATE
  io.cc io_faulty.cc io_files.cc io_make.cc io_scheduler.cc io_sim.cc io_threads.cc io_uring.cc io_uring_probe.cc
  sim_disk.cc sim_disk_crash.cc)
target_link_libraries(kvt_tiers PRIVATE ${KVT_URING_LIBRARY})
