"""Where the sentences of a text end, by ICU's rules (UAX 29) and a few abbreviations: the one door
to ICU, which is optional (icu4py, the package's extra `sentences`).

The rules are those of ICU for the language; nearly all languages share its root rules, which know
the marks of every script. Three things are added. Abbreviations: ICU's own lists (`-u-ss-standard`)
are not used, since they match the ends of words: with them "Es war. Er ging." is one sentence, by
"r.", and English lacks "Dr.". Line breaks are white space, for texts that are wrapped: only a blank
line ends what stands before it. And "…" is as three dots.
"""

from __future__ import annotations

import re

# After these no sentence ends. What often is the last word of one ("etc.", "Inc.") is not here, nor
# are single letters, which are initials in every language. In small letters: in any spelling.
_ABBREVIATIONS = {
    "en": "Mr Mrs Ms Messrs Dr Prof Rev Hon St Gen Col Maj Capt Lt Cmdr Sgt Cpl Gov Sen Rep Mt "
    "vs viz cf e.g i.e",
    "de": "Dr Prof Hr Hrn Fr Frl St Dipl Ing Dipl.-Ing Mag bzw ca evtl ggf inkl exkl vgl sog insb "
    "einschl ehem geb zzgl abzgl mind Mio Mrd Tsd z.B d.h u.a v.a z.T u.U i.d.R o.g",
    "fr": "MM Mme Mmes Mlle Mlles Dr Pr Me Mgr St Ste env av apr cf c.-à-d p.ex",
    "es": "Sr Sra Sres Sras Srta Dr Dra Dña Ud Uds Lic Ing Prof Profa Gral Sto Sta Av Avda cf p.ej",
    "it": "sig sigg sig.ra sig.na dott dott.ssa prof prof.ssa ing avv geom rag mons cfr p.es",
    "pt": "Sr Sra Srs Sras Srta Dr Dra Drs Prof Profa Eng Exmo Exma Ilmo Ilma Av cf p.ex",
    "nl": "dhr mevr drs ir ing prof mr jhr Dr St bijv bv ca incl excl vgl d.w.z o.a i.p.v",
    "ru": "им ул пр просп пл гр проф акад доц св ср см тыс млн млрд напр т.е т.к т.н",
}
# After these none where a figure follows.
_BEFORE_FIGURES = {
    "en": "No Nos Fig Figs Eq Eqs Sec Ch Vol pp ca approx Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct "
    "Nov Dec",
    "de": "Nr Nrn Abs Art Abb Tab Bd Kap Ziff Jan Feb Apr Aug Sept Okt Nov Dez",
    "fr": "art chap fig vol pp no nos janv févr avr juil sept oct nov déc",
    "es": "art cap fig núm vol pág págs pp",
    "it": "art artt cap fig vol pag pagg pp",
    "pt": "art cap fig núm vol pág págs pp",
    "nl": "nr nrs art afb blz fig hfst pag",
    "ru": "стр рис табл гл ст пп кв тел",
}
# Languages that write "3." for "third".
_ORDINALS = frozenset("bs cs da de et eu fi fo hr hu is lv nb nn no pl sk sl sr tr".split())

_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")  # BCP 47, roughly
_UNDECODED = re.compile("[\udc80-\udcff]")
_BLANK = re.compile(r"\n(?:[ \t\r]*\n)+")
_LINE = re.compile("[\n\r\x85\u2028\u2029]")
_SPACED_CLOSING = re.compile(r"[ \xa0\u202f]([»›])(?=\s)")  # as French writes it
_MARK, _PARAGRAPH = "\u2135", "\u2029"  # a letter without case: before it every mark is one
_OPENING = "([{«‹“‘「『（【《〈"
_AROUND = "\"'“”„‘’«»‹›([{—–-/"


def icu_version() -> str | None:
    """Of the ICU that is there; None: there is none."""
    try:
        from icu4py import breakers, icu_version as version  # noqa: F401  (it is the one used)
    except ImportError:
        return None
    return version


def check_language(language: str) -> None:
    if not _TAG.fullmatch(language):
        raise ValueError(f"language {language!r}: a BCP 47 tag, as 'de' or 'pt-BR'")


def ends(text: str, language: str = "en") -> list[int] | None:
    """Of each sentence that ends in the text the place behind its last character, ascending; white
    space does not count. What stands at the end of the text or before a blank line is a sentence
    where it would be one with another behind it. Lone surrogates are bytes that nobody could
    decode. None without ICU."""
    try:
        from icu4py.breakers import SentenceBreaker
    except ImportError:
        return None
    text += "\n\n"
    rules = _as_rules_read(text)
    found, end = [], 0
    for sentence in SentenceBreaker(rules, language):
        begin, end = end, end + len(sentence)
        if sentence[-1] == _PARAGRAPH:  # it ended before that, or is none
            continue
        body = text[begin:end].rstrip()
        if len(body) == len(sentence) and rules[end] != _MARK:
            body = body.rstrip(_OPENING)  # it belongs to what follows without a space
        if body and not _goes_on(body, rules[end], language):
            found.append(begin + len(body))
    return found


def _as_rules_read(text: str) -> str:
    """The text as the rules are to see it, character by character."""
    text = _UNDECODED.sub("\ufffd", text).replace("…", ".")
    text = _SPACED_CLOSING.sub(r"\1 ", text)
    parts, end = [], 0
    for blank in _BLANK.finditer(text):
        parts += [_LINE.sub(" ", text[end : blank.start()]), _MARK]
        end = blank.end()
        parts.append(_PARAGRAPH * (end - blank.start() - 1))
    return "".join(parts)  # a blank line is last


def _goes_on(body: str, following: str, language: str) -> bool:
    """What ends in an abbreviation, an initial or an ordinal number is no sentence."""
    if body[-1] != ".":
        return False
    language = language.partition("-")[0].lower()
    *before, word = body.rsplit(None, 2)[-2:]
    word = word[:-1].lstrip(_AROUND)
    if len(word) == 1 and word.lower() != word.upper():
        return not (before and before[0][-1].isdigit())  # behind a figure it is a unit
    if word.isdigit():
        return language in _ORDINALS and len(word) <= 2
    return _listed(word, _ABBREVIATIONS.get(language, "")) or (
        following.isdigit() and _listed(word, _BEFORE_FIGURES.get(language, ""))
    )


def _listed(word: str, words: str) -> bool:
    return word in words.split() or word.lower() in words.split()
