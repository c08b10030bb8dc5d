"""The packing benchmark: its figures from its own packs by hand, and the bound that it is there for."""

from itertools import islice

import pytest

from workflows.bench import documents, packing

SHARES = {"efficiency", "attention_efficiency", "next_fit", "padded", "tokens_per_document"}


@pytest.fixture(scope="module")
def told() -> dict:
    return packing.measure(1, budgets=(1024,), packs=8).to_json()


def test_packs_and_rectangles_are_filled_on_every_mixture(told: dict) -> None:
    assert set(told["mixtures"]) == {"shapes in 1024", "captions in 1024", "stories in 1024"}
    for shares in told["mixtures"].values():
        assert set(shares) == SHARES
        assert shares["padded"] < shares["next_fit"] < shares["efficiency"] <= 1
        assert 0.97 <= shares["attention_efficiency"] <= 1
    assert told["efficiency"] == min(m["efficiency"] for m in told["mixtures"].values()) > 0.99


def test_the_contracts_keys_are_there(told: dict) -> None:
    assert {"name", "ours", "peer", "unit", "runs", "machine", "versions", "ratio", "efficiency"} <= set(told)
    assert told["ratio"] == told["ours"] / told["peer"] == pytest.approx(told["efficiency"] / told["peer"])


def test_shares_are_those_counted_by_hand() -> None:
    stream = packing.Stream({"captions": 1.0}, 3, packing.objective())
    lengths = [[e.length for e in pack] for pack in islice(stream.packs(150, 1), 5)]
    shares = packing.shares(stream, 150, 5)
    assert shares["next_fit"] == sum(map(sum, lengths)) / 750
    assert shares["padded"] == sum(map(sum, lengths)) / sum(len(pack) * max(pack) for pack in lengths)
    ours = [[e.length for e in pack] for pack in islice(stream.packs(150, packing.LOOK_AHEAD), 5)]
    assert shares["efficiency"] == sum(map(sum, ours)) / 750
    assert shares["tokens_per_document"] == sum(map(sum, ours)) / sum(map(len, ours))


@pytest.mark.parametrize("kind", ["captions", "questions", "stories"])
def test_documents_are_pure_functions_of_kind_number_and_seed(kind: str) -> None:
    first, again, other = (documents.draw(kind, n, 0) for n in (5, 5, 6))
    assert first.document == again.document != other.document
    assert (
        first.document.kind
        == {"captions": "pair", "questions": "instruction", "stories": "interleaved"}[kind]
    )
    assert len(first.latents) == len(first.features) == len(first.document.images)
    assert {a.shape for a in first.latents} == {documents.LATENT}
