"""One text, one preset, one budget: the tokens behind the context, step by step through the preset,
against full attention."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import metrics
from .model import Judge
from .prefix import QUERIES, Prefix
from .reference import Reference, attention, find
from .reference.precision import LowBit

Progress = Callable[[int, int], None]


@dataclass
class Settings:
    budget: int = 1024
    sinks: int = 16
    window: int = 64
    capacity: int = 0  # of the slot cache in rows; 0: the preset's


def forward(
    judge: Judge, prefix: Prefix, ids: list[int], reference: Reference | None, progress: Progress
) -> torch.Tensor:
    """Logits [len(ids), V] after each of ids, which follow the prefix."""
    modules = [m for m in judge.model.modules() if hasattr(m, "layer_idx")]
    hooks = [
        m.register_forward_hook(lambda *_, i=m.layer_idx: progress(i + 1, judge.layers))
        for m in modules
    ]
    try:
        model = judge.model
        with (
            torch.inference_mode(),
            attention.installed(model),
            attention.attending(model, reference),
        ):
            return judge.model(
                input_ids=torch.tensor([ids]),
                past_key_values=attention.cache_of(prefix.keys, prefix.values),
                use_cache=True,
            ).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


def reference_of(
    judge: Judge, prefix: Prefix, ids: list[int], name: str, settings: Settings, books: Any
) -> Reference:
    preset = find(name)
    return Reference(
        preset,
        settings.budget,
        prefix.length,
        judge.boundaries(prefix.ids, ids),
        judge.layers,
        settings.sinks,
        settings.window,
        settings.capacity,
        books.get(preset.books) if preset.books else None,
        prefix.queries[:, :, -QUERIES:],
        judge.frequency(),
        prefix.index,
    )


def with_reference(
    judge: Judge,
    prefix: Prefix,
    ids: list[int],
    full: torch.Tensor,
    name: str,
    settings: Settings,
    books: dict[str, Any],
    progress: Progress,
) -> tuple[metrics.PerToken, dict[str, Any]]:
    """`ids`: the tokens that follow the prefix, and one more, the last target; `full`: logits of
    full attention after each of ids but the last."""
    reference = reference_of(judge, prefix, ids[:-1], name, settings, books)
    start = time.monotonic()
    logits = forward(judge, prefix, ids[:-1], reference, progress)
    seconds = time.monotonic() - start
    tokens = metrics.compare(full, logits, torch.tensor(ids[1:]))
    figures = cost_of(judge, prefix, reference)
    figures["ms_per_step"] = 1000 * seconds / (len(ids) - 1)
    return tokens, figures


def cost_of(judge: Judge, prefix: Prefix, reference: Reference) -> dict[str, Any]:
    """Bytes over the KV of the context at 16 bit, means over layers, heads and steps. What enters
    and what is waited for: from the second step on, rows that a guess brought in vain too. The
    reference has low-bit rows in its slot cache, where views have exact ones only: `rows_entered`
    and `rows_waited` count these there, and what is fetched and waited for is None."""
    tally, preset = reference.tally, reference.preset
    context = prefix.length * judge.row_bytes()  # of one layer and KV head
    pairs = judge.layers * judge.kv_heads
    steps = tally.head_steps // pairs
    kept = reference.sinks + reference.window
    budget = 0 if preset.attends == "kept" else reference.budget or prefix.length
    rows = [
        preset.residency.capacity(
            preset.budget.of_layer(budget, layer) * tally.choices, kept, reference.capacity
        )
        for layer in range(judge.layers)
    ]
    dense = judge.layers if preset.attends == "all" else len(preset.dense)
    after_first = max(1, (steps - 1) * pairs)
    entered = (tally.rows_entered + tally.rows_guessed) / after_first
    waited = tally.rows_waited / after_first
    share = preset.precision.fetched / prefix.length
    low_bit = isinstance(preset.precision, LowBit)
    return {
        "device_bytes_ratio": tally.abstract_bytes / pairs / context,
        "resident_bytes_ratio": mean_over_layers([each / prefix.length for each in rows], dense),
        "fetched_ratio": None if low_bit else entered * share,
        "waited_ratio": None if low_bit else waited * share,
        "rows_attended": tally.rows_attended / tally.head_steps,
        "rows_entered": entered,
        "rows_entered_of_budget": entered / reference.budget if reference.budget else 0.0,
        "rows_waited": waited,
        "steps_waited": (
            None if low_bit else tally.layer_steps_waited / max(1, (steps - 1) * judge.layers)
        ),
        "rows_first_step": tally.first_rows / pairs,
        "rows_guessed_in_vain": tally.rows_guessed / after_first,
        "hot_rows": tally.hot_rows / tally.head_steps,
        "hot_rows_entered": tally.hot_rows_entered / tally.head_steps,
        "selections_per_step": tally.selections / tally.layer_steps,
    }


def mean_over_layers(resident: list[float], dense: int) -> float:
    """Of the share of the context that is resident in each layer; the first ones hold all of it."""
    shares = [1.0] * dense + [min(share, 1.0) for share in resident[dense:]]
    return math.fsum(shares[: len(resident)]) / len(resident)


def of_budget(settings: Settings, budget: int) -> Settings:
    return replace(settings, budget=budget)
