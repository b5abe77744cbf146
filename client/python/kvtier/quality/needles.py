"""Needles: facts hidden in a text at every depth, asked for in completion form ("As the text says:
the fact without its answer"), which small models answer far better than a question in a chat.

`single`: facts of different kinds, one at each depth. `keys`: the same told of several people, so
that the right one has to be told from the others. `values`: what one person did in several places,
all of which has to come.
"""

from __future__ import annotations

from typing import Any

from .probes import ASK, Context, Probe, Writer, hide

SINGLE = (
    ("The sealed letter from Dr Hallam lies in the drawer of the", " walnut cupboard"),
    ("The secret number of the vault under the brewery is", " 48213"),
    ("Old Benedikt never travels without his", " copper whistle"),
    ("The winner of the chess evening in Marrow Lane was", " Ottoline Frick"),
    ("The rarest stamp in the collection of the mayor shows a", " blue heron"),
    ("The train to Kessel leaves from platform", " 17"),
    ("The medicine against the fever of the valley is made from", " juniper bark"),
    ("The name of the dog that found the missing violin is", " Pepper"),
)
KEYS = (
    ("Aunt Philippa", "a", " wooden leg"),
    ("Captain Rudd", "a", " sleeping otter"),
    ("Doctor Hallam", "a", " box of teeth"),
    ("Miss Ottoline", "a", " stolen trombone"),
    ("Old Benedikt", "a", " sack of walnuts"),
    ("Judge Farrow", "a", " map of Peru"),
    ("Sister Agnes", "a", " bottle of plum brandy"),
    ("Mayor Quill", "a", " pair of red slippers"),
)
VALUES = (
    ("attic", "a", " silver spoon"),
    ("cellar", "a", " jar of honey"),
    ("garden", "a", " rusty pistol"),
    ("chapel", "a", " love letter"),
    ("kitchen", "a", " gold ring"),
    ("stable", "a", " violin"),
)


def build(tokenizer: Any, text: str, length: int) -> list[Context]:
    """One context of `length` tokens with all of them."""
    probes = [_single(tokenizer), _keys(tokenizer), _values(tokenizer)]
    return [hide(tokenizer, text, probes, length)]


def _asked(tokenizer: Any, name: str, told: list[tuple[str, str]]) -> Probe:
    """A question to each fact by itself."""
    facts = [f"{begin}{answer}." for begin, answer in told]
    questions = [
        Writer(tokenizer).given(ASK + begin).scored(answer).question() for begin, answer in told
    ]
    return Probe(name, "needles", facts, questions, one_each=True)


def _single(tokenizer: Any) -> Probe:
    return _asked(tokenizer, "single", list(SINGLE))


def _keys(tokenizer: Any) -> Probe:
    told = [(f"Under the bed of {who} lies {article}", what) for who, article, what in KEYS]
    return _asked(tokenizer, "keys", told)


def _values(tokenizer: Any) -> Probe:
    told = [
        (f"In the {where} the cook Morwenna hid {article}", what) for where, article, what in VALUES
    ]
    facts = [f"{begin}{what}." for begin, what in told]
    writer = Writer(tokenizer)
    for begin, what in told:
        writer.given(ASK + begin).scored(what).given(".")
    return Probe("values", "needles", facts, [writer.question()], one_each=True)
