// The C interface: checks handles and struct sizes, and turns results into codes. No exception leaves it.
#include "kvtier/kvtier.h"

#include "client/last_error.h"

namespace {

kvt_status unsupported() {
  kvtier::set_error_text("this build of the client library cannot do that yet");
  return KVT_ERROR_UNSUPPORTED;
}

}  // namespace

uint32_t kvt_abi_version(void) { return KVT_ABI_VERSION; }
const char* kvt_version(void) { return "0.1.0"; }
const char* kvt_strerror(kvt_status status) { return kvtier::code_name(static_cast<kvtier::Code>(status)); }
const char* kvt_last_error(void) { return kvtier::error_text(); }
void kvt_client_options_init(kvt_client_options* options) {
  *options = {};
  options->struct_size = sizeof *options;
  options->autostart = 1;
  options->timeout_ms = 10000;
}
void kvt_space_options_init(kvt_space_options* options) {
  *options = {};
  options->struct_size = sizeof *options;
  options->chunk_tokens = 32;
  options->heads_per_chunk = 1;
  options->positions_per_token = 1;
  options->unit_tokens = 16;
  options->abstract_kind = 1;
}
void kvt_sequence_options_init(kvt_sequence_options* options) {
  *options = {};
  options->struct_size = sizeof *options;
}
void kvt_view_options_init(kvt_view_options* options) {
  *options = {};
  options->struct_size = sizeof *options;
  options->sinks = 16;
  options->window = 64;
}
kvt_status kvt_client_open(const kvt_client_options*, kvt_client**) { return unsupported(); }
void kvt_client_close(kvt_client*) {}
kvt_status kvt_client_request(kvt_client*, const char*, char**) { return unsupported(); }
void kvt_free(void*) {}
kvt_status kvt_space_open(kvt_client*, const kvt_space_options*, kvt_space**) { return unsupported(); }
void kvt_space_close(kvt_space*) {}
kvt_status kvt_space_match(kvt_space*, const uint32_t*, uint64_t, kvt_match*) { return unsupported(); }
kvt_status kvt_sequence_create(kvt_space*, const kvt_sequence_options*, const uint32_t*, uint64_t, kvt_match*, kvt_sequence**) { return unsupported(); }
kvt_status kvt_sequence_open(kvt_space*, const char*, uint64_t, int32_t, kvt_sequence**) { return unsupported(); }
kvt_status kvt_sequence_fork(kvt_sequence*, uint64_t, const kvt_sequence_options*, kvt_sequence**) { return unsupported(); }
kvt_status kvt_sequence_close(kvt_sequence*) { return unsupported(); }
uint64_t kvt_sequence_id(const kvt_sequence*) { return 0; }
uint64_t kvt_sequence_length(const kvt_sequence*) { return 0; }
kvt_status kvt_sequence_tokens(kvt_sequence*, uint64_t, uint64_t, kvt_token*) { return unsupported(); }
kvt_status kvt_sequence_append(kvt_sequence*, const kvt_token*, uint32_t) { return unsupported(); }
kvt_status kvt_sequence_write(kvt_sequence*, uint32_t, uint32_t, uint32_t, const kvt_rows*, const kvt_rows*) { return unsupported(); }
kvt_status kvt_sequence_finish_piece(kvt_sequence*) { return unsupported(); }
kvt_status kvt_sequence_abort_piece(kvt_sequence*) { return unsupported(); }
kvt_status kvt_sequence_commit(kvt_sequence*) { return unsupported(); }
kvt_status kvt_sequence_truncate(kvt_sequence*, uint64_t) { return unsupported(); }
kvt_status kvt_sequence_read(kvt_sequence*, uint32_t, uint64_t, uint64_t, void*, void*) { return unsupported(); }
kvt_status kvt_view_open(kvt_sequence*, const kvt_view_options*, kvt_view**) { return unsupported(); }
void kvt_view_close(kvt_view*) {}
kvt_status kvt_view_attend(kvt_view*, uint32_t, uint32_t, const float*, float, float*, float*) { return unsupported(); }
kvt_status kvt_view_get_stats(const kvt_view*, kvt_view_stats*) { return unsupported(); }
kvt_status kvt_objects_submit(kvt_client*, int32_t, const kvt_object*, uint32_t, uint64_t*) { return unsupported(); }
int kvt_objects_event_fd(kvt_client*) { return -1; }
kvt_status kvt_objects_poll(kvt_client*, kvt_object_result*, uint32_t, uint32_t, uint32_t*) { return unsupported(); }
