"""Needles and context-intensive tasks: where facts lie, which tokens are scored, and that full
attention finds what a window cannot."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from kvtier.quality import asking, daemon, evaluate, needles, plots, prefix, probes, run, tasks
from kvtier.quality import report, texts
from kvtier.quality.model import Judge

PROSE = texts.find("prose").content
CONTEXT = 900
ALL_TASKS = 2400  # the facts of the tasks take most of it


@pytest.fixture(scope="module")
def judge(loaded) -> Judge:
    return Judge(loaded[0], loaded[1], "", [])


def test_a_hit_needs_every_token_and_nothing_else():
    question = probes.Question([5, 1, 2, 3, 4], [(1, 3), (3, 4), (4, 5)])
    logits = torch.zeros(4, 9)
    logits[0, 1], logits[1, 2], logits[2, 8], logits[3, 4] = 9, 9, 9, 9
    answers = probes.Answers()
    answers.add(question, logits)
    assert answers.hits == [True, False, True] and len(answers.nll) == 4
    assert answers.nll[2] > 5 > 0.1 > answers.nll[3]
    full = probes.Answers([True, True, False], [1.0])
    probe = probes.Probe("x", "needles", [], [], one_each=True, depths=[0.1, 0.5, 0.9])
    figures = probes.summary(probe, answers, full)
    assert (figures["hits"], figures["hits_full"], figures["hits_of_full"]) == (2, 2, 1)
    assert figures["lost_at"] == [0.5] and figures["nll_full"] == 1.0


def figures_of(kind: str, hits: int, full: int, items: int, nll: float = 1.0) -> dict:
    return {
        "kind": kind,
        "items": items,
        "hits_full": full,
        "hits": hits,
        "hits_of_full": hits,
        "nll": nll,
        "nll_full": 1.0,
    }


def test_a_verdict_counts_each_task_alike_and_only_those_that_full_attention_masters():
    figures = {
        "a": figures_of("tasks", 9, 10, 10, 1.2),
        "b": figures_of("tasks", 100, 100, 200),
        "hard": figures_of("tasks", 0, 49, 100, 9.0),
    }
    told = probes.verdict(figures, "tasks")
    assert told["judged"] == ["a", "b"] and told["share_of_full"] == pytest.approx(0.95)
    assert told["nll_change"] == pytest.approx(0.1)
    assert not told["held"]  # two tasks are too few
    figures["c"] = figures_of("tasks", 5, 5, 5)
    assert probes.verdict(figures, "tasks")["held"]
    figures["c"] = figures_of("tasks", 4, 5, 5)
    assert not probes.verdict(figures, "tasks")["held"]
    found = {"single": figures_of("needles", 3, 3, 8), "keys": figures_of("needles", 2, 3, 8)}
    told = probes.verdict(found, "needles")
    assert told["judged"] == ["single", "keys"] and not told["held"]  # all of them are wanted
    found["keys"]["hits_of_full"] = 3
    assert probes.verdict(found, "needles")["held"]
    none = {"single": figures_of("needles", 0, 0, 8)}
    assert not probes.verdict(none, "needles")["held"]  # nothing was shown


def told_probe(name: str, facts: list[str]) -> probes.Probe:
    return probes.Probe(name, "needles", facts, [])


def test_facts_lie_at_every_depth(judge):
    some = told_probe("some", [f"Fact number {i} is here." for i in range(5)])
    one = told_probe("one", ["The only fact of its kind."])
    context = probes.hide(judge.tokenizer, PROSE, [some, one], CONTEXT)
    assert len(context.ids) == CONTEXT and len(some.depths) == 5 and len(one.depths) == 1
    text = judge.tokenizer.decode(context.ids)
    for probe in (some, one):
        for fact, depth in zip(probe.facts, probe.depths):
            assert text.index(fact) / len(text) == pytest.approx(depth, abs=0.1)
    assert some.depths == sorted(some.depths) and some.depths[0] < 0.3 and some.depths[-1] > 0.7
    assert 0.5 < one.depths[0] < 0.8
    short = probes.hide(judge.tokenizer, "One line.\n\nAnother.", [some], CONTEXT)
    assert len(short.ids) == CONTEXT  # a short text begins anew
    with pytest.raises(probes.NoRoom, match="a context of 45 is too short, take at least"):
        probes.hide(judge.tokenizer, PROSE, [some], 45)


@pytest.mark.parametrize("builder", [needles, tasks])
def test_what_is_scored_is_the_answer(judge, builder):
    for context in builder.build(judge.tokenizer, PROSE, ALL_TASKS):
        assert len(context.ids) == ALL_TASKS
        text = judge.tokenizer.decode(context.ids)
        for probe in context.probes:
            assert all(fact in text for fact in probe.facts), probe.name
            items = [(q, *item) for q in probe.questions for item in q.items]
            assert not probe.one_each or len(items) == len(probe.facts) == len(probe.depths)
            for i, (question, first, last) in enumerate(items):
                assert first > 0
                answer = judge.tokenizer.decode(question.ids[first:last]).strip()
                if probe.one_each:
                    assert answer in probe.facts[i]
                elif probe.name != "count":  # told by the number of the facts
                    assert answer in text, (probe.name, answer)


def test_the_right_count_is_how_often_it_was_told(judge):
    contexts = tasks.build(judge.tokenizer, PROSE, ALL_TASKS)
    count = next(p for context in contexts for p in context.probes if p.name == "count")
    said = judge.tokenizer.decode(count.questions[0].ids)
    for place in tasks.BELLS:
        times = said.split(f"the bell of {place} rang ")[1].split()[0]
        assert count.facts.count(f"The bell of {place} rang.") == 2 + tasks.TIMES.index(times)


@pytest.fixture(scope="module")
def needle_context(judge):
    (context,) = needles.build(judge.tokenizer, PROSE, CONTEXT)
    stored = prefix.Prefix(
        context.ids, **prefix._compute(judge, context.ids, lambda done, total: None)
    )
    return context, stored


def test_full_attention_finds_needles_that_a_window_does_not(judge, needle_context):
    context, stored = needle_context
    single = context.probes[0]
    found = {}
    for name in ("full", "oracle", "window"):
        settings = evaluate.Settings(budget=128)
        way = asking._way(judge, stored, "reference", name, settings, {}, None)
        (found[name],) = asking._ask([single], way, lambda done, total: None)
    assert sum(found["full"].hits) >= 6
    assert found["oracle"].hits == found["full"].hits
    assert sum(found["window"].hits) <= 2


def test_needles_through_the_daemon(judge, needle_context, monkeypatch):
    """Everything there is full attention; a window alone loses most of it."""
    context, stored = needle_context
    monkeypatch.setattr(prefix, "read", lambda judge, ids, step: stored)
    plan = run.Plan([texts.Text("a", PROSE)], ["full", "window", "mean"], [64], [], CONTEXT)
    plan.probes = ["needles"]
    shown = []
    rows = asking.rows_of(plan, judge)
    for row in rows:
        shown.append(row)
    full, window, mean = shown
    assert [row["preset"] for row in shown] == ["full", "window", "mean"]
    assert full["needles"]["held"] and full["needles"]["share_of_full"] == 1
    assert abs(full["needles"]["nll_change"]) < 1e-3
    assert window["needles"]["share_of_full"] < 0.5 and not window["needles"]["held"]
    assert window["needles"]["nll_change"] > 1 and window["probes"]["single"]["lost_at"]
    assert mean["budget"] == 64 and 0 < mean["needles"]["hits_full"]
    assert list(full["probes"]) == ["single", "keys", "values"]
    assert full["steps"] == sum(len(q.ids) - 1 for p in context.probes for q in p.questions)


def test_a_preset_that_is_not_there_is_left_out(judge, monkeypatch, capsys):
    """The plumbing, with the model left out."""

    def logits(judge, stored, ids, one, progress):
        return torch.zeros(len(ids), judge.model.config.vocab_size)

    def not_there(*_):
        raise daemon.NotThere("the daemon does not run the preset codes")

    monkeypatch.setattr(evaluate, "forward", logits)
    monkeypatch.setattr(daemon, "logits_of", not_there)
    monkeypatch.setattr(daemon.Daemon, "calibrate", lambda *_: None)
    monkeypatch.setattr(prefix, "read", lambda judge, ids, step: prefix.Prefix(ids, *[None] * 4))
    plan = run.Plan(
        [texts.find("prose")], ["window", "codes"], [64, 128], [], CONTEXT, 8, ["daemon"], skip=True
    )
    plan.probes = ["needles"]
    assert list(asking.rows_of(plan, judge)) == []
    assert capsys.readouterr().err.count("left out: the daemon does not run") == 3
    plan.skip = False
    with pytest.raises(daemon.NotThere):
        list(asking.rows_of(plan, judge))
    plan.context = judge.longest
    with pytest.raises(probes.NoRoom, match="give a smaller --context"):
        list(asking.rows_of(plan, judge))


def test_texts_together_and_the_table_in_markdown(tmp_path):
    def row(text, hits):
        figures = {
            "single": figures_of("needles", hits, 4, 4) | {"lost_at": [0.5]},
            "copy": figures_of("tasks", 8, 8, 8),
            "hard": figures_of("tasks", 1, 2, 8),
        }
        head = {"text": text, "engine": "daemon", "preset": "codes", "budget": 512}
        return asking._row(head | {"context": 900}, figures)

    rows = [row("a", 4), row("b", 3)]
    (both,) = asking.together(rows)
    assert both["text"] == "all" and both["probes"]["single"]["hits_of_full"] == 7
    assert both["needles"]["share_of_full"] == pytest.approx(7 / 8)
    assert both["tasks"]["judged"] == ["copy"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(report.as_json(one) + "\n" for one in [*rows, both]))
    command = [sys.executable, str(ROOT / "tools" / "bench" / "quality_summary.py"), str(path)]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert table.splitlines()[2:] == [
        "| `codes` | 512 | 0.875 | +0.000 | 1.000 | +0.000 | 7 of 8 | 16 of 16 "
        "| 2 of 4 (16 asked) |"
    ]
    assert report.probe_line(both).count("missed") == 2  # one needle; one task is too few


def test_pictures(tmp_path):
    rows = [
        {
            "text": text,
            "engine": "reference",
            "preset": preset,
            "budget": budget,
            "kl": kl,
            "kl_low": kl / 2,
            "kl_high": 2 * kl,
            "device_bytes_ratio": 0.03,
            "fetched_ratio": 0.01,
        }
        for text in ("a", "mean")
        for preset, kl in (("codes", 0.003), ("quest", 0.1))
        for budget in (256, 1024)
    ]
    rows.append(rows[-1] | {"preset": "progressive", "fetched_ratio": None})
    files = plots.draw(json.loads(json.dumps(rows)), tmp_path / "plots")
    assert [f.name for f in files] == ["kl-device.png", "kl-fetched.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
