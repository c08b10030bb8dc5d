"""Leases between real processes: one holder, takeover of the dead at once, of the silent after the expiry."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningStack
from workflows import leases
from workflows.errors import OneFlowError
from workflows.leases import Holder, Lost, claim, held, share, survey

HOLD = """
import sys, time
from workflows import leases
lease = getattr(leases, sys.argv[1])(*sys.argv[2:])
print("held", flush=True)
time.sleep(600)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that holds a lease, and returns when it does."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, *arguments], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def elsewhere(root: Path, name: str, age_s: float) -> None:
    """The lease looks as if a process of another machine held it, and renewed it so long ago."""
    path = root / "leases" / f"{name}.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"machine": "other", "host": "far", "renewed": time.time() - age_s}))


def test_one_holds_and_the_other_is_told_whom(tmp_path: Path, start: Start) -> None:
    first = start("claim", str(tmp_path), "build-c", "c is being built")
    with pytest.raises(OneFlowError, match=rf"c is being built by process {first.pid} on .*expires in \d+ s"):
        claim(str(tmp_path), "build-c", "c is being built")
    with claim(str(tmp_path), "build-d", "d is being built"):
        assert survey(str(tmp_path)).live.keys() == {"build-c", "build-d"}
    first.kill()
    first.wait()
    begin = time.monotonic()
    with claim(str(tmp_path), "build-c", "c is being built") as lease:
        lease.check()
    assert time.monotonic() - begin < leases.EXPIRY_S / 2, "the dead of this machine are not waited for"
    assert survey(str(tmp_path)).live == {}


def test_a_silent_holder_of_another_machine_has_until_the_expiry(tmp_path: Path) -> None:
    claim(str(tmp_path), "b", "x").close()
    elsewhere(tmp_path, "b.1", 0)
    tree = json.loads((tmp_path / "leases/b.1.json").read_text())
    (tmp_path / "leases/b.1.json").write_text(json.dumps(tree | {"released": False}))
    elsewhere(tmp_path, "b.1", leases.EXPIRY_S - 5)
    with pytest.raises(OneFlowError, match="on far"):
        claim(str(tmp_path), "b", "x")
    begin = time.monotonic()
    with claim(str(tmp_path), "b", "x", wait_s=200):
        assert 1 < time.monotonic() - begin < 100


def test_a_holder_that_was_passed_over_may_not_commit(tmp_path: Path) -> None:
    with claim(str(tmp_path), "b", "x") as first:
        elsewhere(tmp_path, "b.1", leases.EXPIRY_S + 1)
        first.check()
        with claim(str(tmp_path), "b", "x") as second:
            second.check()
            with pytest.raises(Lost, match="was taken over by process"):
                first.check()
        with pytest.raises(Lost, match="was taken over"):
            first.check()


def test_a_holder_that_could_not_renew_may_not_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claim(str(tmp_path), "b", "x", expiry_s=2.0) as lease:
        time.sleep(3.0)
        lease.check()

        def fails(url: str, holder: Holder, if_absent: bool = False) -> bool:
            raise OneFlowError("store", "is away", "wait")

        with monkeypatch.context() as patched:
            patched.setattr(leases, "_write", fails)
            time.sleep(3.0)
            with pytest.raises(Lost, match="was not renewed for 2 s"):
                lease.check()
        time.sleep(1.0)
        with pytest.raises(Lost):
            lease.check()


def test_of_many_that_claim_at_once_one_holds(tmp_path: Path) -> None:
    claim(str(tmp_path), "b", "x").close()
    won, lost, go = list[leases.Lease](), list[OneFlowError](), threading.Barrier(8)

    def run() -> None:
        go.wait()
        try:
            won.append(claim(str(tmp_path), "b", "x"))
        except OneFlowError as error:
            lost.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 7
    won[0].check()
    won[0].close()


def test_a_listing_that_is_behind_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        claim(str(tmp_path), "b", "x").close()
    with claim(str(tmp_path), "b", "x"), monkeypatch.context() as patched:
        listed = leases.list_urls
        patched.setattr(leases, "list_urls", lambda url: listed(url)[:2])
        with pytest.raises(OneFlowError, match="x by process"):
            claim(str(tmp_path), "b", "x")


def test_shared_leases(tmp_path: Path, start: Start) -> None:
    root = str(tmp_path)
    with share(root, "read-c-v1"), share(root, "read-c-v1"):
        other = start("share", root, "read-c-v2")
        assert len(survey(root).live) == 3
        other.kill()
        other.wait()
        seen = survey(root)
        assert len(seen.live) == 2 and len(seen.ended) == 1
    seen = survey(root)
    assert seen.live == {} and len(seen.ended) == 1, "those that were closed are gone"


def test_what_is_no_lease_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases/b.7.json").write_text("{")
    (tmp_path / "leases/note.txt").write_text("")
    assert held(str(tmp_path), "b") is None
    with claim(str(tmp_path), "b", "x"):
        assert (tmp_path / "leases/b.8.json").is_file()


def test_nothing_secret_is_in_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecret")
    with claim(str(tmp_path), "b", "x"):
        text = (tmp_path / "leases/b.1.json").read_text()
    assert set(json.loads(text)) == {f.name for f in dataclasses.fields(Holder)}
    assert "topsecret" not in text


def test_on_s3(stack: RunningStack) -> None:
    root = stack.url("leases-root")
    with claim(root, "b", "x") as lease, share(root, "read-c-v1"):
        with pytest.raises(OneFlowError, match="x by process"):
            claim(root, "b", "x")
        lease.check()
        assert len(survey(root).live) == 2
    with claim(root, "b", "x"):
        assert survey(root).succeeded == {"b.1.json"}
