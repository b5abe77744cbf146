// One function per command, each defined in the file that its comment names.
#pragma once

#include "tools/cli/command.h"

namespace kvtier::cli {

[[nodiscard]] Command start_command();  // daemon_control.cc
[[nodiscard]] Command stop_command();
[[nodiscard]] Command status_command();
[[nodiscard]] Command stats_command();  // stats.cc
[[nodiscard]] Command ls_command();     // sequences.cc
[[nodiscard]] Command show_command();
[[nodiscard]] Command explain_command();  // explain.cc
[[nodiscard]] Command rm_command();       // sequences.cc
[[nodiscard]] Command rename_command();
[[nodiscard]] Command pin_command();
[[nodiscard]] Command expire_command();
[[nodiscard]] Command warm_command();
[[nodiscard]] Command fork_command();
[[nodiscard]] Command export_command();
[[nodiscard]] Command import_command();
[[nodiscard]] Command verify_command();  // store.cc
[[nodiscard]] Command repair_command();
[[nodiscard]] Command gc_command();
[[nodiscard]] Command codebooks_command();   // codebooks.cc
[[nodiscard]] Command calibrate_command();   // calibrate.cc
[[nodiscard]] Command reindex_command();     // reindex.cc
[[nodiscard]] Command presets_command();     // presets.cc
[[nodiscard]] Command tune_command();        // tune.cc
[[nodiscard]] Command config_command();      // config.cc
[[nodiscard]] Command doctor_command();      // doctor.cc
[[nodiscard]] Command completion_command();  // completion.cc
[[nodiscard]] Command man_command();

}  // namespace kvtier::cli
