"""A trace of some training steps.

Perfetto (ui.perfetto.dev), chrome://tracing and TensorBoard's profiler plugin open it.
"""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from rnncls.rundir.log import RunLog
from rnncls.rundir.paths import TRACE
from rnncls.system.files import temporary_path

SKIPPED_STEPS = 20
TRACED_STEPS = 20


def traced(
    steps: Generator[int, None, None], steps_left: int, log: RunLog
) -> Generator[int, None, None]:
    """Yield what an engine yields, and trace some of its steps.

    Of at least 40 steps the 21st to 40th are traced, of fewer the first 20; more where they come in
    larger chunks. If the file cannot be written, the log says so and training continues.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # There is one cycle, so nothing accumulates; torch 2.11 warns without acc_events all the same.
    profiler = profile(activities=activities, record_shapes=True, acc_events=True)

    def stop() -> None:
        profiler.stop()
        log.write(TRACE, lambda: _export(profiler, log.run_dir / TRACE))

    # The first steps of a process are slower than the rest: kernels are compiled or loaded.
    start_after = SKIPPED_STEPS if steps_left >= SKIPPED_STEPS + TRACED_STEPS else 0
    stop_after = start_after + TRACED_STEPS

    taken = 0
    is_running = False
    with closing(steps):
        if start_after == 0:
            profiler.start()
            is_running = True

        try:
            for more in steps:
                is_skipped = taken < start_after
                taken += more

                # Stopped before the yield, at which the caller may evaluate and save.
                if is_running and taken >= stop_after:
                    stop()
                    is_running = False
                elif is_skipped and taken >= start_after:
                    profiler.start()
                    is_running = True
                yield more

        # A run that ends early or fails has a trace of what there was.
        finally:
            if is_running:
                stop()


def _export(profiler: "profile", path: Path) -> None:
    """Write the trace under a temporary name first, as the profiler writes bit by bit."""
    path.parent.mkdir(exist_ok=True)
    temporary = temporary_path(path)
    try:
        profiler.export_chrome_trace(str(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
