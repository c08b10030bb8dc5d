"""A reader beside builds that are being killed: follows `latest` and every manifest, and verifies what they promise.

Run as a process of its own with the URLs of corpora's directories; ends when its stdin does, and then prints JSON.
"""

import json
import sys
import threading
import time
from dataclasses import dataclass, field

from oneflow_core.data.manifest import LATEST_NAME, MANIFEST_NAME
from workflows.corpus.verify import Unsound, verify
from workflows.errors import OneFlowError
from workflows.storage import exists, join, list_urls

PAUSE_S = 0.2
PROBLEMS = 10


@dataclass
class Sightings:
    """What the watcher saw. `away` are looks that the store did not answer, which prove nothing."""

    whole: int = 0
    away: int = 0
    half: list[str] = field(default_factory=list)

    def look(self, url: str) -> None:
        """Verify what is readable of the corpus at `url` now."""
        try:
            found = [u.rpartition("/")[0] for u in list_urls(join(url, "*", MANIFEST_NAME))]
            found += [url] if exists(join(url, LATEST_NAME)) else []
        except OneFlowError:
            self.away += 1
            return
        for base in found:
            self._verify(base)

    def _verify(self, base: str) -> None:
        try:
            verify(base, deep=True)
            self.whole += 1
        except Unsound as error:
            self.half += [str(error)] if len(self.half) < PROBLEMS else []
        except OneFlowError:
            self.away += 1


def main(urls: list[str]) -> None:
    """Look until stdin ends."""
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    seen = Sightings()
    while not ended.is_set():
        for url in urls:
            seen.look(url)
        time.sleep(PAUSE_S)
    for url in urls:
        seen.look(url)
    print(json.dumps({"whole": seen.whole, "away": seen.away, "half": seen.half}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
