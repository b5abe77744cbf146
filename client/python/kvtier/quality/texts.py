"""The texts: three to judge by, of different kinds, and two others to calibrate on.

They come with the package (repository: examples/). None was written for a preset; any other text
may be given as a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BUILT_IN = {"prose": "skarholm.txt", "code": "code.txt", "dialogue": "dialogue.txt"}
CALIBRATION = ("calibration-prose.txt", "calibration-code.txt")
CALIBRATION_TOKENS = 3000  # of each text; more would only cost time


@dataclass
class Text:
    name: str
    content: str


def _folders() -> list[Path]:
    package = Path(__file__).resolve().parent
    trees = [p for p in package.parents if (p / "examples" / BUILT_IN["prose"]).exists()]
    return [package / "texts", *(tree / "examples" for tree in trees)]


def _built_in(file: str) -> Path:
    for folder in _folders():
        for path in (folder / file, folder / "texts" / file):
            if path.is_file():
                return path
    raise FileNotFoundError(f"the text {file} is missing: reinstall the package kvtier")


def find(name: str) -> Text:
    """A built-in text by its name, or a file."""
    path = _built_in(BUILT_IN[name]) if name in BUILT_IN else Path(name)
    if not path.exists():
        raise FileNotFoundError(f"no such text: {name}; a file, or {', '.join(BUILT_IN)}")
    return _read(path, name if name in BUILT_IN else path.name)


def calibration(files: list[str]) -> list[Text]:
    paths = [Path(f) for f in files] or [_built_in(f) for f in CALIBRATION]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no such text: {path}")
    return [_read(path, path.name) for path in paths]


def _read(path: Path, name: str) -> Text:
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a directory: give a file")
    return Text(name, path.read_text(errors="replace"))
