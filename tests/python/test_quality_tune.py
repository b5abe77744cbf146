"""kvtier-quality --tune: what it finds, and the profile that it writes for views to use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import PATHS, quality

from kvtier.quality import tune
from kvtier.quality.__main__ import main, parse, tuned


def test_tune_asks_first_whether_a_profile_can_be_written(monkeypatch, tmp_path, capsys):
    file = tmp_path / "config"  # nothing can be made in it, by root neither
    file.touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(file))
    assert main(["--tune", "1", "--json", "-"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert "no profile can be written into" in told["error"] and not told["ok"]
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("HOME", raising=False)
    assert "HOME is not set" in tune.not_writable()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "later" / "made"))
    assert tune.not_writable() is None
    assert list(tmp_path.iterdir()) == [file]


def test_rows_are_said_also_where_their_profile_cannot_be_written(monkeypatch, capsys):
    def refuse(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tune, "profile_text", lambda *_: "")
    monkeypatch.setattr(tune, "write_profile", refuse)
    row = {"preset": "codes", "budget": 64, "kl": 0.5, "holds": True}
    row |= {"device_bytes_ratio": 0.1, "resident_bytes_ratio": 0.1}
    assert tuned(None, None, parse(["--tune", "1", "--json", "-"]), [row]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == [row] and not told["ok"] and told["code"] == 60
    assert "codes with a budget of 64 keeps KL <= 1.0, but its profile" in told["error"]
    assert "No space left" in told["error"]


def test_what_was_tuned_is_said_with_where_its_profile_is(monkeypatch, capsys):
    monkeypatch.setattr(tune, "profile_text", lambda *_: "")
    monkeypatch.setattr(tune, "write_profile", lambda _: Path("profiles") / "mine.toml")
    row = {"preset": "codes", "budget": 64, "kl": 0.01234, "holds": True}
    row |= {"device_bytes_ratio": 0.125, "resident_bytes_ratio": 0.25}
    assert tuned(None, None, parse(["--tune", "1"]), [row | {"holds": False}, row]) == 0
    out, error = capsys.readouterr()
    assert not out and error.endswith(": profiles/mine.toml\n")
    assert error.startswith(
        "codes with a budget of 64 keeps KL at 0.0123, with 37.5 % of the KV's bytes, all at "
        "16 bit. Views of this model that name no preset take this one from now on, and the "
        "budget where "
    )
    assert tuned(None, None, parse(["--tune", "1", "--json", "-"]), [row]) == 0
    out, again = capsys.readouterr()
    told = json.loads(out)
    assert again == error and told["profile"] == "profiles/mine.toml" and told["ok"]
    assert (told["preset"], told["budget"], told["rows"]) == ("codes", 64, [row])


def test_tune_finds_the_least_budget_that_holds_a_bound():
    def measured(kl):
        tried = []

        def measure(budget):
            tried.append(budget)
            return {"kl": kl(budget), "budget": budget}

        best, seen = tune.least([16, 32, 64, 128, 256], 0.01, measure)
        assert [row["budget"] for row in seen] == tried and len(tried) <= 4
        return best and best["budget"], tried[0]

    assert measured(lambda budget: 1 / budget) == (128, 256)
    assert measured(lambda budget: 0.0) == (16, 256)
    assert measured(lambda budget: 1.0) == (None, 256)
    assert measured(lambda budget: 0.02 if budget < 256 else 0.01) == (256, 256)


def test_tune_takes_the_least_memory_that_holds():
    def row(preset, device, resident, holds):
        return {
            "preset": preset,
            "device_bytes_ratio": device,
            "resident_bytes_ratio": resident,
            "holds": holds,
        }

    rows = [row("a", 0.3, 0.1, True), row("b", 0.03, 0.3, True), row("c", 0.0, 0.1, False)]
    assert tune.choose(rows)["preset"] == "b"
    assert tune.choose(rows[2:]) is None


def test_tune_writes_the_profile_that_views_then_use(tmp_path):
    done = quality(
        tmp_path,
        *("--tune", 1, "--preset", "mean,quest", "--budget", "32,64", "--text", "prose"),
        *("--context", 512, "--eval", 8, "--json", tmp_path / "rows.json"),
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    assert {row["preset"] for row in rows} == {"mean", "quest"}
    (profile,) = (tmp_path / "config" / "kvtier" / "profiles").glob("*.toml")
    told = tomllib.loads(profile.read_text())
    best = min((row for row in rows if row["holds"]), key=tune.cost)
    assert (told["preset"], told["budget"]) == (best["preset"], best["budget"])
    assert told["measured"]["kl"] == pytest.approx(best["kl"], abs=1e-5) and told["also"]
    listed = json.loads(
        subprocess.run(
            [sys.executable, "-c", "import json, kvtier; print(json.dumps(kvtier.presets()))"],
            env=os.environ | PATHS | {"XDG_CONFIG_HOME": str(tmp_path / "config")},
            capture_output=True,
            check=True,
        ).stdout
    )["profiles"]
    assert [entry["model"] for entry in listed] == [told["model"]]
    # Another profile of these weights, whatever its file is called, gives way.
    (profile.parent / "elsewhere.toml").write_text(
        profile.read_text().replace(told["model"], "by another name")
    )
    code = "import sys; sys.modules['tomllib'] = None\n"  # as before Python 3.11
    code += "from kvtier.quality.tune import *; print(write_profile(sys.stdin.read()))"
    again = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | PATHS | {"XDG_CONFIG_HOME": str(tmp_path / "config")},
        input=profile.read_text(),
        capture_output=True,
        text=True,
    )
    assert again.stdout.strip() == str(profile), again.stderr
    assert list(profile.parent.glob("*.toml")) == [profile]
    # A bound that nothing keeps writes nothing.
    profile.unlink()
    done = quality(
        tmp_path,
        *("--tune", 1e-9, "--preset", "window", "--text", "prose", "--json", "-"),
        *("--context", 512, "--eval", 4, "--budget", 16),
    )
    told = json.loads(done.stdout)
    assert done.returncode == 1 and not told["ok"] and "nothing that was tried" in told["error"]
    assert not list(profile.parent.glob("*.toml"))
    done = quality(
        tmp_path,
        *("--tune", 100, "--preset", "window", "--text", "prose", "--json", "-"),
        *("--context", 512, "--eval", 4, "--budget", 16),
    )
    told = json.loads(done.stdout)
    assert told["ok"] and (told["preset"], told["budget"]) == ("window", 16)
    assert Path(told["profile"]).is_file() and told["rows"][0]["preset"] == "window"
