"""What is measured at each predicted token, and means with their 95 % intervals.

Intervals are paired: of the difference to full attention at the same token. Neighbouring tokens are
not independent, so the interval comes from means of runs of 16 tokens (of fewer where there are not
64), which are few, so by Student's t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

RUN = 16
RUNS_LEAST = 4


@dataclass
class PerToken:
    """Of one preset over n predicted tokens."""

    nll: torch.Tensor  # [n] of the true token
    nll_full: torch.Tensor  # [n]
    kl: torch.Tensor  # [n] sum p_full (log p_full - log p)
    same: torch.Tensor  # bool [n]: the likeliest token is that of full attention


def compare(full: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> PerToken:
    """full and logits [n, V], target int64 [n]."""
    parts = []
    for at in range(0, len(target), 64):
        want = full[at : at + 64].float().log_softmax(-1)
        got = logits[at : at + 64].float().log_softmax(-1)
        index = target[at : at + 64, None]
        kl = (want.exp() * (want - got)).sum(-1).clamp_min(0)  # below only by rounding
        parts.append(
            PerToken(
                -got.gather(1, index)[:, 0],
                -want.gather(1, index)[:, 0],
                kl,
                want.argmax(-1) == got.argmax(-1),
            )
        )
    return concatenate(parts)


def concatenate(parts: list[PerToken]) -> PerToken:
    return PerToken(
        *(torch.cat([getattr(p, name) for p in parts]) for name in PerToken.__annotations__)
    )


def interval(x: torch.Tensor) -> float:
    """Half the width of the 95 % interval of the mean of x; 0 where x is too short to say."""
    run = max(1, min(RUN, len(x) // RUNS_LEAST))
    x = x[: len(x) // run * run].view(-1, run).mean(1)
    if len(x) < 2:
        return 0.0
    return student(len(x) - 1) * float(x.double().std()) / math.sqrt(len(x))


def student(freedom: int) -> float:
    """What Student's t keeps below on both sides by 95 %: Cornish and Fisher's series, off by less
    than 1 % from three degrees of freedom on."""
    if freedom < 3:
        return (12.71, 4.30)[freedom - 1]
    z, n = 1.96, freedom
    series = (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    return z + series + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)


def summary(tokens: PerToken) -> dict[str, float]:
    worse = tokens.nll - tokens.nll_full
    mean, half = float(worse.double().mean()), interval(worse)
    kl, kl_half = float(tokens.kl.double().mean()), interval(tokens.kl)
    same = tokens.same.float()

    def percent(x: float) -> float:
        return 100 * (math.exp(x) - 1)

    return {
        "ppl": math.exp(float(tokens.nll.double().mean())),
        "ppl_full": math.exp(float(tokens.nll_full.double().mean())),
        "dppl_pct": percent(mean),
        "dppl_pct_low": percent(mean - half),
        "dppl_pct_high": percent(mean + half),
        "kl": kl,
        "kl_low": kl - kl_half,
        "kl_high": kl + kl_half,
        "top1": float(same.mean()),
        "top1_low": float(same.mean()) - interval(same),
        "tokens": len(tokens.kl),
    }
