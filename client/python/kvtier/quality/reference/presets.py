"""The table: every preset as a row over the parts. Nothing here has code of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from . import abstract, budget, fetch, group, kept, partition, precision, query, residency, score
from . import search, trigger


@dataclass(frozen=True)
class Preset:
    name: str
    partition: Any = partition.Rows()
    abstract: Any = abstract.Nothing()
    query: Any = query.Current()
    score: Any = score.Dot()
    group: Any = group.MeanSoftmax()
    search: Any = search.Flat()
    budget: Any = budget.Tokens()
    kept: Any = kept.Ends()
    trigger: Any = trigger.EveryStep()
    residency: Any = residency.Lru()
    fetch: Any = fetch.Demand()
    precision: Any = precision.Raw()
    attends: str = "chosen"  # or "all" rows, or the "kept" ones only
    books: str | None = None  # which codebooks its abstract needs: a key of BOOKS
    dense: tuple[int, ...] = field(default=())  # layers that attend to everything


# Key codes: dimensions per sub-space, bits, and the coordinates that are quantised: those that suit
# the queries, or the keys as they are with RoPE's pairs together. A codebook is trained for all
# sequences, over all positions.
BOOKS = {
    "codes": {"width": 4, "bits": 4, "coordinates": "queries"},
    "plain": {"width": 4, "bits": 4, "coordinates": "pairs"},
}

_TABLE = [
    # What nothing can be better than, and what everything must be better than.
    Preset("full", attends="all"),
    Preset("window", attends="kept"),
    # Quest: pages of 16, box, upper bound. The paper's code chooses per query head; here the group
    # chooses together, as in the engine.
    Preset("quest", partition.Pages(16), abstract.Box(), score=score.UpperBound()),
    Preset("mean", partition.Pages(16), abstract.Mean()),
    # LeoAM: boxes of 128 rows, split where they matter down to 16, one choice for the whole layer
    # by the sum of all heads' bounds. Layers 0 and 1 score every box of 16 (8 in its code: boxes of
    # 8 would double what all layers keep on the device). Its share of the context (0.5 in layers 0
    # and 1, 0.2 elsewhere) holds where no budget is given.
    Preset(
        "leoam",
        partition.Tree(128, rounds=3, early=16),
        abstract.Box(),
        score=score.UpperBound(),
        group=group.LayerSum(),
        search=search.CoarseToFine(),
        budget=budget.Share(cut=True),
    ),
    # The same boxes, scored flat at the leaves' size: what coarse to fine costs.
    Preset(
        "leoam-flat",
        partition.Pages(16),
        abstract.Box(),
        score=score.UpperBound(),
        group=group.LayerSum(),
        budget=budget.Tokens(cut=True),
    ),
    # ArkVale: pages of 32, its best digest (cuboid-mean).
    Preset("arkvale", partition.Pages(32), abstract.MiddleBox(), score=score.UpperBound()),
    # FreeKV: pages of 32, box; the selection of the step before, corrected for heads whose queries
    # turned (0.8: its value for long inputs; 0.9 for long outputs).
    Preset(
        "freekv",
        partition.Pages(32),
        abstract.Box(),
        score=score.UpperBound(),
        trigger=trigger.Speculate(0.8),
        fetch=fetch.Behind(),
    ),
    # ShadowKV: pages of 8, mean, largest softmax of the group; keys of rank 160 of 1,024 on the
    # device, values fetched. The keys of each stored segment factorised by themselves, as in the
    # engine; or those of the whole sequence, as in the paper, which also attends always to the
    # pages that their mean does not stand for.
    Preset(
        "shadow",
        partition.Pages(8),
        abstract.Mean(),
        group=group.MaxSoftmax(),
        precision=precision.LowRankKeys(160 / 1024, segment=2048),
    ),
    Preset(
        "shadow-sequence",
        partition.Pages(8),
        abstract.Mean(),
        group=group.MaxSoftmax(),
        kept=kept.Outliers(8, 24),
        precision=precision.LowRankKeys(160 / 1024),
    ),
    # PQCache: 2 sub-spaces of 6 bits by codebooks of the sequence's own keys, single rows. One of
    # each stored segment, as in the engine; or one of the whole sequence, as in the paper.
    Preset("pqcache", abstract=abstract.OwnCodes(2, 6, segment=2048), score=score.Tables()),
    Preset("pqcache-sequence", abstract=abstract.OwnCodes(2, 6), score=score.Tables()),
    # LouisKV: clusters of about 16 keys (what the model wrote: segments cut where its queries
    # turned), mean of the group's softmax, cos(q_{t-1}, q_t) < 0.7 (the value of the paper for
    # Qwen3-8B).
    Preset(
        "louiskv",
        partition.Segments(16),
        abstract.Mean(),
        budget=budget.Tokens(cut=True),
        trigger=trigger.Cosine(0.7),
    ),
    # The same clusters with a selection at every step, and their sizes in the score.
    Preset(
        "clusters", partition.Clusters(16), abstract.MeanCount(), budget=budget.Tokens(cut=True)
    ),
    # Clusters over the whole context, not of each stored segment.
    Preset(
        "clusters-sequence",
        partition.Clusters(16, segment=1 << 30),
        abstract.MeanCount(),
        budget=budget.Tokens(cut=True),
    ),
    # SentenceKV: mean key of each sentence, mean query of the sentence being written, every step.
    # The paper's store cap (r tau tokens) throws the rest away; here everything stays eligible.
    Preset(
        "sentencekv",
        partition.Sentences(),
        abstract.Mean(),
        query=query.SentenceMean(),
        group=group.MeanScore(),
        budget=budget.Tokens(cut=True),
    ),
    # Ours: single rows by 4-bit product codes, in coordinates that suit the queries.
    Preset("codes", abstract=abstract.Codes("codes"), books="codes"),
    # The same without the change of coordinates.
    Preset("codes-plain", abstract=abstract.Codes("plain"), books="plain"),
    # Runs of 16 by the log-sum-exp over their codes, as rows are better read from a disk.
    Preset(
        "codes-runs",
        abstract=abstract.Codes("codes"),
        search=search.Runs(16),
        budget=budget.Tokens(cut=True),
        books="codes",
    ),
    # The same choice; what the query guessed a layer ahead would choose is brought before.
    Preset(
        "codes-lookahead",
        abstract=abstract.Codes("codes"),
        books="codes",
        fetch=fetch.LookAhead(query.Ahead()),
    ),
    # What codes would be without an error.
    Preset("oracle", abstract=abstract.Exact()),
    # Codes, and attention from a 4-bit copy but for the rows above 1 % of the mass.
    Preset(
        "progressive",
        abstract=abstract.Codes("codes"),
        books="codes",
        residency=residency.Lru(100),
        precision=precision.LowBit(4, 4, hot=0.01),
    ),
    # The same choice; what a guess of the queries gives a twentieth of that share comes, exact.
    Preset(
        "progressive-lookahead",
        abstract=abstract.Codes("codes"),
        books="codes",
        residency=residency.Lru(100),
        precision=precision.LowBit(4, 4, hot=0.01),
        fetch=fetch.LookAhead(query.Ahead(), exact_above=0.01 / 20),
    ),
    # What fewer bits cost, and keys before RoPE.
    *(
        Preset(
            f"progressive-{bits}{bits}" + ("-before" if before else ""),
            abstract=abstract.Codes("codes"),
            books="codes",
            residency=residency.Lru(100),
            precision=precision.LowBit(bits, bits, hot=0.01, before=before),
        )
        for bits, before in ((4, True), (3, False), (3, True))
    ),
]
# The paper's code of both chooses per query head: each head for itself, with the whole budget, or
# in turn within one budget (the engine's group "each").
_TABLE += [
    replace(preset, name=f"{preset.name}-{name}", group=part)
    for preset in _TABLE
    if preset.name in ("quest", "sentencekv")
    for name, part in (("each", group.BestPlace()), ("heads", group.PerQueryHead()))
]
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _TABLE}
DEFAULT = "codes"


def find(name: str) -> Preset:
    """By name; "default" is the best that was measured."""
    name = DEFAULT if name == "default" else name
    if name not in PRESETS:
        raise KeyError(f"the reference has no preset {name}; it has {', '.join(PRESETS)}")
    return PRESETS[name]
