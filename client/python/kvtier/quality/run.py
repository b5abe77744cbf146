"""What one call of kvtier-quality does: texts, and for each its presets and budgets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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


def calibrate(plan: Plan, judge: Judge, positions: int) -> dict[str, Any]:
    """The codebooks that the presets of the plan need, trained on other texts."""
    kinds = {find(p).books for p in plan.presets if "reference" in plan.engines} - {None}
    if not kinds:
        return {}
    ids = [judge.ids(text.content)[: texts.CALIBRATION_TOKENS] for text in plan.calibration]
    for text, tokens in zip(plan.calibration, ids):
        with Step(f"{text.name}: reading to calibrate") as step:
            prefix.read(judge, tokens, step)
    made = {}
    for kind in sorted(kinds):
        with Step(f"codebooks {kind}") as step:
            made[kind] = books.train(judge, kind, ids, positions, step)
    return made


def run(plan: Plan, judge: Judge) -> Iterator[dict[str, Any]]:
    """One row per text, engine, preset and budget; then means over the texts."""
    parts = [(text, *cut(plan, judge, text)) for text in plan.texts]
    positions = max(len(context) + len(rest) for _, context, rest in parts)
    made = calibrate(plan, judge, (positions + 1023) // 1024 * 1024)
    rows = []
    with ExitStack() as stack:
        own = stack.enter_context(daemon.Daemon()) if "daemon" in plan.engines else None
        for text, context, rest in parts:
            for row in _text(plan, judge, text, context, rest, made, own):
                rows.append(row)
                yield row
    if len(parts) > 1:
        yield from means(rows)


def _text(
    plan: Plan,
    judge: Judge,
    text: texts.Text,
    context: list[int],
    rest: list[int],
    made: dict[str, Any],
    own: daemon.Daemon | None,
) -> Iterator[dict[str, Any]]:
    with Step(f"{text.name}: reading {len(context)} tokens") as step:
        stored = prefix.read(judge, context, step)
    with Step(f"{text.name}: full attention over {len(rest) - 1} more") as step:
        full = evaluate.forward(judge, stored, rest[:-1], None, step)
    for name, budget in cases(plan):
        settings = evaluate.of_budget(plan.settings, budget or 0)
        for engine in plan.engines:
            label = f"{text.name}: {name}" + (f" {budget}" if budget else "") + f", {engine}"
            try:
                with Step(label) as step:
                    if engine == "daemon":
                        tokens, figures = daemon.with_daemon(
                            own, judge, stored, rest, full, name, settings, step
                        )
                    else:
                        tokens, figures = evaluate.with_reference(
                            judge, stored, rest, full, name, settings, made, step
                        )
                    figures |= metrics.summary(tokens)
                    step.note = f"KL {figures['kl']:.4f}"
            except daemon.NotThere as error:
                if not plan.skip:
                    raise
                print(f"left out: {error}", file=sys.stderr)
                continue
            yield {
                "text": text.name,
                "engine": engine,
                "preset": name,
                "budget": budget,
                "context": len(context),
                "eval": len(rest) - 1,
            } | figures


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
            if isinstance(group[0][key], (int, float)) and key not in mean:
                mean[key] = sum(row[key] for row in group) / n
        for key in ("kl", "dppl_pct"):
            low, high = f"{key}_low", f"{key}_high"
            half = sum(((row[high] - row[low]) / 2) ** 2 for row in group) ** 0.5 / n
            mean[low], mean[high] = mean[key] - half, mean[key] + half
        half = sum((row["top1"] - row["top1_low"]) ** 2 for row in group) ** 0.5 / n
        mean["top1_low"] = mean["top1"] - half
        yield mean
