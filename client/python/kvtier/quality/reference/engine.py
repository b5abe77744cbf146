"""Reference: runs one preset over all layers of a model.

Selection for all steps of a forward at once: with teacher forcing every query of a layer is known
when the layer runs, and a later layer sees what the sparse attention of earlier ones gave, exactly
as if the steps had run one after the other. Stateful parts (trigger, residency) walk over the steps
in order. A forward of one token goes on where the last one ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from .layer import Layer
from .presets import Preset

BLOCK = 64  # steps whose scores are in memory at once


@dataclass
class Tally:
    """Sums over layers, KV heads and steps; the first step, which fills a cache, is apart."""

    head_steps: int = 0  # layers x KV heads x steps
    rows_attended: int = 0  # of the stored ones
    selections: int = 0  # layers x steps at which something was chosen
    layer_steps: int = 0
    first_rows: int = 0  # that entered at the first step
    rows_entered: int = 0  # at all others
    rows_waited: int = 0
    layer_steps_waited: int = 0
    hot_rows: int = 0
    abstract_bytes: float = 0.0  # per layer and KV head, summed


@dataclass
class Reference:
    """One preset over one stored context. `index` may be shared by references over the same
    context: it keeps units and abstracts. Not for threads."""

    preset: Preset
    budget: int
    stored: int
    delimiter: torch.Tensor  # bool, at least as many as rows will be seen
    layers: int
    sinks: int = 16
    window: int = 64
    capacity: int = 0
    books: Any = None  # [layer] -> Codebook
    prompt_queries: Any = None  # [layer] -> [Hq, m, d]
    index: dict[Any, Any] = field(default_factory=dict)
    track: bool = True  # count what enters the slot cache
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._queries: dict[int, torch.Tensor] = {}
        self._wanted: dict[int, list[torch.Tensor]] = {}

    def attend(
        self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """q [Hq, new, d] of the newest tokens, k and v [H, T, .] of all: [Hq, new, dv]."""
        new = q.shape[1]
        group = q.shape[0] // k.shape[0]
        q = q.reshape(k.shape[0], group, new, q.shape[2])
        before = self._queries.get(index)
        queries = q if before is None else torch.cat([before, q], 2)
        self._queries[index] = queries
        prompt = self.prompt_queries
        layer = Layer(
            index,
            self.layers,
            k,
            v,
            queries,
            self.stored,
            scale,
            self.sinks,
            self.window,
            self.delimiter,
            None if prompt is None else prompt[index].reshape(*q.shape[:2], -1, q.shape[3]),
            self._queries.get(index - 1),
        )
        return self._attend(layer, self._wanted_rows(layer, new), new)

    # ---- selection

    def _wanted_rows(self, layer: Layer, new: int) -> torch.Tensor:
        """bool [S, new, C]: the stored rows that the newest steps attend to, kept ones included."""
        preset = self.preset
        rows = self.stored
        if preset.attends == "all" or layer.index in preset.dense:
            return torch.ones(1, 1, rows, dtype=torch.bool).expand(1, new, rows)
        kept = layer.kept()
        if preset.attends == "kept" or not bool((~kept).any()):
            return kept.expand(1, new, rows)
        anchors = preset.trigger.anchors(layer)[:, -new:]
        at, where = anchors.unique(return_inverse=True)
        chosen = self._choose(layer, at)
        self._count_selections(layer, anchors, new)
        if len(anchors) == 1:
            wanted = chosen[:, where[0]]
        else:  # heads choose at steps of their own
            wanted = torch.stack([chosen[h, where[h]] for h in range(layer.heads)])
        return wanted | kept

    def _choose(self, layer: Layer, steps: torch.Tensor) -> torch.Tensor:
        """bool [S, len(steps), C]: the choice with the queries of these steps."""
        preset = self.preset
        units, vectors = self._abstracts(layer)
        rows = preset.budget.rows(self.budget, layer)
        queries = preset.query.of(layer)[:, :, steps]
        out = []
        for block in queries.split(BLOCK, 2):
            scores = preset.score.of(block, vectors, layer.scale)
            weights = preset.group.of(scores, layer.scale)
            out.append(preset.budget.choose(weights, units, rows))
        return torch.cat(out, 1)

    def _abstracts(self, layer: Layer) -> tuple[Any, Any]:
        preset = self.preset
        key = (preset.partition, preset.abstract, layer.index, self.sinks, self.window)
        if key not in self.index:
            units = self.index.get((preset.partition, *key[2:]))
            if units is None:
                units = preset.partition.split(layer)
                self.index[(preset.partition, *key[2:])] = units
            self.index[key] = units, preset.abstract.build(layer, units, self.books)
        return self.index[key]

    def _count_selections(self, layer: Layer, anchors: torch.Tensor, new: int) -> None:
        step = torch.arange(layer.steps)[-new:]
        self.tally.selections += int((anchors == step).any(0).sum())

    # ---- attention

    def _attend(self, layer: Layer, wanted: torch.Tensor, new: int) -> torch.Tensor:
        heads, group, steps, dim = layer.queries.shape
        total = layer.keys.shape[1]
        coarse = self._coarse(layer)
        row = torch.arange(total - self.stored)
        out = []
        for first in range(steps - new, steps, BLOCK):
            last = min(first + BLOCK, steps)
            sees = row <= (total - self.stored) - steps + torch.arange(first, last)[:, None]
            of = wanted[:, first - (steps - new) : last - (steps - new)]
            mask = torch.cat([of, sees.expand(len(of), -1, -1)], -1)
            if len(of) > heads:  # each query head for itself
                mask = mask.view(heads, group, last - first, total)
            else:
                mask = mask[:, None]
            q = layer.queries[:, :, first:last]
            out.append(self._rows(layer, q, mask, coarse))
        self._count_rows(layer, wanted, new)
        return torch.cat(out, 2).flatten(0, 1)

    def _rows(self, layer: Layer, q: torch.Tensor, mask: torch.Tensor, coarse: Any) -> torch.Tensor:
        """Attention of q [H, g, b, d] over the rows of the mask [H or 1, g or 1, b, T]."""
        logits = weigh(q, layer.keys, layer.scale, mask)
        if coarse is None:
            return spend(torch.softmax(logits, -1), layer.values)
        keys, values = coarse
        near = logits[..., self.stored :]
        rough = weigh(q, keys, layer.scale, mask[..., : self.stored])
        judged = torch.softmax(torch.cat([rough, near], -1), -1)[..., : self.stored]
        hot = (judged.mean(1, keepdim=True) > self.preset.precision.hot) & mask[
            ..., : self.stored
        ]
        self.tally.hot_rows += int(hot.sum())
        mixed = torch.where(hot, logits[..., : self.stored], rough)
        weights = torch.softmax(torch.cat([mixed, near], -1), -1)
        stored = weights[..., : self.stored]
        exact = torch.cat([stored * hot, weights[..., self.stored :]], -1)
        return spend(exact, layer.values) + spend(stored * ~hot, values)

    def _coarse(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor] | None:
        key = (self.preset.precision, layer.index)
        if key not in self.index:
            self.index[key] = self.preset.precision.rows(layer)
        return self.index[key]

    # ---- what it cost

    def _count_rows(self, layer: Layer, wanted: torch.Tensor, new: int) -> None:
        tally, heads = self.tally, layer.heads
        tally.head_steps += heads * new
        tally.layer_steps += new
        first = layer.steps == new
        if first and self.preset.attends == "chosen" and layer.index not in self.preset.dense:
            units, vectors = self._abstracts(layer)
            each = self.preset.abstract.bytes(units, vectors, layer.dim)
            tally.abstract_bytes += each * heads
        of_heads = wanted
        if len(wanted) > heads:
            of_heads = wanted.unflatten(0, (heads, -1)).any(1)
        tally.rows_attended += int(of_heads.sum()) * (heads // len(of_heads))
        if self.track and self.preset.attends == "chosen" and layer.index not in self.preset.dense:
            self._count_entering(layer, of_heads, new)

    def _count_entering(self, layer: Layer, wanted: torch.Tensor, new: int) -> None:
        history = self._wanted.setdefault(layer.index, [])
        history.append(wanted)
        if not history[:-1]:
            mask = wanted
        else:
            mask = torch.cat(history, 1)
        rows = self.preset.budget.rows(self.budget, layer)
        capacity = self.preset.residency.capacity(rows, int(layer.kept().sum()), self.capacity)
        entered = self.preset.residency.entering(mask, capacity)[:, -new:]
        times = layer.heads // len(wanted)
        tally = self.tally
        if layer.steps == new:
            tally.first_rows += int(entered[:, 0].sum()) * times
            entered = entered[:, 1:]
        tally.rows_entered += int(entered.sum()) * times
        tally.rows_waited += int(entered.sum()) * times
        tally.layer_steps_waited += int((entered.sum(0) > 0).sum())


def weigh(q: torch.Tensor, keys: torch.Tensor, scale: float, mask: torch.Tensor) -> torch.Tensor:
    """Scaled logits [H, g, b, T], -inf where the mask hides a row."""
    heads, group, steps, dim = q.shape
    logits = (q.reshape(heads, group * steps, dim) * scale) @ keys.transpose(1, 2)
    return logits.view(heads, group, steps, -1).masked_fill_(~mask, -torch.inf)


def spend(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    heads, group, steps, rows = weights.shape
    return (weights.reshape(heads, group * steps, rows) @ values).view(heads, group, steps, -1)
