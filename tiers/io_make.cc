// Choice of the back end of disk I/O: io_uring where it works, else threads, and why.
#include <string>

#include "base/log.h"
#include "tiers/io_backends.h"

namespace kvtier {

Result<std::unique_ptr<Io>> make_io(const IoOptions& options) {
  if (options.depth == 0 || options.depth > kIoDepthMax)
    return error(Code::kInvalid, "I/O depth must be 1 .. 256");
  if (options.threads == 0 || options.threads > kIoDepthMax)
    return error(Code::kInvalid, "I/O threads must be 1 .. 256");
  if (options.backend == "threads") return make_thread_io(options, "io_uring: not asked for");
  if (options.backend != "auto" && options.backend != "io_uring")
    return error(Code::kInvalid, "I/O back end must be auto, io_uring or threads");
  // The root is opened first, so that its absence is not reported as a lack of io_uring.
  KVT_TRY(std::unique_ptr<Io> threads,
          make_thread_io(IoOptions{options.root, "threads", 1, 1}, ""));
  threads.reset();
  const std::string reason = probe_uring(options);
  if (reason.empty()) {
    Result<std::unique_ptr<Io>> ring = make_uring_io(options);
    if (ring || options.backend == "io_uring") return ring;
    return make_thread_io(options, std::string("io_uring: ") + ring.error().message());
  }
  if (options.backend == "io_uring") {
    KVT_LOG(kError, "I/O back end io_uring does not work here: %s", reason.c_str());
    return error(Code::kUnsupported,
                 "io_uring does not work here (the log says why): set disk.backend to auto or "
                 "threads");
  }
  KVT_LOG(kWarn, "disk I/O by threads: %s", reason.c_str());
  return make_thread_io(options, reason);
}

}  // namespace kvtier
