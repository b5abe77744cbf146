// completion, man: made from the table of commands, so that they cannot fall behind it.
#include <algorithm>
#include <cstdio>

#include "tools/cli/commands.h"

namespace kvtier::cli {
namespace {

// Prints a text, or with --json an object that holds it.
void print_text(const Invocation& invocation, const char* key, const std::string& text) {
  if (invocation.json)
    print_json(Json{{"ok", true}, {key, text}});
  else
    std::fputs(text.c_str(), stdout);
}

std::string words(const Command& command) {
  std::string text;
  for (const Flag& flag : command.flags) text += std::string(flag.name) + " ";
  return text + "--json --socket --help";
}

bool takes_sequence(const Command& command) {
  return !command.arguments.empty() && std::string(command.arguments[0].name) == "SEQUENCE";
}

// Whether a word of it may be a file.
bool takes_files(const Command& command) {
  for (const Argument& argument : command.arguments)
    if (std::string(argument.name) == "FILE" || std::string(argument.name) == "PRESET") return true;
  return std::any_of(command.flags.begin(), command.flags.end(), [](const Flag& flag) {
    return flag.value != nullptr && std::string(flag.value) == "PATH";
  });
}

// What the first argument must be one of, or "".
std::string choices(const Command& command) {
  const bool shell =
      !command.arguments.empty() && std::string(command.arguments[0].name) == "SHELL";
  return shell ? "bash zsh fish" : "";
}

std::string all_names() {
  std::string text;
  for (const Command& command : commands()) text += std::string(command.name) + " ";
  return text;
}

// Names of stored sequences, one a line. They may hold whatever a stranger's file says: no shell
// may expand them.
constexpr const char* kListNames = "kvtier ls --names 2>/dev/null";

// A text within single quotes.
std::string quoted(const std::string& text, const char* quote) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? quote : std::string(1, c);
  return out + "'";
}

std::string bash() {
  std::string text =
      "# bash completion of kvtier: source <(kvtier completion bash)\n_kvtier() {\n"
      "  local word=${COMP_WORDS[COMP_CWORD]}\n  if [ \"$COMP_CWORD\" -eq 1 ]; then\n    "
      "COMPREPLY=($(compgen -W \"" +
      all_names() +
      "\" -- \"$word\"))\n    return\n  fi\n  local words= one\n  local -a names=()\n  case "
      "${COMP_WORDS[1]} in\n";
  for (const Command& command : commands()) {
    text += std::string("    ") + command.name + ") ";
    if (takes_sequence(command))
      text +=
          std::string("[ \"$COMP_CWORD\" -eq 2 ] && mapfile -t names < <(") + kListNames + "); ";
    if (!choices(command).empty())
      text += "[ \"$COMP_CWORD\" -eq 2 ] && words='" + choices(command) + " '; ";
    text += "words+='" + words(command) + "';;\n";
  }
  return text +
         "  esac\n  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
         "  for one in \"${names[@]}\"; do\n"
         "    [[ $one == \"$word\"* ]] && COMPREPLY+=(\"$(printf %q \"$one\")\")\n  done\n"
         "}\ncomplete -o default -F _kvtier kvtier\n";
}

std::string zsh() {
  std::string text =
      "#compdef kvtier\n# zsh completion of kvtier: source <(kvtier completion zsh)\n_kvtier() {\n"
      "  local -a commands\n  commands=(\n";
  for (const Command& command : commands())
    text += "    " + quoted(std::string(command.name) + ":" + command.help, "'\\''") + "\n";
  text +=
      "  )\n  if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
      "  case $words[2] in\n";
  for (const Command& command : commands()) {
    text += std::string("    ") + command.name + ") compadd -- " + words(command);
    if (!choices(command).empty()) text += "; (( CURRENT == 3 )) && compadd -- " + choices(command);
    if (takes_sequence(command))
      text += std::string("; (( CURRENT == 3 )) && compadd -- ${(f)\"$(") + kListNames + ")\"}";
    text += takes_files(command) ? "; _files;;\n" : ";;\n";
  }
  // compdef is there only after compinit, which a short .zshrc does not call.
  return text +
         "  esac\n}\n(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n"
         "if [ \"$funcstack[1]\" = _kvtier ]; then _kvtier \"$@\"; else compdef _kvtier "
         "kvtier; fi\n";
}

std::string fish() {
  std::string text = "# fish completion of kvtier: kvtier completion fish | source\n";
  for (const Command& command : commands()) {
    text += std::string("complete -c kvtier -n __fish_use_subcommand -f -a ") + command.name +
            " -d " + quoted(command.help, "\\'") + "\n";
    const std::string within =
        std::string("complete -c kvtier -n '__fish_seen_subcommand_from ") + command.name + "' ";
    // The first word behind the command.
    const std::string first = std::string("complete -c kvtier -n '__fish_seen_subcommand_from ") +
                              command.name + "; and test (count (commandline -opc)) -eq 2' ";
    if (!takes_files(command)) text += within + "-f\n";
    if (takes_sequence(command)) text += first + "-f -a '(" + kListNames + ")'\n";
    if (!choices(command).empty()) text += first + "-f -a '" + choices(command) + "'\n";
    for (const Flag& flag : command.flags) {
      const bool path = flag.value != nullptr && std::string(flag.value) == "PATH";
      text += within + "-l " + (flag.name + 2) +
              (flag.value == nullptr || flag.fallback != nullptr ? ""
               : path                                            ? " -rF"
                                                                 : " -x") +
              " -d " + quoted(flag.help, "\\'") + "\n";
    }
    text += within + "-l json -d 'print one JSON value'\n" + within +
            "-l socket -rF -d 'path of the control socket of the daemon'\n";
  }
  return text;
}

int run_completion(const Invocation& invocation) {
  const std::string shell = invocation.get("SHELL");
  if (shell != "bash" && shell != "zsh" && shell != "fish") {
    print_error(invocation, {Code::kInvalid}, "SHELL must be bash, zsh or fish");
    return 2;
  }
  print_text(invocation, "script", shell == "bash" ? bash() : shell == "zsh" ? zsh() : fish());
  return 0;
}

// A line of roff: dashes are dashes, and no line begins with a request by accident.
std::string roff(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '-' ? "\\-" : c == '\\' ? "\\e" : std::string(1, c);
  return out.empty() || (out[0] != '.' && out[0] != '\'') ? out : "\\&" + out;
}

int run_man(const Invocation& invocation) {
  std::string text =
      ".TH KVTIER 1\n.SH NAME\nkvtier \\- show and administer the KV cache that kvtierd keeps\n"
      ".SH SYNOPSIS\n.B kvtier\n.I COMMAND\n[\\-\\-json] [\\-\\-socket PATH] ...\n.SH DESCRIPTION\n"
      "kvtierd keeps the KV cache of language models in memory and on disk. Every command talks to "
      "the daemon of the user; a client, or\n.BR \"kvtier start\" ,\nstarts it. With\n.B "
      "\\-\\-json\nevery command prints one JSON value, errors too.\n.SH COMMANDS\n";
  for (const Command& command : commands()) {
    text += std::string(".TP\n.B ") + command.name;
    for (const Argument& argument : command.arguments)
      text += std::string(argument.required ? " \\fI" : " [\\fI") + argument.name +
              (argument.required ? "\\fR" : "\\fR]");
    text += "\n" + roff(command.help) + ".\n";
    for (const Argument& argument : command.arguments)
      text += std::string(".br\n\\fI") + argument.name + "\\fR: " + roff(argument.help) + "\n";
    for (const Flag& flag : command.flags)
      text += ".br\n\\fB" + roff(flag.name) + "\\fR" +
              (flag.value != nullptr ? std::string(" ") + flag.value : "") + ": " +
              roff(flag.help) + "\n";
  }
  text +=
      ".SH EXIT STATUS\n0 done, 1 failed, 2 wrong use, 3 something is damaged or not as it should "
      "be.\n"
      ".SH ENVIRONMENT\n.TP\nKVTIER_SOCKET\npath of the control socket\n.TP\nKVTIER_DAEMON\npath "
      "of "
      "kvtierd\n.TP\nKVTIER_CONFIG\nthe daemon's settings\n"
      ".SH FILES\n.TP\n~/.config/kvtier/kvtierd.toml\nsettings; `kvtier config` lists them with "
      "their bounds\n.TP\n~/.local/share/kvtier\nthe store, unless store.path says otherwise\n"
      ".TP\n$XDG_RUNTIME_DIR/kvtier/kvtierd.log\nwhat a daemon says that was started by a "
      "client\n";
  print_text(invocation, "page", text);
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
