#!/usr/bin/env python3
"""check_page.py FILE: what Python's html.parser, which is no browser (no styles, no clicks), finds in a page of `kvtier explain --html`:
prints its text of the most read level, by group of layers. Fails on tags that do not match, on scripts, and on anything from elsewhere."""
import html.parser
import sys


class Page(html.parser.HTMLParser):
    VOID = {"meta", "input", "br"}
    OPTIONAL_END = {"td", "th"}

    def __init__(self):
        super().__init__()
        self.open, self.marked, self.labels, self.ids, self.links = [], {}, [], set(), []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("script", "link", "img", "iframe"), tag
        assert not attributes.get("href", "#").startswith(("http", "//")), attributes
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if "href" in attributes:
            self.links.append(attributes["href"][1:])
        if tag not in self.VOID | self.OPTIONAL_END:
            self.open.append((tag, attributes.get("class", "").split()))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        for tag, classes in self.open[-1:]:
            if tag == "label":
                self.labels.append(data)
            for name in classes:
                self.marked.setdefault(name, []).append(data)


page = Page()
text = open(sys.argv[1], encoding="utf-8").read()
page.feed(text)
assert not page.open, page.open
assert all(link in page.ids for link in page.links), "a link to nowhere"
assert "url(" not in text and "@import" not in text
for group, label in enumerate(page.labels):
    name = "abcdefgh"[group]
    assert f"#g{group}:checked~main .{name}4" in text, "no rule shades it"
    print(f"{label}: {''.join(page.marked.get(name + '4', []))!r}")
