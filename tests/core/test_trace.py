"""A decoded trace tells the same text as the tokens, piece by piece."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oneflow_core.sampling.types import Trace as TokenTrace
from oneflow_core.tokenizer import Tokenizer
from oneflow_core.trace import decode_trace

TOKENIZER = Tokenizer.from_pretrained("embedded")
TEXTS = st.text() | st.sampled_from(["naïve €5 😀", "a red circle", "\ufffd", "\u0000"])
IDS = st.lists(
    st.integers(0, TOKENIZER.vocab_size - 1).filter(lambda i: i != TOKENIZER.image_id), max_size=20
)


def trace_of(tokens: list[int]) -> TokenTrace:
    times = np.random.default_rng(len(tokens)).random(len(tokens)).tolist()
    return TokenTrace(tuple(tokens), tuple(times), tuple(range(len(tokens))), 5)


@given(st.lists(TEXTS.map(TOKENIZER.encode) | IDS, min_size=1, max_size=4))
def test_pieces_of_a_segment_joined_are_its_text(parts: list[list[int]]) -> None:
    tokens = [*parts[0]]
    for part in parts[1:]:
        tokens += [TOKENIZER.image_id, *part]
    found = decode_trace(trace_of(tokens), TOKENIZER)
    expected, segment = {}, 0
    for number, part in enumerate(parts):
        if part:
            expected[segment] = TOKENIZER.decode(part)
        segment += bool(part) + (number < len(parts) - 1)
    for number, text in expected.items():
        pieces = [p for p in found.insertions if p.segment == number]
        assert "".join(p.text for p in pieces) == text
        assert [p.start for p in pieces] == list(np.cumsum([0, *(len(p.text) for p in pieces)])[:-1])
    assert {p.segment for p in found.insertions} <= set(expected)
    assert len(found.images) == len(parts) - 1
    assert not {i.segment for i in found.images} & set(expected)


def test_a_character_of_several_tokens_came_with_its_last() -> None:
    tokens = TOKENIZER.encode("🫠")
    assert len(tokens) > 1
    times = [0.9, *([0.1] * (len(tokens) - 1))]
    found = decode_trace(TokenTrace(tuple(tokens), tuple(times), tuple(range(len(tokens))), 9), TOKENIZER)
    (piece,) = found.insertions
    assert (piece.text, piece.time, piece.step, found.passes) == ("🫠", 0.9, len(tokens) - 1, 9)


def test_json_holds_plain_values() -> None:
    tokens = [*TOKENIZER.encode("a"), TOKENIZER.image_id]
    found = decode_trace(TokenTrace(tuple(tokens), (0.5, 0.25), (3, 1), 9), TOKENIZER)
    assert found.to_json() == {
        "insertions": [{"segment": 0, "start": 0, "text": "a", "time": 0.5, "step": 3}],
        "images": [{"segment": 1, "time": 0.25, "step": 1}],
        "passes": 9,
        "deleted": 0,
    }
