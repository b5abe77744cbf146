"""Context-intensive tasks: much of the context has to be read to answer, a little of it at a time.
Presets that find one needle may fail here (arXiv 2604.08426).

One context holds what stands together: `copy`: a register of records, its fields written out again
record by record. `passage`: a paragraph, word for word. `list`: the words of a long list. Another
what is scattered over the whole text: `collect`: sentences, gathered in another order. `majority`:
what was reported most often of each place, where reports contradict each other: nothing but the
sum of them tells. `count`: how often something was told; two places show the form of the answer.
Everything is invented from fixed seeds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from .probes import ASK, Context, Probe, Question, Writer, hide

FIRST = (
    "Ada Boris Clara Dmitri Elena Farid Greta Hugo Ines Jonas Karin Leo Mina Nils Olga Pavel Rosa "
    "Sven Tara Ulrich Vera Walter Yara Zeno"
).split()
LAST = (
    "Abbot Brandt Carver Dorn Eklund Fisher Grau Holm Ibsen Jansen Keller Lund Marsh Novak Olsen "
    "Parker Quist Roth Stone Thorne Ulm Vance Weber York"
).split()
GOODS = "lamps ropes nets chairs clocks barrels boots candles kettles saws drums mirrors".split()
TOWNS = "Bergen Dover Elba Ghent Lisbon Malmo Oporto Riga Turin Vienna York Zurich".split()
WORDS = (
    "bread water stone winter garden needle window bridge copper candle harbour thunder blanket "
    "ladder pepper saddle mirror orchard anchor basket feather hammer lantern meadow pocket ribbon "
    "shovel timber velvet whistle barley castle dragon engine forest glacier"
).split()
PASSAGE = (
    "When the ferry had gone, nobody on the quay spoke for a while. The widow Tamsin folded her "
    "umbrella, although it was still raining, and counted the crates with the tip of her shoe: "
    "nine of oranges, four of lamp glass, and one that hummed. It was the one that hummed which "
    "worried her. Her brother had written from Valparaiso that he was sending home everything "
    "he could not bear to sell, and with him one never knew whether that meant a clock, a swarm "
    "of bees, or another wife. She knocked on the lid twice. The humming stopped, thought about "
    "it, and began again a little higher."
)
EVENTS = (
    ("was given", "a copper kettle"),
    ("bought", "a wooden sledge"),
    ("lost", "a silver thimble"),
    ("found", "a leather saddle"),
    ("sold", "a glass lantern"),
    ("repaired", "a paper kite"),
    ("painted", "an iron anchor"),
    ("stole", "a velvet curtain"),
    ("was given", "a marble statue"),
    ("bought", "a canvas tent"),
    ("lost", "a bamboo flute"),
    ("found", "a porcelain teapot"),
    ("sold", "a woollen blanket"),
    ("repaired", "a brass telescope"),
    ("painted", "a clay pigeon"),
    ("stole", "a cotton shirt"),
)
PLACES = (
    "Arlen Borum Corvo Dell Esk Farrow Gorm Hythe Islay Jarrow Kelso Lorn "
    "Morven Nairn Orford Penrith Quorn Rhyl Selby Tarbert Ullapool Ventnor Whitby Yarm"
).split()
WEATHER = "rainy sunny foggy windy snowy stormy".split()


BELLS = "Ashby Brill Cray Dunster Ely Frome Goole Hexham Ilkley Kendal".split()
TIMES = ("two", "three", "four", "five")
RECORDS = 14


@dataclass
class Record:
    name: str
    count: int
    goods: str
    town: str
    price: int

    def text(self) -> str:
        bought = f"{self.count} {self.goods} in {self.town}"
        return f"{self.name} bought {bought} for {self.price} crowns."


def build(tokenizer: Any, text: str, length: int) -> list[Context]:
    """Two contexts of `length` tokens."""
    groups = (
        {"copy": _copy, "passage": _passage, "list": _list},
        {"collect": _collect, "majority": _majority, "count": _count},
    )
    return [
        hide(tokenizer, text, [_probe(name, *of(tokenizer)) for name, of in group.items()], length)
        for group in groups
    ]


def _probe(name: str, facts: list[str], question: Question) -> Probe:
    return Probe(name, "tasks", facts, [question])


def _copy(tokenizer: Any) -> tuple[list[str], Question]:
    chance = random.Random(11)
    names = chance.sample([f"{a} {b}" for a in FIRST for b in LAST], RECORDS)
    records = [
        Record(
            name,
            chance.randint(11, 99),
            chance.choice(GOODS),
            chance.choice(TOWNS),
            chance.randint(101, 989),
        )
        for name in names
    ]
    writer = Writer(tokenizer).given("\n\nThe register again:")
    for r in records:
        writer.given(f"\n{r.name} bought").scored(f" {r.count}").scored(f" {r.goods}")
        writer.given(" in").scored(f" {r.town}").given(" for").scored(f" {r.price}")
        writer.given(" crowns.")
    return ["\n".join(r.text() for r in records)], writer.question()


def _passage(tokenizer: Any) -> tuple[list[str], Question]:
    words = PASSAGE.split()
    writer = Writer(tokenizer).given("\n\n" + " ".join(words[:8]))
    for word in words[8:]:
        writer.scored(f" {word}")
    return [PASSAGE], writer.question()


def _list(tokenizer: Any) -> tuple[list[str], Question]:
    words = WORDS[:]
    random.Random(3).shuffle(words)
    writer = Writer(tokenizer).given("\n\nThe cargo of the ship:")
    for word in words:
        writer.scored(f" {word}").given(",")
    return [f"The cargo of the ship: {', '.join(words)}."], writer.question()


def _collect(tokenizer: Any) -> tuple[list[str], Question]:
    chance = random.Random(5)
    people = [f"{a} {b}" for a, b in zip(FIRST, chance.sample(LAST, len(LAST)))]
    told = [(f"In the spring {who} {verb}", what) for who, (verb, what) in zip(people, EVENTS)]
    facts = [f"{begin} {what}." for begin, what in told]
    chance.shuffle(facts)
    chance.shuffle(told)
    writer = Writer(tokenizer)
    for begin, what in told:
        writer.given(ASK + begin).scored(f" {what}").given(".")
    return facts, writer.question()


def _majority(tokenizer: Any) -> tuple[list[str], Question]:
    chance = random.Random(7)
    mostly = {place: WEATHER[i % len(WEATHER)] for i, place in enumerate(PLACES)}
    facts = []
    for i, (place, weather) in enumerate(mostly.items()):
        other = WEATHER[(i + 2) % len(WEATHER)]
        facts += [f"In {place} it was {w}." for w in [weather] * 4 + [other]]
    chance.shuffle(facts)
    asked = list(mostly)
    chance.shuffle(asked)
    writer = Writer(tokenizer)
    for place in asked:
        writer.given(f"\n\nIn {place} it was").scored(f" {mostly[place]}").given(".")
    return facts, writer.question()


def _count(tokenizer: Any) -> tuple[list[str], Question]:
    chance = random.Random(13)
    heard = {place: TIMES[i % len(TIMES)] for i, place in enumerate(BELLS)}
    facts = []
    for place, times in heard.items():
        facts += [f"The bell of {place} rang."] * (2 + TIMES.index(times))
    chance.shuffle(facts)
    writer = Writer(tokenizer)
    for i, (place, times) in enumerate(heard.items()):
        writer.given(f"\n\nIn all the bell of {place} rang")
        writer = writer.given(f" {times}") if i < 2 else writer.scored(f" {times}")
        writer.given(" times.")
    return facts, writer.question()
