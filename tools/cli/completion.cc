// completion, man: made from the table of commands, so that they cannot fall behind it.
#include <cctype>
#include <cstdio>

#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

std::string words(const Command& command) {
  std::string text;
  for (const Flag& flag : command.flags) text += std::string(flag.name) + " ";
  return text + "--json --socket --help";
}

bool takes_sequence(const Command& command) {
  return !command.arguments.empty() && std::string(command.arguments[0].name) == "SEQUENCE";
}

void print_bash() {
  std::printf("# bash completion of kvtier: source <(kvtier completion bash)\n_kvtier() {\n");
  std::printf(
      "  local word=${COMP_WORDS[COMP_CWORD]}\n  if [ \"$COMP_CWORD\" -eq 1 ]; then\n    "
      "COMPREPLY=($(compgen -W \"");
  for (const Command& command : commands()) std::printf("%s ", command.name);
  std::printf("\" -- \"$word\"))\n    return\n  fi\n  local names=\n  case ${COMP_WORDS[1]} in\n");
  for (const Command& command : commands()) {
    std::printf("    %s) ", command.name);
    if (takes_sequence(command))
      std::printf(
          "[ \"$COMP_CWORD\" -eq 2 ] && names=$(kvtier ls 2>/dev/null | awk 'NR>1{print $2}'); ");
    std::printf("COMPREPLY=($(compgen -W \"%s $names\" -- \"$word\"));;\n", words(command).c_str());
  }
  std::printf("  esac\n}\ncomplete -o default -F _kvtier kvtier\n");
}

void print_zsh() {
  std::printf("#compdef kvtier\n_kvtier() {\n  local -a commands\n  commands=(\n");
  for (const Command& command : commands())
    std::printf("    '%s:%s'\n", command.name, command.help);
  std::printf(
      "  )\n  if (( CURRENT == 2 )); then _describe command commands; return; fi\n  case $words[2] "
      "in\n");
  for (const Command& command : commands())
    std::printf("    %s) compadd -- %s;;\n", command.name, words(command).c_str());
  std::printf("  esac\n}\ncompdef _kvtier kvtier\n");
}

void print_fish() {
  for (const Command& command : commands()) {
    std::printf("complete -c kvtier -n __fish_use_subcommand -f -a %s -d '%s'\n", command.name,
                command.help);
    for (const Flag& flag : command.flags)
      std::printf("complete -c kvtier -n '__fish_seen_subcommand_from %s' -l %s -d '%s'\n",
                  command.name, flag.name + 2, flag.help);
  }
}

int run_completion(const Invocation& invocation) {
  const std::string shell = invocation.get("SHELL");
  if (shell == "bash")
    print_bash();
  else if (shell == "zsh")
    print_zsh();
  else if (shell == "fish")
    print_fish();
  else {
    print_error(invocation, {Code::kInvalid}, "SHELL must be bash, zsh or fish");
    return 2;
  }
  return 0;
}

int run_man(const Invocation&) {
  std::printf(
      ".TH KVTIER 1\n.SH NAME\nkvtier \\- show and administer the KV cache that kvtierd keeps\n.SH "
      "SYNOPSIS\n"
      ".B kvtier\n.I COMMAND\n[\\-\\-json] [\\-\\-socket PATH] ...\n.SH COMMANDS\n");
  for (const Command& command : commands()) {
    std::printf(".TP\n.B %s", command.name);
    for (const Argument& argument : command.arguments)
      std::printf(argument.required ? " \\fI%s\\fR" : " [\\fI%s\\fR]", argument.name);
    std::printf("\n%s.\n", command.help);
    for (const Flag& flag : command.flags)
      std::printf(".br\n\\fB\\-\\-%s\\fR%s%s: %s\n", flag.name + 2,
                  flag.value != nullptr ? " " : "", flag.value != nullptr ? flag.value : "",
                  flag.help);
  }
  std::printf(
      ".SH EXIT STATUS\n0 done, 1 failed, 2 wrong use, 3 something is damaged or not as it should "
      "be.\n"
      ".SH ENVIRONMENT\nKVTIER_SOCKET: path of the control socket. KVTIER_DAEMON: path of "
      "kvtierd.\n");
  return 0;
}

}  // namespace

Command completion_command() {
  return {"completion",
          "print a completion script",
          {{"SHELL", "bash, zsh or fish"}},
          {},
          run_completion};
}
Command man_command() {
  return {"man", "print the manual page (kvtier man | man -l -)", {}, {}, run_man};
}

}  // namespace kvtier::cli
