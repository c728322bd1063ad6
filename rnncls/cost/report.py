"""What the cases cost, as tables for people and as JSON for programs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rnncls.config import Config
from rnncls.cost.cases import Case
from rnncls.cost.laws import LEAST_BYTES, MEMORY, TIME, fitted
from rnncls.cost.measure import Memory, Times
from rnncls.cost.processes import Outcome
from rnncls.errors import on_one_line
from rnncls.system.shown import aligned, counted, on_short_line

UNKNOWN = "-"
MOST_OF_REASON = 76  # characters

_TIME_EXPLAINED = """\
step: forward, backward, clipping and optimizer; eager, on a batch that is there
of BTd^2: the step, as a share of O(B T d^2) through the smallest case"""

_MEMORY_EXPLAINED = """\
activations: how far forward and backward raise the peak
of BTd: that, as a share of O(B T d) through the smallest case of 1 MiB or more
parameters: weights, gradients and the optimizer's state
process: the main memory of a run, of which torch takes a few hundred MiB"""


@dataclass(frozen=True)
class Row:
    """A case with what the two laws say of it."""

    outcome: Outcome
    fitted_step_ms: float | None  # by O(B T d^2)
    fitted_run_step_ms: float | None  # by O(B T d^2)
    fitted_activations_bytes: float | None  # by O(B T d)

    @property
    def step_ratio(self) -> float | None:
        """The time of a step, divided by what O(B T d^2) says of it."""
        return _ratio(step_ms(self.outcome), self.fitted_step_ms)

    @property
    def run_step_ratio(self) -> float | None:
        """The time of a step of a run, divided by what O(B T d^2) says of it."""
        return _ratio(_run_step_ms(self.outcome), self.fitted_run_step_ms)

    @property
    def activations_ratio(self) -> float | None:
        """The memory of activations, divided by what O(B T d) says of it."""
        return _ratio(activations_bytes(self.outcome), self.fitted_activations_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return every number; null for what is not known."""
        outcome = self.outcome
        case = outcome.case
        return {
            "implementation": case.implementation,
            "hidden_size": case.hidden_size,
            "length": case.length,
            "batch_size": case.batch_size,
            "tokens_per_batch": case.num_tokens,
            "parameters": case.num_parameters,
            "status": outcome.status,
            "reason": outcome.reason or None,
            # What was measured, with its units in the names.
            **_fields(Memory, outcome.memory),
            **_fields(Times, outcome.times),
            # What the two laws say, and how far off they are.
            "step_ms_by_btd2": self.fitted_step_ms,
            "step_ratio_to_btd2": self.step_ratio,
            "run_step_ms_by_btd2": self.fitted_run_step_ms,
            "run_step_ratio_to_btd2": self.run_step_ratio,
            "activations_bytes_by_btd": self.fitted_activations_bytes,
            "activations_ratio_to_btd": self.activations_ratio,
        }


def step_ms(outcome: Outcome) -> float | None:
    """Return the time of an eager step, if it is known."""
    return None if outcome.times is None else outcome.times.step_ms


def _run_step_ms(outcome: Outcome) -> float | None:
    return None if outcome.times is None else outcome.times.run_step_ms


