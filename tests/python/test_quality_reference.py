"""The in-memory reference of the presets, on a tiny random model: what it selects, what it counts,
and that all steps at once are the steps one by one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny_model import BUDGET, SINKS, STEPS, STORED, WINDOW, differ, layer_of, logits, reference
from tiny_model import books, tiny  # noqa: F401  (fixtures)

from kvtier.quality.reference import PRESETS, Preset, Reference
from kvtier.quality.reference import abstract, budget, fetch, partition, query, residency, score
from kvtier.quality.reference import trigger
from kvtier.quality.reference.attention import attending, cache_of


def test_everything_is_full_attention(tiny, books):
    full = logits(tiny, None)
    assert differ(logits(tiny, reference(tiny, "full")), full) < 1e-4
    for preset in ("quest", "louiskv", "sentencekv", "codes"):
        one = reference(tiny, preset, books, budget=STORED)
        assert differ(logits(tiny, one), full) < 1e-4, preset
    assert differ(logits(tiny, reference(tiny, "quest")), full) > 1e-2


def test_rows_outside_the_selection_do_not_count(tiny):
    """"window" is full attention over a context that has nothing else."""
    model, keys, values, ids, _ = tiny
    kept = [*range(SINKS), *range(STORED - WINDOW, STORED)]
    cache = cache_of(keys[:, :, kept], values[:, :, kept])
    positions = torch.arange(STORED, STORED + STEPS)[None]
    with torch.inference_mode(), attending(model, None):
        want = model(
            input_ids=ids, past_key_values=cache, position_ids=positions, use_cache=True
        ).logits[0]
    assert differ(logits(tiny, reference(tiny, "window")), want) < 1e-4


SPECULATIVE = replace(PRESETS["freekv"], name="s", trigger=trigger.Speculate(0.0))


LATE = replace(
    PRESETS["codes-lookahead"], name="late", fetch=fetch.LookAhead(query.Ahead(), 0.005)
)


@pytest.mark.parametrize("preset", [*PRESETS.values(), SPECULATIVE, LATE], ids=lambda p: p.name)
def test_all_steps_at_once_are_the_steps_one_by_one(tiny, books, preset):
    at_once, stepwise = reference(tiny, preset, books), reference(tiny, preset, books)
    assert differ(logits(tiny, at_once), logits(tiny, stepwise, piece=1)) < 1e-3
    for field in ("rows_attended", "rows_entered", "rows_waited", "selections", "first_rows"):
        assert getattr(at_once.tally, field) == getattr(stepwise.tally, field), field
    for field in ("hot_rows", "hot_rows_entered", "rows_guessed", "layer_steps_waited"):
        assert getattr(at_once.tally, field) == getattr(stepwise.tally, field), field


def test_quest_takes_the_pages_whose_bound_is_highest(tiny):
    """Against the equation, page by page, in numpy."""
    layer = layer_of(tiny)
    one = reference(tiny, "quest")
    chosen = one._choose(layer, torch.tensor([7]))[:, 0]
    for head in range(2):
        keys = layer.keys[head, :STORED].numpy()
        q = layer.queries[head, :, 7].numpy()
        bounds = np.zeros((3, 19))
        for page in range(19):
            rows = keys[16 * page : 16 * page + 16].astype(np.float16).astype(np.float32)
            bounds[:, page] = np.maximum(q * rows.min(0), q * rows.max(0)).sum(1)
        weight = np.exp(0.25 * bounds)
        weight = (weight / weight.sum(1, keepdims=True)).mean(0)
        # Page 18 has only kept rows but for 4; page 0 costs 12.
        cost = [12] + [16] * 17 + [4]
        want, left = set(), BUDGET
        for page in np.argsort(-weight):
            if cost[page] > left:
                break
            left -= cost[page]
            want.update(range(16 * page, min(16 * page + 16, STORED)))
        assert set(chosen[head].nonzero()[:, 0].tolist()) == want


def test_units_cover_the_context_once(tiny):
    layer = layer_of(tiny)
    for parts in (partition.Pages(16), partition.Sentences(20), partition.Clusters(16, 128)):
        units = parts.split(layer)
        assert units.of_row.shape[1] == STORED
        assert (units.size().sum(1) == STORED).all()
        assert (units.cost.sum(1) == STORED - SINKS - WINDOW).all()
    sentences = partition.Sentences(20).split(layer)
    of_row, delimiter = sentences.of_row[0], layer.delimiter[:STORED]
    ends = (of_row[1:] != of_row[:-1]).nonzero()[:, 0]
    assert all(delimiter[e] or (of_row == of_row[e]).sum() == 20 for e in ends)
    assert int(sentences.size().max()) <= 20


def test_a_long_sentence_is_cut_behind_a_clause(tiny):
    layer = layer_of(tiny)
    layer.boundary = torch.zeros(STORED + STEPS, dtype=torch.uint8)
    layer.boundary[[13, 17, 50, 230]] = 1
    layer.boundary[100] = 2
    of_row = partition.Sentences(20, segment=128).split(layer).of_row[0]
    starts = [0] + ((of_row[1:] != of_row[:-1]).nonzero()[:, 0] + 1).tolist()
    # 230 lies in the first half of its 20 tokens; 128 ends a segment.
    assert starts[:10] == [0, 18, 38, 51, 71, 91, 101, 121, 128, 148]
    assert {228, 248, 256} <= set(starts) and 231 not in starts


def test_clusters_of_the_sequence_span_segments(tiny):
    layer = layer_of(tiny)
    few = partition.Clusters(16, segment=64).split(layer).of_row
    assert not set(few[0, :64].tolist()) & set(few[0, 64:].tolist())
    whole = PRESETS["clusters-sequence"].partition.split(layer).of_row
    assert set(whole[0, :64].tolist()) & set(whole[0, 64:].tolist())


def test_clusters_are_nearer_to_their_keys_than_pages(tiny):
    layer = layer_of(tiny)
    x = torch.nn.functional.normalize(layer.keys[:, :STORED], dim=-1)
    fit = {}
    for name, parts in (("clusters", partition.Clusters(16)), ("pages", partition.Pages(16))):
        units = parts.split(layer)
        mean = torch.nn.functional.normalize(units.mean(x), dim=-1)
        index = units.of_row.expand(2, -1)[:, :, None].expand_as(x)
        fit[name] = float((x * mean.gather(1, index)).sum(-1).mean())
    assert fit["clusters"] > fit["pages"] + 0.05


def test_a_cut_unit_gives_its_first_rows(tiny):
    layer = layer_of(tiny)
    units = partition.Pages(16).split(layer)
    weights = torch.zeros(1, 1, units.count)
    weights[0, 0, 5], weights[0, 0, 3] = 2.0, 1.0
    rows = budget.Tokens(cut=True).choose(weights, units, 20)[0, 0].nonzero()[:, 0].tolist()
    assert rows == [48, 49, 50, 51, *range(80, 96)]
    whole = budget.Tokens().choose(weights, units, 20)[0, 0].nonzero()[:, 0].tolist()
    assert whole == list(range(80, 96))


def test_top_p_stops_where_the_mass_is_reached(tiny):
    layer = layer_of(tiny)
    units = partition.Rows().split(layer)
    weights = torch.full((1, 1, STORED), 0.2 / STORED)
    weights[0, 0, 100], weights[0, 0, 200] = 0.5, 0.3
    assert budget.TopP(p=0.79).choose(weights, units, 48).sum() == 2
    assert budget.TopP(p=0.99).choose(weights, units, 48).sum() == 48


def test_the_sentence_mean_begins_anew_after_a_delimiter(tiny):
    layer = layer_of(tiny)
    layer.boundary = torch.zeros(STORED + STEPS, dtype=torch.uint8)
    layer.boundary[STORED + 4] = 2
    got = query.SentenceMean().of(layer)
    q = layer.queries
    assert torch.allclose(got[:, :, 4], q[:, :, :5].mean(2), atol=1e-5)
    assert torch.allclose(got[:, :, 5], q[:, :, 5], atol=1e-5)
    assert torch.allclose(got[:, :, 9], q[:, :, 5:10].mean(2), atol=1e-5)


def test_triggers(tiny):
    queries = torch.zeros(2, 3, STEPS, 16)
    queries[..., 0] = 1
    queries[:, :, 10:, 0], queries[:, :, 10:, 1] = 0, 1  # all turn at step 10
    layer = layer_of(tiny, queries)
    want = [0] * 10 + [10] * 14
    assert trigger.Cosine(0.7).anchors(layer)[0].tolist() == want
    assert trigger.Cosine(0.7, to_anchor=True).anchors(layer)[0].tolist() == want
    assert trigger.EveryN(8).anchors(layer)[0].tolist() == [0] * 8 + [8] * 8 + [16] * 8
    assert trigger.Speculate(0.8).anchors(layer)[0].tolist() == [
        i if i in (0, 10) else i - 1 for i in range(STEPS)
    ]
    layer.boundary = torch.zeros(STORED + STEPS, dtype=torch.uint8)
    layer.boundary[STORED + 2] = 3
    assert trigger.Delimiter().anchors(layer)[0].tolist() == [0] * 3 + [3] * (STEPS - 3)


def test_residency_evicts_the_least_recently_used():
    steps = [[0, 1], [2, 3], [0, 1], [4, 5], [2, 3], [4, 5]]
    wanted = torch.zeros(1, len(steps), 8, dtype=torch.bool)
    for i, rows in enumerate(steps):
        wanted[0, i, rows] = True
    # Capacity 4: {0,1} {0,1,2,3} stays; 4, 5 push out 2, 3; these push out 0, 1.
    assert residency.Lru().entering(wanted, 4)[0].tolist() == [[2, 2, 0, 2, 2, 0]]
    assert residency.Lru().entering(wanted, 6)[0].tolist() == [[2, 2, 0, 2, 0, 0]]
    assert residency.Lru().capacity(100, 80, 0) == 200
    assert residency.Lru().capacity(100, 80, 120) == 180


def test_a_guess_saves_the_wait_and_costs_what_is_not_used():
    wanted, guessed = torch.zeros(2, 1, 3, 8, dtype=torch.bool)
    for i, (rows, guess) in enumerate((([0], [0]), ([1, 2], [1, 5]), ([5, 6], [6]))):
        wanted[0, i, rows], guessed[0, i, guess] = True, True
    entered, waited, vain = residency.Lru().entering(wanted, 8, guessed)
    assert entered.tolist() == [[1, 2, 1]]  # row 5 is there since it was guessed in vain
    assert waited.nonzero().tolist() == [[0, 1, 2]]
    assert vain.tolist() == [[0, 1, 0]]


def test_speculation_waits_for_corrected_heads_only(tiny):
    one = reference(tiny, replace(PRESETS["freekv"], trigger=trigger.Speculate(0.0)))
    logits(tiny, one)
    assert 0 < one.tally.rows_waited < one.tally.rows_entered
    never = Preset("x", partition.Pages(32), abstract.Box(), trigger=trigger.Speculate(-2.0))
    never = replace(never, score=score.UpperBound(), fetch=fetch.Behind())
    one = reference(tiny, never)
    logits(tiny, one)
    assert one.tally.rows_waited == 0 < one.tally.rows_entered


def test_query_heads_that_choose_for_themselves_have_room_for_each_choice(tiny):
    shared, each = reference(tiny, "quest"), reference(tiny, "quest-heads")
    logits(tiny, shared), logits(tiny, each)
    assert (shared.tally.choices, each.tally.choices) == (1, 3)
    tight = reference(tiny, "quest-heads")
    tight.tally.capacity = shared.budget * 2  # of one choice
    logits(tiny, tight)
    assert each.tally.rows_entered < tight.tally.rows_entered


def test_looking_ahead_changes_what_is_waited_for_and_nothing_else(tiny, books):
    plain, ahead = reference(tiny, "codes", books), reference(tiny, "codes-lookahead", books)
    assert differ(logits(tiny, plain), logits(tiny, ahead)) == 0
    assert ahead.tally.rows_waited < plain.tally.rows_waited
    exact = replace(PRESETS["codes"], fetch=fetch.LookAhead(query.Current()))
    sure = reference(tiny, exact, books)
    logits(tiny, sure)
    assert sure.tally.rows_waited == sure.tally.rows_guessed == 0
    assert sure.tally.rows_entered == plain.tally.rows_entered


def test_rows_of_little_mass_come_a_step_late(tiny, books):
    def of(above: float) -> tuple[Reference, torch.Tensor]:
        preset = replace(PRESETS["codes"], fetch=fetch.LookAhead(query.Ahead(), above))
        one = reference(tiny, preset, books)
        return one, logits(tiny, one)

    (all_of, want), (some, near), (none, far) = of(1e-12), of(0.005), of(2.0)
    assert differ(want, logits(tiny, reference(tiny, "codes", books))) == 0
    assert none.tally.rows_waited == 0 < some.tally.rows_waited < all_of.tally.rows_waited
    assert differ(near, want) > 0 and differ(far, want) > 0
    assert none.tally.rows_attended < some.tally.rows_attended < all_of.tally.rows_attended


def test_a_guessed_query_is_that_of_a_layer_without_effect(tiny):
    """Where the layer before adds nothing, the guess is the query itself."""
    model, seen = tiny[0], {}
    layer = model.model.layers[0]
    saved = [layer.self_attn.o_proj.weight.data, layer.mlp.down_proj.weight.data]
    try:
        layer.self_attn.o_proj.weight.data = torch.zeros_like(saved[0])
        layer.mlp.down_proj.weight.data = torch.zeros_like(saved[1])
        one = reference(tiny, replace(PRESETS["oracle"], query=query.Ahead()))
        logits(tiny, one)
        assert differ(one._ahead[1], one._queries[1]) < 1e-4
        assert differ(one._ahead[2], one._queries[2]) > 1e-2
    finally:
        layer.self_attn.o_proj.weight.data, layer.mlp.down_proj.weight.data = saved


def test_the_reference_imports_nothing_of_kvtier():
    """It stands alone: a copy of its folder runs where kvtier cannot be imported."""
    folder = ROOT / "client" / "python" / "kvtier" / "quality"
    code = (
        "import sys; sys.modules['kvtier'] = None\n"
        f"sys.path.insert(0, {str(folder)!r})\n"
        "import reference, reference.attention, reference.codebook\n"
        "print(len(reference.PRESETS))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == len(PRESETS)
