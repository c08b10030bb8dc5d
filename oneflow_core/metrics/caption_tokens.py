"""Captions as pycocoevalcap's Java tokenizer cuts them (the Penn Treebank's rules, lower case, no punctuation)."""

from __future__ import annotations

import re

DROPPED = frozenset(["''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", ";"])
"""Single marks; of brackets the official list names only upper-case forms, which its lower case never meets."""
RENAMED = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))
SPLIT = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "wanna": ("wan", "na"),
    "gotta": ("got", "ta"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
}
CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("’‘‛", "'"),
        **dict.fromkeys("“”„«»–—…\u200b", " "),
        **{"½": "1/2", "¼": "1/4", "¾": "3/4", "£": "#", "€": "$"},
    }
)
BEYOND = re.compile("&(amp|lt|gt);|[\U00010000-\U0010ffff]")
"""Entities, which are read, and characters outside the first plane, which are lost."""
ENTITIES = {"amp": "&", "lt": "<", "gt": ">"}
ABBREVIATIONS = """
mr mrs ms dr prof rev sen rep gov gen col maj lt capt cpl sgt pvt cmdr adm hon pres supt sr jr st ste mt ft ave blvd rd
ct sq bldg dept univ assn bros co corp inc ltd plc etc vs cf al est jan feb mar apr jun jul aug sep sept oct nov dec mon
tue tues wed thu thurs fri ala ariz calif colo conn fla ga ind kan ky md mich minn mo mont neb nev okla penn tenn va vt
wis wyo ph\\.d ph intl tel messrs mme mlle cie elec ext mfg assoc [a-z]
"""
"""What keeps its full stop; a single letter does."""
TOKEN = re.compile(
    rf"""
    https?://\S+ | [^\W_][\w.]*@[^\W_]+(?:\.[^\W_]+)+ | [@#][^\W\d]\w* | </?[a-z][^<>\s]*>
    | [a-z]\.(?:[a-z]\.)+ | (?:{"|".join(ABBREVIATIONS.split())})\.(?![^\W_])
    | (?:art|ca|figs?|nos?|op|pp)\.(?=\s*\d)
    | (?:(?<!\w)[-+])?(?:
        \d[\d.,:/]*[^\W\d_]*(?:-[^\W_]+)+ | \d+(?=[ap]m\b) | (?:\d+(?:[.,:/]\d+)+|\.\d+)(?:st|nd|rd|th|s)?
        | \d+(?![^\W_]) )
    | [old]'(?!ll\b)[^\W\d_]{{2,}} | ma'am\b | s'mores\b | c'mon\b | li'l\b | nor'easter\b | y'(?=all\b)
    | (?<!\w)(?:'em\b|'cause\b|'t(?=is\b|was\b)) | '?n'(?=\s|[^\W_]|$)(?!t\b) | (?<=\s)'n(?=\s)
    | n't\b | '(?:s|m|d|ll|re|ve)\b
    | (?:(?!n't\b)[^\W_])+(?:(?:[-_/](?=[^\W_])|\.(?=[^\W\d_]))[^\W_]+)*
    | \.{{2,}} | -{{2,}} | [?!]+ | _+ | [^\s\w]
    """,
    re.VERBOSE,
)


def caption_tokens(caption: str) -> list[str]:
    """Lower-case tokens in the manner of the Penn Treebank, without punctuation: "don't" is "do", "n't"."""
    plain = BEYOND.sub(lambda found: ENTITIES.get(found[1] or "", " "), caption.lower().translate(CHARACTERS))
    tokens: list[str] = []
    for token in TOKEN.findall(plain):
        if token not in DROPPED and token.strip(".") and token.strip("-"):
            tokens += SPLIT.get(token, (RENAMED.get(token, token),))
    return tokens
