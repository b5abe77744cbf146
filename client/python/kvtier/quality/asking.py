"""kvtier-quality --needles, --tasks: answers of presets against those of full attention, one row
per text, preset and budget.

The contexts of a text (one of needles, two of tasks) are read once, stored once and asked by every
preset. A preset and budget takes some 1,500 steps of one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ..story.progress import Step
from . import daemon, evaluate, needles, prefix, probes, run, tasks, texts
from .model import Judge
from .probes import Answers, Context, Probe

Row = dict[str, Any]
BUILDERS = {"needles": needles.build, "tasks": tasks.build}
ALL = "all"  # texts together


@dataclass
class Reading:
    """A context as the model has read it, and what full attention answers."""

    stored: prefix.Prefix
    probes: list[Probe]
    full: list[Answers]  # of each probe


def rows_of(plan: run.Plan, judge: Judge) -> Iterator[Row]:
    length = run.CONTEXT if plan.context is None else plan.context
    asked = [_contexts(plan, judge, text, length) for text in plan.texts]
    rows = []
    with ExitStack() as stack:
        own = run.daemon_of(plan, stack)
        made = run.calibrate(plan, judge, min(judge.longest, length + 1024), own)
        for text, contexts in zip(plan.texts, asked):
            readings = [
                _read(judge, f"{text.name} {i}", context) for i, context in enumerate(contexts, 1)
            ]
            for row in _text(plan, judge, text, readings, made, own):
                rows.append(row)
                yield row
            del readings  # before those of the next text are made
    if len(plan.texts) > 1:
        yield from together(rows)


def _contexts(plan: run.Plan, judge: Judge, text: texts.Text, length: int) -> list[Context]:
    made: list[Context] = []
    for kind in plan.probes:
        made += BUILDERS[kind](judge.tokenizer, text.content, length)
    longest = max(len(q.ids) for context in made for p in context.probes for q in p.questions)
    if length + longest > judge.longest:
        raise probes.NoRoom(
            f"a context of {length} and questions of up to {longest} tokens are more than the "
            f"{judge.longest} that the model takes: give a smaller --context"
        )
    return made


def _read(judge: Judge, label: str, context: Context) -> Reading:
    with Step(f"{label}: reading {len(context.ids)} tokens") as step:
        stored = prefix.read(judge, context.ids, step)

    def full(ids: list[int], progress: evaluate.Progress) -> torch.Tensor:
        return evaluate.forward(judge, stored, ids, None, progress)

    with Step(f"{label}: full attention") as step:
        best = _ask(context.probes, full, step)
        step.note = ", ".join(
            f"{p.name} {sum(a.hits)} of {len(a.hits)}" for p, a in zip(context.probes, best)
        )
    return Reading(stored, context.probes, best)


def _text(
    plan: run.Plan,
    judge: Judge,
    text: texts.Text,
    readings: list[Reading],
    made: dict[str, Any],
    own: daemon.Daemon | None,
) -> Iterator[Row]:
    for name, budget in run.cases(plan):
        for engine in plan.engines:
            label = f"{text.name}: {name}" + (f" {budget}" if budget else "") + f", {engine}"
            settings = evaluate.of_budget(plan.settings, budget or 0)
            figures: dict[str, Row] = {}
            seconds = 0.0
            try:
                for i, reading in enumerate(readings, 1):
                    way = _way(judge, reading.stored, engine, name, settings, made, own)
                    with Step(f"{label}, {i} of {len(readings)}") as step:
                        answers = _ask(reading.probes, way, step)
                        for probe, ours, full in zip(reading.probes, answers, reading.full):
                            figures[probe.name] = probes.summary(probe, ours, full)
                        step.note = _note(figures, reading.probes)
                    seconds += step.seconds
            except daemon.NotThere as error:
                run.left_out(plan, error)
                continue
            yield _row(
                {
                    "text": text.name,
                    "engine": engine,
                    "preset": name,
                    "budget": budget,
                    "context": readings[0].stored.length,
                    "steps": sum(_steps(reading.probes) for reading in readings),
                    "seconds": seconds,
                },
                figures,
            )


def _row(head: Row, figures: dict[str, Row]) -> Row:
    kinds = [kind for kind in BUILDERS if any(f["kind"] == kind for f in figures.values())]
    return head | {kind: probes.verdict(figures, kind) for kind in kinds} | {"probes": figures}


def _note(figures: dict[str, Row], asked: list[Probe]) -> str:
    of = [(probe.name, figures[probe.name]) for probe in asked]
    return ", ".join(f"{name} {f['hits_of_full']} of {f['hits_full']}" for name, f in of)


Way = Callable[[list[int], evaluate.Progress], torch.Tensor]


def _steps(asked: list[Probe]) -> int:
    return sum(len(question.ids) - 1 for probe in asked for question in probe.questions)


def _ask(asked: list[Probe], way: Way, step: evaluate.Progress) -> list[Answers]:
    """Answers to each probe; `step` in tokens."""
    total, done, out = _steps(asked), 0, []
    for probe in asked:
        answers = Answers()
        for question in probe.questions:
            length = len(question.ids) - 1

            def progress(part: int, parts: int, before: int = done, length: int = length) -> None:
                step(before + part * length // parts, total)

            answers.add(question, way(question.ids[:-1], progress))
            done += length
        out.append(answers)
    return out


def _way(
    judge: Judge,
    stored: prefix.Prefix,
    engine: str,
    name: str,
    settings: evaluate.Settings,
    made: dict[str, Any],
    own: daemon.Daemon | None,
) -> Way:
    """Gives the logits after each of the ids, which follow the context."""

    def way(ids: list[int], progress: evaluate.Progress) -> torch.Tensor:
        if engine == "daemon":
            return daemon.logits_of(own, judge, stored, ids, name, settings, progress)
        one = evaluate.reference_of(judge, stored, ids, name, settings, made)
        one.track = False
        return evaluate.forward(judge, stored, ids, one, progress)

    return way


def together(rows: list[Row]) -> Iterator[Row]:
    """Over the texts: hits added up, means of NLL."""
    same: dict[tuple, list[Row]] = {}
    for row in rows:
        same.setdefault((row["engine"], row["preset"], row["budget"]), []).append(row)
    for group in same.values():
        figures: dict[str, Row] = {}
        for name, first in group[0]["probes"].items():
            of = [row["probes"][name] for row in group]
            counts = [key for key in first if key.startswith(("hits", "items"))]
            figures[name] = {"kind": first["kind"]} | {
                key: sum(one[key] for one in of) for key in counts
            }
            for key in ("nll", "nll_full"):
                figures[name][key] = sum(one[key] for one in of) / len(of)
        head = {key: group[0][key] for key in ("engine", "preset", "budget", "context")}
        yield _row({"text": ALL} | head, figures)
