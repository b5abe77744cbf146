"""Residency: which rows stay in the client's slot cache from step to step, and so what has to be
fetched. One least-recently-used cache per selection (KV head), filled by what its steps attend to
of the stored rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Lru:
    """`percent` of the budget in rows, kept rows included, and never less than one step needs.

    Order of recency after a step: rows that were resident in token order, then those that entered
    in token order; the last is the most recent."""

    percent: int = 200

    def capacity(self, budget: int, kept: int, rows: int) -> int:
        """`rows`: what the user says, 0: nothing."""
        return max(rows or budget * self.percent // 100, budget + kept)

    def entering(
        self, wanted: torch.Tensor, capacity: int, guessed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """bool [S, n, C] rows that each step chooses, and those that a guess brings before it ->
        int64 [S, n] rows that entered, bool [S, n, C] those of them that only the step itself asked
        for, int64 [S, n] rows that the guess brought in vain. A row that is guessed in vain takes a
        slot as an old one does."""
        mask = wanted.numpy()
        selections, steps, rows = mask.shape
        recency = np.full((selections, rows), -1, dtype=np.int64)  # -1: not resident
        place = np.arange(rows, dtype=np.int64)
        entered, vain_rows = np.zeros((2, selections, steps), dtype=np.int64)
        late = np.zeros_like(mask)
        for i in range(steps):
            now = mask[:, i]
            missing = now & (recency < 0)
            brought = np.zeros_like(now) if guessed is None else guessed[:, i].numpy()
            brought = brought & (recency < 0)
            entered[:, i] = missing.sum(1)
            late[:, i] = missing & ~brought
            vain = brought & ~now
            vain_rows[:, i] = vain.sum(1)
            stamp = place + i * 2 * rows + rows * missing
            recency = np.where(now, stamp, np.where(vain, place, recency))
            for s, over in enumerate((recency >= 0).sum(1) - capacity):
                if over > 0:
                    resident = np.flatnonzero(recency[s] >= 0)
                    oldest = np.argpartition(recency[s, resident], over - 1)[:over]
                    recency[s, resident[oldest]] = -1
        return torch.from_numpy(entered), torch.from_numpy(late), torch.from_numpy(vain_rows)
