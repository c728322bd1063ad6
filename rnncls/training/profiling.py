"""How long the parts of a step take: as a text, and as a trace that Perfetto opens.

Measured are eager steps of a copy beside the run, whatever engine the run has: in one call of a
compiled program or a replayed graph there is nothing to see. The run keeps its bits.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from rnncls.data import Batch, PaddedBatch, Task
from rnncls.rundir.log import RunLog
from rnncls.rundir.paths import PROFILE_TEXT, TRACE
from rnncls.steps.beside import copy_of, same_random_state
from rnncls.steps.eager import batches_of, draw_keys
from rnncls.steps.objective import losses_of_batch
from rnncls.steps.optim import clip_grad_norm, learning_rate
from rnncls.steps.state import TrainState
from rnncls.system.files import temporary_path, write_atomically
from rnncls.system.signals import StopRequest

# The first steps of a process are slower than the rest: kernels are compiled or loaded.
SKIPPED_STEPS = 5

# Steps that are timed, and then as many that are traced: tracing takes time of its own.
TIMED_STEPS = 20
TRACED_STEPS = 20

PARTS = ("batch", "forward", "backward", "optimizer")


def write_profile(
    state: TrainState, task: Task, log: RunLog, stop: StopRequest, engine: str
) -> None:
    """Measure the next steps of a run, and write what they take into its folder.

    `engine`: the name of the one that will take them. The last steps of a run may not be enough:
    then the batches of steps behind its end are measured. If a file cannot be written, the log says
    so and training continues. After a signal nothing more is measured.
    """
    copied = copy_of(state, task.config)
    batches = batches_of(copied, task, state.step + SKIPPED_STEPS + TIMED_STEPS + TRACED_STEPS)
    with same_random_state(copied):
        _take_steps(copied, batches, SKIPPED_STEPS, task, stop)
        seconds = _take_steps(copied, batches, TIMED_STEPS, task, stop)
        traced = _profiler()
        traced.start()
        try:
            _take_steps(copied, batches, TRACED_STEPS, task, stop)
        finally:
            traced.stop()
    if stop.number is not None:
        return

    path = log.run_dir / PROFILE_TEXT
    text = profile_text(seconds, engine)
    log.write(TRACE, lambda: _export(traced, log.run_dir / TRACE))
    log.write(PROFILE_TEXT, lambda: write_atomically(path, text.encode()))


def profile_text(seconds: list[dict[str, float]], engine: str) -> str:
    """Return what the parts of eager steps take, from the seconds of each part in each step."""
    # Of each part the median: one step that something else disturbed says nothing. The medians need
    # not add up to that of whole steps, and shares are those of their sum.
    medians = {part: 1e3 * _median([step[part] for step in seconds]) for part in PARTS}
    total = sum(medians.values())
    lines = [
        f"Milliseconds of an eager step: medians of {len(seconds)} steps beside the run,",
        f"which takes {engine}.",
        "",
    ]
    for part, milliseconds in medians.items():
        lines.append(f"{part:<10} {milliseconds:10.3f}   {milliseconds / total:4.0%}")
    lines.append(f"{'total':<10} {total:10.3f}   100%")
    lines += [
        "",
        "batch: making it; forward: up to the loss; backward: the gradient;",
        "optimizer: clipping and the update, with the loss read from the device.",
        "",
        "Each operation is in steps.pt.trace.json: open it in Perfetto, https://ui.perfetto.dev.",
    ]
    return "\n".join(lines) + "\n"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _profiler() -> profile:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # There is one cycle, so nothing accumulates; torch 2.11 warns without acc_events all the same.
    return profile(activities=activities, record_shapes=True, acc_events=True)


def _take_steps(
    state: TrainState,
    batches: Iterator[Batch | PaddedBatch],
    count: int,
    task: Task,
    stop: StopRequest,
) -> list[dict[str, float]]:
    """Take steps as `train_step` does, and return the seconds of each part of each of them."""
    device = state.device
    taken = []
    for _ in range(count):
        if stop.number is not None:
            break
        seconds = dict.fromkeys(PARTS, 0.0)
        with _part("batch", seconds, device):
            batch = next(batches)
        _take_step(state, batch, task, seconds)
        state.step += 1
        taken.append(seconds)
    return taken


def _take_step(
    state: TrainState, batch: Batch | PaddedBatch, task: Task, seconds: dict[str, float]
) -> None:
    """Take one step, as `train_step` does, and add the seconds of its parts.

    A step that is not finite spoils the copy, and takes as long as any other.
    """
    config = task.config
    device = state.device
    (group,) = state.optimizer.param_groups
    group["lr"] = learning_rate(state.step, task.max_steps, config.optimizer.lr, config.schedule)
    for parameter in group["params"]:
        parameter.grad = None

    losses = losses_of_batch(state.model, batch, task, draw_keys(state, config))
    measured = []
    while True:
        with _part("forward", seconds, device):
            part = next(losses, None)
        if part is None:
            break
        loss, _ = part
        with _part("backward", seconds, device):
            loss.backward()  # type: ignore[no-untyped-call]
        measured.append(loss.detach())

    with _part("optimizer", seconds, device):
        measured.append(clip_grad_norm(group["params"], config.train.max_grad_norm))
        torch.stack(measured).tolist()
        state.optimizer.step()


@contextmanager
def _part(name: str, seconds: dict[str, float], device: torch.device) -> Iterator[None]:
    """Name a part of a step in the trace, and add the seconds that it takes."""
    started_at = time.perf_counter()
    with record_function(name):
        yield
        # What the device still has to do is part of it.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    seconds[name] += time.perf_counter() - started_at


def _export(profiler: profile, path: Path) -> None:
    """Write the trace under a temporary name first, as the profiler writes bit by bit."""
    path.parent.mkdir(exist_ok=True)
    temporary = temporary_path(path)
    try:
        profiler.export_chrome_trace(str(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
