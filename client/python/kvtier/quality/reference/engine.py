"""Reference: runs one preset over all layers of a model.

Selection for all steps of a forward at once: with teacher forcing every query of a layer is known
when the layer runs, and a later layer sees what the sparse attention of earlier ones gave, exactly
as if the steps had run one after the other. Stateful parts (trigger, residency) walk over the steps
in order. A forward of one token goes on where the last one ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .bound import missed
from .budget import fit, of_rows
from .layer import Layer
from .presets import Preset
from .tally import Tally

BLOCK = 64  # steps whose scores are in memory at once


@dataclass
class Reference:
    """One preset over one stored context. `index` may be shared by references over the same
    context: it keeps units and abstracts. Not for threads."""

    preset: Preset
    budget: int
    stored: int
    boundary: torch.Tensor  # class of each token's boundary (Layer), for all rows to come
    layers: int
    sinks: int = 16
    window: int = 64
    capacity: int = 0
    books: Any = None  # [layer] -> Codebook
    prompt_queries: Any = None  # [layer] -> [Hq, m, d]
    frequency: torch.Tensor | None = None  # of RoPE
    index: dict[Any, Any] = field(default_factory=dict)
    track: bool = True  # count what enters the slot cache
    # (layer, share of the mass of each stored row [H, new, C]): called where single rows are chosen
    seen: Callable[[Layer, torch.Tensor], None] | None = None
    marks: torch.Tensor | None = None  # what the model wrote, and its segments (Layer)
    bounds: bool = False  # bound the mass that is missed: every step chooses, by bounds of keys

    def __post_init__(self) -> None:
        self.tally = Tally(self.preset, self.capacity)
        self._queries: dict[int, torch.Tensor] = {}
        self._ahead: dict[int, torch.Tensor] = {}

    @property
    def looks_ahead(self) -> bool:
        """Whether ahead() has to be told of every layer before it runs."""
        return self.preset.query.ahead or getattr(self.preset.fetch.query, "ahead", False)

    def ahead(self, index: int, q: torch.Tensor) -> None:
        """The guessed queries [Hq, new, d] of a layer, before attend() of the same layer."""
        before = self._ahead.get(index)
        self._ahead[index] = q if before is None else torch.cat([before, q], 1)

    def attend(
        self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """q [Hq, new, d] of the newest tokens, k and v [H, T, .] of all: [Hq, new, dv]."""
        layer = self._layer(index, q, k, v, scale)
        new = q.shape[1]
        anchors, wanted = self._wanted_rows(layer, new)
        brought = None
        if anchors is not None:
            brought = self._brought(layer, new)
            wanted = self._fetch(layer, anchors, wanted, brought, new)
        self.tally.count_steps(layer, wanted, new)
        if self.bounds:
            units, vectors = self._abstracts(layer)
            scores = self.preset.score.of(layer.queries[:, :, -new:], vectors, scale)
            self.tally.count_bound(missed(layer, units, scores, wanted, new))
        return self._attend(layer, wanted, brought, new)

    def _layer(
        self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> Layer:
        def grouped(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.reshape(k.shape[0], -1, *x.shape[1:])

        before = self._queries.get(index)
        self._queries[index] = queries = q if before is None else torch.cat([before, q], 1)
        layer = Layer(
            index,
            self.layers,
            k,
            v,
            grouped(queries),
            self.stored,
            scale,
            self.sinks,
            self.window,
            self.boundary,
            self.budget,
            self.frequency,
            grouped(None if self.prompt_queries is None else self.prompt_queries[index]),
            grouped(self._queries.get(index - 1)),
            grouped(self._ahead.get(index)),
            self.marks,
        )
        layer.kept = self._cached("kept", layer, lambda: self.preset.kept.of(layer))
        return layer

    # ---- selection

    def _wanted_rows(
        self, layer: Layer, new: int
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Where the newest steps take their selection from (None: nothing is chosen), and the
        stored rows that they attend to, kept ones included: bool [S, new, C]."""
        rows = self.stored
        if self.preset.attends == "all" or layer.index in self.preset.dense:
            return None, torch.ones(1, 1, rows, dtype=torch.bool).expand(1, new, rows)
        kept = layer.kept[:, None]
        if self.preset.attends == "kept" or bool(kept.all()):
            return None, kept.expand(-1, new, -1)
        anchors = self._anchors(layer)[:, -new:]
        at, where = anchors.unique(return_inverse=True)
        chosen = self._choose(layer, at)
        if len(anchors) == 1:
            wanted = chosen[:, where[0]]
        else:  # heads choose at steps of their own
            wanted = torch.stack([chosen[h, where[h]] for h in range(layer.heads)])
        return anchors, wanted | repeated(kept, len(wanted))

    def _anchors(self, layer: Layer) -> torch.Tensor:
        trigger = self.preset.trigger
        if not getattr(trigger, "by_mass", False):
            return trigger.anchors(layer)
        steps = torch.arange(layer.steps)
        mass = self._mass(layer, steps).masked_fill(layer.kept[:, None], 0)
        return trigger.anchors(layer, mass, self._choose(layer, steps))

    def _choose(self, layer: Layer, steps: torch.Tensor, query: Any = None) -> torch.Tensor:
        """bool [S, len(steps), C]: the choice with the queries of these steps."""
        preset = self.preset
        units, vectors = self._abstracts(layer)
        rows = preset.budget.rows(self.budget, layer)
        queries = (query or preset.query).of(layer)[:, :, steps]
        out = []
        for block, at in zip(queries.split(BLOCK, 2), steps.split(BLOCK)):
            out.append(preset.search.choose(block, at, units, vectors, preset, layer, rows))
        return torch.cat(out, 1)

    def _abstracts(self, layer: Layer) -> tuple[Any, Any]:
        """Units and their abstracts; of a tree, a list of each."""
        preset = self.preset
        units = self._cached(preset.partition, layer, lambda: preset.partition.split(layer))

        def build() -> Any:
            if isinstance(units, list):
                return [preset.abstract.build(layer, of, self.books) for of in units]
            return preset.abstract.build(layer, units, self.books)

        return units, self._cached((preset.partition, preset.abstract), layer, build)

    def _cached(self, what: Any, layer: Layer, make: Any) -> Any:
        kept = self.preset.kept
        budget = self.budget if kept.of_budget else None
        key = (what, kept, budget, layer.index, self.sinks, self.window)
        if key not in self.index:
            self.index[key] = make()
        return self.index[key]

    # ---- attention

    def _attend(
        self, layer: Layer, wanted: torch.Tensor, brought: torch.Tensor | None, new: int
    ) -> torch.Tensor:
        heads, group, steps, _ = layer.queries.shape
        total = layer.keys.shape[1]
        precision = self.preset.precision
        coarse = self._cached(precision, layer, lambda: precision.rows(layer))
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
            if coarse is None:
                logits = weigh(q, layer.keys, layer.scale, mask)
                out.append(spend(torch.softmax(logits, -1), layer.values))
            else:
                there = layer.kept[:, None]
                if brought is not None and self.preset.fetch.exact_above:
                    there = there | brought[:, first - (steps - new) : last - (steps - new)]
                out.append(self._mixed(layer, q, mask, there, *coarse))
        return torch.cat(out, 2).flatten(0, 1)

    def _mixed(
        self,
        layer: Layer,
        q: torch.Tensor,
        mask: torch.Tensor,
        there: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of q [H, g, b, d] over the rows of the mask [H or 1, g or 1, b, T]: hot ones
        and those that are `there` [H or 1, b or 1, C] exact, the others as the coarse copy has
        them."""
        logits = weigh(q, layer.keys, layer.scale, mask)
        far, near = logits[..., : self.stored], logits[..., self.stored :]
        seen = mask[..., : self.stored]
        rough = weigh(q, keys, layer.scale, seen)
        there = there[:, None]
        judged = torch.where(there, far, rough)
        share = torch.softmax(torch.cat([judged, near], -1), -1)[..., : self.stored]
        hot = (share.mean(1, keepdim=True) > self.preset.precision.hot) & seen & ~there
        self.tally.count_hot(layer.index, hot.any(1))
        exact = hot | there
        weights = torch.softmax(torch.cat([torch.where(exact, far, rough), near], -1), -1)
        stored = weights[..., : self.stored]
        fine = torch.cat([stored * exact, weights[..., self.stored :]], -1)
        return spend(fine, layer.values) + spend(stored * ~exact, values)

    # ---- what it cost

    def _brought(self, layer: Layer, new: int) -> torch.Tensor | None:
        """bool [S, new, C]: what a guess brings before the newest steps."""
        fetch, steps = self.preset.fetch, torch.arange(layer.steps)[-new:]
        if fetch.query is None or not (self.track or fetch.wait_above or fetch.exact_above):
            return None
        brought = self._choose(layer, steps, fetch.query)
        if fetch.exact_above:
            brought = brought & (self._mass(layer, steps, fetch.query) >= fetch.exact_above)
        return brought

    def _fetch(
        self,
        layer: Layer,
        anchors: torch.Tensor,
        wanted: torch.Tensor,
        brought: torch.Tensor | None,
        new: int,
    ) -> torch.Tensor:
        """Counts, and leaves out of `wanted` what is neither there nor waited for."""
        tally, fetch = self.tally, self.preset.fetch
        steps = torch.arange(layer.steps)[-new:]
        tally.selections += int((anchors == steps).any(0).sum())
        tally.head_selections += int((anchors == steps).sum()) * (layer.heads // len(anchors))
        if layer.steps == new:
            units, vectors = self._abstracts(layer)
            tally.count_bytes(layer, units, vectors)
        if self.seen is not None:
            self.seen(layer, self._mass(layer, steps))
        if not self.track and not fetch.wait_above:
            return wanted
        late = tally.enter(layer, anchors, wanted, brought, new)
        if fetch.wait_above:
            if getattr(self._abstracts(layer)[0], "of_row", 0) is not None:
                raise ValueError("only single rows can be left out of a step")
            behind = late & (self._mass(layer, steps) < fetch.wait_above) & ~layer.kept[:, None]
            wanted, late = wanted & ~behind, late & ~behind
        tally.count_waiting(layer, late, new)
        return wanted

    def _mass(self, layer: Layer, steps: torch.Tensor, query: Any = None) -> torch.Tensor:
        """[S, len(steps), C]: the estimated share of the attention mass of each row. What a unit
        has lies on its rows that are not kept, on each alike."""
        units, vectors = self._abstracts(layer)
        queries = (query or self.preset.query).of(layer)[:, :, steps]
        parts = [
            self.preset.group.of(self.preset.score.of(q, vectors, layer.scale), layer.scale)
            for q in queries.split(BLOCK, 2)
        ]
        weights = torch.cat(parts, 1)
        return of_rows(weights / fit(units.cost, weights).clamp_min(1), units)


def repeated(x: torch.Tensor, selections: int) -> torch.Tensor:
    """[1 or H, ...] for S selections: H heads, or query heads in the order of their KV head."""
    return x if len(x) in (1, selections) else x.repeat_interleave(selections // len(x), 0)


def weigh(q: torch.Tensor, keys: torch.Tensor, scale: float, mask: torch.Tensor) -> torch.Tensor:
    """Scaled logits [H, g, b, T], -inf where the mask hides a row."""
    heads, group, steps, dim = q.shape
    logits = (q.reshape(heads, group * steps, dim) * scale) @ keys.transpose(1, 2)
    return logits.view(heads, group, steps, -1).masked_fill_(~mask, -torch.inf)


def spend(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    heads, group, steps, rows = weights.shape
    return (weights.reshape(heads, group * steps, rows) @ values).view(heads, group, steps, -1)
