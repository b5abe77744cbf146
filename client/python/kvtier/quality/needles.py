"""Needles: facts hidden in a text at every depth, asked for in completion form ("As the text says:
the fact without its answer"), which small models answer far better than a question in a chat.

`single`: facts of different kinds, one at each depth. `keys`: the same told of several people, so
that the right one has to be told from the others. `values`: what one person did in several places,
all of which has to come.
"""

from __future__ import annotations

from typing import Any

from .probes import Probe, Writer

ASK = "\n\nAs the text says: "

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


def build(tokenizer: Any, text: str, context: int) -> list[Probe]:
    """Contexts of exactly `context` tokens."""
    return [
        _single(tokenizer, text, context),
        _keys(tokenizer, text, context),
        _values(tokenizer, text, context),
    ]


def _single(tokenizer: Any, text: str, context: int) -> Probe:
    facts = [f"{fact}{answer}." for fact, answer in SINGLE]
    questions = [
        Writer(tokenizer).given(ASK + fact).scored(answer).question() for fact, answer in SINGLE
    ]
    return Probe("needle-single", hide(tokenizer, text, facts, context), questions)


def _keys(tokenizer: Any, text: str, context: int) -> Probe:
    told = [(f"Under the bed of {who} lies {article}", what) for who, article, what in KEYS]
    facts = [f"{begin}{what}." for begin, what in told]
    questions = [
        Writer(tokenizer).given(ASK + begin).scored(what).question() for begin, what in told
    ]
    return Probe("needle-keys", hide(tokenizer, text, facts, context), questions)


def _values(tokenizer: Any, text: str, context: int) -> Probe:
    told = [
        (f"In the {where} the cook Morwenna hid {article}", what) for where, article, what in VALUES
    ]
    facts = [f"{begin}{what}." for begin, what in told]
    writer = Writer(tokenizer)
    for begin, what in told:
        writer.given(ASK + begin).scored(what).given(".")
    return Probe("needle-values", hide(tokenizer, text, facts, context), [writer.question()])


def hide(tokenizer: Any, text: str, facts: list[str], context: int) -> list[int]:
    """The text with the facts at even depths, each a paragraph of its own, cut to `context` tokens.
    A text that is too short begins anew."""

    def ids(part: str) -> list[int]:
        return tokenizer(part, add_special_tokens=False).input_ids

    hidden = [ids(f"\n\n{fact}") for fact in facts]
    room = context - sum(map(len, hidden))
    paragraphs = [ids(f"\n\n{p.strip()}") for p in text.split("\n\n") if p.strip()]
    out: list[int] = []
    taken, next_fact, at = 0, 0, 0
    while taken < room:
        if next_fact < len(facts) and taken >= room * (next_fact + 0.5) / len(facts):
            out += hidden[next_fact]
            next_fact += 1
            continue
        part = paragraphs[at % len(paragraphs)][: room - taken]
        out, taken, at = out + part, taken + len(part), at + 1
    for rest in hidden[next_fact:]:  # a last paragraph that was long
        out += rest
    return out
