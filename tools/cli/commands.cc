// The table of commands, in the order in which help shows them.
#include "tools/cli/commands.h"

namespace kvtier::cli {

const std::vector<Command>& commands() {
  static const std::vector<Command> table = {
      start_command(),     stop_command(),       status_command(),  stats_command(),
      ls_command(),        show_command(),       explain_command(), verify_command(),
      repair_command(),    gc_command(),         reindex_command(), codebooks_command(),
      calibrate_command(), rm_command(),         rename_command(),  pin_command(),
      expire_command(),    warm_command(),       fork_command(),    export_command(),
      import_command(),    doctor_command(),     presets_command(), tune_command(),
      config_command(),    completion_command(), man_command(),
  };
  return table;
}

}  // namespace kvtier::cli
