#!/usr/bin/env python3
"""browser.py BUILD-DIRECTORY: the steps of browser.txt, if chromium-headless-shell is there; without it a reason and exit code 77.
browser.py PAGE.html: what a browser makes of a page of `kvtier explain --html`: opens it as it is, which must end without a word on
the console, and a copy with a script that looks at styles, text and places, in a window 400 pixels wide, light and dark."""
import base64
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

import run

BROWSER = "chromium-headless-shell"
TEXT = "<script>document.title='%d'</script>&lt; \"</main>\"\n"  # of a token of kMarkupSeed in tests/support/known_rows.cc
CLEAR = "rgba(0, 0, 0, 0)"
READABLE = 4.5  # contrast of text and what is behind it, as in WCAG 2
PROBE = """<script>
const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
const light = colour => {
  const [r, g, b] = rgb(colour).map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
const main = document.querySelector('main'), spans = [...main.querySelectorAll('span')];
const tags = [...new Set([...main.querySelectorAll('*')].map(element => element.tagName))];
const found = {text: main.textContent, title: document.title, tags, groups: []};
const looks = span => {
  const style = getComputedStyle(span);
  return [style.backgroundColor, contrast(style.color, style.backgroundColor)];
};
for (const [group, label] of [...document.querySelectorAll('nav label')].entries()) {
  label.click();
  const letter = 'abcdefgh'[group], shades = {}, shown = {};
  for (const span of spans) {
    const own = [...span.classList].find(name => name[0] == letter);
    (shown[own ? own[1] : 0] ??= new Set()).add(looks(span)[0]);
  }
  for (const level in shown) shown[level] = [...shown[level]];
  for (const level of [1, 2, 3, 4]) {  // also those that this text does not have
    const span = main.appendChild(Object.assign(document.createElement('span'), {className: letter + level}));
    shades[level] = looks(span);
    span.remove();
  }
  found.groups.push({label: label.textContent, weight: getComputedStyle(label).fontWeight, shades, shown});
}
const passage = document.querySelector('td a[href]'), nav = document.querySelector('nav');
passage.click();
const place = document.querySelector(passage.getAttribute('href')).getBoundingClientRect().top;
found.below_nav = place - nav.getBoundingClientRect().bottom;
found.above_end = innerHeight - place;
found.dark = matchMedia('(prefers-color-scheme: dark)').matches;
found.width = innerWidth;
found.scroll_width = document.documentElement.scrollWidth;
found.font = parseFloat(getComputedStyle(main).fontSize);
found.contrast = contrast(getComputedStyle(main).color, getComputedStyle(nav).backgroundColor);
addEventListener('load', () => {
  found.loaded = performance.getEntriesByType('resource').map(entry => entry.name);
  const coded = btoa(encodeURIComponent(JSON.stringify(found)));
  document.body.append(Object.assign(document.createElement('pre'), {id: 'found', textContent: coded}));
});
</script>"""


def opened(page, *options):
    """The document after it is loaded and its scripts ran. Nothing may be said on the console."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run([BROWSER, "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
                               f"--user-data-dir={profile}", "--window-size=400,800", *options, "--dump-dom", page.as_uri()],
                              text=True, timeout=60, capture_output=True)
    assert done.returncode == 0, done
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    return done.stdout


def check(page):
    opened(page)
    text = page.read_text()
    assert text.count("</body>") == 1, "where the probe goes"
    with tempfile.TemporaryDirectory() as scratch:
        copy = pathlib.Path(scratch) / "probed.html"
        copy.write_text(text.replace("</body>", PROBE + "</body>"))
        for dark, options in enumerate(([], ["--blink-settings=preferredColorScheme=0"])):
            coded = re.search(r'<pre id="found">([\w+/=]+)</pre>', opened(copy, *options)).group(1)
            found = json.loads(urllib.parse.unquote(base64.b64decode(coded).decode()))
            assert found["dark"] == bool(dark), found["dark"]
            looked_at(found)
    print("looked at, light and dark")


def looked_at(found):
    """Complete and escaped text, shades that differ and can be read, nothing loaded, all within 400 pixels."""
    whole = "".join(TEXT % token for token in range(3000) if token % 5 != 4)
    assert found["text"] == whole, found["text"][:300]
    assert found["title"] == "letter: what was read" and set(found["tags"]) == {"SPAN", "A"}, (found["title"], found["tags"])
    assert [group["label"] for group in found["groups"]] == ["all layers", "layer 0", "layer 1"], found["groups"]
    for group in found["groups"]:
        assert group["weight"] == "700", group  # the chosen group's name is bold
        shades = {level: colour for level, (colour, _) in group["shades"].items()}
        assert len(set(shades.values()) - {CLEAR}) == 4, group
        assert min(contrast for _, contrast in group["shades"].values()) >= READABLE, group
        assert "4" in group["shown"] and len(group["shown"]) > (group["label"] != "all layers"), group
        for level, colours in group["shown"].items():
            assert colours == [shades.get(level, CLEAR)], (level, group)
    assert found["contrast"] >= READABLE and found["font"] >= 16, found
    assert found["loaded"] == [], found["loaded"]
    assert found["width"] == 400 and found["scroll_width"] <= 400, (found["width"], found["scroll_width"])
    assert found["below_nav"] >= 0 and found["above_end"] > 0, found  # where a passage's link leads


def main():
    if sys.argv[1].endswith(".html"):
        return check(pathlib.Path(sys.argv[1]).resolve())
    if shutil.which(BROWSER) is None:
        print(f"skipped: no {BROWSER}: apt-get install {BROWSER}")
        return 77
    problems = run.run_case(pathlib.Path(__file__).with_suffix(".txt"), pathlib.Path(sys.argv[1]).resolve())
    print(*problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
