"""Precision: with which copy of a stored row attention is computed. `rows(layer)` gives the coarse
copy (K, V) of the stored rows, or None where all rows are exact. Kept rows are always exact, and so
are hot ones: those above the share `hot` of a step's attention mass (mean over the group, judged
from the coarse copy). `fetched`: bytes of a coarse row as it is fetched, over those of an exact one
at 16 bit; `device_bytes(...)`: what the copy takes on the device, per layer and KV head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .codebook import turn
from .layer import Layer

NEVER = 2.0


@dataclass(frozen=True)
class Raw:
    """Every row exact."""

    hot: float = 0.0
    fetched: float = 1.0

    def rows(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None

    def device_bytes(self, layer: Layer) -> float:
        return 0.0


@dataclass(frozen=True)
class LowBit:
    """Affine, smallest and largest of a group of 32: K per channel over 32 tokens, V per token over
    32 channels (KIVI, arXiv 2402.02750), scale and offset in 16 bits, rounded so that the group
    stays between its ends. `before`: keys as they were before RoPE (KVQuant, arXiv 2401.18079)."""

    bits_k: int = 4
    bits_v: int = 4
    hot: float = 0.01
    group: int = 32
    before: bool = False

    @property
    def fetched(self) -> float:
        return (self.bits_k + self.bits_v + 2 * 32 / self.group) / 32

    def rows(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor] | None:
        keys, values = layer.keys[:, : layer.stored], layer.values[:, : layer.stored]
        position = torch.arange(layer.stored)
        if self.before:
            keys = turn(keys, -position, frequency_of(layer))
        keys = affine(keys.transpose(1, 2), self.bits_k, self.group).transpose(1, 2)
        if self.before:
            keys = turn(keys, position, frequency_of(layer))
        return keys.contiguous(), affine(values, self.bits_v, self.group)

    def device_bytes(self, layer: Layer) -> float:
        return 0.0


@dataclass(frozen=True)
class LowRankKeys:
    """Keys before RoPE, all heads of the layer together, from a truncated SVD that stays on the
    device; values exact, fetched (ShadowKV, arXiv 2410.21465: rank 160 of 1,024). `segment`: so
    many rows are factorised together; 0: all are, as in the paper. Factors in 16 bits."""

    share: float = 160 / 1024
    segment: int = 0
    hot: float = NEVER
    fetched: float = 0.5

    def rank(self, layer: Layer, rows: int) -> int:
        return min(rows, max(1, int(self.share * layer.heads * layer.dim)))

    def rows(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor] | None:
        position = torch.arange(layer.stored)
        before = turn(layer.keys[:, : layer.stored], -position, frequency_of(layer))
        flat = before.transpose(0, 1).flatten(1)  # [C, H d]
        low = torch.cat([self._factorised(part, layer) for part in self._parts(layer, flat)])
        low = low.view(layer.stored, layer.heads, layer.dim).transpose(0, 1)
        return turn(low, position, frequency_of(layer)), layer.values[:, : layer.stored]

    def _parts(self, layer: Layer, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return rows.split(self.segment or layer.stored)

    def _factorised(self, rows: torch.Tensor, layer: Layer) -> torch.Tensor:
        rank, rows = self.rank(layer, len(rows)), rows.double()
        _, vectors = torch.linalg.eigh(rows.T @ rows)  # right singular vectors
        basis = vectors[:, -rank:]
        return (rows @ basis).half().float() @ basis.half().float().T

    def device_bytes(self, layer: Layer) -> float:
        parts = [len(part) for part in self._parts(layer, torch.arange(layer.stored))]
        return sum(
            2.0 * self.rank(layer, rows) * (rows / layer.heads + layer.dim) for rows in parts
        )


def frequency_of(layer: Layer) -> torch.Tensor:
    if layer.frequency is None:
        raise ValueError("keys before RoPE need its frequencies")
    return layer.frequency


def affine(x: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """x as it comes back from `bits` bits, groups along the last dimension; a last, shorter group
    has a scale of its own."""
    length = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -length % group), mode="replicate")
    parts = padded.unflatten(-1, (-1, group))
    low = half(parts.amin(-1, keepdim=True), up=False)
    step = half((parts.amax(-1, keepdim=True) - low) / (2**bits - 1), up=True)
    code = ((parts - low) * torch.where(step > 0, 1 / step, 0)).round().clamp(0, 2**bits - 1)
    return (code * step + low).flatten(-2)[..., :length]


def half(x: torch.Tensor, up: bool) -> torch.Tensor:
    """The nearest number of 16 bits that is not below x, or not above."""
    rounded = x.half()
    wrong = rounded.float() < x if up else rounded.float() > x
    toward = torch.full_like(rounded, torch.inf if up else -torch.inf)
    return torch.where(wrong, rounded.nextafter(toward), rounded).float()
