"""How much of the attention mass a step can have missed at most, where a score is an upper bound of
the product with every key of its unit (score.UpperBound)."""

from __future__ import annotations

import torch

from .budget import fit
from .layer import Layer
from .partition import Units


def missed(
    layer: Layer, units: Units, scores: torch.Tensor, wanted: torch.Tensor, new: int
) -> torch.Tensor:
    """Share of the mass, [H, g, new], of the newest steps: scores [H, g, new, U] against stored
    rows that are left out, the exact logits of those that are attended to, bool [H or 1, new, C],
    and of the tail."""
    left = torch.zeros(len(wanted), new, units.count)
    index = fit(units.of_row, wanted).expand(wanted.shape)
    left.scatter_add_(-1, index, (~wanted).float())
    above = torch.logsumexp(scores * layer.scale + left.log()[:, None], -1)
    return torch.sigmoid(above - attended(layer, wanted, torch.arange(layer.steps)[-new:]))


def attended(layer: Layer, wanted: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The logarithm of the exact mass of what these steps attend to, [H, g, n]: stored rows, bool
    [H or 1, n, C], and the tail as far as each sees it."""
    q = layer.queries[:, :, steps]
    logits = torch.einsum("hgnd,htd->hgnt", q, layer.keys) * layer.scale
    total = layer.keys.shape[1]
    row = torch.arange(total - layer.stored)
    sees = row <= (total - layer.stored) - layer.steps + steps[:, None]
    mask = torch.cat([wanted, sees.expand(len(wanted), -1, -1)], -1)[:, None]
    return torch.logsumexp(logits.masked_fill(~mask, -torch.inf), -1)
