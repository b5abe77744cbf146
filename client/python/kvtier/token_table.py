"""What the entries of a tokenizer's vocabulary say: the bytes of each, and which boundary it is.

A sequence keeps both with its tokens (`Sequence.append`: `texts`, `flags`): boundaries for presets
by sentences, texts for people. A text is bytes, since an entry may end inside a character; those of
a document's tokens, one after the other, are its UTF-8.

Where sentences end is known in two ways: of a single token by what its own text ends with, and of
many at once by the rules of their language over all of it (sentences.py).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

from . import sentences

_CLAUSE, _SENTENCE, _PARAGRAPH = 1, 2, 3  # as in kvt_token.flags
# Of the scripts that have any.
_SENTENCE_MARKS = tuple(".!?…。！？．｡‼⁇⁈⁉।॥؟۔։።፧။៕។")
_CLAUSE_MARKS = tuple(",;:\n，；：、､،؛፣፤၊")
_BLANK = re.compile(rb"\n(?:[ \t\r]*\n)+")
_BEHIND = " \t\"'“”’»)]」』）"  # what may follow them


def boundaries(tokenizer: Any) -> list[int]:
    """Which boundary each token of the vocabulary is, by its text, so that merged tokens (a full
    stop with a quotation mark, two newlines) count too: 0 none, 1 clause, 2 sentence,
    3 paragraph."""

    def of(text: str) -> int:
        if "\n\n" in text:
            return _PARAGRAPH
        end = text.rstrip(_BEHIND)
        if end.endswith(_SENTENCE_MARKS):
            return _SENTENCE
        return _CLAUSE if end.endswith(_CLAUSE_MARKS) else 0

    return [of(text) for text in tokenizer.batch_decode([[i] for i in range(len(tokenizer))])]


_TEXT_BYTES_MAX = 1024  # of one token
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's way to write one


class TokenTable:
    """The entries of one vocabulary, each decoded once. `language` (BCP 47): whose rules
    `flags_of_text` goes by; may be changed."""

    def __init__(self, tokenizer: Any, language: str = "en"):
        self._flags = boundaries(tokenizer)
        self._texts = _entry_texts(tokenizer)
        self._special = _special_ids(tokenizer)
        self.language = language

    @property
    def language(self) -> str:
        return self._language

    @language.setter
    def language(self, tag: str) -> None:
        sentences.check_language(tag)
        self._language = tag

    @property
    def rules(self) -> str:
        """Whose sentences `flags_of_text` knows: "ICU 78.3, en", or "token text"."""
        version = sentences.icu_version()
        return f"ICU {version}, {self.language}" if version else "token text"

    def flags(self, ids: Iterable[int]) -> list[int]:
        """The boundary that each token is by itself; none for an id beyond the vocabulary."""
        return [self._flags[i] if i < len(self._flags) else 0 for i in ids]

    def flags_of_text(self, ids: Iterable[int]) -> list[int]:
        """The boundary that each token is in the text of all of them: sentences by the rules of the
        language, at the token with the last character of each; paragraphs at the last of a blank
        line, which often is two tokens; clauses by the tokens themselves. Special tokens have no
        text of their own here: sentences end before them. Without ICU as `flags`."""
        ids = list(ids)
        texts = self.texts(ids)
        read = [b"\n\n" if i in self._special else text for i, text in zip(ids, texts)]
        found = _sentence_tokens(read, self.language)
        flags = self.flags(ids)
        if found is None:
            return flags
        flags = [flag if flag == _CLAUSE else 0 for flag in flags]
        for token in found:
            flags[token] = max(flags[token], _SENTENCE)
        for token in _blank_tokens(texts):
            flags[token] = _PARAGRAPH
        return flags

    def texts(self, ids: Iterable[int]) -> list[bytes]:
        """The text of each token; empty for an id beyond the vocabulary."""
        return [self._texts[i] if i < len(self._texts) else b"" for i in ids]


def _sentence_tokens(texts: list[bytes], language: str) -> list[int] | None:
    """Which of the tokens hold the last character of a sentence, or its last byte."""
    text = b"".join(texts).decode("utf-8", "surrogateescape")  # a byte that is none: one character
    places = sentences.ends(text, language)
    if places is None:
        return None
    token_ends = list(accumulate(map(len, texts)))
    found, begin, size_bytes = [], 0, 0
    for end in places:
        size_bytes += len(text[begin:end].encode("utf-8", "surrogateescape"))
        found.append(bisect_left(token_ends, size_bytes))
        begin = end
    return found


def _blank_tokens(texts: list[bytes]) -> list[int]:
    """Which of the tokens hold the last line break of a blank line."""
    token_ends = list(accumulate(map(len, texts)))
    return [bisect_left(token_ends, blank.end()) for blank in _BLANK.finditer(b"".join(texts))]


def _special_ids(tokenizer: Any) -> set[int]:
    """Those that stand for no text: ends of turns and the like."""
    added = tokenizer.added_tokens_decoder.items()
    return {int(i) for i, token in added if getattr(token, "special", True)}


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
