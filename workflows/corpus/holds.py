"""Who holds what under a corpus root: one builder a corpus, any readers of a version, one collector of garbage.

Each writes its own lease first and looks at those of the others afterwards; so of two that come at the same moment
at least one sees the other.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from oneflow_core.data.manifest import MANIFEST_NAME, Manifest
from workflows.errors import OneFlowError
from workflows.leases import Lease, claim, held, share, wait_for
from workflows.storage import exists, join

BUILD, READ, COLLECT = "build-", "read-", "gc"
"""How the leases' names begin."""
READ_EXPIRY_S = 900.0
"""A reader may be cut off from the store for longer than a builder before its version may be collected."""
_BASE = re.compile(r"(.+)/shards/([^/]+)/([^/]+)")


@contextmanager
def building(root: str, name: str, wait_s: float = 0.0) -> Iterator[Lease]:
    """The lease of the one builder of the corpus `name`.

    Raises:
        OneFlowError: another process builds it, or garbage is being collected.
    """
    with claim(root, f"{BUILD}{name}", f"corpus {name} is being built", wait_s=wait_s) as lease:
        if (collector := held(root, COLLECT)) is not None:
            raise OneFlowError(
                f"corpus root {root}",
                f"garbage is being collected by {collector.told()}",
                "run the command again when it is done",
            )
        yield lease


@contextmanager
def reading(manifests: Sequence[Manifest]) -> Iterator[None]:
    """Within, no collection of garbage removes these versions.

    A store that cannot be written is read nevertheless: a line says that nothing but the grace period guards it.

    Raises:
        OneFlowError: a version was collected since its manifest was read.
    """
    with ExitStack() as stack:
        for manifest in manifests:
            match = _BASE.fullmatch(manifest.base.rstrip("/"))
            if match is None:
                # Not under a corpus root, so nobody collects garbage there.
                continue
            try:
                lease = share(match[1], f"{READ}{match[2]}-{match[3]}", expiry_s=READ_EXPIRY_S)
            except OneFlowError as error:
                print(
                    f"no lease on {manifest.base}, oneflow corpus gc may remove it: {error}", file=sys.stderr
                )
                continue
            stack.enter_context(lease)
            wait_for(match[1], COLLECT, "waiting for the end of a collection of garbage")
            if not exists(join(manifest.base, MANIFEST_NAME)):
                raise OneFlowError(
                    f"corpus {manifest.base}", "it was removed by oneflow corpus gc", "name another version"
                )
        yield


@contextmanager
def collecting(root: str) -> Iterator[Lease]:
    """The lease of the one collector of garbage under `root`."""
    with claim(root, COLLECT, "garbage is being collected") as lease:
        yield lease
