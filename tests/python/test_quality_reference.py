"""The in-memory reference of the presets, on a tiny random model: what it selects, what it counts,
and that all steps at once are the steps one by one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import store_files
import torch
from conftest import ROOT

import kvtier.quality  # noqa: F401  (the package is there)
from kvtier.quality.reference import PRESETS, Preset, Reference
from kvtier.quality.reference import abstract, budget, codebook, fetch, kept, partition, precision
from kvtier.quality.reference import query, residency, score, trigger
from kvtier.quality.reference.attention import attending, cache_of, install
from kvtier.quality.reference.layer import Layer

STORED, STEPS, BUDGET, SINKS, WINDOW = 300, 24, 48, 4, 8


@pytest.fixture(scope="module")
def tiny():
    """(model, keys, values, ids of the steps, delimiters): a context of 300 tokens and 24 more."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=96,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:  # sharper than a fresh model, or no selection would matter
        layer.self_attn.q_proj.weight.data *= 12
    install(model)
    ids = torch.randint(97, (1, STORED + STEPS))
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=ids[:, :STORED], past_key_values=cache, use_cache=True)
    keys = torch.stack([layer.keys[0] for layer in cache.layers])
    values = torch.stack([layer.values[0] for layer in cache.layers])
    return model, keys, values, ids[:, STORED:], (ids[0] % 7 == 0) * 2


@pytest.fixture(scope="module")
def books(tiny):
    _, keys, *_ = tiny
    torch.manual_seed(2)
    return [codebook.train_codebook(k, torch.randn(2, 200, 16), 4, bits=4) for k in keys]


def reference(tiny, preset: Preset | str, books=None, **settings) -> Reference:
    preset = PRESETS[preset] if isinstance(preset, str) else preset
    settings = {"budget": BUDGET, "sinks": SINKS, "window": WINDOW} | settings
    settings["frequency"] = tiny[0].model.rotary_emb.inv_freq
    return Reference(preset, stored=STORED, boundary=tiny[4], layers=3, books=books, **settings)


def logits(tiny, one: Reference | None, piece: int = STEPS) -> torch.Tensor:
    model, keys, values, ids, _ = tiny
    cache = cache_of(keys, values)
    with torch.inference_mode(), attending(model, one):
        parts = [
            model(input_ids=part, past_key_values=cache, use_cache=True).logits[0]
            for part in ids.split(piece, 1)
        ]
    return torch.cat(parts)


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


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


def layer_of(tiny, queries: torch.Tensor | None = None, index: int = 1) -> Layer:
    _, keys, values, _, boundary = tiny
    torch.manual_seed(5)
    if queries is None:
        queries = torch.randn(2, 3, STEPS, 16)
    rows = torch.zeros(2, STEPS, 16)
    k, v = torch.cat([keys[index], rows], 1), torch.cat([values[index], rows], 1)
    return Layer(index, 3, k, v, queries, STORED, 0.25, SINKS, WINDOW, boundary)


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


