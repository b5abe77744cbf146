"""Abstracts: what stands for a unit's keys. `build(layer, units, books)` gives the tensors that a
score reads; `bytes(units, vectors, dim)` what they take on the device, tables included, per layer
and KV head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .codebook import in_order, train_plain
from .layer import Layer, half, half_not_above
from .partition import Units

Vectors = dict[str, torch.Tensor]


def table_bytes(units: Units) -> int:
    """What says which rows a unit has: nothing for pages and rows; where units differ by head, 2
    bytes per row (its place in its segment) and 4 per unit; else 4 per unit, shared by all."""
    if units.of_row is None or len(units.of_row) == 1:
        return 0
    return 2 * units.of_row.shape[1] + 4 * units.count


@dataclass(frozen=True)
class Nothing:
    def build(self, layer: Layer, units: Units, books: Any) -> Vectors:
        return {}

    def bytes(self, units: Units, vectors: Vectors, dim: int) -> float:
        return 0


@dataclass(frozen=True)
class Mean:
    """The mean key (SentenceKV; LouisKV's centroid; ShadowKV's landmark)."""

    def build(self, layer: Layer, units: Units, books: Any) -> Vectors:
        return {"mean": half(units.mean(layer.keys[:, : layer.stored]))}

    def bytes(self, units: Units, vectors: Vectors, dim: int) -> float:
        return 2 * dim * units.count + table_bytes(units)


@dataclass(frozen=True)
class MeanCount:
    """Mean and number of keys: the number weighs a unit's score by its logarithm."""

    def build(self, layer: Layer, units: Units, books: Any) -> Vectors:
        mean = half(units.mean(layer.keys[:, : layer.stored]))
        return {"mean": mean, "log_count": units.size().clamp_min(1).float().log()}

    def bytes(self, units: Units, vectors: Vectors, dim: int) -> float:
        return (2 * dim + 2) * units.count + table_bytes(units)


@dataclass(frozen=True)
class Box:
    """Element-wise smallest and largest key (Quest, arXiv 2406.10774, section 3.2; LeoAM)."""

    def build(self, layer: Layer, units: Units, books: Any) -> Vectors:
        rows = layer.keys[:, : layer.stored]
        return {
            "low": half_not_above(units.extreme(rows, largest=False)),
            "high": -half_not_above(-units.extreme(rows, largest=True)),
        }

    def bytes(self, units: Units, vectors: Vectors, dim: int) -> float:
        return 4 * dim * units.count + table_bytes(units)


@dataclass(frozen=True)
class MiddleBox:
    """A box around the middle of smallest and largest key, wide by the mean distance from it
    instead of the largest (ArkVale's cuboid-mean, the best of its digests)."""

    def build(self, layer: Layer, units: Units, books: Any) -> Vectors:
        rows = layer.keys[:, : layer.stored]
        middle = (units.extreme(rows, largest=False) + units.extreme(rows, largest=True)) / 2
        index = units.of_row.expand(rows.shape[0], -1)[:, :, None].expand_as(rows)
        width = units.mean((rows - middle.gather(1, index)).abs())
        return {"low": half(middle - width), "high": half(middle + width)}

    def bytes(self, units: Units, vectors: Vectors, dim: int) -> float:
        return 4 * dim * units.count + table_bytes(units)


@dataclass(frozen=True)
class MeanRadius:
    """Mean and the distance of the key farthest from it (one of ArkVale's digests, sphere-max)."""

    def build(self, layer: Layer, units: Units, books: Any) -> Vectors:
        rows = layer.keys[:, : layer.stored]
        mean = half(units.mean(rows))
        index = units.of_row.expand(rows.shape[0], -1)
        far = (rows - mean.gather(1, index[:, :, None].expand_as(rows))).norm(dim=-1, keepdim=True)
        return {"mean": mean, "radius": units.extreme(far, largest=True)[..., 0]}

    def bytes(self, units: Units, vectors: Vectors, dim: int) -> float:
        return (2 * dim + 2) * units.count + table_bytes(units)


