"""Digests as arrays do what sets and dictionaries of strings do."""

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from workflows.corpus.digests import distinct, find, of_column, of_hex, to_hex

TEXTS = st.lists(
    st.integers(0, 30).map(
        lambda i: hashlib.sha256(bytes([i])).hexdigest()[: 64 - 2 * (i % 3)].ljust(64, "0")
    ),
    max_size=40,
)
"""Some of them end in bytes of zero, which numpy takes for padding."""


@given(TEXTS, TEXTS)
def test_arrays_of_digests(some: list[str], others: list[str]) -> None:
    digests = of_hex(some)
    assert to_hex(digests) == some
    assert to_hex(distinct(digests)) == list(dict.fromkeys(some))
    assert np.array_equal(of_column(pa.chunked_array([some[:3], some[3:]], pa.string())), digests)
    held = np.unique(of_hex(others))
    places = find(digests, held)
    assert [bool(place >= 0) for place in places] == [text in set(others) for text in some]
    assert all(to_hex(held)[place] == text for place, text in zip(places, some, strict=True) if place >= 0)
