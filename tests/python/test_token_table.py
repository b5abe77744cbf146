"""What a token says, for vocabularies that write their bytes in different ways, and in a store."""

from __future__ import annotations

import pytest

from kvtier import transformers as adapter
from kvtier.token_table import TokenTable

TEXT = 'The "naïve" café of Dr. Who cost 3.5 €.\n\nWhy? 東京, 🙂!\n'


class Vocabulary:
    """A tokenizer as far as a table reads it; `decode` is right for whole characters only."""

    def __init__(self, entries: dict[str, int], decoded: dict[int, str], added: dict[int, str]):
        self.entries, self.decoded, self.added_tokens_decoder = entries, decoded, added

    def get_vocab(self) -> dict[str, int]:
        return self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def decode(self, ids: list[int]) -> str:
        return "".join(self.decoded.get(i, "\ufffd") for i in ids)

    def batch_decode(self, many: list[list[int]]) -> list[str]:
        return [self.decode(ids) for ids in many]


def test_texts_of_a_byte_level_vocabulary_are_the_document(loaded):
    _, tokenizer, _ = loaded
    ids = tokenizer(TEXT).input_ids
    table = TokenTable(tokenizer)
    texts = table.texts(ids)
    assert b"".join(texts).decode() == TEXT
    assert max(map(len, texts)) < 64
    assert any(not _is_utf8(text) for text in texts), "an entry that ends inside a character"
    assert table.flags(ids) == [adapter.boundaries(tokenizer)[i] for i in ids]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_sentencepiece_has_spaces_and_bytes_of_its_own():
    entries = {"\u2581The": 0, "\u2581caf": 1, "<0xC3>": 2, "<0xA9>": 3, ".": 4, "<s>": 5}
    table = TokenTable(Vocabulary(entries, {4: "."}, {5: "<s>"}))
    assert table.texts([5, 0, 1, 2, 3, 4]) == [b"<s>", b" The", b" caf", b"\xc3", b"\xa9", b"."]
    assert table.flags([0, 4]) == [0, 2]


@pytest.mark.parametrize(
    "text, flag",
    [
        *((mark, 2) for mark in (".", "?”", "…", "。」", "।", "؟", "។ ", "։")),
        *((mark, 1) for mark in (",", ";", ":\n", "、", "،", "፣")),
        *((text, 3) for text in (".\n\n", "\n\n\n")),
        *((text, 0) for text in ("a", "€", '"', ".a", "")),
    ],
)
def test_a_tokens_text_says_which_boundary_it_is(text, flag):
    vocabulary = Vocabulary({"a": 0}, {0: text}, {})
    assert TokenTable(vocabulary).flags([0]) == [flag]


def test_another_vocabulary_is_read_by_its_tokenizer():
    entries = {"play": 0, "##ing": 1, "[SEP]": 3}  # 2 is a hole
    table = TokenTable(Vocabulary(entries, {0: "play", 1: "ing"}, {3: "[SEP]"}))
    assert table.texts([0, 1, 2, 3, 4]) == [b"play", b"ing", b"", b"[SEP]", b""]


@pytest.fixture
def installed(loaded):
    """The model with its tokenizer; afterwards as other tests want it."""
    model, tokenizer, _ = loaded
    adapter.install(model, tokenizer)
    yield model, tokenizer
    model._kvtier.tokens = None


def test_a_stored_document_has_its_text(client, installed):
    model, tokenizer = installed
    space = adapter.open_space(client, model, tokenizer, files=[__file__])
    ids = tokenizer(TEXT * 3).input_ids
    cache = adapter.attach(space, ids, name="document")
    adapter.prefill(model, cache, ids, piece=40)
    cache.commit()
    assert b"".join(cache.sequence.texts()).decode() == TEXT * 3
    cache.close()
    with space.open("document", writable=False) as sequence:
        assert b"".join(sequence.texts()).decode() == TEXT * 3
        flags = sequence.tokens()[:, 2].tolist()
    table = model._kvtier.tokens
    assert flags == table.flags_of_text(ids) != table.flags(ids)