@dataclass(frozen=True)
class Representatives:
    """`count` keys of the unit (InfLLM, arXiv 2402.04617, takes those that the queries of the local
    window behind it attend to most). Ours know no queries: the key nearest to the mean, then always
    the one farthest from those chosen (Gonzalez 1985). Ties go to the older."""

    count: int = 4

    def build(self, layer: Layer, units: Units, books: Any) -> Vectors:
        rows = layer.keys[:, : layer.stored]
        place, there = rows_of_units(units)  # [H or 1, U, L]
        heads, dim = len(rows), rows.shape[2]
        index = place.expand(heads, -1, -1)
        keys = rows.gather(1, index.flatten(1)[:, :, None].expand(-1, -1, dim))
        keys = keys.view(*index.shape, dim)
        gaps = (keys - units.mean(rows)[:, :, None]).norm(dim=-1)
        best = gaps.masked_fill(~there, torch.inf).argmin(-1)
        chosen, gaps = [], torch.full_like(gaps, torch.inf)
        for _ in range(self.count):
            newest = keys.gather(2, best[:, :, None, None].expand(-1, -1, 1, dim))
            chosen.append(newest[:, :, 0])
            gaps = torch.minimum(gaps, (keys - newest).norm(dim=-1))
            best = gaps.masked_fill(~there, -1).argmax(-1)
        empty = (units.size() == 0)[:, :, None, None]
        return {"keys": half(torch.stack(chosen, 2).masked_fill(empty, 0))}  # [H, U, count, d]

    def bytes(self, units: Units, vectors: Vectors, dim: int) -> float:
        return 2 * dim * self.count * units.count + table_bytes(units)


def rows_of_units(units: Units) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of each unit in token order, [H or 1, U, L], and which of the L places have one."""
    size = units.size()
    order = units.of_row.argsort(stable=True, dim=-1)
    place = torch.arange(int(size.max()))
    there = place < size[:, :, None]
    first = (size.cumsum(-1) - size)[:, :, None]
    at = (first + place).masked_fill(~there, 0)
    return order.gather(1, at.flatten(1)).view(at.shape), there


@dataclass(frozen=True)
class Exact:
    """The keys themselves: what no abstract can beat. An oracle, not a preset for use."""

    def build(self, layer: Layer, units: Units, books: Any) -> Vectors:
        return {"mean": layer.keys[:, : layer.stored]}

    def bytes(self, units: Units, vectors: Vectors, dim: int) -> float:
        return 2 * dim * units.count


@dataclass(frozen=True)
class Codes:
    """Keys product-quantised with the codebooks of the layer (PQCache, arXiv 2407.12820): a score
    is the sum of one table entry per sub-space, which is the product with the decoded key."""

    books: str

    def build(self, layer: Layer, units: Units, books: Any) -> Vectors:
        if books is None:
            raise ValueError("key codes need codebooks: train them on another text first")
        book = books[layer.index]
        codes = book.encode(layer.keys[:, : layer.stored])
        return {
            "mean": book.decode(codes),
            "bytes_per_row": torch.tensor(book.bytes_per_row),
            "codes": codes.to(torch.uint8),
            "centroids": book.centroids,
            "dims": book.dims,
            "back": book.back,
        }

    def bytes(self, units: Units, vectors: Vectors, dim: int) -> float:
        return float(vectors["bytes_per_row"]) * units.count


@dataclass(frozen=True)
class OwnCodes:
    """As Codes, with codebooks trained on the sequence's own keys, sinks left out (PQCache, arXiv
    2407.12820; its code: 2 sub-spaces of consecutive dimensions, 6 bits, k-means at prefill); they
    count as abstract. `segment`: so many rows share a codebook; 0: all do, as in the paper."""

    subspaces: int = 2
    bits: int = 6
    segment: int = 0

    def build(self, layer: Layer, units: Units, books: Any) -> Vectors:
        dims = in_order(layer.dim, self.subspaces)
        parts = layer.keys[:, : layer.stored].split(self.segment or layer.stored, 1)
        entries, codes = [], []
        for i, part in enumerate(parts):
            sinks = min(layer.sinks, part.shape[1] - 1) if i == 0 else 0
            book = train_plain(part[:, sinks:], dims, self.bits)
            entries.append(half(book.centroids))
            codes.append(book.encode(part) + (i << self.bits))
        # [H, M, entries of all books, s], and of each row the places of its entries [H, n, M].
        return {"entries": torch.cat(entries, 2), "codes": torch.cat(codes, 1)}

    def bytes(self, units: Units, vectors: Vectors, dim: int) -> float:
        per_row = self.subspaces * self.bits / 8
        return per_row * units.count + 2 * dim * vectors["entries"].shape[2]
