"""kvtier-quality --decode: its paths attend to the same rows, and its lines are those of
kvtier-bench."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface

from kvtier import transformers as adapter
from kvtier.quality import daemon, decode, prefix, run, texts
from kvtier.quality.__main__ import main
from kvtier.quality.model import Judge

CONTEXT = 640


@pytest.fixture(scope="module")
def judge(loaded) -> Judge:
    adapter.install(loaded[0])  # other tests give the model other attention
    return Judge(loaded[0], loaded[1], "", [])


@pytest.fixture(scope="module")
def ids(judge) -> list[int]:
    return judge.ids(texts.find("prose").content)


@pytest.fixture(scope="module")
def stored(judge, ids) -> prefix.Prefix:
    computed = prefix._compute(judge, ids[:CONTEXT], lambda done, total: None)
    return prefix.Prefix(ids[:CONTEXT], **computed)


def plan(budget: int) -> run.Plan:
    return run.Plan([texts.find("prose")], ["default"], [budget], [], CONTEXT, 4)


def test_every_exact_path_gives_the_same_logits(judge, ids, stored):
    watch = decode.Stopwatch()
    with daemon.Daemon(arena_bytes=256 << 20) as own, torch.inference_mode():
        paths = decode.paths_of(judge, stored, own, plan(CONTEXT))
        assert [path.exact for path in paths] == [True, True, True, False]
        AttentionInterface.register("kvtier", watch.attention)
        try:
            for token in ids[CONTEXT : CONTEXT + 3]:
                plain, *others = (decode.one_step(judge, watch, path, token) for path in paths)
                for path, logits in zip(paths[1:], others):  # the preset may take every row, too
                    assert float((logits - plain).abs().max()) < 1e-3, path.name
        finally:
            AttentionInterface.register("kvtier", adapter._attention)
            for path in paths[2:]:
                path.cache.close()


def test_a_small_arena_reads_from_the_disk(judge, monkeypatch, stored):
    """--arena: 640 tokens are 28 MiB of keys and values, 2 of them fit: the least there is."""
    monkeypatch.setattr(prefix, "read", lambda judge, ids, step: stored)
    small = plan(64)
    small.presets, small.arena_bytes = ["quest"], 2 << 20
    (row,) = run.run(small, judge)
    assert row["disk_bytes_per_step"] > 0
    small.arena_bytes = 256 << 20
    (row,) = run.run(small, judge)
    assert row["disk_bytes_per_step"] == 0


def test_rows_are_those_of_kvtier_bench(judge, stored, monkeypatch):
    monkeypatch.setattr(prefix, "read", lambda judge, ids, step: stored)
    rows = list(decode.rows_of(plan(64), judge))
    assert len(rows) == 6  # two figures of each path but the fastest exact one
    mine = [row for row in rows if row["goal"] is not None]
    assert [row["goal"] for row in mine] == [1.0, 1 / 1.5]
    for row in mine:
        assert row["metric"].endswith("preset default, budget 64") and row["n"] == 4
        assert row["held"] == (row["ratio"] <= row["goal"])
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    whole, attention = mine
    assert 0 < attention["value"] < whole["value"]
    assert "waits for the daemon" in attention["note"]
    assert "<= 0.667" in decode.line(attention) and decode.head(attention)


def test_what_does_not_go_with_decode(capsys):
    assert main(["--decode", "--needles"]) == 2
    assert main(["--decode", "--budget", "64,128"]) == 2
    assert "at one budget" in capsys.readouterr().err
