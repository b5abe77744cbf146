"""Parts that no built-in preset has, read from a user's file by the daemon, against the in-memory
reference: the same rows chosen, so the same attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import store_files
import torch
from conftest import layers
from test_quality_daemon import BUDGET, DIM, GROUP, HEADS, STEPS, STORED
from test_quality_daemon import boundaries, own, rows  # noqa: F401  (fixtures)

from kvtier.quality.reference import PRESETS, Preset, Reference
from kvtier.quality.reference import abstract, budget, group, partition, query, score, trigger
from kvtier.quality.reference.layer import Layer
from kvtier.story.machine import stop_daemon

SCALE = DIM**-0.5
SEGMENT, PIECE = 2048, 1024
FLAGS = boundaries(SEGMENT + 1024)


def length(rows: Any) -> int:
    """Tokens that are stored before the first step."""
    return int(rows[0].shape[1]) - STEPS


def shifted(rows: Any, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values and queries of a layer: other ones than those below."""
    keys, values, queries = rows
    return keys.roll(layer * 37, 1), values.roll(layer * 11, 1), queries.roll(layer, 1)


def stored(own: Any, rows: Any, preset: str, count: int) -> Any:
    """A sequence of the daemon's with all rows but the steps' in each of `count` layers."""
    tokens = length(rows)
    space = own.client.open_space(
        model="parts",
        runtime="pytest",
        layers=layers(count=count, kv_heads=HEADS, query_heads=HEADS * GROUP, dim=DIM),
        preset=preset,
    )
    sequence = space.create(name="parts")
    for first in range(0, tokens, PIECE):
        at = slice(first, min(first + PIECE, tokens))
        sequence.append(list(range(at.start, at.stop)), flags=FLAGS[at].tolist())
        write(sequence, rows, count, at)
        sequence.finish_piece()
    sequence.commit()
    sequence.close()
    return space.open("parts", writable=False).fork(tokens)


def write(sequence: Any, rows: Any, count: int, at: slice) -> None:
    for layer in range(count):
        keys, values, _ = shifted(rows, layer)
        sequence.write(layer, 0, keys[:, at].contiguous(), values[:, at].contiguous())


def attended(
    own: Any, rows: Any, preset: str, count: int = 1
) -> tuple[torch.Tensor, dict[str, Any]]:
    """What the daemon's view attends to in the topmost of `count` layers, step by step,
    [STEPS, HEADS * GROUP, DIM], and its statistics."""
    fork = stored(own, rows, preset, count)
    view = fork.view(budget=BUDGET, preset=preset)
    outputs = []
    for step in range(STEPS):
        at = slice(length(rows) + step, length(rows) + step + 1)
        fork.append([at.start], flags=FLAGS[at].tolist())
        write(fork, rows, count, at)
        for layer in range(count):
            out, _ = view.attend(layer, shifted(rows, layer)[2][step].contiguous(), SCALE)
        outputs.append(torch.as_tensor(out).clone())
    stats = view.stats()
    fork.close()
    return torch.stack(outputs), stats


def wanted(
    rows: Any, preset: Preset, count: int = 1, index: Any = None
) -> tuple[torch.Tensor, Reference]:
    reference = Reference(preset, BUDGET, length(rows), FLAGS, count, index=index or {})
    for layer in range(count):
        keys, values, queries = shifted(rows, layer)
        out = reference.attend(layer, queries.transpose(0, 1), keys, values, SCALE)
    return out.transpose(0, 1), reference


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("cut", [False, True])
def test_entropy_gives_each_head_its_own_number_of_rows(own, rows, toml, cut):
    floor = 0.1
    rows = (*rows[:2], 3 * rows[2])  # some heads look at few rows
    path = toml(
        'base = "mean"\npartition = "pages:4"\nbudget = "entropy"\n'
        f"share = {floor}\ncut = {str(cut).lower()}\n"
    )
    got, stats = attended(own, rows, path)
    part = budget.Entropy(cut=cut, floor=floor)
    want, reference = wanted(rows, Preset("", partition.Pages(4), abstract.Mean(), budget=part))
    assert float((got - want).abs().max()) < 1e-4
    tally = reference.tally
    assert stats["rows_fetched"] == tally.first_rows + tally.rows_entered
    # Neither the floor nor the budget at every step.
    chosen = stats["rows_selected"] / stats["selections"]
    assert floor * BUDGET + 4 < chosen < 0.9 * BUDGET
    full, _ = wanted(rows, PRESETS["full"])
    assert float((got - full).abs().amax((1, 2)).min()) > 1e-3


