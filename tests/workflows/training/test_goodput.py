"""Goodput: the account that checkpoints and progress carry, against one that is kept by hand of a whole timeline."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workflows.training import attempts
from workflows.training.goodput import USEFUL, Account, Goodput, Part, read, resumed
from workflows.training.parallel import Worker

PARTS: tuple[Part, ...] = (*USEFUL, "lost", "restart")


@dataclass
class Attempt:
    """What one attempt did: from when to when each part went on, and the moments that it left a sign at."""

    parent: tuple[int, float] | None
    """Attempt and moment of the checkpoint that it went on from."""
    spans: list[tuple[float, float, Part]] = field(default_factory=list)
    signs: list[float] = field(default_factory=list)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Timeline:
    """Attempts that are killed at random moments, kept by hand and by accounts at once."""

    def __init__(self, seed: int) -> None:
        self.rng, self.clock = random.Random(seed), Clock()
        self.attempts: list[Attempt] = []
        self.commits: list[tuple[int, float, Goodput]] = []
        self.last: Goodput | None = None

    def live(self, steps: int) -> Goodput:
        """One attempt of up to `steps` steps; its account when it is killed."""
        rng, number = self.rng, len(self.attempts)
        self.clock.now += rng.uniform(1, 30)
        base = self.commits[-1] if self.commits else None
        attempt = Attempt((base[0], base[1]) if base else None)
        self.attempts.append(attempt)
        stored = read(json.loads(json.dumps(dataclasses.asdict(base[2])))) if base else None
        account = Account(resumed(stored, self.last, 1000.0, self.clock.now), self.clock)
        for _ in range(rng.randint(0, steps)):
            self._spend(account, attempt, "data_wait")
            self._spend(account, attempt, "steps")
            if rng.random() < 0.4:
                self.last = account.now()
                attempt.signs.append(self.clock.now)
            if rng.random() < 0.3:
                self._spend(account, attempt, "evaluate")
            if rng.random() < 0.3:
                account.enter("checkpoint")
                self.commits.append((number, self.clock.now, account.now()))
                attempt.signs.append(self.clock.now)
                self._spend(account, attempt, "checkpoint")
        if self.commits and self.commits[-1][0] == number and rng.random() < 0.3:
            # A damaged checkpoint tells nothing, and the one before is gone on from.
            attempt.signs.remove(self.commits.pop()[1])
        return account.now()

    def _spend(self, account: Account, attempt: Attempt, part: Part) -> None:
        account.enter(part)
        begun = self.clock.now
        self.clock.now += self.rng.uniform(0, 5)
        attempt.spans.append((begun, self.clock.now, part))

    def by_hand(self) -> dict[Part, float]:
        """Seconds of each part: on the line of checkpoints that led to the end it counts, else it is lost."""
        until = {len(self.attempts) - 1: self.clock.now}
        parent = self.attempts[-1].parent
        while parent is not None:
            until[parent[0]] = parent[1]
            parent = self.attempts[parent[0]].parent
        sums: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
        for number, attempt in enumerate(self.attempts):
            alive = max([*attempt.signs, until.get(number, 0.0)], default=0.0)
            for begun, ended, part in attempt.spans:
                kept = max(0.0, min(ended, until.get(number, 0.0)) - begun)
                sums[part] += kept
                sums["lost"] += max(0.0, min(ended, alive) - begun) - kept
        sums["restart"] = self.clock.now - 1000.0 - sum(sums.values())
        return sums


@given(st.integers(0, 10**9), st.integers(1, 6))
def test_the_account_is_that_of_the_whole_timeline(seed: int, attempts: int) -> None:
    timeline = Timeline(seed)
    for _ in range(attempts):
        end = timeline.live(20)
    wanted = timeline.by_hand()
    assert {part: getattr(end, part) for part in PARTS} == pytest.approx(wanted, abs=1e-6)
    assert sum(wanted.values()) == pytest.approx(end.wall_s) == timeline.clock.now - 1000.0
    assert all(seconds >= -1e-6 for seconds in wanted.values())
    assert end.share == pytest.approx(wanted["steps"] / end.wall_s)


def test_metrics_are_the_share_and_the_seconds_of_each_part() -> None:
    account = Goodput(100.0, 100.0).spent("restart", 110.0).spent("steps", 140.0)
    assert account.metrics() == {
        "goodput/share": 0.75,
        "goodput/steps_s": 30.0,
        "goodput/data_wait_s": 0.0,
        "goodput/evaluate_s": 0.0,
        "goodput/checkpoint_s": 0.0,
        "goodput/lost_s": 0.0,
        "goodput/restart_s": 10.0,
    }
    assert account.spent("lost", 90.0) == account
    assert Goodput(5.0, 5.0).share == 0.0 and read(None) is None


def test_what_is_rolled_back_is_lost(tmp_path: Path) -> None:
    attempt = attempts.Attempt(str(tmp_path), Worker(0, 1, torch.device("cpu")), None, None)
    attempt.go_on(0, None)
    attempt.enter("steps")
    time.sleep(0.02)
    committed = attempt.goodput()
    time.sleep(0.05)
    before = attempt.goodput()
    attempt.roll_back(dataclasses.asdict(committed))
    after = attempt.goodput()
    assert after.lost >= before.useful() - committed.useful() >= 0.05
    assert after.useful() + after.lost >= before.useful() and after.steps >= committed.steps
    parts = sum(getattr(after, part) for part in (*USEFUL, "lost", "restart"))
    assert parts == pytest.approx(after.wall_s)
