"""Partitions: which stored rows form a unit. `split(layer)` gives the Units.

A unit may be anything from one row to a cluster scattered over the context. Kept rows (sinks,
window) may lie in units; they cost nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layer import Layer


@dataclass
class Units:
    of_row: torch.Tensor | None  # int64 [H or 1, C]; None: every row is a unit of its own
    count: int  # U, the most of any head
    cost: torch.Tensor  # int64 [H or 1, U]: rows that are not kept anyway; 0: nothing to choose
    kept: torch.Tensor  # bool [H or 1, C]: rows that every step attends to

    def size(self) -> torch.Tensor:
        """Rows of each unit, kept ones included: [H or 1, U]."""
        if self.of_row is None:
            return torch.ones_like(self.cost)
        ones = torch.ones_like(self.of_row)
        return torch.zeros(len(ones), self.count, dtype=torch.int64).scatter_add_(
            1, self.of_row, ones
        )

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean of each unit's rows, [H, C, d] -> [H, U, d]; 0 for a unit without rows."""
        index = self.of_row.expand(rows.shape[0], -1)
        total = torch.zeros(rows.shape[0], self.count, rows.shape[2])
        total.scatter_add_(1, index[:, :, None].expand_as(rows), rows)
        return total / self.size().clamp_min(1)[:, :, None]

    def extreme(self, rows: torch.Tensor, largest: bool) -> torch.Tensor:
        """Element-wise largest or smallest of each unit's rows, [H, C, d] -> [H, U, d]."""
        index = self.of_row.expand(rows.shape[0], -1)[:, :, None].expand_as(rows)
        out = torch.zeros(rows.shape[0], self.count, rows.shape[2])
        return out.scatter_reduce(
            1, index, rows, "amax" if largest else "amin", include_self=False
        )


def units_of(of_row: torch.Tensor, kept: torch.Tensor) -> Units:
    count = int(of_row.max()) + 1 if of_row.numel() else 0
    heads = max(len(of_row), len(kept))
    free = (~kept).long().expand(heads, -1)
    cost = torch.zeros(heads, count, dtype=torch.int64)
    return Units(of_row, count, cost.scatter_add_(1, of_row.expand(heads, -1), free), kept)


@dataclass(frozen=True)
class Rows:
    """Every row a unit."""

    def split(self, layer: Layer) -> Units:
        return Units(None, layer.stored, (~layer.kept).long(), layer.kept)


