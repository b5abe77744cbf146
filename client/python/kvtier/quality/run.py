"""What one call of kvtier-quality does: texts, and for each its presets and budgets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from ..story.progress import Step
from . import books, daemon, evaluate, metrics, prefix, texts
from .model import Judge
from .reference import PRESETS, find

CONTEXT = 6144
LEAST_CONTEXT = 256


@dataclass
class Plan:
    texts: list[texts.Text]
    presets: list[str]
    budgets: list[int]
    calibration: list[texts.Text]
    context: int | None = None  # None: CONTEXT, or what the text has
    eval: int = 512
    engines: list[str] = field(default_factory=lambda: ["daemon"])
    probes: list[str] = field(default_factory=list)  # "needles", "tasks": see asking.py
    arena_bytes: int = daemon.ARENA_BYTES  # host memory for rows
    skip: bool = False  # a preset that the daemon does not have: say so and go on
    settings: evaluate.Settings = field(default_factory=evaluate.Settings)


class TooShort(Exception):
    pass


def cut(plan: Plan, judge: Judge, text: texts.Text) -> tuple[list[int], list[int]]:
    """(context, the tokens behind it, one more than are evaluated)."""
    ids = judge.ids(text.content)
    room = min(len(ids), judge.longest) - plan.eval - 1
    context = min(CONTEXT, room) if plan.context is None else plan.context
    if context > room or context < LEAST_CONTEXT:
        raise TooShort(
            f"{text.name}: {len(ids)} tokens, the model takes {judge.longest}; a context of "
            f"{max(context, LEAST_CONTEXT)} and {plan.eval} evaluated tokens need "
            f"{max(context, LEAST_CONTEXT) + plan.eval + 1}: give a longer text, or smaller "
            "--context or --eval"
        )
    return ids[:context], ids[context : context + plan.eval + 1]


def calibrate(
    plan: Plan, judge: Judge, positions: int, own: daemon.Daemon | None
) -> dict[str, Any]:
    """The codebooks that the presets of the plan need, trained on other texts, for at least so many
    positions; and those of the daemon's space."""
    positions = (positions + 1023) // 1024 * 1024
    kinds = {find(p).books for p in plan.presets if "reference" in plan.engines} - {None}
    # One that only the daemon knows may need a codebook too.
    wanted = [p for p in plan.presets if p == "default" or p not in PRESETS or PRESETS[p].books]
    own = own if wanted else None
    if not kinds and own is None:
        return {}
    ids = [judge.ids(text.content)[: texts.CALIBRATION_TOKENS] for text in plan.calibration]
    read = []
    for text, tokens in zip(plan.calibration, ids):
        with Step(f"{text.name}: reading to calibrate") as step:
            read.append(prefix.read(judge, tokens, step))
    if own is not None:
        with Step("codebook of the daemon"):
            own.calibrate(judge, read, wanted)
    made = {}
    for kind in sorted(kinds):
        with Step(f"codebooks {kind}") as step:
            made[kind] = books.train(judge, kind, ids, positions, step)
    return made


def daemon_of(plan: Plan, stack: ExitStack) -> daemon.Daemon | None:
    """Until the stack is left; none where only the reference runs."""
    if "daemon" not in plan.engines:
        return None
    return stack.enter_context(daemon.Daemon(plan.arena_bytes))


def run(plan: Plan, judge: Judge) -> Iterator[dict[str, Any]]:
    """One row per text, engine, preset and budget, and means over the texts."""
    rows = []
    with ExitStack() as stack:
        own = daemon_of(plan, stack)
        parts = [(text, *cut(plan, judge, text)) for text in plan.texts]
        positions = max(len(c) + len(rest) for _, c, rest in parts)
        made = calibrate(plan, judge, positions, own)
        for text, context, rest in parts:
            for row in _text(plan, judge, read(judge, text, context, rest), made, own):
                rows.append(row)
                yield row
    if len(plan.texts) > 1:
        yield from means(rows)


@dataclass
class Reading:
    """A text, read by the model: what all presets are judged against."""

    text: texts.Text
    context: list[int]
    rest: list[int]  # one more than are evaluated
    stored: prefix.Prefix
    full: torch.Tensor  # logits of full attention after each of rest but the last


