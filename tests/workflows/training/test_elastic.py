"""How many workers go on when nodes are lost: the most that divide the lanes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.workflows.training.corpus import tiny_config
from workflows.training.elastic import workers_for


@given(st.integers(0, 70), st.integers(1, 64))
def test_it_is_the_largest_divisor_that_fits(possible: int, lanes: int) -> None:
    fitting = [count for count in range(1, lanes + 1) if lanes % count == 0 and count <= possible]
    assert workers_for(possible, lanes) == max(fitting, default=0)


def test_fewer_workers_than_all_may_be_allowed_and_not_more(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("c")
    assert tiny_config(folder, folder, compute__min_workers=1).compute.min_workers == 1
    with pytest.raises(ValidationError, match=r"compute.min_workers 3 is above compute.workers 2"):
        tiny_config(folder, folder, compute__min_workers=3)


@given(st.integers(0, 70), st.integers(1, 64), st.integers(1, 8))
def test_tensor_groups_stay_whole(possible: int, lanes: int, tensor: int) -> None:
    fitting = [n * tensor for n in range(1, lanes + 1) if lanes % n == 0 and n * tensor <= possible]
    assert workers_for(possible, lanes, tensor) == max(fitting, default=0)
