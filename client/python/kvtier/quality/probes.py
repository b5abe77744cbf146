"""Probes: questions to a stored context whose answers are known.

An answer is judged with teacher forcing: a part of it (an item) is hit where every one of its
tokens is the likeliest one, which is what greedy decoding would have written; beside it stands the
negative log likelihood of the scored tokens. All of a question's tokens go through the preset one
step each, the question too. What full attention does not get cannot be asked of a preset, so hits
are counted against those of full attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Question:
    ids: list[int]  # follow the context
    items: list[tuple[int, int]]  # [first, last) in ids: the tokens that are scored; first > 0


@dataclass
class Probe:
    name: str
    context: list[int]
    questions: list[Question]


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


def summary(answers: Answers, full: Answers) -> dict[str, Any]:
    both = sum(a and b for a, b in zip(answers.hits, full.hits))
    return {
        "items": len(full.hits),
        "hits_full": sum(full.hits),
        "hits": sum(answers.hits),
        "hits_of_full": both,
        "score_full": sum(full.hits) / len(full.hits),
        "score": sum(answers.hits) / len(full.hits),
        "score_of_full": both / max(1, sum(full.hits)),
        "nll": sum(answers.nll) / len(answers.nll),
        "nll_full": sum(full.nll) / len(full.nll),
    }
