"""Fetch: which of the rows that enter the slot cache a step has to wait for.
`early(anchors, steps)`: bool [S, n] where the selection in use was known a step before, or None;
`query`: whose choice is brought before the layer runs, or None; `exact_above`: of a precision, only
rows of that choice above this share of the estimated mass are brought, and these are exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Demand:
    """Selected, then fetched, then attended to: every row that enters is waited for."""

    query: Any = None
    wait_above: float = 0.0
    exact_above: float = 0.0

    def early(self, anchors: torch.Tensor, steps: torch.Tensor) -> torch.Tensor | None:
        return None


@dataclass(frozen=True)
class Behind:
    """A selection of an earlier step is fetched behind that step's computation; only a head that
    selects with the step's own query waits (FreeKV)."""

    query: Any = None
    wait_above: float = 0.0
    exact_above: float = 0.0

    def early(self, anchors: torch.Tensor, steps: torch.Tensor) -> torch.Tensor | None:
        return anchors < steps


@dataclass(frozen=True)
class LookAhead:
    """While the layer before computes, what `query` would choose is fetched; the layer then chooses
    with its own query and waits for the rest, or only for rows above the share `wait_above` of the
    estimated mass: the others come behind, for the next step. With 0 what is attended to does not
    change."""

    query: Any
    wait_above: float = 0.0
    exact_above: float = 0.0

    def early(self, anchors: torch.Tensor, steps: torch.Tensor) -> torch.Tensor | None:
        return None
