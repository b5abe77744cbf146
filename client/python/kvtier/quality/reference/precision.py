"""Precision: with which copy of a stored row attention is computed. `rows(layer)` gives the coarse
copy (K, V) of the stored rows, or None where all rows are exact; `hot` the share of a step's
attention mass (mean over the group, judged from the coarse copy) above which a row is exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layer import Layer


@dataclass(frozen=True)
class Raw:
    """Every row exact."""

    hot: float = 0.0

    def rows(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None


@dataclass(frozen=True)
class LowBit:
    """Affine, smallest and largest of a group of 32: K per channel over 32 tokens, V per token over
    32 channels (KIVI, arXiv 2402.02750), scale and offset in 16 bits."""

    bits_k: int = 4
    bits_v: int = 4
    hot: float = 0.01
    group: int = 32

    def rows(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor] | None:
        keys, values = layer.keys[:, : layer.stored], layer.values[:, : layer.stored]
        k = affine(keys.transpose(1, 2), self.bits_k, self.group).transpose(1, 2)
        return k.contiguous(), affine(values, self.bits_v, self.group)


def affine(x: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """x as it comes back from `bits` bits, groups along the last dimension; a last, shorter group
    has a scale of its own."""
    length = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -length % group), mode="replicate")
    parts = padded.unflatten(-1, (-1, group))
    low = parts.amin(-1, keepdim=True).half().float()
    step = ((parts.amax(-1, keepdim=True) - low) / (2**bits - 1)).half().float()
    code = ((parts - low) / step.clamp_min(1e-8)).round().clamp(0, 2**bits - 1)
    return (code * step + low).flatten(-2)[..., :length]