def walk_the_tree(layer: Layer, step: int, rows: int) -> set[int]:
    """The rows that papers.md 1.3 chooses, by a walk over lists of pages."""
    keys, q = layer.keys[:, :STORED], layer.queries[:, :, step]

    def bound(page: tuple[int, int]) -> float:
        part = keys[:, page[0] : sum(page)].half().float()
        low, high = part.amin(1)[:, None], part.amax(1)[:, None]
        return float(torch.maximum(q * low, q * high).sum())

    def free(page: tuple[int, int]) -> list[int]:
        return [r for r in range(page[0], min(sum(page), STORED)) if not layer.kept[0, r]]

    pages = [(first, 128) for first in range(0, STORED, 128)]
    for _ in range(3):
        left, split = rows, []
        for first, size in sorted(pages, key=bound, reverse=True):
            halves = [(first, size // 2), (first + size // 2, size // 2)]
            split += [h for h in halves if h[0] < STORED] if left > 0 else [(first, size)]
            left -= len(free((first, size)))
        pages = split
    want: list[int] = []
    for page in sorted(pages, key=bound, reverse=True):
        want += free(page)[: rows - len(want)]
    return set(want)


@pytest.mark.parametrize("rows", [64, 130, 150])
def test_coarse_to_fine_follows_the_tree(tiny, rows):
    layer = layer_of(tiny, index=2)
    chosen = reference(tiny, "leoam", budget=rows)._choose(layer, torch.arange(STEPS))[0]
    for step in range(STEPS):
        got = set((chosen[step] & ~layer.kept[0]).nonzero()[:, 0].tolist())
        assert got == walk_the_tree(layer, step, rows), step


def test_the_middle_box_lies_within_the_box(tiny):
    layer = layer_of(tiny)
    units = partition.Pages(32).split(layer)
    box, middle = (x.build(layer, units, None) for x in (abstract.Box(), abstract.MiddleBox()))
    assert (middle["low"] >= box["low"] - 1e-2).all()
    assert (middle["high"] <= box["high"] + 1e-2).all()
    page = layer.keys[1, 32:64]
    centre = (page.amin(0) + page.amax(0)) / 2
    assert torch.allclose(middle["high"][1, 1], centre + (page - centre).abs().mean(0), atol=1e-2)


def test_a_ball_bounds_its_keys(tiny):
    layer = layer_of(tiny)
    units = partition.Pages(16).split(layer)
    ball = abstract.MeanRadius().build(layer, units, None)
    bounds = score.UpperBound().of(layer.queries, ball, 0.25)
    exact = score.product(layer.queries, layer.keys[:, :STORED])
    assert (bounds.gather(-1, units.of_row.expand(exact.shape)) >= exact - 1e-2).all()


def test_outliers_are_the_pages_that_their_mean_stands_for_worst(tiny):
    layer = layer_of(tiny)
    layer.budget = 128
    rows = kept.Outliers(8, 24).of(layer) & ~layer.kept
    cosine = {}
    for page in range(1, 36):  # without kept rows
        keys = layer.keys[1, 8 * page : 8 * page + 8]
        near = torch.nn.functional.cosine_similarity(keys, keys.mean(0, keepdim=True), dim=-1)
        cosine[page] = float(near.min())
    worst = sorted(cosine, key=cosine.get)[:3]
    pages = set((rows[1].nonzero()[:, 0] // 8).tolist()) - {0, 36, 37}
    assert pages and pages == set(worst[: len(pages)])


def test_low_rank_keys_before_rope_lose_less_than_after(tiny):
    layer = layer_of(tiny, index=0)
    layer.frequency = tiny[0].model.rotary_emb.inv_freq
    full, _ = precision.LowRankKeys(1.0).rows(layer)
    assert differ(full, layer.keys[:, :STORED]) < 2e-2
    low, values = precision.LowRankKeys(0.25).rows(layer)
    assert values is not None and differ(values, layer.values[:, :STORED]) == 0
    flat = layer.keys[:, :STORED].transpose(0, 1).flatten(1)
    basis = torch.linalg.svd(flat, full_matrices=False)[2][:8]
    after = float((flat @ basis.T @ basis - flat).norm())
    before = float((low.transpose(0, 1).flatten(1) - flat).norm())
    assert before < after


def test_codes_keep_the_pairs_of_rope_together():
    assert codebook.rope_pairs(16, 4).tolist()[1] == [2, 3, 10, 11]
    with pytest.raises(ValueError, match="pairs"):
        codebook.rope_pairs(16, 16)


def test_codes_are_the_nearest_centroids(tiny):
    keys = tiny[1][1]
    book = codebook.train_plain(keys, codebook.rope_pairs(16, 4), bits=4)
    decoded = book.decode_of(keys)
    assert float((decoded - keys).norm() / keys.norm()) < 0.6
    part = keys[1, 77, book.dims[1, 2]]
    nearest = (book.centroids[1, 2] - part).norm(dim=-1).argmin()
    assert torch.equal(decoded[1, 77, book.dims[1, 2]], book.centroids[1, 2, nearest])
    assert book.bytes_per_row == 2


def test_own_codes_are_of_their_own_segment(tiny):
    """Segments of no more rows than entries are exact; a segment's codes know nothing of others."""
    layer = layer_of(tiny)
    units = partition.Rows().split(layer)
    keys = layer.keys[:, :STORED]
    small = abstract.OwnCodes(2, 6, segment=50).build(layer, units, None)
    later = store_files.decode(small)[:, 50:]  # the first segment's sinks have no entries
    assert differ(later, keys[:, 50:]) < 1e-2
    got = score.Tables().of(layer.queries, small, 0.25)
    want = score.product(layer.queries, store_files.decode(small))
    assert differ(got, want) < 1e-4
    large = abstract.OwnCodes(2, 6, segment=150)
    vectors = large.build(layer, units, None)
    assert 1e-2 < differ(store_files.decode(vectors), keys)
    assert large.bytes(units, vectors, layer.dim) == 1.5 * STORED + 2 * 2 * 64 * layer.dim
    before = store_files.decode(vectors)[:, 150:]
    layer.keys = layer.keys.clone()
    layer.keys[:, :150] = 0
    after = store_files.decode(large.build(layer, units, None))[:, 150:]
    assert torch.equal(after, before)


def test_a_codebook_errs_where_queries_do_not_look():
    """Keys of equal variance everywhere, queries in a quarter of the dimensions."""
    torch.manual_seed(4)
    keys, queries = torch.randn(2, 4000, 16) + 3, torch.randn(2, 500, 16)
    queries[..., 4:] *= 0.05
    error = {}
    for name, book in {
        "plain": codebook.train_plain(keys, codebook.rope_pairs(16, 4), 4),
        "metric": codebook.train_codebook(keys, queries, 4, 4),
    }.items():
        wrong = queries @ (book.decode_of(keys) - keys).transpose(1, 2)
        error[name] = float(wrong.var())
    assert error["metric"] < 0.5 * error["plain"]


def test_coordinates_can_be_undone_and_axes_are_dealt_out_evenly(tiny):
    keys = tiny[1][1]
    book = codebook.train_codebook(keys, torch.randn(2, 100, 16), 4)
    assert torch.allclose(book.move @ book.back, torch.eye(16).expand(2, -1, -1), atol=1e-3)
    assert all(sorted(d.flatten().tolist()) == list(range(16)) for d in book.dims)
    dealt = codebook.deal_out(torch.tensor([8.0, 4.0, 2.0, 1.0]), 2)
    assert sorted(map(sorted, dealt.tolist())) == [[0, 3], [1, 2]]


def test_turned_keys_are_those_of_later_positions(tiny):
    model = tiny[0]
    frequency = model.model.rotary_emb.inv_freq
    ids = torch.arange(20)[None]
    from transformers import DynamicCache

    rows = []
    for offset in (0, 300):
        cache = DynamicCache()
        with torch.inference_mode():
            positions = torch.arange(20)[None] + offset
            model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        rows.append(cache.layers[0].keys[0])
    turned = codebook.turn(rows[0], torch.full((20,), 300), frequency)
    assert differ(turned, rows[1]) < 1e-3
    spread = codebook.spread(rows[0], torch.arange(20), 600, frequency, 64)
    assert spread.shape == (2, 64, 16)
    one = codebook.spread(rows[0][:, 17:18], torch.tensor([17]), 600, frequency, 64)
    back = codebook.turn(one, 17 - torch.arange(64) * 600 // 64, frequency)
    assert differ(back, rows[0][:, 17:18].expand(-1, 64, -1)) < 1e-3


def test_a_low_bit_copy_is_within_half_a_step():
    x = torch.randn(3, 50, 64)
    for bits in (8, 4, 3):
        error = (precision.affine(x, bits, 32) - x).abs()
        span = x.unflatten(-1, (2, 32))
        step = (span.amax(-1) - span.amin(-1)) / (2**bits - 1)
        assert (error.unflatten(-1, (2, 32)).amax(-1) <= 0.55 * step + 2e-3).all()


def test_low_bit_keys_before_rope_come_back_turned(tiny):
    layer = layer_of(tiny, index=0)
    with pytest.raises(ValueError, match="frequencies"):
        precision.LowBit(8, 8, before=True).rows(layer)
    layer.frequency = tiny[0].model.rotary_emb.inv_freq
    keys = layer.keys[:, :STORED]
    plain, _ = precision.LowBit(8, 8).rows(layer)
    turned, values = precision.LowBit(8, 8, before=True).rows(layer)
    span = float(keys.amax() - keys.amin())
    assert 0 < differ(turned, keys) < 2 * span / 255 and differ(turned, plain) > 0
    assert differ(values, layer.values[:, :STORED]) < span / 100


def test_hot_rows_are_exact(tiny, books):
    """With a threshold of 0 every row is hot: progressive is codes."""
    exact = Preset("a", abstract=abstract.Codes("codes"), precision=precision.LowBit(2, 2, hot=0.0))
    want = logits(tiny, reference(tiny, "codes", books))
    assert differ(logits(tiny, reference(tiny, exact, books)), want) < 1e-4
    coarse = replace(exact, precision=precision.LowBit(2, 2, hot=2.0))
    assert differ(logits(tiny, reference(tiny, coarse, books)), want) > 1e-3


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
