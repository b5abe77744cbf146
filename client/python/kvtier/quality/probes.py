"""Probes: questions to a stored context whose answers are known.

An answer is judged with teacher forcing: a part of it (an item) is hit where every one of its
tokens is the likeliest one, which is what greedy decoding would have written; beside it stands the
negative log likelihood of the scored tokens. All of a question's tokens go through the preset one
step each, the question too. What full attention does not get cannot be asked of a preset, so hits
are counted against those of full attention.

Several probes are asked of one context, which is read and stored once: `hide` spreads the facts of
each over all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

ASK = "\n\nAs the text says: "
LEAST_TEXT = 0.25  # of a context; facts take the rest at most


class NoRoom(Exception):
    """A context is too short for what has to be hidden in it."""


@dataclass
class Question:
    ids: list[int]  # follow the context
    items: list[tuple[int, int]]  # [first, last) in ids: the tokens that are scored; first > 0


@dataclass
class Probe:
    name: str
    kind: str  # "needles" or "tasks"
    facts: list[str]  # to be hidden
    questions: list[Question]
    one_each: bool = False  # item i asks for fact i
    depths: list[float] = field(default_factory=list)  # of the facts, once they are hidden


@dataclass
class Context:
    ids: list[int]
    probes: list[Probe]


@dataclass
class Answers:
    """Of one probe, over all its questions."""

    hits: list[bool] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)  # per scored token

    def add(self, question: Question, logits: torch.Tensor) -> None:
        """logits [len(ids) - 1, V]: after each of the question's tokens but the last."""
        target = torch.tensor(question.ids[1:])
        likely = logits.argmax(-1) == target
        nll = -logits.float().log_softmax(-1).gather(1, target[:, None])[:, 0]
        for first, last in question.items:
            self.hits.append(bool(likely[first - 1 : last - 1].all()))
            self.nll += nll[first - 1 : last - 1].tolist()


class Writer:
    """Builds a question token by token: text that is given, and text that is scored."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.items: list[tuple[int, int]] = []

    def given(self, text: str) -> "Writer":
        self.ids += self.tokenizer(text, add_special_tokens=False).input_ids
        return self

    def scored(self, text: str) -> "Writer":
        first = len(self.ids)
        self.given(text)
        self.items.append((first, len(self.ids)))
        return self

    def question(self) -> Question:
        return Question(self.ids, self.items)


def hide(tokenizer: Any, text: str, probes: list[Probe], length: int) -> Context:
    """The text with the facts of each probe at even depths, each a paragraph of its own, cut to
    `length` tokens. A text that is too short begins anew. NoRoom where the facts fill it."""

    def ids(part: str) -> list[int]:
        return tokenizer(f"\n\n{part}", add_special_tokens=False).input_ids

    # The probes take turns: at one depth lies one fact.
    told = sorted(
        ((i + (p + 1) / (len(probes) + 1)) / len(probe.facts), p, ids(fact))
        for p, probe in enumerate(probes)
        for i, fact in enumerate(probe.facts)
    )
    room = length - sum(len(fact) for _, _, fact in told)
    if room < LEAST_TEXT * length:
        raise NoRoom(
            f"the facts of {', '.join(probe.name for probe in probes)} take {length - room} "
            f"tokens: a context of {length} is too short, take at least "
            f"{round((length - room) / (1 - LEAST_TEXT)) + 1}"
        )
    paragraphs = [ids(p.strip()) for p in text.split("\n\n") if p.strip()]
    if not paragraphs:
        raise NoRoom("the text is empty: nothing can be hidden in it")
    for probe in probes:
        probe.depths = []
    out: list[int] = []
    taken, at = 0, 0
    while taken < room or told:
        if told and (taken >= room or taken >= told[0][0] * room):
            _, p, fact = told.pop(0)
            probes[p].depths.append(len(out) / length)
            out += fact
            continue
        part = paragraphs[at % len(paragraphs)][: room - taken]
        out, taken, at = out + part, taken + len(part), at + 1
    return Context(out, probes)


def summary(probe: Probe, answers: Answers, full: Answers) -> dict[str, Any]:
    both = sum(a and b for a, b in zip(answers.hits, full.hits))
    figures = {
        "kind": probe.kind,
        "items": len(full.hits),
        "hits_full": sum(full.hits),
        "hits": sum(answers.hits),
        "hits_of_full": both,
        "nll": sum(answers.nll) / len(answers.nll),
        "nll_full": sum(full.nll) / len(full.nll),
    }
    if probe.one_each:
        told = zip(answers.hits, full.hits, probe.depths)
        figures["lost_at"] = [round(depth, 2) for hit, should, depth in told if should and not hit]
    return figures


# ---- what a goal is stated in --------------------------------------------------------------------

GOALS = {"needles": 1.0, "tasks": 0.95}  # of full attention's hits
TASKS_LEAST = 3  # of those that are judged
JUDGED_FROM = 0.5  # full attention's own score: a task that it does not master says little


def verdict(figures: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
    """Over the probes of one kind, each of which counts alike."""
    judged = [
        name
        for name, one in figures.items()
        if one["kind"] == kind
        and one["hits_full"] > 0
        and (kind == "needles" or one["hits_full"] >= JUDGED_FROM * one["items"])
    ]
    of = [figures[name] for name in judged]
    n = max(1, len(of))
    share = sum(one["hits_of_full"] / one["hits_full"] for one in of) / n
    enough = len(of) >= (TASKS_LEAST if kind == "tasks" else 1)
    return {
        "judged": judged,
        "hits_full": sum(one["hits_full"] for one in of),
        "hits_of_full": sum(one["hits_of_full"] for one in of),
        "share_of_full": share,
        "nll_change": sum(one["nll"] - one["nll_full"] for one in of) / n,
        "goal": GOALS[kind],
        "held": enough and share >= GOALS[kind],
    }