def test_mass_is_a_share_of_what_can_be_chosen(own, rows, toml):
    share = 0.5
    keys, values, queries = rows
    keys = keys.clone()  # sinks that hold half of the mass, and more
    keys[:, :16] = 1.5 * queries.mean(0).unflatten(0, (HEADS, GROUP)).mean(1)[:, None]
    rows = (keys, values, queries)
    path = toml(f'base = "mean"\npartition = "pages:4"\nbudget = "mass"\nshare = {share}\n')
    got, stats = attended(own, rows, path)
    part = Preset("", partition.Pages(4), abstract.Mean(), budget=budget.TopP(p=share))
    want, reference = wanted(rows, part)
    assert float((got - want).abs().max()) < 1e-4
    tally = reference.tally
    assert stats["rows_fetched"] == tally.first_rows + tally.rows_entered
    assert 4 < stats["rows_selected"] / stats["selections"] < 0.9 * BUDGET
    assert stats["mass_sum"] > 0.5 * share * stats["selections"]


def test_mass_outside_makes_a_head_choose_anew(own, rows, toml):
    level = 0.4
    path = toml(
        f'base = "mean"\npartition = "pages:4"\ntrigger = "mass"\nlevel = {level}\ncut = true\n'
    )
    got, stats = attended(own, rows, path)
    part = Preset(
        "",
        partition.Pages(4),
        abstract.Mean(),
        budget=budget.Tokens(cut=True),
        trigger=trigger.Mass(level),
    )
    want, reference = wanted(rows, part)
    assert float((got - want).abs().max()) < 1e-4
    assert stats["selections"] == reference.tally.head_selections
    assert stats["rows_fetched"] == reference.tally.first_rows + reference.tally.rows_entered
    assert HEADS < stats["selections"] < 0.8 * HEADS * STEPS


def test_a_layer_chooses_by_the_queries_of_the_layer_below(own, rows, toml):
    path = toml('base = "mean"\npartition = "pages:4"\nquery = "layer-before"\n')
    got, stats = attended(own, rows, path, count=2)
    part = Preset("", partition.Pages(4), abstract.Mean(), query=query.PreviousLayer())
    want, reference = wanted(rows, part, count=2)
    assert float((got - want).abs().max()) < 1e-4
    assert stats["rows_fetched"] == reference.tally.first_rows + reference.tally.rows_entered
    other, _ = wanted(rows, Preset("", partition.Pages(4), abstract.Mean()), count=2)
    assert float((got - other).abs().amax((1, 2)).min()) > 1e-3


def test_a_layer_above_the_flat_ones_goes_through_the_tree(own, rows):
    got, stats = attended(own, rows, "leoam", count=3)
    want, reference = wanted(rows, PRESETS["leoam"], count=3)
    assert float((got - want).abs().max()) < 1e-4
    assert stats["rows_fetched"] == reference.tally.first_rows + reference.tally.rows_entered
    other, _ = wanted(rows, PRESETS["leoam-flat"], count=3)
    assert float((got - other).abs().amax((1, 2)).min()) > 1e-3


