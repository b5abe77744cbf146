// kvtier explain: which passages a reply was read from.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "tools/cli/commands.h"
#include "tools/cli/explain.h"

namespace kvtier::cli {
namespace {

constexpr std::size_t kColumns = 90;  // from here on a line ends before the next word
constexpr std::size_t kColumnsMax = 110;

// Shades in 256 colours, level 1 first; black letters on them.
constexpr const char* kShades[kReadLevels - 1] = {"\033[30;48;5;230m", "\033[30;48;5;222m",
                                                  "\033[30;48;5;214m", "\033[30;48;5;208m"};

// Nothing that a terminal would take for a command: no control characters, those of C1 included
// (U+0080 to U+009F, two bytes). Lengths stay.
std::string printable(std::string text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0u;
    if ((byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7F) text[i] = '?';
    if (byte == 0xC2 && next >= 0x80 && next <= 0x9F) text[i] = text[i + 1] = '?';
  }
  return text;
}

// One line of the text and its tokens' highest level in each group of layers.
class TextPrinter {
 public:
  TextPrinter(const ReadText& reads, bool shaded)
      : reads_(reads), shaded_(shaded), highest_(reads.groups.size(), 0) {}

  void print() {
    for (std::uint64_t token = 0; token < reads_.tokens(); ++token)
      add(token, reads_.text_of(token, 1));
    if (columns_ != 0) end_line();
  }

 private:
  void add(std::uint64_t token, const std::string& text) {
    std::size_t at = 0;
    while (at < text.size()) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      const std::string part = text.substr(at, end - at);
      if (columns_ + part.size() > kColumns && columns_ != 0 &&
          (part.front() == ' ' || columns_ >= kColumnsMax))
        end_line();
      mark(token);
      const std::uint8_t level = reads_.groups[0].levels[token];
      line_ +=
          shaded_ && level != 0 && !part.empty() ? kShades[level - 1] + part + "\033[0m" : part;
      columns_ += part.size();
      if (end < text.size()) end_line();
      at = end + 1;
    }
  }
  void mark(std::uint64_t token) {
    for (std::size_t group = 0; group < highest_.size(); ++group)
      highest_[group] = std::max(highest_[group], reads_.groups[group].levels[token]);
  }
  void end_line() {
    std::string margin;
    for (std::size_t group = 1; group < highest_.size(); ++group)
      margin += highest_[group] == 0 ? '.' : static_cast<char>('0' + highest_[group]);
    std::printf("%s | %s\n", margin.c_str(), line_.c_str());
    line_.clear();
    columns_ = 0;
    std::fill(highest_.begin(), highest_.end(), std::uint8_t{0});
  }

