"""Where sentences end: by the rules over a text, and at which of a prompt's tokens. A bar stands
behind each sentence that ends."""

from __future__ import annotations

import sys

import pytest
import torch
from reference import ReferenceSequence
from test_token_table import Vocabulary

from kvtier import sentences, transformers as adapter
from kvtier.token_table import TokenTable

TEXTS = [
    ("en", "Dr. Smith met Mrs. Jones at 3.5 km.| He left.|"),
    ("en", "We use e.g. Python.| See No. 5, Fig. 3.| I say no.| J. K. Rowling came.|"),
    ("en", "Plan (vs. Others).| In the U.S. army.| It is version 1.10.2 now.|"),
    ("en", "Wait... what?| No…| Yes...| Well… maybe.|"),
    ("en", "\"It is so.\"| He said (twice).| \"Is it?\"| 'Yes!'| “No.”| (Perhaps.)|"),
    ("en", "A heading\n\nA line that\nis wrapped.| Mr.\nSmith came.|\r\n\r\nEnd.|\n\n\n\nNo end"),
    ("en", "It is 4 m.| Then plan B. She left.|"),
    ("en", "- one\n- two\n\n3. three\n"),
    ("en", "It ends with Dr. "),
    ("en", "A\u2029line.|\u2028Another.|\x85Last.|"),
    ("en", "Herr Müller ist evtl.| Arzt.|"),
    ("de", "Herr Dr. Müller kam am 3. Mai mit Prof. Frau z. B. Äpfel holen.| Ja.|"),
    ("de", "Es war.| Er ging 1998.| Er ist evtl. Arzt, Nr. 512.| „Ja.“| Dann: »Ja.«| So »Ja.«|"),
    ("de", "Sie rief: „Ja.“|\n\nSie ging.|"),
    ("de-CH", "Das ist z.B. Brot.| Gut.|"),
    ("fr", "M. Dupont et Mme. Durand ont vu « la mer. »| Il pleut.| Voir art. 3.| Oui !| Non.|"),
    ("es", "¿Viene el Sr. García?| Sí.| ¡Hola!| Vive en la Av. Colón, pág. 3.|"),
    ("it", "Il sig. Rossi e la prof.ssa Bianchi.| Il leon.| Poi bon.|"),
    ("pt", "O Sr. Silva viu o animal.| Ele foi.| Ver pág. 3.|"),
    ("nl", "Dhr. Jansen en drs. Smit, bijv. Piet.| Ja.|"),
    ("ru", "Он живёт на ул. Мира, т.е. Там.| А. С. Пушкин.| Да!|"),
    ("el", "Τι είναι;| Ναι.|"),
    ("zh", "他说。|“好。”|然后！|真的？|没有结束"),
    ("ja", "これは文です。|「はい。」|と言った。|（次。）|"),
    ("hi", "यह पहला वाक्य है।| यह दूसरा है।| क्या?|"),
    ("ar", "هل هذا سؤال؟| نعم هذا.| وهذا"),
    ("km", "ខ្ញុំទៅ។| គាត់មក៕|"),
    ("th", "สวัสดีครับ นี่คือประโยค และนี่อีก"),
    ("en", "bad \udce3\udc80.| \udcff Next.|"),
    ("en", "🙂 Gut!| 🙂🙂 Ja.|"),
    ("en", "a\0b.| C"),
    ("en", ""),
    ("en", " \n\n \n"),
    ("en", "...|"),
]


@pytest.mark.parametrize("language, marked", TEXTS)
def test_where_sentences_end(language, marked):
    parts = marked.split("|")
    text = "".join(parts)
    want = [len("".join(parts[: i + 1])) for i in range(len(parts) - 1)]
    found = sentences.ends(text, language)
    assert found == want, [text[a:b] for a, b in zip([0, *found], [*found, len(text)])]


@pytest.fixture(scope="module")
def table(loaded) -> TokenTable:
    return TokenTable(loaded[1])


