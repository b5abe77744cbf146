"""The story of tools/quickstart on a short document: every figure is there, and those that must
hold do."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PATHS, ROOT

from kvtier.story import machine, report
from kvtier.story.progress import Step
from kvtier.story.settings import Settings

FIELDS = {
    "document_tokens": int,
    "prefill_s": float,
    "resume_s": float,
    "tokens_forwarded_on_resume": int,
    "first_token_s": {"full_load": float, "kvtier_cold": float, "kvtier_ram": float},
    "tokens_equal_budget_all": bool,
    "perplexity": {"full": float, "all": float, "budget": float},
    "budget_tokens": int,
    "bytes": {
        "device": int,
        "host": int,
        "disk": int,
        "read": int,
        "written": int,
        "read_during_decode": int,
        "client_private": int,
    },
    "tokens_per_s": {"full": float, "all": float, "budget": float},
    "load": float,
}


def story(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | PATHS
    return subprocess.run(
        [sys.executable, "-m", "kvtier.story", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )


def has(figures: dict, fields: dict) -> bool:
    return all(
        has(figures[k], kind) if isinstance(kind, dict) else type(figures[k]) is kind
        for k, kind in fields.items()
    )


def test_the_whole_story(tmp_path):
    text = (ROOT / "examples" / "skarholm.txt").read_text()[:4000]
    document = tmp_path / "document.txt"
    document.write_text(text)
    run = story(
        "--json",
        tmp_path / "figures.json",
        "--png",
        tmp_path / "picture.png",
        document,
        "Who wrote this?",
        "--tokens",
        6,
        "--scored-tokens",
        12,
        "--budget",
        128,
        "--drop-files-only",
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures.keys() - {"details"} == FIELDS.keys() and has(figures, FIELDS)
    details = figures["details"]
    assert figures["tokens_equal_budget_all"] and figures["budget_tokens"] == 128
    assert 0 < figures["details"]["logits_apart_budget_all"] < 1e-3
    assert figures["perplexity"]["all"] == pytest.approx(figures["perplexity"]["full"], rel=1e-4)
    assert figures["perplexity"]["budget"] == pytest.approx(figures["perplexity"]["full"], rel=0.3)
    assert figures["tokens_forwarded_on_resume"] <= details["question_tokens"] + 1
    assert details["resumed_tokens"] == details["committed_tokens"] > figures["document_tokens"]
    assert details["page_cache"] == "page cache of these files dropped"
    turns, first = details["turns"], figures["first_token_s"]
    loads, by = turns["full_load_s"], details["full_load_by"]
    assert all(len(seconds) == 3 for seconds in (turns["resume_s"], *loads.values()))
    assert figures["resume_s"] == statistics.median(turns["resume_s"])
    assert first["kvtier_cold"] == statistics.median(turns["cold_s"])
    assert first["full_load"] == min(map(statistics.median, loads.values()))
    size = figures["bytes"]
    assert size["device"] == 0 and size["read_during_decode"] > 0
    assert 0 < size["host"] <= details["host_arena_bytes"] < details["kv_bytes"] < size["disk"]
    assert details["first_token_read"]["kvtier_cold"] > 0  # and from memory nothing is read:
    assert details["first_token_read"]["kvtier_ram"] == 0
    # Twice the budget, sinks and window; two buffers of a question's exact pass; PyTorch's own.
    row, heads = 2 * 64 * 4, 30 * 3
    bound = heads * (2 * 128 + 64 + 16) * row + 3 * 2048 * row + (12 << 20)
    assert size["client_private"] <= bound < details["kv_bytes"]
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    for words in ("Who wrote this?", "after kill -9", "the same as full attention"):
        assert words in run.stdout
    parts = details["disk_parts"]
    assert parts["segments"] > details["kv_bytes"] and sum(parts.values()) == size["disk"]
    told = " ".join(run.stdout.split())
    for words in (
        f"{details['prefill_tokens']:,} tokens: the document and the model's chat header",
        f"the arena is {details['host_arena_bytes'] / 1e6:,.1f} MB on purpose",
        f"On disk: segments {parts['segments'] / 1e6:,.1f} MB",
    ):
        assert words in told
    assert "is no less than the document" not in told
    settings = Settings("", "", "", "", "", budget=figures["document_tokens"])
    assert "is no less than the document" in " ".join(report.explained(settings, figures))
    assert f"medians of 3 in turn, each after kill -9; the saved cache is read by {by}," in told
    assert "From disk: before, the story's files were dropped from the page cache" in told
    for first, said in ((0.2, True), (0.05, False)):
        figures["first_token_s"] |= {"kvtier_cold": 0.1, "kvtier_ram": first}
        told = " ".join(report.explained(settings, figures))
        assert ("From memory was no faster than from disk" in told) is said
    assert not Path(f"/proc/{details['killed_pid']}").exists()
    assert figures["load"] >= 0 and details["cores"] == os.cpu_count()
    words = "The machine was busy (load 1.2 of other programs on 4 cores): the times are not to be"
    for load, said in ((1.2, True), (0.9, False)):
        figures["load"], details["cores"] = load, 4
        assert (words in report.table(settings, figures)) is said
        report.picture(figures, tmp_path / "picture.svg")  # which has its texts as comments
        assert (words in (tmp_path / "picture.svg").read_text()) is said


def test_a_bar_without_a_count_moves_past_the_expected_time():
    shares = [Step("loading", expected_s=20).share(seconds) for seconds in (0, 20, 40, 60)]
    assert shares == pytest.approx([0, 0.632, 0.865, 0.950], abs=1e-3)
    counted = Step("reading", expected_s=20)
    counted(3, 4)
    assert counted.share(60) == 0.75 and Step("storing").share(60) == 0


def test_what_lies_on_disk_is_counted_while_it_changes(tmp_path, monkeypatch):
    for name in ("lock", "logs/1", "logs/2", "segments/a/1", "segments/b/2", "gone/1"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 8192)
    walk = os.walk

    def meanwhile(top):
        for directory, folders, files in walk(top):
            if directory == str(tmp_path):
                shutil.rmtree(tmp_path / "gone")
            if Path(directory).name == "logs":
                (tmp_path / "logs" / "1").unlink()
            yield directory, folders, files

    monkeypatch.setattr(machine.os, "walk", meanwhile)
    parts = machine.disk_parts(tmp_path)
    block = os.stat(tmp_path / "lock").st_blocks * 512
    assert block >= 8192 and parts == {".": block, "logs": block, "segments": 2 * block}


def test_the_load_of_others_is_theirs_alone():
    spin = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as program:
        time.sleep(0.3)
        ours, theirs = machine.Others(program.pid), machine.Others()
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            pass
        # Of whatever else runs both have the same, and of this process neither.
        assert 0.02 < theirs.load() - ours.load() < 1.3


def test_a_story_that_is_ended_leaves_nothing(tmp_path):
    environment = os.environ | PATHS | {"TMPDIR": str(tmp_path)}
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kvtier.story",
            "--example",
            str(ROOT / "examples" / "skarholm.txt"),
        ],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    run.stderr.readline()  # the first step shows that it goes on: the model is being loaded
    part = next(tmp_path.glob("kvtier-story-*/settings.json"))
    run.terminate()
    assert run.wait(30) == 143
    assert not part.parent.exists()
    mine = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(part).encode() in read(p)]
    assert not mine


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "which document"),
        (("/no/such/file", "q"), "no such file: /no/such/file"),
        ((ROOT, "q"), f"{ROOT} is a directory"),
        (("/dev/null", "q"), "/dev/null is not a regular file"),
        ((__file__, "q", "--json", ROOT), f"{ROOT} is a directory"),
        ((__file__, "q", "--directory", __file__), "is a file: give a directory"),
        ((__file__, "q", "--threads", "-1"), "--threads -1: at least 0"),
        ((__file__, "q", "--json", "/no/such/place/x.json"), "no such directory: /no/such/place"),
        ((__file__, "q", "--budget", "3"), "--budget 3: at least 64"),
        ((ROOT / "requirements.txt", "q"), "give a text of 400 words"),
    ],
)
def test_what_cannot_work_is_said_at_once(arguments, words):
    run = story(*arguments)
    assert run.returncode == 2 and words in run.stderr and "Traceback" not in run.stderr


def test_what_is_not_the_storys_own_stays(tmp_path):
    """Neither a store nor a file of others is replaced, nor its own store while a daemon has it."""
    store, settings = tmp_path / "store", tmp_path / "settings.json"
    check = (__file__, "q", "--check", "--directory", tmp_path)
    assert story(*check).returncode == 0
    store.mkdir()
    (store / "LOCK").touch()
    for others in (None, "[]", '{"editor.tabSize": 4}'):
        if others is not None:
            settings.write_text(others)
        run = story(*check[:2], *check[3:])  # the whole story, not the check alone
        assert run.returncode == 2 and f"{store} is not of this story" in run.stderr
        assert (store / "LOCK").exists() and (others is None or settings.read_text() == others)
    shutil.move(store, tmp_path / "aside")
    run = story(*check)
    assert run.returncode == 2 and f"{settings} is not of this story" in run.stderr
    shutil.move(tmp_path / "aside", store)
    Settings("", "", "", "", str(tmp_path)).save()
    assert story(*check).returncode == 0
    with (store / "LOCK").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = story(*check)
        assert run.returncode == 2 and f"a daemon uses {store}: stop that" in run.stderr


@pytest.mark.parametrize("safe", [{}, {"PYTHONSAFEPATH": "1"}])
@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--bogus",), "unrecognized arguments: --bogus"),
        (("no-such-file", "q"), "no such file: no-such-file"),
        ((".", "q"), ". is a directory"),
        (("--tokens", "x"), "--tokens: invalid int value"),
    ],
)
def test_the_quickstart_refuses_before_it_installs_or_builds(tmp_path, arguments, words, safe):
    """Of a clone it has what the check needs, and nothing that could be installed or built."""
    for folder in ("tools", "client/python/kvtier/story", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / "clone" / folder)
    (tmp_path / "story.py").write_text("raise SystemExit('of the caller, not to be taken')")
    run = subprocess.run(
        [tmp_path / "clone/tools/quickstart", *arguments],
        cwd=tmp_path,
        env=os.environ | safe,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and words in run.stderr and "Traceback" not in run.stderr
    assert "kvtier.story" not in run.stderr
    assert "usage: " not in run.stderr or "usage: tools/quickstart " in run.stderr
    assert "its output is in" not in run.stderr and not (tmp_path / "clone/build").exists()