  const ReadText& reads_;
  const bool shaded_;
  std::string line_;
  std::size_t columns_ = 0;
  std::vector<std::uint8_t> highest_;
};

int write_page(const Invocation& invocation, const std::string& page) {
  const std::string path = invocation.get("html");
  std::FILE* file = std::fopen(path.c_str(), "wbx");  // as export does: nothing is overwritten
  if (file == nullptr && errno == EEXIST) {
    std::error_code ignored;
    return print_error(invocation, {Code::kExists},
                       std::filesystem::is_directory(path, ignored)
                           ? "it is a directory: give the name of a file in it: " + path
                           : "the file exists: choose another name, or remove it: " + path);
  }
  const bool written =
      file != nullptr && std::fwrite(page.data(), 1, page.size(), file) == page.size();
  const bool closed = file != nullptr && std::fclose(file) == 0;
  if (written && closed) return 0;
  const int why = errno;
  if (file != nullptr) ::unlink(path.c_str());  // a cut page would be in the way of the next try
  const Status status{Code::kIo, why, "cannot be written"};
  return print_error(invocation, status, path + " cannot be written: " + std::strerror(why));
}

Json as_json(const ReadText& reads, const std::vector<Passage>& most) {
  Json passages = Json::array(), groups = Json::array();
  for (const Passage& passage : most)
    passages.push_back({{"first_token", passage.first_token},
                        {"tokens", passage.tokens},
                        {"share", passage.share},
                        {"length", passage.share - passage.above},
                        {"text", reads.text_of(passage.first_token, passage.tokens)}});
  for (std::size_t group = 1; group < reads.groups.size(); ++group)
    groups.push_back({{"layers", reads.groups[group].layers}, {"rows", reads.groups[group].total}});
  return {{"ok", true},
          {"tokens", reads.tokens()},
          {"rows", reads.groups[0].total},
          {"complete", reads.complete},
          {"groups", groups},
          {"passages", passages}};
}

std::string percent(double part) {
  char text[16];
  std::snprintf(text, sizeof text, "%.1f %%", 100.0 * part);
  return text;
}

void print_passages(const ReadText& reads, const std::vector<Passage>& most) {
  constexpr std::size_t kTextBytes = 100;
  std::printf(
      "The passages of %s (%s) that selections read most since the last prompt.\n"
      "READS: its part of all reads. LENGTH: its part of all tokens. First stands what was read "
      "most above its length.\n\n",
      reads.name.c_str(), counted(reads.tokens(), "token").c_str());
  std::vector<std::vector<std::string>> rows{{"READS", "LENGTH", "TOKENS", "TEXT"}};
  for (const Passage& passage : most) {
    rows.push_back(
        {percent(passage.share), percent(passage.share - passage.above),
         std::to_string(passage.first_token) + "-" +
             std::to_string(passage.first_token + passage.tokens - 1),
         one_line(printable(reads.text_of(passage.first_token, passage.tokens)), kTextBytes)});
  }
  print_table(rows);
  if (reads.text.empty())
    std::printf("\nIts client gave no texts with the tokens (docs/client.md): only numbers.\n");
  if (!reads.complete)
    std::printf("\nThe daemon's memory for counts was full: some tokens were not counted.\n");
}

int run_explain(const Invocation& invocation) {
  constexpr std::size_t kPassages = 10;
  ReadText reads;
  int exit_code = 0;
  if (!read_reads(invocation, &reads, &exit_code)) return exit_code;
  if (reads.groups[0].total == 0)
    return print_error(
        invocation, {Code::kMiss, 0, "no reads"},
        "no selection took a row of " + reads.name +
            " since its last prompt, or since kvtierd started: let a model decode over it with a "
            "budget first. What read a fork of it counts there: explain that one, by its id of "
            "`kvtier ls` where it has no name. Without a budget everything is read, and so are "
            "always the newest tokens of an open sequence, which are not sealed yet: close it and "
            "resume it");
  const std::vector<Passage> most = passages_of(reads, kPassages);
  if (invocation.has("html"))
    if (const int failed = write_page(invocation, explain_page(reads, most)); failed != 0)
      return failed;
  if (invocation.json) {
    print_json(as_json(reads, most));
    return 0;
  }
  reads.text = printable(std::move(reads.text));
  print_passages(reads, most);
  if (invocation.has("html"))
    std::printf("\nThe text, shaded: %s\n", invocation.get("html").c_str());
  if (invocation.has("text") && !reads.text.empty()) {
    std::string layers;
    for (std::size_t group = 1; group < reads.groups.size(); ++group)
      layers += (group == 1 ? "" : ", ") + reads.groups[group].layers;
    std::printf(
        "\nThe text; before each line how often the %s took it: . hardly or never, 4 most\n\n",
        layers.c_str());
    TextPrinter(reads, ::isatty(STDOUT_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr).print();
  }
  return 0;
}

}  // namespace

Command explain_command() {
  return {
      "explain",
      "show which passages a reply was read from, first what was read most above its length",
      {{"SEQUENCE", "its id or name"}},
      {{"--text", nullptr, "the whole text, shaded, with a margin of levels by groups of layers"},
       {"--html", "FILE",
        "write one page with the text shaded, to open in a browser; it must not exist"}},
      run_explain};
}

}  // namespace kvtier::cli
