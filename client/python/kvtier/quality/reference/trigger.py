"""Triggers: at which step the selection in use was made. `anchors(layer)`: int64 [S, n], S 1 or H;
entry i is the step whose scores step i uses, at most i (i itself: it selects)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layer import Layer


@dataclass(frozen=True)
class EveryStep:
    def anchors(self, layer: Layer) -> torch.Tensor:
        return torch.arange(layer.steps)[None]


@dataclass(frozen=True)
class EveryN:
    steps: int

    def anchors(self, layer: Layer) -> torch.Tensor:
        step = torch.arange(layer.steps)
        return (step - step % self.steps)[None]


@dataclass(frozen=True)
class Cosine:
    """Selects where the mean over all query heads of cos(q_before, q) falls below `below`;
    `to_anchor`: q_before is that of the last selection, else of the step before (LouisKV, section
    on semantic boundaries: r_t = 1/H sum_h cos(q_{t-1}, q_t) < tau)."""

    below: float
    to_anchor: bool = False

    def anchors(self, layer: Layer) -> torch.Tensor:
        q = torch.nn.functional.normalize(layer.queries.flatten(0, 1), dim=-1)  # [Hq, n, d]
        anchors = torch.zeros(layer.steps, dtype=torch.int64)
        if not self.to_anchor:
            similar = (q[:, 1:] * q[:, :-1]).sum(-1).mean(0).tolist()
        for i in range(1, layer.steps):
            anchor = int(anchors[i - 1])
            r = (
                float((q[:, i] * q[:, anchor]).sum(-1).mean()) if self.to_anchor else similar[i - 1]
            )
            anchors[i] = i if r < self.below else anchor
        return anchors[None]


@dataclass(frozen=True)
class Delimiter:
    """Selects after each delimiter token."""

    def anchors(self, layer: Layer) -> torch.Tensor:
        first = layer.keys.shape[1] - layer.steps
        anchors = torch.zeros(layer.steps, dtype=torch.int64)
        for i in range(1, layer.steps):
            anchors[i] = i if bool(layer.delimiter[first + i - 1]) else anchors[i - 1]
        return anchors[None]


@dataclass(frozen=True)
class Mass:
    """Selects where the rows of the last selection leave more than `level` of the estimated mass of
    the rows that are not kept outside (ours). `mass` [S, n, C]: of each of these rows, by the
    scores of each step; `chosen` bool [S, n, C]: what each step would select."""

    level: float
    by_mass: bool = True

    def anchors(self, layer: Layer, mass: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        anchors = torch.zeros(len(mass), layer.steps, dtype=torch.int64)
        for s in range(len(mass)):
            for i in range(1, layer.steps):
                anchor = int(anchors[s, i - 1])
                held = float(mass[s, i][chosen[s, anchor]].sum() / mass[s, i].sum())
                anchors[s, i] = i if 1 - held > self.level else anchor
        return anchors


@dataclass(frozen=True)
class Speculate:
    """The selection of the step before; a KV head whose group's mean cos(q_{t-1}, q_t) falls below
    `below` takes its own, and waits for it (FreeKV, arXiv 2505.13109, fine-grained correction)."""

    below: float

    def anchors(self, layer: Layer) -> torch.Tensor:
        q = torch.nn.functional.normalize(layer.queries, dim=-1)
        similar = (q[:, :, 1:] * q[:, :, :-1]).sum(-1).mean(1)  # [H, n - 1]
        step = torch.arange(1, layer.steps)
        rest = torch.where(similar < self.below, step, step - 1)
        return torch.cat([torch.zeros(layer.heads, 1, dtype=torch.int64), rest], 1)