def read(judge: Judge, text: texts.Text, context: list[int], rest: list[int]) -> Reading:
    with Step(f"{text.name}: reading {len(context)} tokens") as step:
        stored = prefix.read(judge, context, step)
    with Step(f"{text.name}: full attention over {len(rest) - 1} more") as step:
        full = evaluate.forward(judge, stored, rest[:-1], None, step)
    return Reading(text, context, rest, stored, full)


def measure(
    plan: Plan,
    judge: Judge,
    reading: Reading,
    engine: str,
    name: str,
    budget: int | None,
    made: dict[str, Any],
    own: daemon.Daemon | None,
) -> dict[str, Any]:
    """A row. NotThere where the daemon does not run the preset."""
    settings = evaluate.of_budget(plan.settings, budget or 0)
    rest, label = reading.rest, f"{reading.text.name}: {name}"
    with Step(label + (f" {budget}" if budget else "") + f", {engine}") as step:
        if engine == "daemon":
            tokens, figures = daemon.with_daemon(
                own, judge, reading.stored, rest, reading.full, name, settings, step
            )
        else:
            tokens, figures = evaluate.with_reference(
                judge, reading.stored, rest, reading.full, name, settings, made, step
            )
        figures |= metrics.summary(tokens)
        step.note = f"KL {figures['kl']:.4f}"
    return {
        "text": reading.text.name,
        "engine": engine,
        "preset": name,
        "budget": budget,
        "context": len(reading.context),
        "eval": len(rest) - 1,
        "sentences": judge.tokens.rules,
    } | figures


def prepare(
    plan: Plan, judge: Judge, own: daemon.Daemon
) -> Callable[[str, int], Iterator[dict[str, Any]]]:
    """Reads all texts; what comes back gives a preset's rows over them, through the daemon."""
    parts = [(text, *cut(plan, judge, text)) for text in plan.texts]
    calibrate(plan, judge, max(len(c) + len(rest) for _, c, rest in parts), own)
    readings = [read(judge, *part) for part in parts]

    def rows(name: str, budget: int) -> Iterator[dict[str, Any]]:
        for reading in readings:
            yield measure(plan, judge, reading, "daemon", name, budget, {}, own)

    return rows


def _text(
    plan: Plan,
    judge: Judge,
    reading: Reading,
    made: dict[str, Any],
    own: daemon.Daemon | None,
) -> Iterator[dict[str, Any]]:
    for name, budget in cases(plan):
        for engine in plan.engines:
            try:
                yield measure(plan, judge, reading, engine, name, budget, made, own)
            except daemon.NotThere as error:
                left_out(plan, error)


def left_out(plan: Plan, error: Exception) -> None:
    if not plan.skip:
        raise error
    print(f"left out: {error}", file=sys.stderr)


def cases(plan: Plan) -> Iterator[tuple[str, int | None]]:
    for name in plan.presets:
        # One that only the daemon knows is a user's own: it will have a budget.
        if name in PRESETS and PRESETS[name].attends != "chosen":
            yield name, None
        else:
            yield from ((name, budget) for budget in plan.budgets)


def means(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Over the texts: plain means; half-widths of independent intervals add as squares."""
    same: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        same.setdefault((row["engine"], row["preset"], row["budget"]), []).append(row)
    for (engine, preset, budget), group in same.items():
        n = len(group)
        mean = {"text": "mean", "engine": engine, "preset": preset, "budget": budget}
        for key in group[0]:
            if key not in mean and all(isinstance(row[key], (int, float)) for row in group):
                mean[key] = sum(row[key] for row in group) / n
        for key in ("kl", "dppl_pct"):
            low, high = f"{key}_low", f"{key}_high"
            half = sum(((row[high] - row[low]) / 2) ** 2 for row in group) ** 0.5 / n
            mean[low], mean[high] = mean[key] - half, mean[key] + half
        half = sum((row["top1"] - row["top1_low"]) ** 2 for row in group) ** 0.5 / n
        mean["top1_low"] = mean["top1"] - half
        yield mean
