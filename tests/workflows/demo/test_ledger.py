"""Stages are told, timed and, when they fail, named."""

from __future__ import annotations

import time

import pytest

from workflows.demo.ledger import Ledger
from workflows.errors import OneFlowError, Refused


def test_stages_are_told_and_timed() -> None:
    lines: list[str] = []
    ledger = Ledger(lines.append, total=2)
    with ledger.stage("corpus", "drawing") as note:
        time.sleep(0.05)
        note.result = "12 documents"
    with ledger.stage("train", "learning"):
        pass
    assert lines[0] == "[1/2] corpus: drawing"
    assert lines[1].startswith("[1/2] corpus: 12 documents (")
    assert [s.name for s in ledger.stages] == ["corpus", "train"]
    assert 0.05 <= ledger.stages[0].seconds < 60
    assert [line.split()[0] for line in ledger.table().splitlines()] == ["corpus", "train", "all"]


def test_a_failure_names_its_stage_and_keeps_its_exit_code() -> None:
    ledger = Ledger(lambda _: None, total=1)
    with (
        pytest.raises(Refused, match="stage promote: gate: too low; train longer") as caught,
        ledger.stage("promote", ""),
    ):
        raise Refused("gate", "too low", "train longer")
    assert caught.value.exit_code == 3
    with (
        pytest.raises(OneFlowError, match="stage train: ZeroDivisionError") as caught,
        ledger.stage("train", ""),
    ):
        _ = 1 / 0
    assert caught.value.exit_code == 1
    assert ledger.stages == []
