"""kvtier-quality --decode: what a decode step costs through a preset, against exact paths in the
same process.

Every path has the same stored tokens and decodes the same ones behind them, in turn, every other
round backwards, so that a drift of the machine meets all alike. Exact are SDPA over a preallocated
cache, as transformers calls it and with the query heads of a group as queries of one head (K and V
are then read once), and kvtier with budget = all; the fastest of them is the ceiling. Two figures
of each: the whole step, and its attention, which is everything from K, V and q to the output: rows
stored, chosen, fetched and attended to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer

from .. import transformers as adapter
from ..story.progress import Step
from . import daemon, evaluate, prefix, report, run
from .model import Judge

CONTEXT = 7168
ROUNDS = 128
WARM = 8  # rounds that do not count: the slot caches fill
PROFILED = 16  # steps, afterwards
GOALS = {"step": 1.0, "attention": 1 / 1.5}
TITLES = {"step": "whole decode step", "attention": "attention of a decode step"}
UNITS = {"step": "model and attention", "attention": "K and V stored, rows chosen, attended to"}

Row = dict[str, Any]


class PreallocatedLayer(DynamicLayer):
    """Rows that are written where they stay."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int):
        """[1, heads, tokens, dim], copied; `room`: tokens that will come."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.length = keys.shape[2]
        self.all_keys, self.all_values = (
            torch.zeros(*x.shape[:2], self.length + room, x.shape[3]) for x in (keys, values)
        )
        self.all_keys[:, :, : self.length] = keys
        self.all_values[:, :, : self.length] = values
        self._show()

    def _show(self) -> None:
        self.keys = self.all_keys[:, :, : self.length]
        self.values = self.all_values[:, :, : self.length]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any):
        first, self.length = self.length, self.length + key_states.shape[2]
        self.all_keys[:, :, first : self.length] = key_states
        self.all_values[:, :, first : self.length] = value_states
        self._show()
        return self.keys, self.values


def preallocated(stored: prefix.Prefix, room: int) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = [
        PreallocatedLayer(k[None], v[None], room) for k, v in zip(stored.keys, stored.values)
    ]
    return cache


def folded(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
):
    """One query: those of a group are queries of one KV head, nothing is hidden from any."""
    batch, heads, _, dim = query.shape
    q = query.reshape(batch, key.shape[1], heads // key.shape[1], dim)
    out = torch.nn.functional.scaled_dot_product_attention(q, key, value, scale=scaling)
    return out.reshape(batch, heads, 1, -1).transpose(1, 2), None


@dataclass
class Path:
    name: str
    cache: Any
    attend: Callable[..., Any]
    exact: bool
    step_ms: list[float] = field(default_factory=list)
    attention_ms: list[float] = field(default_factory=list)


class Stopwatch:
    """Puts the path's attention function and cache behind a clock."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.seconds = 0.0

    def attention(self, *args: Any, **kwargs: Any):
        return self.timed(self.path.attend, *args, **kwargs)

    def timed(self, call: Callable[..., Any], *args: Any, **kwargs: Any):
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start

    def watch(self, cache: Any) -> None:
        update = cache.update
        cache.update = lambda *args, **kwargs: self.timed(update, *args, **kwargs)


def paths_of(judge: Judge, stored: prefix.Prefix, own: daemon.Daemon, plan: run.Plan) -> list[Path]:
    settings = evaluate.of_budget(plan.settings, plan.budgets[0])
    room = ROUNDS + WARM + PROFILED + 1
    through = adapter._attention  # SDPA, where the cache is none of kvtier's
    paths = [
        Path("SDPA", preallocated(stored, room), through, True),
        Path("SDPA, groups folded", preallocated(stored, room), folded, True),
        Path("budget = all", own.cache(judge, stored, "full", settings), through, True),
    ]
    for name in plan.presets:
        label = f"preset {name}, budget {settings.budget:,}"
        paths.append(Path(label, own.cache(judge, stored, name, settings), through, False))
    return paths


def one_step(judge: Judge, watch: Stopwatch, path: Path, token: int) -> torch.Tensor:
    watch.path, watch.seconds = path, 0.0
    start = time.perf_counter()
    logits = judge.model(
        input_ids=torch.tensor([[token]]), past_key_values=path.cache, use_cache=True
    ).logits
    path.step_ms.append(1e3 * (time.perf_counter() - start))
    path.attention_ms.append(1e3 * watch.seconds)
    return logits[0, -1]


