// kvtier: the admin command line. The table of commands.cc says what there is; CLI11 parses; every
// command validates all of its flags before it acts, and has --json.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/near_names.h"
#include "daemon/version.h"
#include "tools/cli/command.h"

namespace {

using kvtier::cli::Argument;
using kvtier::cli::Command;
using kvtier::cli::Flag;
using kvtier::cli::Invocation;

struct Parsed {
  CLI::App* app = nullptr;
  const Command* command = nullptr;
  std::map<std::string, std::string> texts;
  std::map<std::string, std::vector<std::string>> lists;
  std::map<std::string, bool> switches;
  std::vector<std::pair<CLI::Option*, const Flag*>> may_stand_alone;
};

// An empty variable of a script is never taken for an option that was not given.
CLI::Validator not_empty() {
  return CLI::Validator(
      [](const std::string& text) {
        return std::string(text.empty() ? "it is empty: give it a value, or leave it out" : "");
      },
      "");
}

void add_command(CLI::App* root, const Command& command, Parsed* parsed, Invocation* common) {
  parsed->command = &command;
  parsed->app = root->add_subcommand(command.name, command.help);
  for (const Argument& argument : command.arguments) {
    auto* option =
        parsed->app->add_option(argument.name, parsed->texts[argument.name], argument.help);
    if (argument.required) option->required();
  }
  for (const Flag& flag : command.flags) {
    if (flag.value == nullptr) {
      parsed->app->add_flag(flag.name, parsed->switches[flag.name], flag.help);
    } else if (flag.repeats) {
      parsed->app->add_option(flag.name, parsed->lists[flag.name], flag.help)
          ->type_name(flag.value)
          ->allow_extra_args(false)
          ->check(not_empty());
    } else {
      auto* option = parsed->app->add_option(flag.name, parsed->texts[flag.name], flag.help)
                         ->type_name(flag.value);
      if (flag.fallback == nullptr) {
        option->check(not_empty());
        continue;
      }
      option->expected(0, 1);
      parsed->may_stand_alone.emplace_back(option, &flag);
    }
  }
  parsed->app->add_flag("--json", common->json, "print one JSON value");
  parsed->app->add_option("--socket", common->socket, "the daemon's control socket")
      ->type_name("PATH");
}

void collect(const Parsed& parsed, Invocation* invocation) {
  const auto bare = [](const std::string& name) {
    return name.substr(name.find_first_not_of('-'));
  };
  for (const auto& [name, value] : parsed.texts)
    if (!value.empty()) invocation->values[bare(name)] = value;
  for (const auto& [name, values] : parsed.lists)
    if (!values.empty()) invocation->lists[bare(name)] = values;
  for (const auto& [option, flag] : parsed.may_stand_alone)
    if (option->count() > 0 && parsed.texts.at(flag->name).empty())
      invocation->values[bare(flag->name)] = flag->fallback;
  for (const auto& [name, on] : parsed.switches)
    if (on) invocation->values[bare(name)] = "true";
}

// CLI11 takes a command that is not there for none at all.
std::string describe_wrong_use(const CLI::ParseError& failed, int argc, char** argv) {
  std::vector<std::string> names;
  for (const Command& command : kvtier::cli::commands()) names.emplace_back(command.name);
  const std::string first = argc > 1 ? argv[1] : "";
  if (first == "--json" || first.starts_with("--socket")) {
    const auto is_command = [&names](const char* word) {
      return std::find(names.begin(), names.end(), word) != names.end();
    };
    char** const command = std::find_if(argv + 1, argv + argc, is_command);
    if (command != argv + argc)
      return "options come after the command: kvtier " + std::string(*command) + " " +
             (first == "--json" ? first : "--socket PATH");
  }
  if (first.empty() || first.front() == '-' ||
      std::find(names.begin(), names.end(), first) != names.end())
    return failed.what();
  const std::vector<std::string> near = kvtier::near_names(first, names);
  return "no command '" + first + "'; " +
         (near.empty() ? "there are " + kvtier::joined(names) : "near it: " + kvtier::joined(near));
}

// Also where the command line is too wrong to be parsed.
bool wants_json(int argc, char** argv) {
  for (int i = 1; i < argc && std::strcmp(argv[i], "--") != 0; ++i)
    if (std::strcmp(argv[i], "--json") == 0) return true;
  return false;
}

int wrong_use(CLI::App& app, const CLI::ParseError& failed, int argc, char** argv) {
  if (failed.get_exit_code() == 0) return app.exit(failed);  // --help, --version
  Invocation invocation;
  invocation.json = wants_json(argc, argv);
  std::string help = " (kvtier --help)";
  for (const Command& command : kvtier::cli::commands())
    if (argc > 1 && std::strcmp(argv[1], command.name) == 0)
      help = std::string(" (kvtier ") + command.name + " --help)";
  kvtier::cli::print_error(invocation, {kvtier::Code::kInvalid},
                           describe_wrong_use(failed, argc, argv) + (invocation.json ? "" : help));
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("kvtier shows and administers the KV cache that kvtierd keeps.", "kvtier");
  app.set_version_flag("--version", std::string("kvtier ") + kvtier::kVersion);
  app.require_subcommand(1);
  Invocation invocation;
  std::vector<Parsed> parsed(kvtier::cli::commands().size());
  std::size_t i = 0;
  for (const Command& command : kvtier::cli::commands())
    add_command(&app, command, &parsed[i++], &invocation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& failed) {
    return wrong_use(app, failed, argc, argv);
  }
  for (const Parsed& one : parsed) {
    if (!one.app->parsed()) continue;
    collect(one, &invocation);
    return one.command->run(invocation);
  }
  return 2;
}