def ended(table: TokenTable, ids: list[int]) -> list[str]:
    """What the tokens say up to each that ends a sentence, without white space around it."""
    parts, begin = [], 0
    for i, flag in enumerate(table.flags_of_text(ids)):
        if flag >= 2:
            parts.append(b"".join(table.texts(ids[begin : i + 1])).decode("utf-8", "replace"))
            begin = i + 1
    return [part.strip() for part in parts]


@pytest.mark.parametrize(
    "language, marked", [t for t in TEXTS if "\udce3" not in t[1] and "\n\n" not in t[1]]
)
def test_the_token_with_the_last_character_ends_it(table, loaded, language, marked, monkeypatch):
    monkeypatch.setattr(table, "_language", language)
    text = marked.replace("|", "")
    parts = [part.strip() for part in marked.split("|")[:-1]]
    # A token that ends one sentence and begins the next counts to the first.
    found = ended(table, loaded[1](text).input_ids)
    assert len(found) == len(parts)
    assert all(len(a) - len(b) <= 2 for a, b in zip(found, parts)), (found, parts)
    assert "".join("".join(found).split()).startswith("".join("".join(parts).split()))


def test_paragraphs_are_blank_lines_and_single_tokens_know_less(table, loaded):
    ids = loaded[1]("Yes, Dr. Who; a heading\n\nIt was 3.5 m. Then no.\n\n").input_ids
    alone, together = table.flags(ids), table.flags_of_text(ids)
    assert [f for f in alone if f] == [1, 2, 1, 1, 1, 2, 2, 2, 3]  # a blank line of two tokens
    assert [f for f in together if f] == [1, 1, 1, 3, 2, 2, 3]
    assert [t for t, f in zip(table.texts(ids), together) if f == 2] == [b".", b"."]


def test_special_tokens_are_no_text(table, loaded):
    """The end of a turn is no letter behind a full stop."""
    ids = loaded[1]("It is so.<|im_end|><|im_start|>user").input_ids
    texts = table.texts(ids)
    assert b"<|im_end|>" in texts
    assert [t for t, f in zip(texts, table.flags_of_text(ids)) if f] == [b"."]
    as_text = sentences.ends(b"".join(texts).decode())
    assert as_text == []


@pytest.mark.parametrize(
    "text, flags",
    [
        (b"a\n\nb", [0, 1, 3, 0]),
        (b"a\n \n\nb", [0, 1, 0, 1, 3, 0]),
        (b"\r\n\r\n", [0, 1, 0, 3]),
        (b".\n\n", [2, 1, 3]),
    ],
)
def test_a_blank_line_of_several_tokens(bytes_table, text, flags):
    assert bytes_table.flags_of_text(list(text)) == flags


def test_one_sentence_of_thousands_of_tokens(table, loaded):
    ids = loaded[1]("It goes on, " * 4000 + "and ends. Then").input_ids
    flags = table.flags_of_text(ids)
    assert len(ids) > 12000 and flags.count(2) == 1
    assert table.texts(ids)[flags.index(2)] == b"." and flags.count(1) == 4000


@pytest.fixture
def bytes_table() -> TokenTable:
    """Each token one byte."""
    entries = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"\u2581": 256}
    decoded = {byte: chr(byte) for byte in range(128)}
    return TokenTable(Vocabulary(entries, decoded, {257: "<s>"}))


@pytest.mark.parametrize(
    "text, ends",
    [
        ("好。是".encode(), [5]),  # the last byte of the mark
        ("Ça va. Né. ".encode(), [6, 11]),
        (b"\xe5\xa5. A\xff\xff. \xc3", [2, 7]),  # bytes that are no UTF-8
        (b"\x82 Al. B. Yes.", [4, 12]),  # "B." is an initial
        (b"\xf0\x9f\x99\x82!\xf0\x9f", [4]),
        (b"", []),
        (b"\xff", []),
    ],
)
def test_tokens_that_end_inside_a_character(bytes_table, text, ends):
    flags = bytes_table.flags_of_text(list(text))
    assert [i for i, flag in enumerate(flags) if flag] == ends and len(flags) == len(text)


