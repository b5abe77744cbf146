"""The daemon against the in-memory reference: the same rows chosen, so the same attention, for
every preset that both know. Clusters and codebooks come from the daemon's files, so that what is
compared is the choice; how good they are is for other tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import store_files
import torch
from conftest import layers

from kvtier.quality.daemon import Daemon
from kvtier.quality.reference import PRESETS, Preset, Reference
from kvtier.quality.reference import abstract, group, partition, precision, score
from kvtier.quality.reference.codebook import turn
from kvtier.story.machine import stop_daemon

STORED, STEPS, HEADS, GROUP, DIM, BUDGET = 700, 12, 2, 3, 32, 96
SENTENCE = 9  # every so many tokens one ends
FREQUENCY = 10000.0 ** (-torch.arange(DIM // 2) / (DIM // 2))
TURNED = {
    "rope_pairing": "halves",
    "rope_frequencies": FREQUENCY.tolist(),
    "rope_positions": 4096,
}


@pytest.fixture(scope="module")
def rows():
    """Keys that drift, so that neighbours are alike as in a text: [HEADS, n, DIM], K and V; and
    queries that do so too, [STEPS, HEADS * GROUP, DIM]."""
    torch.manual_seed(3)
    n = STORED + STEPS
    drift = torch.randn(HEADS, n, DIM).cumsum(1) * 0.15
    keys = drift + torch.randn(HEADS, n, DIM) * 0.5
    queries = torch.randn(STEPS, HEADS * GROUP, DIM).cumsum(0) + torch.randn(HEADS * GROUP, DIM)
    queries[5:] += 2.5 * torch.randn(HEADS * GROUP, DIM)  # a turn: another subject
    return keys, torch.randn(HEADS, n, DIM), queries


@pytest.fixture
def own():
    with Daemon(arena_bytes=256 << 20) as daemon:
        yield daemon


def boundaries(n: int) -> torch.Tensor:
    """Sentences of 9 tokens, and a long one with clauses."""
    token = torch.arange(n)
    flags = (token % SENTENCE == SENTENCE - 1).to(torch.uint8) * 2
    flags[200:500] = (token[200:500] % 40 == 0).to(torch.uint8)
    return flags


def test_it_is_said_where_abstracts_have_no_room(monkeypatch, tmp_path, capsys):
    config = tmp_path / "kvtierd.toml"  # the user's daemon's, which is not for this one
    config.write_text("no setting of kvtier\n")
    monkeypatch.setenv("KVTIER_CONFIG", str(config))
    monkeypatch.setenv("KVTIER_HOST_ABSTRACTS_BYTES", "1MiB")
    texts = {
        "fits": "",
        "boxes": 'partition = "pages:2"\n',
        "copies": 'precision = "base:44"\n',
    }
    found = {}
    with Daemon(arena_bytes=256 << 20) as own:
        space = own.client.open_space(
            model="no-room",
            runtime="pytest",
            layers=layers(count=8, kv_heads=4, query_heads=4, dim=64),
            preset="quest",
        )
        sequence = space.create(name="text")
        sequence.append(list(range(STORED)))
        for layer in range(8):
            sequence.write(layer, 0, torch.randn(4, STORED, 64), torch.randn(4, STORED, 64))
        sequence.finish_piece()
        sequence.commit()
        sequence.close()
        sequence = space.open("text", writable=False)
        for name, text in texts.items():
            path = tmp_path / f"{name}.toml"
            path.write_text('base = "quest"\n' + text)
            view = sequence.view(budget=BUDGET, preset=str(path))
            for _ in range(2):
                view.attend(0, torch.randn(4, 64), 0.1)
                found[name] = own.lacking(SimpleNamespace(view=view), name)
            view.close()
        sequence.close()
    assert found["fits"] == {"units_missing": 0, "segments_without": 0}
    assert (found["boxes"]["units_missing"] > 0, found["boxes"]["segments_without"]) == (True, 0)
    assert found["copies"] == {"units_missing": 0, "segments_without": 1}
    said = capsys.readouterr().err.splitlines()
    assert "preset boxes as it is: 100.0 % of" in said[0], said
    assert "preset copies as it is: 0.0 % of" in said[1] and len(said) == 2, said
    assert all("set KVTIER_HOST_ABSTRACTS_BYTES higher" in line for line in said)


TRACED = ("rows_refined", "rows_base", "base_bytes", "units_missing", "steps_repeated")

LOW_BIT = ("progressive", "progressive-lookahead")

# As the engine has them where that is not what the table of the reference says.
AS_THE_ENGINE = {
    "codes": replace(PRESETS["codes"], score=score.ByteTables()),
    "codes-lookahead": replace(PRESETS["codes-lookahead"], score=score.ByteTables()),
    "progressive": replace(PRESETS["progressive"], score=score.ByteTables()),
    "progressive-lookahead": replace(
        PRESETS["progressive-lookahead"], score=score.ByteTables()
    ),
    "arkvale": Preset(
        "arkvale", partition.Pages(32), abstract.MeanRadius(), score=score.UpperBound()
    ),
    "landmarks": Preset(
        "landmarks", partition.Pages(8), abstract.Mean(), group=group.MaxSoftmax()
    ),
    "singly": replace(PRESETS["codes"], score=score.ByteTables()),
    "runs": replace(PRESETS["codes-runs"], score=score.ByteTables()),
}

# Parts that no built-in has, as a user's file: ShadowKV's choice; that of each query head; tokens
# singly or in runs, wherever they lie.
OF_USERS = {
    "landmarks": 'base = "mean"\npartition = "pages:8"\ngroup = "max-softmax"\n',
    "quest-each": 'base = "quest"\ngroup = "each"\n',
    "sentencekv-each": 'base = "sentencekv"\ngroup = "each"\n',
    "singly": 'base = "codes"\nrun_tokens = 1\nrunners_up_percent = 50\n',
    "runs": 'base = "codes"\nrun_tokens = 16\n',
}


def known_units(
    own: Daemon,
    name: str,
    reference: Reference,
    layer_keys: torch.Tensor,
    layer_values: torch.Tensor,
) -> None:
    """Gives the reference the daemon's clusters, codes, codebook or low-rank keys."""
    store = own._directory / "store"
    preset = reference.preset
    place = (preset.kept, None, 0, 16, 64)
    if preset.books:
        reference.books = [store_files.codebook(store, HEADS, DIM)]
    if isinstance(preset.partition, partition.Clusters):
        # A prompt alone: the segments of the engine's louiskv are clusters.
        number = 5 if name == "louiskv" else 4
        kind = store_files.kind_of(partition=number, abstract=2, tokens=16)
        of_row = store_files.clusters(store, kind, HEADS, DIM)
        kept = torch.zeros(1, STORED, dtype=torch.bool)
        kept[:, :16] = kept[:, -64:] = True
        reference.index[(preset.partition, *place)] = partition.units_of(of_row, kept)
    if isinstance(preset.abstract, abstract.OwnCodes):
        kind = store_files.kind_of(partition=1, abstract=6, tokens=1, parameter=2)
        vectors = store_files.own_codes(store, kind, HEADS, DIM, subspaces=2)
        error = (store_files.decode(vectors) - layer_keys).norm() / layer_keys.norm()
        assert float(error) < 0.25
        reference.index[((preset.partition, preset.abstract), *place)] = vectors
    if isinstance(preset.precision, precision.LowRankKeys):
        rank = 10 * HEADS * DIM // 64
        kind = store_files.kind_of(partition=1, abstract=8, tokens=1, parameter=10)
        low, frequency, position = store_files.low_rank(store, kind, HEADS, DIM, rank)
        assert (frequency - FREQUENCY).abs().max() < 1e-6
        assert position.tolist() == list(range(STORED))
        assert reference.frequency is not None
        layer = SimpleNamespace(
            keys=layer_keys,
            values=layer_values,
            stored=STORED,
            heads=HEADS,
            dim=DIM,
            frequency=reference.frequency,
        )
        own_keys, _ = preset.precision.rows(layer)
        keys = turn(low, position, reference.frequency)
        # Rounding to 16 bits may go the other way where both are near the middle.
        assert float((keys - own_keys).norm() / layer_keys.norm()) < 1e-4
        assert 0.05 < float((keys - layer_keys).norm() / layer_keys.norm()) < 0.9
        reference.index[(preset.precision, *place)] = (keys, layer_values)


