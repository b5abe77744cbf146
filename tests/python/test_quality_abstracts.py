"""Abstracts of the in-memory reference, on a tiny random model: boxes, balls, codes and their
codebooks, and rows of few bits or low rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import store_files
import torch
from tiny_model import STEPS, STORED, differ, layer_of, logits, reference
from tiny_model import books, tiny  # noqa: F401  (fixtures)

from kvtier.quality.reference import Preset
from kvtier.quality.reference import abstract, codebook, kept, partition, precision, score
from kvtier.quality.reference.layer import Layer


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
