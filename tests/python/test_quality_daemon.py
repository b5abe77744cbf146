"""The daemon against the in-memory reference: the same rows chosen, so the same attention, layer by
layer, for every preset that both know."""

from __future__ import annotations

import pytest
import torch
from conftest import layers

from kvtier.quality.daemon import Daemon
from kvtier.quality.reference import PRESETS, Reference

STORED, STEPS, HEADS, GROUP, DIM, BUDGET = 700, 6, 2, 3, 32, 96


@pytest.fixture(scope="module")
def rows():
    """Keys that drift, so that neighbours are alike as in a text: [HEADS, n, DIM], K and V."""
    torch.manual_seed(3)
    n = STORED + STEPS
    drift = torch.randn(HEADS, n, DIM).cumsum(1) * 0.15
    return drift + torch.randn(HEADS, n, DIM) * 0.5, torch.randn(HEADS, n, DIM)


@pytest.fixture(scope="module")
def own():
    with Daemon(arena_bytes=256 << 20) as daemon:
        yield daemon


@pytest.mark.parametrize("name", ["window", "quest", "mean"])
def test_the_daemon_attends_to_what_the_reference_does(own, rows, name):
    keys, values = rows
    space = own.client.open_space(
        model=f"reference-{name}",
        runtime="pytest",
        layers=layers(count=1, kv_heads=HEADS, query_heads=HEADS * GROUP, dim=DIM),
        preset=name,
    )
    sequence = space.create(name=name)
    sequence.append(list(range(STORED)))
    sequence.write(0, 0, keys[:, :STORED].contiguous(), values[:, :STORED].contiguous())
    sequence.finish_piece()
    sequence.commit()
    sequence.close()
    fork = space.open(name, writable=False).fork(STORED)
    view = fork.view(budget=BUDGET, preset=name)
    reference = Reference(
        PRESETS[name], BUDGET, STORED, torch.zeros(STORED + STEPS, dtype=torch.bool), layers=1
    )
    other = Reference(PRESETS["full"], BUDGET, STORED, reference.delimiter, layers=1)
    entered = []
    for step in range(STEPS):
        at = STORED + step
        fork.append([at])
        fork.write(
            0, 0, keys[:, at : at + 1].contiguous(), values[:, at : at + 1].contiguous()
        )
        q = torch.randn(HEADS * GROUP, DIM) * 1.5
        before = view.stats()["rows_fetched"]
        got = torch.as_tensor(view.attend(0, q, DIM**-0.5)[0])
        entered.append(view.stats()["rows_fetched"] - before)
        seen = (q[:, None], keys[:, : at + 1], values[:, : at + 1], DIM**-0.5)
        want = reference.attend(0, *seen)[:, 0]
        assert float((got - want).abs().max()) < 1e-4
        assert float((got - other.attend(0, *seen)[:, 0]).abs().max()) > 1e-3
    tally = reference.tally
    assert view.stats()["rows_fetched"] == sum(entered)
    if name != "window":
        assert entered[0] == tally.first_rows
        assert sum(entered[1:]) == tally.rows_entered > 0
    fork.close()

