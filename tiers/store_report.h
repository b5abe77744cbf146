// What `kvtier verify` answers: the same of the same store from a daemon
// (daemon/admin_verify.cc) and without one (tools/cli/store.cc). Any thread.
#pragma once

#include <vector>

#include "base/json.h"
#include "tiers/store_check.h"

namespace kvtier {

// [{object, region, severity, reason}], by object. `severity` as finding_severity_name, or
// "unread": the device refused, so that nothing is known of the bytes.
[[nodiscard]] Json problems_json(std::vector<Finding> findings);
// {sound, segments, objects, chunks, bytes, problems}
[[nodiscard]] Json report_json(StoreReport report, bool deep);

}  // namespace kvtier
