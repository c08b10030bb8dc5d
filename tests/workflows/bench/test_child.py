from pathlib import Path

import pytest

from workflows.bench.child import ROOT, Child
from workflows.errors import OneFlowError

ECHO = "tests.workflows.bench.echo:echo"


def test_a_child_answers_in_turn_whatever_its_libraries_print(tmp_path: Path) -> None:
    with Child(ECHO, {"word": "hello"}, [tmp_path]) as child:
        answers = [child.ask(number=n, floats=[0.5]) for n in range(3)]
    assert [answer["asked"] for answer in answers] == [{"number": n, "floats": [0.5]} for n in range(3)]
    assert {answer["word"] for answer in answers} == {"hello"}
    assert answers[0]["path"][1:] == [str(tmp_path), str(ROOT)]


def test_a_child_that_ends_is_an_error_with_its_last_words() -> None:
    with Child(ECHO, {"word": "x"}) as child, pytest.raises(OneFlowError, match="MemoryError: no room"):
        child.ask(fail=True)
    with (
        Child("workflows.bench.nowhere:f", {}) as child,
        pytest.raises(OneFlowError, match="No module named"),
    ):
        child.ask()
