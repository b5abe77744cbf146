"""A trace of what a preset of single rows chooses on a text, for `kvtier-bench replay --trace`. The
file is described in tools/bench/replay_trace.h: a line of JSON, then lists of units by layer, KV
head, step and granule."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..story.progress import Step
from . import evaluate, prefix, run
from .model import Judge
from .reference import find
from .reference.layer import Layer
from .reference.partition import Rows

GRANULES = (1, 16, 32)
HOT = 0.01  # of a step's mass
HOT_BIT = np.uint32(1 << 31)


class NotRows(Exception):
    pass


def record(plan: run.Plan, judge: Judge, path: Path) -> None:
    """The first text, preset and budget of the plan, every evaluated token a step."""
    text, name, budget = plan.texts[0], plan.presets[0], plan.budgets[0]
    preset = find(name)
    if not isinstance(preset.partition, Rows) or preset.attends != "chosen":
        raise NotRows(f"--trace records choices of single rows; {preset.name} makes others")
    context, rest = run.cut(plan, judge, text)
    made = run.calibrate(plan, judge, len(context) + len(rest), None)
    with Step(f"{text.name}: reading {len(context)} tokens") as step:
        stored = prefix.read(judge, context, step)
    ids = rest[:-1]
    reference = evaluate.reference_of(
        judge, stored, ids, name, evaluate.of_budget(plan.settings, budget), made
    )
    reference.track = False
    with open(path, "wb") as file, Step(f"{text.name}: {len(ids)} steps of {name}") as step:
        file.write(head(judge, len(context), len(ids), budget, f"{text.name}, {preset.name}"))
        reference.seen = partial(write_layer, file, budget)
        evaluate.forward(judge, stored, ids, reference, step)


def head(judge: Judge, tokens: int, steps: int, budget: int, source: str) -> bytes:
    fields = {
        "kvtier_trace": 1,
        "tokens": tokens,
        "layers": judge.layers,
        "kv_heads": judge.kv_heads,
        "row_bytes": judge.row_bytes(),
        "steps": steps,
        "budget": min(budget, tokens),
        "granules": GRANULES,
        "source": source,
    }
    return json.dumps(fields).encode() + b"\n"


def write_layer(file: BinaryIO, budget: int, layer: Layer, mass: torch.Tensor) -> None:
    """`mass` [H, n, C]: of each stored row its share at each step."""
    kept = layer.kept.expand(layer.heads, -1)
    for of_head, never in zip(mass, kept):
        of_head = of_head.masked_fill(never, 0.0)
        lanes = [chosen(of_head, budget, granule) for granule in GRANULES]
        for step in range(len(of_head)):
            for granule, units in zip(GRANULES, lanes):
                list_of = units[step]
                if granule == 1:
                    hot = (of_head[step][torch.from_numpy(list_of.astype(np.int64))] > HOT).numpy()
                    list_of = list_of | np.where(hot, HOT_BIT, np.uint32(0))
                file.write(np.array([len(list_of)], "<u4").tobytes())
                file.write(list_of.astype("<u4").tobytes())


def chosen(mass: torch.Tensor, budget: int, granule: int) -> list[np.ndarray]:
    """[n, C] -> for each step the units of `granule` rows with the most mass that fit the budget,
    ascending; none without any mass."""
    rows = mass.shape[-1]
    padded = torch.nn.functional.pad(mass, (0, -rows % granule))
    sums = padded.unflatten(-1, (-1, granule)).sum(-1)
    count = min(-(-budget // granule), sums.shape[-1])
    top = sums.topk(count, -1)
    out = []
    for values, indices in zip(top.values, top.indices):
        out.append(np.sort(indices[values > 0].numpy()).astype(np.uint32))
    return out
