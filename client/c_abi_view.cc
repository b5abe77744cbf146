// The C interface: views and opaque keys.
#include "client/c_abi.h"

namespace {

kvt_status unsupported() {
  kvtier::set_error_text("this build of the client library cannot do that yet");
  return KVT_ERROR_UNSUPPORTED;
}

}  // namespace

void kvt_view_options_init(kvt_view_options* options) {
  *options = {};
  options->struct_size = sizeof *options;
  options->sinks = 16;
  options->window = 64;
}
kvt_status kvt_view_open(kvt_sequence*, const kvt_view_options*, kvt_view**) { return unsupported(); }
void kvt_view_close(kvt_view*) {}
kvt_status kvt_view_attend(kvt_view*, uint32_t, uint32_t, const float*, float, float*, float*) { return unsupported(); }
kvt_status kvt_view_get_stats(const kvt_view*, kvt_view_stats*) { return unsupported(); }
kvt_status kvt_objects_submit(kvt_client*, int32_t, const kvt_object*, uint32_t, uint64_t*) { return unsupported(); }
int kvt_objects_event_fd(kvt_client*) { return -1; }
kvt_status kvt_objects_poll(kvt_client*, kvt_object_result*, uint32_t, uint32_t, uint32_t*) { return unsupported(); }
