// The C interface: opaque keys.
#include <vector>

#include "client/c_abi.h"
#include "client/objects.h"

using kvtier::Code;
using kvtier::error_with;
using kvtier::Result;

kvt_status kvt_objects_submit(kvt_client* client, int32_t verb, const kvt_object* objects,
                              uint32_t count, uint64_t* out_batch) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(client, objects, out_batch));
    *out_batch = 0;
    KVT_TRY_VOID(client->object->check_process());
    if (verb < KVT_OBJECT_SET || verb > KVT_OBJECT_DELETE)
      return error_with(Code::kInvalid, "verb %d is none", verb);
    if (count == 0 || count > kvtier::kObjectBatchMax)
      return error_with(Code::kTooLarge, "a batch of %u: submit 1 to %u at a time", count,
                        kvtier::kObjectBatchMax);
    std::vector<kvtier::ObjectRequest> requests(count);
    for (uint32_t i = 0; i < count; ++i) {
      KVT_TRY_VOID(kvtier::check_pointers(objects[i].key));
      requests[i].key.assign(static_cast<const char*>(objects[i].key), objects[i].key_bytes);
      requests[i].value = static_cast<std::byte*>(objects[i].value);
      requests[i].value_bytes = objects[i].value_bytes;
    }
    KVT_TRY(*out_batch,
            client->object->objects().submit(static_cast<kvtier::ObjectVerb>(verb), requests));
    return {};
  });
}

int kvt_objects_event_fd(kvt_client* client) {
  if (client == nullptr || !client->object->check_process()) return -1;
  return client->object->objects().event_fd();
}

kvt_status kvt_objects_poll(kvt_client* client, kvt_object_result* out, uint32_t room,
                            uint32_t timeout_ms, uint32_t* out_count) {
  return kvtier::guarded([&]() -> Result<void> {
    KVT_TRY_VOID(kvtier::check_pointers(client, out, out_count));
    *out_count = 0;
    KVT_TRY_VOID(client->object->check_process());
    KVT_TRY(const std::vector<kvtier::ObjectResult> results,
            client->object->objects().poll(room, kvtier::Deadline::after_ms(timeout_ms)));
    for (const kvtier::ObjectResult& result : results)
      out[(*out_count)++] = {result.batch, result.index, static_cast<kvt_status>(result.code),
                             result.value_bytes};
    return {};
  });
}