def test_tokens_without_text(bytes_table):
    assert bytes_table.flags_of_text([257, 9999, 257]) == [0, 0, 0]
    assert bytes_table.flags_of_text([257, *b"Yes.", 9999, 257]) == [0, 0, 0, 0, 2, 0, 0]


def test_without_icu_each_token_counts_for_itself(table, loaded, monkeypatch):
    ids = loaded[1]("Dr. Smith, at 3.5 km. He\n\nleft.").input_ids
    by_rules = table.flags_of_text(ids)
    assert by_rules != table.flags(ids) and table.rules.startswith("ICU ")
    for module in ("icu4py", "icu4py.breakers"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    assert sentences.ends("He left.") is None
    assert table.rules == "token text"
    assert table.flags_of_text(ids) == table.flags(ids)


@pytest.mark.parametrize("language", ["", "german!", "d", "de_CH"])
def test_a_language_that_is_none_is_refused(table, language):
    with pytest.raises(ValueError, match="BCP 47"):
        table.language = language
    assert table.language == "en"


# ---- through the adapter -------------------------------------------------------------------------

PROMPT = (
    "Dr. Smith met Mr. Jones at 3.5 km, e.g. Monday. He left. What for... nobody knows!\n\n"
    '"It is so." He said. Prof. Who came on 3. Mai.'
)


@pytest.fixture(scope="module")
def installed(loaded):
    """A small random model that reads the real vocabulary; test_token_table.py has the real one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(loaded[1]),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    adapter.install(model, loaded[1])
    return model, loaded[1]


class Recorder(ReferenceSequence):
    """Keeps the flags that are stored."""

    flags: list[int]

    def append(self, ids, flags, **other) -> None:
        self.flags = [*getattr(self, "flags", []), *flags]
        super().append(ids, **other)

    def tokens(self, first: int, count: int) -> torch.Tensor:
        return torch.tensor(self.ids[first : first + count])[:, None]


def cache_of(model) -> adapter.KvtierCache:
    return adapter.KvtierCache(Recorder(1, 1, 8))


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_pieces_of_a_prompt_have_the_flags_of_the_whole(installed, piece):
    model, tokenizer = installed
    ids = tokenizer(PROMPT).input_ids
    cache = cache_of(model)
    adapter.prefill(model, cache, ids, piece=piece)
    want = model._kvtier.tokens.flags_of_text(ids)
    assert cache.sequence.flags == want != model._kvtier.tokens.flags(ids)


def test_a_prompt_in_two_turns_is_read_with_what_is_stored(installed):
    """The full stop behind "3" in the second turn follows a figure of the first."""
    model, tokenizer = installed
    ids = tokenizer(PROMPT).input_ids
    table = model._kvtier.tokens
    stop = table.texts(ids).index(b"3") + 1
    cache = cache_of(model)
    adapter.prefill(model, cache, ids[:stop])
    adapter.prefill(model, cache, ids)
    assert cache.sequence.flags == table.flags_of_text(ids[:stop]) + table.flags_of_text(ids)[stop:]
    assert cache.sequence.flags[stop] == 0 and table.flags(ids[stop:])[0] == 2


def test_forwards_of_the_model_itself(installed):
    """Several tokens in one: the rules over these. One: what it says itself."""
    model, tokenizer = installed
    ids = tokenizer(PROMPT).input_ids
    table = model._kvtier.tokens
    cache = cache_of(model)
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids[:20]]), past_key_values=cache)
        for id_ in ids[20:24]:
            model(input_ids=torch.tensor([[id_]]), past_key_values=cache)
    cache._settle()
    assert cache.sequence.flags == table.flags_of_text(ids[:20]) + table.flags(ids[20:24])


def test_the_language_may_change(installed):
    model, tokenizer = installed
    ids = tokenizer("Er kam am 3. Mai. Gut.").input_ids
    stored = {}
    for language in ("de", "en"):
        adapter.install(model, tokenizer, language=language)
        cache = cache_of(model)
        adapter.prefill(model, cache, ids)
        stored[language] = cache.sequence.flags.count(2)
    assert stored == {"de": 2, "en": 3}
    adapter.install(model, tokenizer)
    assert model._kvtier.tokens.language == "en"
