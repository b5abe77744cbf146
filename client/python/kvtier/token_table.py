"""What the entries of a tokenizer's vocabulary say: the bytes of each, and which boundary it is.

A sequence keeps both with its tokens (`Sequence.append`: `texts`, `flags`): boundaries for presets
by sentences, texts for people. A text is bytes, since an entry may end inside a character; those of
a document's tokens, one after the other, are its UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

_CLAUSE, _SENTENCE, _PARAGRAPH = 1, 2, 3  # as in kvt_token.flags
_BEHIND = " \t\"'”’»)]"  # what may follow the mark that ends a sentence


def boundaries(tokenizer: Any) -> list[int]:
    """Which boundary each token of the vocabulary is, by its text, so that merged tokens (a full
    stop with a quotation mark, two newlines) count too: 0 none, 1 clause, 2 sentence,
    3 paragraph."""

    def of(text: str) -> int:
        if "\n\n" in text:
            return _PARAGRAPH
        end = text.rstrip(_BEHIND)
        if end.endswith((".", "!", "?", "…", "。", "！", "？")):
            return _SENTENCE
        return _CLAUSE if end.endswith((",", ";", ":", "\n", "，", "；", "：", "、")) else 0

    return [of(text) for text in tokenizer.batch_decode([[i] for i in range(len(tokenizer))])]


_TEXT_BYTES_MAX = 1024  # of one token
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's way to write one


class TokenTable:
    """The entries of one vocabulary, each decoded once."""

    def __init__(self, tokenizer: Any):
        self._flags = boundaries(tokenizer)
        self._texts = _entry_texts(tokenizer)

    def flags(self, ids: Iterable[int]) -> list[int]:
        """The boundary that each token is; none for an id beyond the vocabulary."""
        return [self._flags[i] if i < len(self._flags) else 0 for i in ids]

    def texts(self, ids: Iterable[int]) -> list[bytes]:
        """The text of each token; empty for an id beyond the vocabulary."""
        return [self._texts[i] if i < len(self._texts) else b"" for i in ids]


def _entry_texts(tokenizer: Any) -> list[bytes]:
    vocabulary = tokenizer.get_vocab()
    added = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    to_bytes = _reader_of([e for e, i in vocabulary.items() if i not in added])
    texts = [b""] * (max([*vocabulary.values(), *added], default=-1) + 1)  # may have holes
    for entry, index in vocabulary.items():
        text = to_bytes(entry) if to_bytes else tokenizer.decode([index]).encode()
        texts[index] = text[:_TEXT_BYTES_MAX]
    for index, text in added.items():
        texts[index] = text.encode()[:_TEXT_BYTES_MAX]
    return texts


def _byte_letters() -> dict[str, int]:
    """The letters in which byte-level vocabularies write their bytes (GPT-2's)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


def _reader_of(entries: list[str]) -> Callable[[str], bytes] | None:
    """How this vocabulary writes bytes: in letters of its own, or in SentencePiece's way. None:
    in another, and only the tokenizer knows."""
    letters = _byte_letters()
    space = "\u0120"  # the letter of a space
    if any(space in e for e in entries) and all(c in letters for e in entries for c in e):
        return lambda entry: bytes(letters[c] for c in entry)
    if any(entry.startswith("\u2581") for entry in entries):

        def piece(entry: str) -> bytes:
            byte = _BYTE.fullmatch(entry)
            return bytes([int(byte[1], 16)]) if byte else entry.replace("\u2581", " ").encode()

        return piece
    return None
