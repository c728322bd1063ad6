"""A trace of some training steps.

Perfetto (ui.perfetto.dev), chrome://tracing and TensorBoard's profiler plugin open it.
"""

import os
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from rnncls.rundir.log import RunLog
from rnncls.rundir.paths import TRACE

SKIPPED_STEPS = 20
TRACED_STEPS = 20


def traced(
    steps: Generator[int, None, None], steps_left: int, log: RunLog
) -> Generator[int, None, None]:
    """Yield what an engine yields, and trace some of its steps.

    Of at least 40 steps the 21st to 40th are traced, or more where they come in larger chunks; of
    fewer steps all. If the file cannot be written, the log says so and training continues.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    profiler = profile(activities=activities, record_shapes=True)

    first = SKIPPED_STEPS if steps_left >= SKIPPED_STEPS + TRACED_STEPS else 0
    last = first + TRACED_STEPS
    with closing(steps):
        if first > 0:
            yield from _take(steps, first)

        profiler.start()
        try:
            yield from _take(steps, last - first)
        finally:
            profiler.stop()
            log.write(TRACE, lambda: _export(profiler, log.run_dir / TRACE))
        yield from steps


def _take(steps: Generator[int, None, None], at_least: int) -> Generator[int, None, None]:
    """Yield from an engine until it has taken so many steps, or has ended."""
    taken = 0
    while taken < at_least:
        try:
            more = next(steps)
        except StopIteration:
            return
        taken += more
        yield more


def _export(profiler: "profile", path: Path) -> None:
    """Write the trace under a temporary name first, as the profiler writes bit by bit."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        profiler.export_chrome_trace(str(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
