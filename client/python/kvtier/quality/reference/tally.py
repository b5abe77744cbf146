"""Tally: what a preset's steps read, kept and waited for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from .layer import Layer

RECENT = 16  # a row that was hot within so many steps is still there


@dataclass
class Tally:
    """Sums over layers, KV heads and steps. What entered is counted from the second step on: the
    first one fills an empty cache, and stands apart."""

    preset: Any
    capacity: int  # of the slot cache; 0: the preset's
    choices: int = 1  # of a KV head: its query heads, where each chooses for itself
    head_steps: int = 0  # layers x KV heads x steps
    layer_steps: int = 0
    rows_attended: int = 0  # of the stored ones
    selections: int = 0  # layers x steps at which something was chosen
    head_selections: int = 0  # the same by KV head
    first_rows: int = 0  # that entered at the first step
    rows_entered: int = 0  # at all others
    rows_waited: int = 0
    rows_guessed: int = 0  # brought by a guess and not used at once
    layer_steps_waited: int = 0
    hot_rows: int = 0  # attended exactly because of their mass
    hot_rows_entered: int = 0  # of them, not hot in the steps before
    bound_steps: int = 0  # layers x steps whose missed mass was bounded
    bound_sum: float = 0.0  # of them, the mean over query heads
    bound_max: float = 0.0  # the largest of any query head
    abstract_bytes: float = 0.0  # on the device, with what precision keeps there
    _wanted: dict[int, list[torch.Tensor]] = field(default_factory=dict, repr=False)
    _guessed: dict[int, list[torch.Tensor]] = field(default_factory=dict, repr=False)
    _hot: dict[int, list[torch.Tensor]] = field(default_factory=dict, repr=False)

    def count_steps(self, layer: Layer, wanted: torch.Tensor, new: int) -> None:
        self.head_steps += layer.heads * new
        self.layer_steps += new
        wanted = of_kv_heads(wanted, layer.heads)
        self.rows_attended += int(wanted.sum()) * (layer.heads // len(wanted))

    def count_bytes(self, layer: Layer, units: Any, vectors: Any) -> None:
        abstract, pairs = self.preset.abstract, [(units, vectors)]
        if isinstance(units, list):
            pairs = list(zip(units, vectors))
        each = sum(abstract.bytes(u, v, layer.dim) for u, v in pairs)
        self.abstract_bytes += (each + self.preset.precision.device_bytes(layer)) * layer.heads

    def enter(
        self,
        layer: Layer,
        anchors: torch.Tensor,
        wanted: torch.Tensor,
        guessed: torch.Tensor | None,
        new: int,
    ) -> torch.Tensor:
        """Counts what enters the slot cache at the newest steps; bool [H or 1, new, C]: rows that
        are not there when the step needs them."""
        preset = self.preset
        self.choices = max(1, len(wanted) // layer.heads)
        rows = preset.budget.rows(layer.budget, layer) * self.choices
        kept = int(layer.kept.sum(-1).max())
        capacity = preset.residency.capacity(rows, kept, self.capacity)
        mask = self._history(self._wanted, layer.index, of_kv_heads(wanted, layer.heads))
        brought = None
        if guessed is not None:
            guessed = of_kv_heads(guessed, layer.heads)
            brought = self._history(self._guessed, layer.index, guessed)
        entered, late, unused = preset.residency.entering(mask, capacity, brought)
        times = layer.heads // len(mask)
        entered, late, unused = entered[:, -new:], late[:, -new:], unused[:, -new:]
        early = preset.fetch.early(anchors, torch.arange(layer.steps)[-new:])
        if early is not None:
            late = late & ~early[..., None]
        if layer.steps == new:
            self.first_rows += int(entered[:, 0].sum()) * times
            entered, unused = entered[:, 1:], unused[:, 1:]
        self.rows_entered += int(entered.sum()) * times
        self.rows_guessed += int(unused.sum()) * times
        return late

    def count_waiting(self, layer: Layer, waited: torch.Tensor, new: int) -> None:
        """bool [H or 1, new, C]: what the newest steps waited for."""
        counts = waited.sum(-1)
        if layer.steps == new:
            counts = counts[:, 1:]
        self.rows_waited += int(counts.sum()) * (layer.heads // len(waited))
        self.layer_steps_waited += int((counts.sum(0) > 0).sum())

    def count_bound(self, missed: torch.Tensor) -> None:
        """[H, g, new]"""
        self.bound_steps += missed.shape[2]
        self.bound_sum += float(missed.mean((0, 1)).sum())
        self.bound_max = max(self.bound_max, float(missed.max()))

    def count_hot(self, index: int, hot: torch.Tensor) -> None:
        """bool [H, b, C] of the newest b steps."""
        self.hot_rows += int(hot.sum())
        history = self._hot.setdefault(index, [])
        for step in hot.transpose(0, 1):
            recent = torch.stack(history).any(0) if history else torch.zeros_like(step)
            self.hot_rows_entered += int((step & ~recent).sum())
            history.append(step)
            del history[:-RECENT]

    @staticmethod
    def _history(store: dict[int, list], index: int, mask: torch.Tensor) -> torch.Tensor:
        parts = store.setdefault(index, [])
        parts.append(mask)
        return mask if len(parts) == 1 else torch.cat(parts, 1)


def of_kv_heads(mask: torch.Tensor, heads: int) -> torch.Tensor:
    """What the query heads of each KV head need together: [S, n, C] -> [H or 1, n, C]."""
    return mask.unflatten(0, (heads, -1)).any(1) if len(mask) > heads else mask
