"""kvtier-quality --trace: the file of `kvtier-bench replay` (tools/bench/replay_trace.h)."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PATHS

from kvtier.quality import trace
from kvtier.quality.__main__ import main
from kvtier.quality.reference.layer import Layer

HOT = 1 << 31


def read(file) -> tuple[dict, list[list[list[np.ndarray]]]]:
    """(header, [layer and head][step][lane] units)."""
    header = json.loads(file.readline())
    words = np.frombuffer(file.read(), "<u4")
    at, heads = 0, []
    for _ in range(header["layers"] * header["kv_heads"]):
        steps = []
        for _ in range(header["steps"]):
            lanes = []
            for _ in header["granules"]:
                count = int(words[at])
                lanes.append(words[at + 1 : at + 1 + count])
                at += 1 + count
            steps.append(lanes)
        heads.append(steps)
    assert at == len(words)
    return header, heads


def layer_of(stored: int, heads: int) -> Layer:
    rows = torch.zeros(heads, stored, 4)
    return Layer(
        0, 1, rows, rows, torch.zeros(heads, 1, 1, 4), stored, 1.0, 2, 4, torch.zeros(stored)
    )


def test_what_has_the_most_mass_is_written_without_kept_rows():
    mass = torch.full((1, 1, 40), 1e-4)
    mass[0, 0, [0, 9, 17, 18, 19, 39]] = torch.tensor([0.5, 0.02, 0.009, 0.009, 0.008, 0.3])
    file = io.BytesIO()
    trace.write_layer(file, 3, layer_of(40, 1), mass)
    words = np.frombuffer(file.getvalue(), "<u4").tolist()
    # Rows 0 and 39 are always there; only row 9 has more than 1 % of the mass; the second run of 16
    # has 0.026 of the mass, the first 0.021; the first page has both.
    assert words == [3, 9 | HOT, 17, 18, 1, 1, 1, 0]


def test_units_without_mass_are_no_choice():
    mass = torch.zeros(1, 40)
    mass[0, 5] = 1.0
    assert [units.tolist() for units in trace.chosen(mass, 8, 1)] == [[5]]
    assert [units.tolist() for units in trace.chosen(mass, 40, 16)] == [[0]]


def test_a_trace_of_the_real_model(tmp_path):
    command = [sys.executable, "-m", "kvtier.quality", "--trace", str(tmp_path / "trace")]
    command += ["--text", "prose", "--context", "640", "--eval", "6", "--budget", "64"]
    environment = os.environ | PATHS | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "--preset", "oracle"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "trace", "rb") as file:
        header, heads = read(file)
    assert (header["layers"], header["kv_heads"], header["row_bytes"]) == (30, 3, 256)
    assert (header["tokens"], header["steps"], header["budget"]) == (640, 6, 64)
    hot = 0
    for rows, runs, pages in (lanes for steps in heads for lanes in steps):
        assert (len(rows), len(runs), len(pages)) == (64, 4, 2)
        tokens = rows & (HOT - 1)
        assert (np.diff(tokens.astype(int)) > 0).all() and (np.diff(runs.astype(int)) > 0).all()
        assert tokens[0] >= 16 and tokens[-1] < 640 - 64
        hot += int((rows >= HOT).sum())
    assert 0.5 < hot / (90 * 6) < 20
    refused = subprocess.run(
        [*command, "--preset", "quest"], env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 2 and "single rows" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--budget", "64,128"],
        ["--preset", "codes,quest"],
        ["--text", "prose", "--text", "code"],
        ["--needles"],
        ["--json", "-"],
    ],
)
def test_a_trace_is_of_one_choice(capsys, arguments):
    assert main(["--trace", "unwritten", *arguments]) == 2
    assert "--trace" in capsys.readouterr().err
