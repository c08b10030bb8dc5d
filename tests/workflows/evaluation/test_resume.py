"""A killed evaluation, started again, asks only what is missing, and ends as one that was never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import RunningStack
from workflows.evaluation.item import Output
from workflows.evaluation.outputs import OutputStore, from_json, to_json

from .oracle import Deployment, deployment

SETS = [
    *(f"items.{name}=6" for name in ("t2i_multi", "caption_multi", "vqa", "story", "no_prompt")),
    *("items.t2i_single=6", "items.caption_single=6", "requests.concurrency=4"),
]


def start(server: Deployment, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workflows", "evaluate", "oracle", "--url", server.url, "--no-gate"]
    sets = [part for override in SETS for part in ("--set", override)]
    return subprocess.Popen(
        [*command, "--out", str(out), "--json", *sets, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
    )


def stop_in_the_middle(server: Deployment, process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Sends the signal when some items are answered; what the process said."""
    deadline = time.monotonic() + 500
    while len(server.bodies) < 20:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(number)
    return process.communicate(timeout=300)[1]


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    result: dict[str, object] = json.loads(out.splitlines()[-1])
    return result


def rows(out: Path) -> list[dict[str, object]]:
    """items.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "attempts")} for row in found]


@pytest.mark.parametrize("together", [1, 4])
def test_killed_torn_failed_and_started_again(tmp_path: Path, together: int) -> None:
    out, lanes = tmp_path / "out", ("--set", f"requests.concurrency={4 * together}")
    with deployment("oracle", "1") as whole:
        result = finish(start(whole, tmp_path / "whole", *lanes))
    total = result["items"]
    assert isinstance(total, int) and len(whole.bodies) == total and result["resumed"] == 0
    assert not list((tmp_path / "whole" / "unfinished").iterdir()), "nothing is left where all is done"

    with deployment("oracle", "1") as server:
        server.slow_s = 0.05
        stop_in_the_middle(server, start(server, out, *lanes), signal.SIGKILL)
        (folder,) = (out / "unfinished").iterdir()
        (file,) = folder.glob("*.jsonl")
        kept = file.read_bytes()
        file.write_bytes(kept[: len(kept) - 30])
        lines = len(kept.splitlines()) - 1
        assert (12 if together == 1 else 4) <= lines < total - 4

        # Ctrl-C: what is under way is kept too, and the command says so.
        server.bodies.clear()
        process = start(server, out, *lanes)
        said = stop_in_the_middle(server, process, signal.SIGINT)
        assert process.returncode == 130 and "asks only what is missing" in said
        assert f"{lines} were answered before" in said
        stopped = len(server.bodies)
        assert lines + stopped < total

        # An item that fails is recorded, counts as wrong, and is asked again.
        server.bodies.clear()
        server.slow_s = 0.0
        if together == 1:
            server.troubles = [(422, b"no")]
        else:
            server.inner = {0: (422, "no")}
        result = finish(start(server, out, *lanes))
        assert result["failed"] == 1 and result["resumed"] == lines + stopped
        assert len(server.bodies) == total - lines - stopped
        assert [row["error"] for row in rows(out) if row["error"]] == ["HTTP 422: no"]
        server.bodies.clear()
        result = finish(start(server, out, *lanes))
        assert result["failed"] == 0 and len(server.bodies) == 1 and result["resumed"] == total - 1
    assert rows(out) == rows(tmp_path / "whole")
    assert not list((out / "unfinished").iterdir())


def test_another_model_or_option_starts_anew_and_a_store_in_a_bucket_works(
    stack: RunningStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workflows.config import load
    from workflows.evaluation.run import run
    from workflows.storage import list_urls

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    url = stack.url("unfinished")

    def asked(version: str, *more: str, stop: int | None = None) -> int:
        """How many items were asked; after `stop` of them Ctrl-C."""
        config = load("evaluate", "shapes", [*SETS, "gate=null", f"resume={url}", *more])
        with deployment("oracle", version) as server, monkeypatch.context() as patch:
            if stop is None:
                run(config, "oracle", url=server.url)
            else:
                patch.setattr(OutputStore, "add", stopping(stop))
                with pytest.raises(KeyboardInterrupt):
                    run(config, "oracle", url=server.url)
            return len(server.bodies)

    def stopping(count: int) -> Callable[[OutputStore, str, Output], None]:
        add = OutputStore.add

        def stop(store: OutputStore, key: str, output: Output) -> None:
            add(store, key, output)
            if len(store.kept) == count:
                raise KeyboardInterrupt

        return stop

    first = asked("1", stop=10)
    assert 10 <= first < 20 and len(list_urls(url)) == 1
    other = asked("2", stop=10)
    assert 10 <= other < 20 and len(list_urls(url)) == 2, "of another model"
    changed = asked("1", "requests.text.steps=3", stop=10)
    assert 10 <= changed < 20 and len(list_urls(url)) == 3, "asked in another way"
    total = asked("1", "seed=1")
    assert first + asked("1") == total
    assert other + asked("2") == total and changed + asked("1", "requests.text.steps=3") == total
    assert list_urls(url) == []


PARTS = st.lists(st.one_of(st.text(), st.binary()), max_size=3).map(tuple)


@given(st.dictionaries(st.text(min_size=1), st.tuples(PARTS, st.text()), max_size=5), st.integers(0, 500))
@settings(max_examples=30)
def test_a_file_that_ends_anywhere_gives_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, tuple[tuple[str | bytes, ...], str]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    outputs = {key: Output(parts, error, 0.25, 2, {"name": "a"}) for key, (parts, error) in made.items()}
    store = OutputStore(str(folder))
    for key, output in outputs.items():
        assert from_json(json.loads(json.dumps(to_json(output)))) == output
        store.add(key, output)
    store.close()
    (file,) = folder.glob("*.jsonl")
    data = file.read_bytes()
    file.write_bytes(data[: max(0, len(data) - cut)])
    whole = data[: max(0, len(data) - cut)].count(b"\n")
    found = OutputStore(str(folder))
    found.close()
    assert whole <= len(found.kept) <= whole + 1, "a line may lack nothing but its end"
    assert all(outputs[key] == output for key, output in found.kept.items())


def test_what_came_through_once_is_not_replaced_by_a_failure(tmp_path: Path) -> None:
    for outputs in ([Output(("a",)), Output(error="no")], [Output(error="no")]):
        store = OutputStore(str(tmp_path))
        for output in outputs:
            store.add("key", output)
        store.close()
    assert OutputStore(str(tmp_path)).kept["key"].text == "a"
