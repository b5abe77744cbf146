# Disk I/O: the interface's back ends, the scheduler, the simulated disk.
target_sources(kvt_tiers PRIVATE
  io.cc io_files.cc io_scheduler.cc io_sim.cc io_threads.cc sim_disk.cc sim_disk_crash.cc)