@pytest.mark.parametrize("name", ["quest", "sentencekv", "louiskv", "clusters", "pqcache"])
def test_units_and_codes_end_with_a_segment(own, name):
    torch.manual_seed(4)
    n = SEGMENT + 252 + STEPS
    assert FLAGS[SEGMENT - 1] == 0  # amid a sentence
    drift = torch.randn(HEADS, n, DIM).cumsum(1) * 0.15
    keys = drift + torch.randn(HEADS, n, DIM) * 0.5
    queries = torch.randn(STEPS, HEADS * GROUP, DIM).cumsum(0)
    rows = (keys, torch.randn(HEADS, n, DIM), queries)
    got, stats = attended(own, rows, name)
    stop_daemon(own.client)
    store, preset = own._directory / "store", PRESETS[name]
    grouped = queries.transpose(0, 1).unflatten(0, (HEADS, GROUP))
    shown = Layer(0, 1, *rows[:2], grouped, length(rows), SCALE, 16, 64, FLAGS)
    behind = (torch.arange(length(rows)) >= SEGMENT)[None]
    place, index = (preset.kept, None, 0, 16, 64), {}
    kept = torch.zeros(1, length(rows), dtype=torch.bool)
    kept[:, :16] = kept[:, -64:] = True
    if name in ("louiskv", "clusters"):  # a prompt alone: clusters
        number = store_files.kind_of(
            partition=5 if name == "louiskv" else 4, abstract=2, tokens=16
        )
        of_row = store_files.clusters(store, number, HEADS, DIM)
        for units in (of_row, preset.partition.split(shown).of_row):
            assert torch.equal(units >= SEGMENT // 16, behind.expand(HEADS, -1))
        index[(preset.partition, *place)] = partition.units_of(of_row, kept)
    if name == "pqcache":
        number = store_files.kind_of(partition=1, abstract=6, tokens=1, parameter=2)
        vectors = store_files.own_codes(store, number, HEADS, DIM, subspaces=2)
        for made in (vectors, preset.abstract.build(shown, None, None)):
            assert torch.equal(made["codes"] > 63, behind[..., None].expand(HEADS, -1, 2))
        index[((preset.partition, preset.abstract), *place)] = vectors
    want, reference = wanted(rows, preset, index=index)
    first = 1 if name == "pqcache" else 0  # its first choice is in runs
    assert float((got - want)[first:].abs().max()) < 1e-4
    if name != "pqcache":
        assert stats["rows_fetched"] == reference.tally.first_rows + reference.tally.rows_entered
    full, _ = wanted(rows, PRESETS["full"])
    assert float((got - full).abs().amax((1, 2)).min()) > 1e-3


@pytest.mark.parametrize("count, percent", [(1, 200), (2, 50), (4, 0)])
def test_each_layer_has_its_own_budget(own, rows, toml, count, percent):
    path = toml(
        'base = "mean"\npartition = "pages:4"\ncut = true\nlayer_percent = [200, 50, 0]\n'
    )
    got, stats = attended(own, rows, path, count)
    part = budget.Tokens(cut=True, percent=(200, 50, 0))
    preset = Preset("", partition.Pages(4), abstract.Mean(), budget=part)
    want, reference = wanted(rows, preset, count)
    assert float((got - want).abs().max()) < 1e-4
    assert stats["rows_fetched"] == reference.tally.first_rows + reference.tally.rows_entered
    chosen = sum((200, 50, 0, 0)[:count]) * BUDGET // 100
    assert stats["rows_selected"] == HEADS * STEPS * chosen
    even, _ = wanted(rows, replace(preset, budget=budget.Tokens(cut=True)), count)
    assert float((got - even).abs().amax((1, 2)).min()) > 1e-3, percent


@pytest.mark.parametrize(
    "name, part",
    [
        ("mean-softmax", group.MeanSoftmax()),
        ("max", group.MaxScore()),
        ("max-softmax", group.MaxSoftmax()),
        ("each", group.BestPlace()),
    ],
)
def test_a_block_of_queries_chooses_once(own, rows, toml, name, part):
    keys, values, queries = rows
    path = toml(f'base = "mean"\npartition = "pages:4"\nquery = "block"\ngroup = "{name}"\n')
    fork = stored(own, rows, path, 1)
    view = fork.view(budget=BUDGET, preset=path)
    preset = Preset("", partition.Pages(4), abstract.Mean(), query=query.Block(), group=part)
    reference = Reference(preset, BUDGET, STORED, FLAGS, layers=1)
    full = Reference(PRESETS["full"], BUDGET, STORED, FLAGS, layers=1)
    first = 0
    for count in (6, 1, 5):  # a question, a token, another question
        at = slice(STORED + first, STORED + first + count)
        fork.append(list(range(at.start, at.stop)), flags=FLAGS[at].tolist())
        write(fork, rows, 1, at)
        q = queries[first : first + count].contiguous()
        got = torch.as_tensor(view.attend(0, q, SCALE)[0])
        seen = (q.transpose(0, 1), keys[:, : at.stop], values[:, : at.stop], SCALE)
        assert float((got - reference.attend(0, *seen).transpose(0, 1)).abs().max()) < 1e-4
        exact = full.attend(0, *seen).transpose(0, 1)
        assert float((got - exact).abs().amax((1, 2)).min()) > 1e-3
        first += count
    assert view.stats()["selections"] == 3 * HEADS
    fork.close()


@pytest.mark.parametrize("kind", ["box", "ball"])
def test_what_a_step_misses_is_bounded(own, rows, toml, kind):
    path = toml(f'base = "quest"\npartition = "pages:4"\nabstract = "{kind}"\n')
    _, stats = attended(own, rows, path)
    part = abstract.Box() if kind == "box" else abstract.MeanRadius()
    preset = Preset("", partition.Pages(4), part, score=score.UpperBound())
    reference = Reference(preset, BUDGET, STORED, FLAGS, layers=1, bounds=True)
    keys, values, queries = rows
    reference.attend(0, queries.transpose(0, 1), keys, values, SCALE)
    tally = reference.tally
    assert stats["bound_steps"] == tally.bound_steps == STEPS
    assert stats["bound_sum"] == pytest.approx(tally.bound_sum, rel=1e-3)
    assert stats["bound_max"] == pytest.approx(tally.bound_max, rel=1e-3)
    assert 0 < stats["bound_sum"] / STEPS < stats["bound_max"] <= 1


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("sharp, share, room", [(3.0, 0.5, True), (1.5, 0.8, False)])
@pytest.mark.parametrize(
    "kind, name, part",
    [
        ("box", "mean-softmax", group.MeanSoftmax()),
        ("ball", "mean-softmax", group.MeanSoftmax()),
        ("box", "each", group.BestPlace()),
    ],
)
def test_a_certified_budget_takes_the_fewest_units(
    own, rows, toml, kind, name, part, sharp, share, room, cut
):
    # The keys of a page are alike, so that bounds are near them.
    keys, values, queries = rows
    pages = keys[:, :STORED].unflatten(1, (-1, 4))
    mean = pages.mean(2, keepdim=True)
    pages = (mean + 0.02 * (pages - mean)).flatten(1, 2)
    rows = (torch.cat([pages, keys[:, STORED:]], 1), values, sharp * queries)
    path = toml(
        f'base = "quest"\npartition = "pages:4"\nabstract = "{kind}"\nbudget = "certified"\n'
        f'group = "{name}"\nshare = {share}\ncut = {str(cut).lower()}\n'
    )
    got, stats = attended(own, rows, path)
    preset = Preset(
        "",
        partition.Pages(4),
        abstract.Box() if kind == "box" else abstract.MeanRadius(),
        score=score.UpperBound(),
        group=part,
        budget=budget.Certified(cut=cut, share=share),
    )
    reference = Reference(preset, BUDGET, STORED, FLAGS, layers=1, bounds=True)
    want = reference.attend(0, rows[2].transpose(0, 1), *rows[:2], SCALE).transpose(0, 1)
    assert float((got - want).abs().max()) < 1e-4
    tally = reference.tally
    assert stats["rows_fetched"] == tally.first_rows + tally.rows_entered
    assert stats["bound_steps"] == STEPS
    assert stats["bound_max"] == pytest.approx(tally.bound_max, rel=1e-3)
    # What was asked for holds where the budget has room for it.
    assert (stats["bound_max"] <= 1 - share + 1e-5) == room
    assert 4 < stats["rows_selected"] / stats["selections"] < 0.95 * BUDGET
    full, _ = wanted(rows, PRESETS["full"])
    assert float((got - full).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["plain", "largest"])
@pytest.mark.parametrize("units", ["pages:8", "sentences:32", "clusters:8"])
def test_representatives_stand_for_their_unit(own, rows, toml, units, name):
    path = toml(
        f'base = "mean"\npartition = "{units}"\nabstract = "representatives:3"\n'
        f'score = "{name}"\ncut = true\n'
    )
    got, stats = attended(own, rows, path)
    kind, size = units.split(":")
    parts = {"pages": partition.Pages, "sentences": partition.Sentences}
    preset = Preset(
        "",
        parts.get(kind, partition.Clusters)(int(size)),
        abstract.Representatives(3),
        score=score.OfRepresentatives(largest=name == "largest"),
        budget=budget.Tokens(cut=True),
    )
    reference = Reference(preset, BUDGET, STORED, FLAGS, layers=1)
    if kind == "clusters":  # the daemon's: what is compared is what is made of them
        stop_daemon(own.client)
        number = store_files.kind_of(partition=4, abstract=5, tokens=8, parameter=3)
        of_row = store_files.clusters(own._directory / "store", number, HEADS, 3 * DIM)
        kept = torch.zeros(1, STORED, dtype=torch.bool)
        kept[:, :16] = kept[:, -64:] = True
        split = partition.units_of(of_row, kept)
        reference.index[(preset.partition, preset.kept, None, 0, 16, 64)] = split
    keys, values, queries = rows
    want = reference.attend(0, queries.transpose(0, 1), keys, values, SCALE).transpose(0, 1)
    assert float((got - want).abs().max()) < 1e-4
    tally = reference.tally
    assert stats["rows_fetched"] == tally.first_rows + tally.rows_entered
    other = replace(preset, score=score.OfRepresentatives(largest=name != "largest"))
    reference = Reference(other, BUDGET, STORED, FLAGS, layers=1, index=reference.index)
    less = reference.attend(0, queries.transpose(0, 1), keys, values, SCALE).transpose(0, 1)
    assert float((got - less).abs().max()) > 1e-3


def test_output_is_cut_where_the_queries_turned(own, rows, toml):
    keys, values, _ = rows
    prompt = 400
    torch.manual_seed(5)
    asked = torch.randn(STORED - prompt, HEADS * GROUP, DIM) * 0.3
    asked += torch.randn(20, HEADS * GROUP, DIM).repeat_interleave(15, 0)  # a subject each 15
    path = toml('base = "louiskv"\npartition = "segments:8"\nlevel = 0.6\n')
    space = own.client.open_space(
        model="segments",
        runtime="pytest",
        layers=layers(count=1, kv_heads=HEADS, query_heads=HEADS * GROUP, dim=DIM),
        preset=path,
    )
    sequence = space.create(name="reply")
    sequence.append(list(range(prompt)), flags=FLAGS[:prompt].tolist())
    sequence.write(0, 0, keys[:, :prompt].contiguous(), values[:, :prompt].contiguous())
    view = sequence.view(budget=BUDGET, preset=path)
    for step in range(STORED - prompt):
        at = slice(prompt + step, prompt + step + 1)
        sequence.append([at.start], flags=FLAGS[at].tolist())
        sequence.write(0, 0, keys[:, at].contiguous(), values[:, at].contiguous())
        view.attend(0, asked[step].contiguous(), SCALE)
    view.close()
    sequence.commit()
    sequence.close()

    grouped = asked.transpose(0, 1).unflatten(0, (HEADS, GROUP))
    shown = Layer(0, 1, keys, values, grouped, STORED, SCALE, 16, 64, FLAGS)
    anchors = trigger.Cosine(0.6).anchors(shown)[0]
    marks = torch.zeros(STORED + STEPS, dtype=torch.int64)
    marks[prompt:] = 1
    marks[prompt:STORED][(anchors == torch.arange(len(anchors))) & (anchors > 0)] = 3
    assert 10 < int((marks == 3).sum()) < 40
    fork = space.open("reply", writable=False).fork(STORED)
    flags = torch.as_tensor(fork.tokens()[:, 2].astype("int64"))
    assert torch.equal(flags >> 8, marks[:STORED])
    assert torch.equal(flags & 255, FLAGS[:STORED].long())

    view = fork.view(budget=BUDGET, preset=path)
    queries = rows[2]
    got = []
    for step in range(STEPS):
        at = slice(STORED + step, STORED + step + 1)
        fork.append([at.start], flags=FLAGS[at].tolist())
        write(fork, rows, 1, at)
        got.append(torch.as_tensor(view.attend(0, queries[step].contiguous(), SCALE)[0]).clone())
    stats = view.stats()
    fork.close()
    stop_daemon(own.client)
    number = store_files.kind_of(partition=5, abstract=2, tokens=8)
    of_row = store_files.clusters(own._directory / "store", number, HEADS, DIM)
    runs = partition.output_runs(marks[:STORED], longest=8 * 8)
    clusters = -(-prompt // 8)
    assert torch.equal(of_row[:, prompt:], (runs[prompt:] + clusters).expand(HEADS, -1))
    assert int(of_row[:, :prompt].max()) < clusters
    preset = Preset(
        "",
        partition.Segments(8, longest=64),
        abstract.Mean(),
        budget=budget.Tokens(cut=True),
        trigger=trigger.Cosine(0.6),
    )
    reference = Reference(preset, BUDGET, STORED, FLAGS, layers=1, marks=marks)
    kept = torch.zeros(1, STORED, dtype=torch.bool)
    kept[:, :16] = kept[:, -64:] = True
    place = (preset.partition, preset.kept, None, 0, 16, 64)
    reference.index[place] = partition.units_of(of_row, kept)
    want = reference.attend(0, queries.transpose(0, 1), keys, values, SCALE).transpose(0, 1)
    assert float((torch.stack(got) - want).abs().max()) < 1e-4
    assert stats["rows_fetched"] == reference.tally.first_rows + reference.tally.rows_entered
    # Where nothing comes from the daemon, output is cut alike.
    ours = preset.partition.split(replace(shown, marks=marks[:STORED])).of_row
    assert torch.equal(ours[:, prompt:], of_row[:, prompt:])