@pytest.mark.parametrize(
    "name",
    [
        *("window", "quest", "mean", "sentencekv", "louiskv", "clusters", "leoam", "freekv"),
        *("arkvale", "codes", "codes-lookahead", "progressive", "progressive-lookahead"),
        *("pqcache", "shadow", *OF_USERS),
    ],
)
def test_the_daemon_attends_to_what_the_reference_does(own, rows, name, tmp_path):
    keys, values, queries = rows
    called = name
    if name in OF_USERS:
        called = str(tmp_path / f"{name}.toml")
        Path(called).write_text(OF_USERS[name])
    space = own.client.open_space(
        model=f"reference-{name}",
        runtime="pytest",
        layers=layers(count=1, kv_heads=HEADS, query_heads=HEADS * GROUP, dim=DIM),
        preset=called,
        **(TURNED if name == "shadow" else {}),
    )
    flags = boundaries(STORED + STEPS)
    sequence = space.create(name=name)
    sequence.append(list(range(STORED)), flags=flags[:STORED].tolist())
    sequence.write(0, 0, keys[:, :STORED].contiguous(), values[:, :STORED].contiguous())
    sequence.finish_piece()
    sequence.commit()
    sequence.close()
    fork = space.open(name, writable=False).fork(STORED)
    view = fork.view(budget=BUDGET, preset=called)
    outputs, refined, came, trace, first_waited = [], 0, 0, [], 0
    for step in range(STEPS):
        at = STORED + step
        fork.append([at], flags=[int(flags[at])])
        fork.write(
            0, 0, keys[:, at : at + 1].contiguous(), values[:, at : at + 1].contiguous()
        )
        if name == "progressive-lookahead":  # views look ahead from their second step on; no row of
            view.attend(0, torch.zeros_like(queries[0]), 1.0)  # this one has 1 % of the mass
        if step > 0 or name == "progressive-lookahead":  # a guess that is right
            view.look_ahead(0, queries[step].contiguous(), DIM**-0.5)
        out, _ = view.attend(0, queries[step].contiguous(), DIM**-0.5)
        outputs.append(torch.as_tensor(out).clone())
        first_waited = first_waited or view.stats()["rows_waited"]
        if name in LOW_BIT:  # a row that has come stays exact, which the reference has not
            seen = view.stats()
            refined += seen["rows_refined"]
            came += seen["rows_fetched"] - seen["rows_refined"] - HEADS * (16 + 64)
            trace.append({key: seen[key] for key in TRACED})
            view.close()
            view = fork.view(budget=BUDGET, preset=name)
    stats, view_looked_ahead = view.stats(), view.looks_ahead
    fork.close()
    stop_daemon(own.client)  # its files are complete now
    preset = AS_THE_ENGINE.get(name) or PRESETS[name]
    reference = Reference(preset, BUDGET, STORED, flags, layers=1, frequency=FREQUENCY)
    other = Reference(PRESETS["full"], BUDGET, STORED, flags, layers=1)
    known_units(own, name, reference, keys[:, :STORED], values[:, :STORED])
    q = queries.transpose(0, 1)
    want = reference.attend(0, q, keys, values, DIM**-0.5).transpose(0, 1)
    full = other.attend(0, q, keys, values, DIM**-0.5).transpose(0, 1)
    got = torch.stack(outputs)
    assert float((got - full).abs().amax((1, 2)).min()) > 1e-3
    tally = reference.tally
    # The first choice of single rows is of runs of neighbours: as far as a view knows, they lie on
    # the disk.
    codes = name in ("codes", "codes-lookahead", "pqcache")
    first = 1 if codes else 0
    assert float((got - want)[first:].abs().max()) < 1e-4
    if name in LOW_BIT:
        assert refined == tally.hot_rows, trace
        assert (refined > STEPS and came == 0) == (name == "progressive")
    elif name == "codes-lookahead":
        assert view_looked_ahead
        assert stats["rows_fetched"] > stats["rows_waited"] == first_waited
    elif name == "freekv":  # heads whose queries turn fetch twice
        assert stats["rows_fetched"] >= tally.first_rows + tally.rows_entered
        assert stats["rows_waited"] < stats["rows_fetched"]
    elif name != "window" and not codes:
        assert stats["rows_fetched"] == tally.first_rows + tally.rows_entered
        assert stats["rows_waited"] == stats["rows_fetched"]
        assert stats["selections"] == HEADS * tally.selections
    if name == "shadow":  # values alone, but for the kept rows
        assert stats["rows_rebuilt"] == stats["rows_fetched"] - HEADS * (16 + 64)
        whole = stats["rows_fetched"] - stats["rows_rebuilt"] / 2
        assert stats["bytes_host"] == whole * 2 * DIM * 4
        assert stats["base_bytes"] > 0 and stats["steps_repeated"] == 0
    if name == "louiskv":
        assert 1 < tally.selections < STEPS