def activations_bytes(outcome: Outcome) -> float | None:
    """Return the memory of activations, if it is known."""
    return None if outcome.memory is None else outcome.memory.activations_bytes


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return the outcomes with what the laws say of each."""
    steps = fitted(outcomes, TIME, step_ms)
    run_steps = fitted(outcomes, TIME, _run_step_ms)
    activations = fitted(outcomes, MEMORY, activations_bytes, least=LEAST_BYTES)
    return [Row(*row) for row in zip(outcomes, steps, run_steps, activations, strict=True)]


def to_json(config: Config, rows: Sequence[Row]) -> dict[str, Any]:
    """Return all rows, and what they have in common."""
    return {
        "cell": config.model.cell,
        "num_layers": config.model.num_layers,
        "bidirectional": config.model.bidirectional,
        "batch_size": config.train.batch_size,
        "num_threads": config.train.num_threads,
        "cases": [row.to_json() for row in rows],
    }


def to_text(config: Config, rows: Sequence[Row]) -> str:
    """Return two tables, of time and of memory, and what their columns mean."""
    timed = [row.outcome.times for row in rows if row.outcome.times is not None]
    lines = [_model(config)]
    if timed:
        rounds = min(times.rounds for times in timed)
        device = on_one_line(timed[0].device)
        lines.append(f"{device}; medians of at least {counted(rounds, 'round')}")

    lines += ["", "time of a batch, in ms", *_table(rows, _TIME_HEADER, _time_cells)]
    lines += ["", _TIME_EXPLAINED]
    engines = list(dict.fromkeys(times.engine for times in timed if times.engine))
    if engines:
        lines.append("run: a step of `rnncls train`, with the making of its batch; here they are")
        lines += [f"  {on_one_line(engine)}" for engine in engines]

    has_gpu = any(times.gpu_bytes is not None for times in timed)
    header = [*_MEMORY_HEADER, "GPU"] if has_gpu else _MEMORY_HEADER
    lines += ["", "peak memory, in MiB", *_table(rows, header, _memory_cells)]
    lines += ["", _MEMORY_EXPLAINED]
    if has_gpu:
        lines.append("GPU: the most that a run had there; activations and parameters are there")
    lines += _reasons(rows)
    return "\n".join(lines)


def _model(config: Config) -> str:
    model = config.model
    kind = f"{model.cell} of {counted(model.num_layers, 'layer')}"
    if model.cell == "none":
        kind = "no recurrent layers"
    elif model.bidirectional:
        kind += " in two directions"
    return f"{kind}, batches of {counted(config.train.batch_size, 'sequence')} of one length"


def _table(
    rows: Sequence[Row], header: Sequence[str], cells_of: Callable[[Row], list[str]]
) -> list[str]:
    """Return a table with a line for each row, also for one that was not measured."""
    # Whose the row is, if there is more than one.
    has_stock = any(row.outcome.case.implementation == "torch" for row in rows)
    table = [["hidden", "length", *([""] if has_stock else []), *header]]
    for row in rows:
        case = row.outcome.case
        keys = [f"{case.hidden_size:,}", f"{case.length:,}"]
        if has_stock:
            keys.append(case.implementation)
        # Of a GPU there is nothing where nothing was measured.
        cells = cells_of(row)
        table.append([*keys, *cells, *[UNKNOWN] * (len(header) - len(cells))])

    lines = aligned(table)
    for number, row in enumerate(rows, start=1):
        if row.outcome.times is None:
            # The dashes at the end make way for what became of the case.
            lines[number] = f"{lines[number].rstrip(' -')}  {row.outcome.status}"
    return lines


_TIME_HEADER = ["forward", "backward", "step", "of BTd^2", "run", "tokens/s"]


def _time_cells(row: Row) -> list[str]:
    times = row.outcome.times
    if times is None:
        return []
    return [
        _number(times.forward_ms),
        _number(times.backward_ms),
        _number(times.step_ms),
        _share(row.step_ratio),
        _number(times.run_step_ms) if times.engine else UNKNOWN,
        f"{times.tokens_per_second:,.0f}",
    ]


_MEMORY_HEADER = ["activations", "of BTd", "parameters", "process"]


def _memory_cells(row: Row) -> list[str]:
    memory = row.outcome.memory
    if memory is None:
        return []
    cells = [
        _mebibytes(memory.activations_bytes),
        _share(row.activations_ratio),
        _mebibytes(memory.parameters_bytes),
    ]
    times = row.outcome.times
    if times is not None:
        cells.append(_mebibytes(times.process_bytes))
        if times.gpu_bytes is not None:
            cells.append(_mebibytes(times.gpu_bytes))
    return cells


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Return lines that say why cases were not measured."""
    lines = []
    for row in rows:
        outcome = row.outcome
        if outcome.times is not None:
            continue
        lines.append(f"{name_of(outcome.case)}: {outcome.status}")
        if outcome.reason != outcome.status:
            lines.append(f"  {on_short_line(outcome.reason, MOST_OF_REASON)}")
        by_law = row.fitted_activations_bytes
        if by_law is not None and outcome.memory is None:
            lines.append(f"  O(B T d) says {_mebibytes(by_law)} MiB of activations")
    return ["", *lines] if lines else []


def name_of(case: Case) -> str:
    """Return what a case is called in messages."""
    return f"{case.implementation}, hidden {case.hidden_size:,}, length {case.length:,}"


def _fields(kind: type[Memory | Times], known: Memory | Times | None) -> dict[str, Any]:
    """Return the fields of what was measured, by name; null if it was not."""
    return dict.fromkeys(field.name for field in fields(kind)) if known is None else asdict(known)


def _ratio(value: float | None, by_law: float | None) -> float | None:
    return value / by_law if value is not None and by_law else None


def _share(ratio: float | None) -> str:
    return UNKNOWN if ratio is None else f"{ratio:.2f}"


def _number(value: float) -> str:
    """Return a time with three digits, or more where it is large."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _mebibytes(count: float) -> str:
    value = count / 2**20
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
