// kvtier explain --html: one page without scripts or anything from elsewhere. Radio buttons choose
// the group of layers: each run of text carries a class per group and level, and the rules of the
// checked group apply.
#include <cstdio>

#include "tools/cli/explain.h"

namespace kvtier::cli {
namespace {

constexpr const char* kColours[kReadLevels - 1] = {"#fff3c4", "#ffd77a", "#ffb347", "#ff7f2a"};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t')
      out += c;
  }
  return out;
}

// "a0": group 0 at level 0. Level 0 needs no class.
std::string class_of(std::size_t group, unsigned level) {
  return std::string(1, static_cast<char>('a' + group)) + std::to_string(level);
}

std::string rules(const ReadText& reads) {
  std::string out;
  for (std::size_t group = 0; group < reads.groups.size(); ++group) {
    const std::string id = "g" + std::to_string(group);
    for (unsigned level = 1; level < kReadLevels; ++level)
      out += "#" + id + ":checked~main ." + class_of(group, level) +
             "{background:" + kColours[level - 1] + ";color:#000}\n";
    out += "#" + id + ":checked~nav label[for=" + id +
           "]{font-weight:bold;text-decoration:underline}\n";
  }
  return out;
}

std::string passages(const ReadText& reads, const std::vector<Passage>& most) {
  std::string out = "<table>\n<tr><th>reads<th>length<th>tokens<th>passage</tr>\n";
  for (const Passage& passage : most) {
    char share[32];
    std::snprintf(share, sizeof share, "%.1f %%<td>%.1f %%", 100.0 * passage.share,
                  100.0 * (passage.share - passage.above));
    const std::string first = std::to_string(passage.first_token);
    if (reads.text.empty()) {
      out += "<tr><td>" + std::string(share) + "<td>" + first + "-" +
             std::to_string(passage.first_token + passage.tokens - 1) + "<td></tr>\n";
      continue;
    }
    out += "<tr><td>" + std::string(share) + "<td>" + first + "-" +
           std::to_string(passage.first_token + passage.tokens - 1) + "<td><a href=\"#t" + first +
           "\">" + escaped(one_line(reads.text_of(passage.first_token, passage.tokens), 200)) +
           "</a></tr>\n";
  }
  return out + "</table>\n";
}

std::string text_of(const ReadText& reads, const std::vector<Passage>& most) {
  std::string out;
  const auto levels = [&](std::uint64_t token) {
    std::string classes;
    for (std::size_t group = 0; group < reads.groups.size(); ++group)
      if (const unsigned level = reads.groups[group].levels[token]; level != 0)
        classes += (classes.empty() ? "" : " ") + class_of(group, level);
    return classes;
  };
  const auto begins_passage = [&](std::uint64_t token) {
    for (const Passage& passage : most)
      if (passage.first_token == token) return true;
    return false;
  };
  for (std::uint64_t first = 0; first < reads.tokens();) {
    const std::string classes = levels(first);
    std::uint64_t end = first + 1;
    while (end < reads.tokens() && levels(end) == classes && !begins_passage(end)) ++end;
    const std::string text = escaped(reads.text_of(first, end - first));
    if (begins_passage(first)) out += "<a id=\"t" + std::to_string(first) + "\"></a>";
    out += classes.empty()
               ? text
               : "<span class=\"" + classes + "\" title=\"tokens " + std::to_string(first) + "-" +
                     std::to_string(end - 1) + "\">" + text + "</span>";
    first = end;
  }
  return out;
}

}  // namespace

std::string explain_page(const ReadText& reads, const std::vector<Passage>& most) {
  std::string page =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width\">\n<title>" +
      escaped(reads.name) +
      ": what was read</title>\n<style>\n"
      ":root{color-scheme:light dark}\n"
      "body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif}\n"
      "main{white-space:pre-wrap;overflow-wrap:anywhere;border-top:1px solid "
      "#8888;margin-top:1rem}\n"
      "input{position:absolute;opacity:0}\nlabel{margin-right:1rem;cursor:pointer}\n"
      "nav{position:sticky;top:0;background:Canvas;padding:.5rem 0}\n"
      "main a{scroll-margin-top:40vh}\n"  // not under nav
      "table{border-collapse:collapse}\ntd,th{text-align:left;padding:.1rem .8rem .1rem 0;"
      "vertical-align:top;white-space:nowrap}\n"
      "td:last-child{white-space:normal;overflow-wrap:anywhere}\nh1{overflow-wrap:anywhere}\n"
      "input:focus-visible~nav{outline:2px solid}\n" +
      rules(reads) + "</style>\n</head>\n<body>\n<h1>" + escaped(reads.name) + "</h1>\n<p>" +
      std::to_string(reads.tokens()) +
      " tokens. Shaded: what selections took since the last prompt; the darker, the more often. "
      "The passages: their part of all reads and of all tokens; first what was read most above its "
      "length.</p>\n";
  if (!reads.complete)
    page += "<p>The daemon's memory for counts was full: some tokens were not counted.</p>\n";
  page += passages(reads, most);
  std::string labels;
  for (std::size_t group = 0; group < reads.groups.size(); ++group) {
    const std::string id = "g" + std::to_string(group);
    page += "<input type=\"radio\" name=\"layers\" id=\"" + id + "\"" +
            (group == 0 ? " checked" : "") + ">\n";
    labels += "<label for=\"" + id + "\">" + escaped(reads.groups[group].layers) + "</label>\n";
  }
  page += "<nav>\n" + labels + "</nav>\n<main>";
  page += reads.text.empty() ? "Its client gave no texts with the tokens." : text_of(reads, most);
  return page + "</main>\n</body>\n</html>\n";
}

}  // namespace kvtier::cli
