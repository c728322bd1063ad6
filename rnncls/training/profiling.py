"""A trace of some training steps, for Perfetto (ui.perfetto.dev), chrome://tracing or TensorBoard's profiler plugin."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

TRACE = "profile/steps.pt.trace.json"
SKIPPED, TRACED = 20, 20  # steps
Write = Callable[[Callable[[], object]], None]


@contextmanager
def traced(run_dir: Path, steps: int, write: Write) -> Iterator[Callable[[int], None]]:
    """Gives a function to be told how many steps were taken. Of at least 40 steps the 21st to 40th are traced, or more
    where they come in larger chunks; of fewer all. `write` calls what writes the file.
    """
    activities = [
        ProfilerActivity.CPU,
        *([ProfilerActivity.CUDA] if torch.cuda.is_available() else []),
    ]
    profiler = profile(activities=activities, record_shapes=True)
    begin = SKIPPED if steps >= SKIPPED + TRACED else 0
    taken, running, over = 0, False, False

    def stop() -> None:
        nonlocal running, over
        profiler.stop()
        running, over = False, True
        write(lambda: _export(profiler, run_dir / TRACE))

    def count(more: int) -> None:
        nonlocal taken, running
        taken += more
        if running and taken >= begin + TRACED:
            stop()
        elif not running and not over and taken >= begin:
            profiler.start()
            running = True

    count(0)
    try:
        yield count
    finally:
        if running:
            stop()


def _export(profiler: "profile", path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        profiler.export_chrome_trace(str(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
