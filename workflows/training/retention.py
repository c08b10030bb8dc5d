"""Which checkpoints stay, and which attempt of a run may write: the newest that has written at all.

Each attempt takes a number, `attempts/<n>.json`, put only if it is absent. Whoever has n + 1 has taken over from n:
an attempt that sees a higher number commits nothing any more. So what earlier ones left without a commit is nobody's.
"""

import logging
import re

from workflows.errors import OneFlowError
from workflows.storage import (
    delete,
    exists,
    join,
    list_directories,
    list_unfinished,
    list_urls,
    read_json,
    write_json,
)
from workflows.training.commit import NAME, commit_name

log = logging.getLogger(__name__)
ATTEMPT = re.compile(r"(\d{6})\.json$")
DIRECTORY = re.compile(r"step-(\d{9})-[\w-]+")


class TakenOver(OneFlowError):
    """A later attempt of the same run writes its checkpoints."""


class Attempt:
    """This attempt among those of the run at `root`; `name` is its own, and part of the names of its directories."""

    def __init__(self, root: str, name: str) -> None:
        self._root, self.name = root, name
        self._number = 0

    def begin(self) -> None:
        """Take over from all before, once."""
        while not self._number:
            number = max(_numbers(self._root), default=0) + 1
            if write_json(_attempt_url(self._root, number), {"attempt": self.name}, if_absent=True):
                self._number = number

    def check(self) -> None:
        """Raise TakenOver if a later attempt has begun; call it before anything is committed or removed."""
        newest = max(_numbers(self._root), default=0)
        if newest > self._number:
            mend = "let that one run, or end it and run the command again"
            raise TakenOver(f"run at {self._root}", f"attempt {newest} has taken it over", mend)

    def directory(self, step: int, save: int) -> str:
        """Name of the directory that this attempt's save number `save` goes into."""
        return f"step-{step:09d}-{self.name}-{save}"

    def forget_earlier(self) -> None:
        """Remove the marks of attempts that this one took over from."""
        for number in _numbers(self._root):
            if number < self._number:
                delete(_attempt_url(self._root, number))


class Retention:
    """Keeps the newest `keep` checkpoints and those of steps that `every` divides; removes the others' files."""

    def __init__(self, root: str, keep: int, every: int | None, attempt: Attempt) -> None:
        self._root, self._keep, self._every, self._attempt = root, keep, every, attempt
        self._swept = False
        self.unused: list[str] = []
        """Directories of this attempt that have no commit, unless the answer to it was lost on its way."""

    def tidy(self) -> None:
        """After a commit; what cannot be removed now is left for the next time."""
        try:
            while self.unused:
                if not self._is_committed(self.unused[-1]):
                    delete(join(self._root, self.unused[-1]), recursive=True)
                self.unused.pop()
            for step in self._too_many():
                self._remove(step)
            if not self._swept:
                self._sweep()
                self._swept = True
        except OneFlowError as error:
            log.warning("old checkpoints were not removed: %s", error)

    def _too_many(self) -> list[int]:
        older = committed_steps(self._root)[self._keep :]
        return [step for step in older if not (self._every and step % self._every == 0)]

    def _remove(self, step: int) -> None:
        """The commit first, so that no commit lacks its files."""
        directory = self._directory_of(step)
        delete(join(self._root, "commits", commit_name(step)))
        if directory:
            delete(join(self._root, directory), recursive=True)

    def _sweep(self) -> None:
        """Remove what earlier attempts left without a commit.

        All is listed before the check: what a later attempt makes after it is not among it.
        """
        found = [d for d in list_directories(self._root) if DIRECTORY.fullmatch(d)]
        unfinished = [
            url for part in ("commits", "attempts") for url in list_unfinished(join(self._root, part))
        ]
        self._attempt.check()
        for url in unfinished:
            delete(url)
        for directory in found:
            if f"-{self._attempt.name}-" not in directory and not self._is_committed(directory):
                delete(join(self._root, directory), recursive=True)
        self._attempt.forget_earlier()

    def _is_committed(self, directory: str) -> bool:
        return self._directory_of(int(directory.split("-")[1])) == directory

    def _directory_of(self, step: int) -> str | None:
        """Where the files of the commit of `step` lie; None where there is no commit that says it."""
        url = join(self._root, "commits", commit_name(step))
        tree = read_json(url) if exists(url) else None
        return str(tree["directory"]) if isinstance(tree, dict) and tree.get("directory") else None


def committed_steps(root: str) -> list[int]:
    """Steps that have a commit below `root`, newest first: one listing."""
    found = (NAME.search(url) for url in list_urls(join(root, "commits", "*.json")))
    return sorted((int(match.group(1)) for match in found if match), reverse=True)


def _numbers(root: str) -> list[int]:
    found = (ATTEMPT.search(url) for url in list_urls(join(root, "attempts", "*.json")))
    return [int(match.group(1)) for match in found if match]


def _attempt_url(root: str, number: int) -> str:
    return join(root, "attempts", f"{number:06d}.json")
