"""A trace of some steps by torch.profiler, below the run's root; the tracker gets the table of costly operators."""

import logging
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from workflows.errors import OneFlowError
from workflows.storage import join, put_atomic
from workflows.tracking import Tracker
from workflows.training.config import ProfileSettings
from workflows.training.parallel import Worker

log = logging.getLogger(__name__)

ROWS = 40


class Profiler:
    """Profiles steps `start` to `stop` where this rank is asked to; elsewhere it does nothing."""

    def __init__(
        self, settings: ProfileSettings | None, worker: Worker, root: str, tracker: Tracker | None
    ) -> None:
        asked = settings is not None and worker.rank in settings.ranks
        self._settings = settings if asked else None
        self._worker, self._root, self._tracker = worker, root, tracker
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """`step` is about to begin."""
        settings = self._settings
        if self._profile is not None:
            self._profile.step()
        elif settings and step == settings.start - 1:
            self._profile = self._begun(settings)
        if settings and self._profile is not None and step > settings.stop:
            self._profile.stop()
            self._profile = self._settings = None

    def close(self) -> None:
        """Training is over; a trace that has begun ends here."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _begun(self, settings: ProfileSettings) -> profile:
        activities = [ProfilerActivity.CPU]
        if self._worker.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        begun = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=1, active=settings.stop - settings.start + 1, repeat=1),
            on_trace_ready=self._store,
            record_shapes=settings.shapes,
            profile_memory=settings.memory,
        )
        begun.start()
        return begun

    def _store(self, done: profile) -> None:
        assert self._settings
        name = f"steps-{self._settings.start}-{self._settings.stop}-rank-{self._worker.rank}"
        url = join(self._root, "profiles", f"{name}.json.gz")
        column = "cuda_time_total" if self._worker.device.type == "cuda" else "cpu_time_total"
        table = done.key_averages().table(sort_by=f"self_{column}", row_limit=ROWS)
        try:
            with tempfile.TemporaryDirectory(prefix="oneflow-profile-") as made:
                path = Path(made) / "trace.json.gz"
                done.export_chrome_trace(str(path))
                put_atomic(url, path.read_bytes())
            put_atomic(join(self._root, "profiles", f"{name}.txt"), table.encode())
            log.info("the trace of steps %d to %d is at %s", self._settings.start, self._settings.stop, url)
        except OneFlowError as error:
            log.warning("the trace is not stored: %s", error)
        if self._tracker:
            about = f"trace (open in https://ui.perfetto.dev): {url}\ntorch {torch.__version__}\n\n"
            self._tracker.text(f"profiles/{name}.txt", about + table)
