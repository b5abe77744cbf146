"""Needles and context-intensive tasks: where facts lie, which tokens are scored, and that full
attention finds what a window cannot."""

from __future__ import annotations

import json

import pytest
import torch

from kvtier.quality import evaluate, needles, plots, prefix, probes, run, tasks, texts
from kvtier.quality.model import Judge

PROSE = texts.find("prose").content
CONTEXT = 900


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
    figures = probes.summary(answers, full)
    assert (figures["hits"], figures["hits_full"], figures["hits_of_full"]) == (2, 2, 1)
    assert figures["score_of_full"] == 0.5 and figures["score_full"] == pytest.approx(2 / 3)


def test_facts_lie_at_every_depth(judge):
    facts = [f"Fact number {i} is here." for i in range(5)]
    ids = needles.hide(judge.tokenizer, PROSE, facts, CONTEXT)
    assert len(ids) == CONTEXT
    text = judge.tokenizer.decode(ids)
    depths = [text.index(fact) / len(text) for fact in facts]
    assert depths == sorted(depths) and depths[0] < 0.3 and depths[-1] > 0.7
    short = needles.hide(judge.tokenizer, "One line.\n\nAnother.", facts, CONTEXT)
    assert len(short) == CONTEXT  # a short text begins anew


@pytest.mark.parametrize("builder", [needles, tasks])
def test_what_is_scored_is_the_answer(judge, builder):
    for probe in builder.build(judge.tokenizer, PROSE, 2000):
        assert len(probe.context) == 2000, probe.name
        context = judge.tokenizer.decode(probe.context)
        for question in probe.questions:
            assert question.items and question.items[0][0] > 0
            for first, last in question.items:
                answer = judge.tokenizer.decode(question.ids[first:last])
                assert answer.strip() in context, (probe.name, answer)


def test_full_attention_finds_needles_that_a_window_does_not(judge):
    probe = needles.build(judge.tokenizer, PROSE, CONTEXT)[0]
    stored = prefix.Prefix(
        probe.context, **prefix._compute(judge, probe.context, lambda done, total: None)
    )
    found = {}
    for name in ("full", "oracle", "window"):
        answers = probes.Answers()
        for question in probe.questions:
            settings = evaluate.Settings(budget=128)
            one = evaluate.reference_of(judge, stored, question.ids[:-1], name, settings, {})
            answers.add(
                question, evaluate.forward(judge, stored, question.ids[:-1], one, lambda *_: None)
            )
        found[name] = answers
    assert sum(found["full"].hits) >= 6
    assert found["oracle"].hits == found["full"].hits
    assert sum(found["window"].hits) <= 2


def test_rows_of_probes_and_a_left_out_preset(judge, monkeypatch, capsys):
    """The plumbing, with the model left out."""

    def logits(judge, stored, ids, one, progress):
        return torch.zeros(len(ids), judge.model.config.vocab_size)

    def not_there(*_):
        raise run.daemon.NotThere("the daemon does not run the preset codes")

    monkeypatch.setattr(evaluate, "forward", logits)
    monkeypatch.setattr(run.daemon, "logits_of", not_there)
    monkeypatch.setattr(run.daemon.Daemon, "calibrate", lambda *_: None)
    monkeypatch.setattr(prefix, "read", lambda judge, ids, step: prefix.Prefix(ids, *[None] * 4))
    plan = run.Plan(
        [texts.find("prose")], ["window", "codes"], [64, 128], [], 600, 8, ["daemon"], skip=True
    )
    plan.probes = ["needles"]
    assert list(run.run(plan, judge)) == []
    assert capsys.readouterr().err.count("left out: the daemon does not run") == 3 * 3
    plan.skip = False
    with pytest.raises(run.daemon.NotThere):
        list(run.run(plan, judge))


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
    files = plots.draw(json.loads(json.dumps(rows)), tmp_path / "plots")
    assert [f.name for f in files] == ["kl-device.png", "kl-fetched.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