def rows_of(plan: run.Plan, judge: Judge) -> Iterator[Row]:
    ids = [id_ for text in plan.texts for id_ in judge.ids(text.content)]
    rounds = min(plan.eval, ROUNDS)
    context = CONTEXT if plan.context is None else plan.context
    least = context + rounds + WARM + PROFILED
    if len(ids) < least or judge.longest < least:
        raise run.TooShort(
            f"{len(ids)} tokens of text, the model takes {judge.longest}; a context of {context} "
            f"and {least - context} steps need {least}: give more texts or a smaller --context"
        )
    with Step(f"reading {context} tokens") as step:
        stored = prefix.read(judge, ids[:context], step)
    with daemon.Daemon() as own:
        with Step("storing them, codebook and abstracts"):
            paths = paths_of(judge, stored, own, plan)
        try:
            with torch.inference_mode():
                yield from _measured(judge, paths, ids[context:], rounds)
            for path in paths[2:]:
                own.lacking(path.cache, path.name)
        finally:
            for path in paths[2:]:
                path.cache.close()


def _measured(judge: Judge, paths: list[Path], ids: list[int], rounds: int) -> Iterator[Row]:
    watch = Stopwatch()
    for path in paths:
        watch.watch(path.cache)
    AttentionInterface.register("kvtier", watch.attention)
    try:
        with Step(f"{rounds} rounds of {len(paths)} paths") as step:
            for i in range(rounds + WARM):
                for path in paths if i % 2 == 0 else reversed(paths):
                    one_step(judge, watch, path, ids[i])
                step(i + 1, rounds + WARM)
        for path in paths:
            del path.step_ms[:WARM], path.attention_ms[:WARM]
        notes = [
            "" if path.exact else _profile(judge, watch, path, ids[rounds + WARM :])
            for path in paths
        ]
    finally:
        AttentionInterface.register("kvtier", adapter._attention)
    for part in ("step", "attention"):
        yield from figures(paths, part, notes)


def median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def figures(paths: list[Path], part: str, notes: list[str]) -> Iterator[Row]:
    """As kvtier-bench has them: the presets against the fastest exact path, and each exact one."""

    def column(path: Path) -> list[float]:
        return path.step_ms if part == "step" else path.attention_ms

    best = min((path for path in paths if path.exact), key=lambda path: median(column(path)))
    for path, note in zip(paths, notes):
        if path is best:
            continue
        ratios = [ours / theirs for ours, theirs in zip(column(path), column(best))]
        ratio, goal = median(ratios), None if path.exact else GOALS[part]
        yield {
            "bench": "kvtier-quality --decode",
            "metric": f"{TITLES[part]}, {path.name}",
            "value": median(column(path)),
            "unit": "ms",
            "ceiling": median(column(best)),
            "ceiling_name": f"ms {best.name}",
            "ratio": ratio,
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "goal": goal,
            "better": "lower",
            "held": None if goal is None else ratio <= goal,
            "n": len(ratios),
            "note": note if part == "attention" else UNITS[part],
            "load": os.getloadavg()[0],
        }


# ---- where the time goes -------------------------------------------------------------------------


class Clocked:
    """An object whose named methods are timed."""

    def __init__(self, inner: Any, *names: str):
        self._inner, self.seconds = inner, dict.fromkeys(names, 0.0)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self.seconds:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return found(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return call


def _profile(judge: Judge, watch: Stopwatch, path: Path, ids: list[int]) -> str:
    """A few more steps, with clocks inside; they do not count above."""
    cache = path.cache
    view, sequence = cache.view, cache.sequence
    before = dict(view.stats())
    cache.view, cache.sequence = Clocked(view, "attend"), Clocked(sequence, "write")
    seconds = 0.0
    try:
        for token in ids[:PROFILED]:
            one_step(judge, watch, path, token)
            seconds += watch.seconds
        attend, write = cache.view.seconds["attend"], cache.sequence.seconds["write"]
    finally:
        cache.view, cache.sequence = view, sequence
    del path.step_ms[-PROFILED:], path.attention_ms[-PROFILED:]
    after = dict(view.stats())
    steps = after["steps"] - before["steps"]

    def of_step(x: float) -> float:
        return 1e3 * x / PROFILED

    waited = (after["wait_ns"] - before["wait_ns"]) / 1e9
    rows = (after["rows_fetched"] - before["rows_fetched"]) / max(1, steps)
    return (
        f"of a step: view {of_step(attend):.2f} ms, of which it waits for the daemon "
        f"{of_step(waited):.2f} for {rows:.0f} rows per layer; K and V written "
        f"{of_step(write):.2f}; Python {of_step(seconds - attend - write):.2f}"
    )


def head(_: Row) -> str:
    return f"{'figure':<56} {'value':>9} {'ceiling':>9}    {'':<24} {'ratio':>6}"


def line(row: Row) -> str:
    verdict = ""
    if row["goal"] is not None:
        verdict = f"  <= {row['goal']:.3g} {'held' if row['held'] else 'MISSED'}"
    return (
        f"{row['metric']:<56} {row['value']:>6.1f} ms {row['ceiling']:>6.1f} "
        f"{row['ceiling_name']:<27} {row['ratio']:>6.3f}{verdict}  {row['note']}"
    ).rstrip()


EXPLAINED = """
Medians; the ceiling is the fastest exact path of the run, the ratio the median of the rounds'."""
LOOK = report.Look(head, line, EXPLAINED)