@dataclass(frozen=True)
class Pages:
    """`rows` consecutive tokens (Quest, arXiv 2406.10774; ArkVale)."""

    rows: int = 16

    def split(self, layer: Layer) -> Units:
        return units_of(torch.arange(layer.stored)[None] // self.rows, layer.kept)


@dataclass(frozen=True)
class Tree:
    """Pages that can be split: level 0 has `coarse` rows a page, each further one half as many,
    `rounds` times. Layers 0 and 1 have one level of `early` rows (LeoAM's code: 8 there, 128
    elsewhere; three rounds)."""

    coarse: int = 128
    rounds: int = 3
    early: int = 8

    def split(self, layer: Layer) -> list[Units]:
        if layer.index < 2:
            return [Pages(self.early).split(layer)]
        return [Pages(self.coarse >> i).split(layer) for i in range(self.rounds + 1)]


@dataclass(frozen=True)
class Sentences:
    """Up to a delimiter token, which belongs to the sentence that it ends (SentenceKV, arXiv
    2504.00970, section 3). The caps are ours: at most `longest` tokens, cut behind the last clause
    of its second half where there is one; none goes over the end of a segment."""

    longest: int = 128
    segment: int = 2048

    def split(self, layer: Layer) -> Units:
        of_row = torch.empty(1, layer.stored, dtype=torch.int64)
        boundary = layer.boundary.tolist()
        starts = [0]
        clause = 0
        for row in range(layer.stored):
            begin, end = starts[-1], row + 1
            if boundary[row] >= 2 or end % self.segment == 0:
                starts.append(end)
                continue
            if boundary[row] == 1:
                clause = end
            if end - begin == self.longest:
                starts.append(clause if clause - begin > self.longest // 2 else end)
        for unit, (first, last) in enumerate(zip(starts, starts[1:] + [layer.stored])):
            of_row[0, first:last] = unit
        return units_of(of_row, layer.kept)


@dataclass(frozen=True)
class Clusters:
    """k-means over the directions of a head's keys, `rows` a cluster on average, separately in
    each run of `segment` rows (LouisKV, arXiv 2510.11292: about 16 tokens a cluster; distance,
    seeding and segments are not given there: cosine as in ClusterKV, seeded by every `rows`-th key,
    `iterations` rounds of Lloyd, an empty cluster takes the key that fits its own worst)."""

    rows: int = 16
    segment: int = 2048
    iterations: int = 10

    def split(self, layer: Layer) -> Units:
        parts, base = [], 0
        for first in range(0, layer.stored, self.segment):
            keys = layer.keys[:, first : min(first + self.segment, layer.stored)]
            of_row, count = spherical_k_means(keys, self.rows, self.iterations)
            parts.append(of_row + base)
            base += count
        return units_of(torch.cat(parts, 1), layer.kept)


@dataclass(frozen=True)
class Segments(Clusters):
    """What the model wrote itself in runs that begin where its queries turned (LouisKV: at the
    boundaries that trigger a retrieval; one set of cuts for all layers and at most `longest` tokens
    are ours), the prompt as Clusters. None goes over the end of a segment."""

    longest: int = 128

    def split(self, layer: Layer) -> Units:
        if layer.marks is None:
            return super().split(layer)
        parts, base = [], 0
        for first in range(0, layer.stored, self.segment):
            marks = layer.marks[first : min(first + self.segment, layer.stored)]
            of_row, count = self._split_segment(
                layer.keys[:, first : first + len(marks)], output_runs(marks, self.longest)
            )
            parts.append(of_row + base)
            base += count
        return units_of(torch.cat(parts, 1), layer.kept)

    def _split_segment(self, keys: torch.Tensor, runs: torch.Tensor) -> tuple[torch.Tensor, int]:
        other, count = runs < 0, 0
        of_row = torch.zeros(keys.shape[:2], dtype=torch.int64)
        if bool(other.any()):
            of_row[:, other], count = spherical_k_means(
                keys[:, other], self.rows, self.iterations
            )
        of_row[:, ~other] = runs[~other] + count
        return of_row, count + int(runs.max()) + 1


def output_runs(marks: torch.Tensor, longest: int) -> torch.Tensor:
    """The run of each token that the model wrote, from 0 on; -1 for the others."""
    runs = torch.full((len(marks),), -1)
    run, length = -1, 0
    for i, mark in enumerate(marks.tolist()):
        if not mark & 1:
            length = 0
            continue
        if length in (0, longest) or mark & 2:
            run, length = run + 1, 0
        runs[i] = run
        length += 1
    return runs


def spherical_k_means(
    keys: torch.Tensor, rows: int, iterations: int
) -> tuple[torch.Tensor, int]:
    """([H, n] cluster of each key, clusters): unit vectors, centroids are means of them, the
    nearest is that with the largest cosine."""
    heads, n, dim = keys.shape
    count = -(-n // rows)
    x = torch.nn.functional.normalize(keys, dim=-1)
    centroids = x[:, torch.arange(count) * n // count]
    of_row = torch.zeros(heads, n, dtype=torch.int64)
    for _ in range(iterations):
        fit, of_row = (x @ centroids.transpose(1, 2)).max(-1)
        size = torch.zeros(heads, count).scatter_add_(1, of_row, torch.ones(heads, n))
        total = torch.zeros(heads, count, dim).scatter_add_(
            1, of_row[:, :, None].expand_as(x), x
        )
        for head, empty in (size == 0).nonzero().tolist():
            worst = int(fit[head].argmin())
            total[head, empty] = x[head, worst]
            fit[head, worst] = 1.0
        centroids = torch.nn.functional.normalize(total, dim=-1)
    return (x @ centroids.transpose(1, 2)).argmax(-1), count
