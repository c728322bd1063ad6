"""`rnncls cost`: what is measured, against arithmetic; bad input; cases without memory; signals.

No time is asserted. Processes of cases take seconds to import torch, so few tests start some.
"""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.config.load import parse_config
from rnncls.cost import measure, processes
from rnncls.cost.cases import Case, case_of, plan_cases
from rnncls.cost.laws import MEMORY, TIME, fitted
from rnncls.cost.measure import Memory, Times, measure_time
from rnncls.cost.plot import draw_cost
from rnncls.cost.processes import Outcome, measure_apart
from rnncls.cost.report import activations_bytes, rows_of, step_ms, to_json, to_text
from rnncls.cost.ways import batch_of, task_of, way_of
from rnncls.data import Batch
from rnncls.system.process_memory import forget_peak, peak_bytes, resident_bytes
from rnncls.system.shown import WIDTH
from tests.helpers import (
    PYTHON,
    ROOT,
    config_of,
    files_config,
    needs_cuda,
    run_process,
    run_rnncls,
    some_rows,
    started,
    wait_for,
    write_jsonl,
)

row = pytest.mark.row
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

SMOKE = ["cost", "--config", "configs/smoke.yaml", "device=cpu"]
QUICK = ["--seconds", "0.001"]
SIZES = (3, 3)

# One layer, wide batches: what is measured is far above what a process does by itself.
BATCH = 64
HIDDEN = 128
LENGTH = 400


def cases_of(
    hidden_sizes: list[int],
    lengths: list[int],
    sections: dict[str, Any] | None = None,
    with_stock: bool = False,
    sizes: tuple[int, int] = SIZES,
) -> list[Case]:
    """Return cases that are measured as briefly as possible."""
    config = config_of(**(sections or {}))
    return plan_cases(config, sizes, hidden_sizes, lengths, 0.001, with_stock)


def measured(case: Case, ms: float, activations: int) -> Outcome:
    """Return a case with made up measurements; `ms` is the time of a step."""
    engine = "compiled steps" if case.implementation == "rnncls" else ""
    times = Times("cpu", 3, ms / 3, ms / 2, ms, engine, ms, 1e3, 2**28, None)
    return Outcome(case, Memory(activations, 4, 4, 8), times)


def without_memory(case: Case) -> Outcome:
    return Outcome(case, None, None, "killed", 8)


@pytest.fixture(scope="module")
def printed() -> dict[str, Any]:
    """What `rnncls cost --stock --json` prints for one length."""
    words = [*SMOKE, f"train.batch_size={BATCH}", "--hidden", f"{HIDDEN}", *QUICK]
    done = run_rnncls(*words, "--lengths", f"{LENGTH}", "--stock", "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def activations_of(length: int, **train: Any) -> int:
    """Return the activations of the same case with another length, or other keys of training."""
    sections = {"train": {"batch_size": BATCH, **train}}
    (case,) = cases_of([HIDDEN], [length], sections)
    result = processes._measured("memory", case)
    assert isinstance(result, dict), result
    return Memory(**result).activations_bytes


# --- what is measured


@pytest.mark.slow
def test_activations_are_what_arithmetic_says(printed: dict[str, Any]) -> None:
    """Forward and backward keep a few times T B H numbers of four bytes."""
    states = 4 * BATCH * LENGTH * HIDDEN
    for case in printed["cases"]:
        assert 2 <= case["activations_bytes"] / states <= 6, case

    # What does not grow with the length is little.
    ours = printed["cases"][0]["activations_bytes"]
    assert 1.8 <= ours / activations_of(LENGTH // 2) <= 2.2


@pytest.mark.slow
def test_recomputation_lowers_the_activations(printed: dict[str, Any]) -> None:
    kept = printed["cases"][0]["activations_bytes"]
    assert activations_of(LENGTH, recompute_every=20) < 0.5 * kept


@pytest.mark.slow
def test_the_json_has_a_case_for_each_size_length_and_implementation(
    printed: dict[str, Any],
) -> None:
    keys = [(case["length"], case["implementation"]) for case in printed["cases"]]
    assert keys == [(LENGTH, "rnncls"), (LENGTH, "torch")]
    assert printed["config"] == "configs/smoke.yaml"
    assert (printed["cell"], printed["batch_size"]) == ("rnn", BATCH)

    config = parse_config({"data": {"modulus": 3}, "model": {"hidden_size": HIDDEN}}, "test")
    (expected,) = plan_cases(config, SIZES, [HIDDEN], [1], 1, False)
    for case in printed["cases"]:
        assert case["status"] == "measured"
        assert case["reason"] is None
        assert case["tokens_per_batch"] == BATCH * case["length"]

        # AdamW keeps two averages of each number, and a counter of each of the 7 tensors.
        assert case["parameters"] == expected.num_parameters
        assert case["weights_bytes"] == case["gradients_bytes"] == 4 * case["parameters"]
        assert case["optimizer_bytes"] == 8 * case["parameters"] + 4 * 7

        for key in ("forward_ms", "backward_ms", "step_ms", "run_step_ms", "tokens_per_second"):
            assert case[key] > 0
        assert case["rounds"] >= 1
        assert case["process_bytes"] > case["activations_bytes"]
        assert case["gpu_bytes"] is None
        assert bool(case["engine"]) == (case["implementation"] == "rnncls")

        # Each is the smallest of its kind.
        assert case["step_ratio_to_btd2"] == case["run_step_ratio_to_btd2"] == 1
        assert case["activations_ratio_to_btd"] == 1


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"pooling": "last_mean_max", "num_layers": 2, "dropout": 0.5}},
        {"model": {"cell": "lstm", "bidirectional": True, "initial_state": "learned"}},
        {"train": {"objective": "prefix"}, "model": {"cell": "gru"}},
        {"train": {"objective": "prefix", "truncate_after": 2}},
        {"train": {"recompute_every": 2, "precision": "bfloat16", "max_grad_norm": None}},
        {"optimizer": {"name": "sgd"}, "train": {"engine": "auto"}},
    ],
)
def test_every_key_of_training_can_be_measured(sections: dict[str, Any]) -> None:
    for case in cases_of([8], [5], sections, with_stock=True):
        times = measure_time(case)
        assert times.forward_ms > 0
        assert times.backward_ms > 0
        assert times.step_ms > 0


def test_backward_is_every_part_of_it_and_nothing_else() -> None:
    with measure._timing_backward(lambda: None) as spent:
        for _ in range(3):
            torch.ones(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
    assert len(spent) == 3

    torch.ones(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
    assert len(spent) == 3


def test_steps_change_no_weight_and_skip_none() -> None:
    """Otherwise a loss could grow beyond all bounds, and steps without an update are cheaper."""
    sections = {"optimizer": {"lr": 1e6}, "model": {"init_gain": 3.0}}
    for case in cases_of([16], [50], sections, with_stock=True):
        way = way_of(case)
        before = [parameter.clone() for parameter in way.parameters]
        way.take_batch(case.length)
        for _ in range(20):
            way.step()
        for parameter, old in zip(way.parameters, before, strict=True):
            torch.testing.assert_close(parameter, old, rtol=1e-5, atol=1e-7)


def test_a_batch_has_one_length_and_the_vocabulary_of_the_data() -> None:
    for sizes in ((1, 1), (2_000_000, 3), (7, 50)):
        (case,) = cases_of([4], [6], {"train": {"batch_size": 500}}, sizes=sizes)
        batch = batch_of(case, 6, torch.device("cpu"))
        assert isinstance(batch, Batch)
        assert batch.lengths.tolist() == [6] * 500
        assert task_of(case, 6).sizes == sizes
        assert int(batch.tokens.data.max()) < sizes[0]
        assert int(batch.labels.max()) < sizes[1]


def test_a_case_travels_as_json() -> None:
    for case in cases_of([8, 16], [5], with_stock=True):
        assert case_of(json.loads(json.dumps(case.to_json()))) == case


def test_of_torch_nothing_is_asked_that_it_cannot_do() -> None:
    sections = {
        "model": {"pooling": "last_mean_max", "initial_state": "learned"},
        "train": {"recompute_every": 2},
    }
    _, stock = cases_of([8], [5], sections, with_stock=True)
    (plain,) = cases_of([8], [5])
    assert stock.config == plain.config
    assert stock.num_parameters == plain.num_parameters


def test_the_peak_of_this_process_is_seen_and_can_be_forgotten() -> None:
    if not forget_peak():
        pytest.skip("this system cannot forget")
    before = peak_bytes()
    block = torch.ones(2**24)
    assert peak_bytes() - before > 2**25
    del block
    assert forget_peak()
    assert peak_bytes() - resident_bytes() < 2**22


# --- files


@pytest.fixture
def file_yaml(tmp_path: Path) -> Path:
    """A config of files whose longest training sequence has nine tokens."""
    rows = [*some_rows(60), *[([4] * 9, 0)] * 40]
    config = files_config(write_jsonl(tmp_path / "rows.jsonl", rows))
    path = tmp_path / "files.yaml"
    data = config.data.model_dump(mode="json", include={"source", "train", "tokens"})
    sections = {"data": data, "train": {"batch_size": 8, "class_weights": "balanced"}}
    path.write_text(json.dumps({**sections, "model": {"hidden_size": 8}, "device": "cpu"}))
    return path


def test_files_are_read_for_their_sizes_alone(
    file_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Case] = []

    def note(case: Case) -> Outcome:
        asked.append(case)
        return measured(case, 1, 2**20)

    monkeypatch.setattr(processes, "measure_apart", note)
    done = run_rnncls("cost", file_yaml, "train.max_epochs=3")
    assert done.returncode == 0, done.stderr

    # Without --hidden and --lengths: those of the config and of its data.
    (case,) = asked
    assert (case.hidden_size, case.length) == (8, 9)
    num_tokens, num_classes = case.sizes
    assert num_tokens >= 5
    assert num_classes == 3
    assert case.config.data.source == "sum_mod"


# --- the laws


def test_the_laws_go_through_the_smallest_case_exactly() -> None:
    cases = cases_of([16, 32, 64], [10, 30], with_stock=True)
    outcomes = []
    for number, case in enumerate(cases):
        outcomes.append(measured(case, ms=2.0 + number, activations=2**20 * (3 + number)))

    rows = rows_of(outcomes)
    for each, base in ((rows[::2], outcomes[0]), (rows[1::2], outcomes[1])):
        assert base.times is not None
        assert base.memory is not None
        assert each[0].step_ratio == each[0].activations_ratio == 1
        for one in each:
            case = one.outcome.case
            times = (case.length / 10) * (case.hidden_size / 16) ** 2
            assert one.fitted_step_ms == pytest.approx(base.times.step_ms * times, rel=1e-12)
            memory = (case.length / 10) * (case.hidden_size / 16)
            expected = base.memory.activations_bytes * memory
            assert one.fitted_activations_bytes == pytest.approx(expected, rel=1e-12)

    last = rows[-2]
    assert last.outcome.times is not None
    assert last.fitted_step_ms is not None
    assert last.step_ratio == last.outcome.times.step_ms / last.fitted_step_ms


def test_the_smallest_case_is_one_that_was_measured() -> None:
    first, second, third = cases_of([16], [10, 20, 40])
    outcomes = [without_memory(first), measured(second, 4, 2**21), measured(third, 8, 2**22)]
    assert fitted(outcomes, TIME, step_ms) == [2, 4, 8]

    nothing = fitted([without_memory(first)], TIME, lambda _: None)
    assert nothing == [None]


def test_memory_that_cannot_be_seen_is_no_measure() -> None:
    cases = cases_of([16], [10, 20, 40])
    outcomes = [
        measured(case, 1, size) for case, size in zip(cases, (0, 2**20, 2**21), strict=True)
    ]
    rows = rows_of(outcomes)
    assert [one.activations_ratio for one in rows] == [0, 1, 1]

    assert fitted(outcomes[:1], MEMORY, activations_bytes, least=2**20) == [None]
    assert rows_of(outcomes[:1])[0].activations_ratio is None


# --- what is shown


def outcomes_of_all_kinds() -> list[Outcome]:
    cases = cases_of([64, 1024], [50, 1_000_000], with_stock=True)
    outcomes = [measured(case, 1234.5, 2**33) for case in cases]
    outcomes[2] = without_memory(cases[2])
    outcomes[3] = Outcome(cases[3], Memory(2**33, 4, 4, 8), None, "ended by SIGABRT: \x1b[2J", 8)
    return outcomes


def test_every_case_is_a_line_of_both_tables() -> None:
    rows = rows_of(outcomes_of_all_kinds())
    text = to_text(config_of(), rows)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.isprintable() or "\x1b" not in text

    time_table, memory_table = text.split("time of a batch")[1].split("peak memory")
    for table in (time_table, memory_table):
        lines = [line for line in table.splitlines() if "rnncls  " in line or "torch  " in line]
        assert len(lines) == len(rows)
        assert [line for line in lines if line.endswith("  out of memory")] == lines[2:4]

    # What is known of memory is shown.
    assert "8,192" in [line for line in memory_table.splitlines() if "out of memory" in line][1]
    assert "rnncls, hidden 64, length 1,000,000: out of memory\n  killed\n" in text
    assert "O(B T d) says 163,840,000 MiB of activations" in text


def test_json_has_null_for_what_is_not_known() -> None:
    rows = rows_of(outcomes_of_all_kinds())
    cases = to_json(config_of(), rows)["cases"]
    assert {tuple(case) for case in cases} == {tuple(cases[0])}
    assert cases[2]["status"] == "out of memory"
    assert cases[2]["reason"] == "killed"
    assert cases[2]["step_ms"] is cases[2]["weights_bytes"] is None
    assert cases[2]["parameters"] == cases[0]["parameters"]
    assert cases[2]["activations_bytes_by_btd"] == 20_000 * 2**33
    assert cases[3]["activations_bytes"] == 2**33
    assert cases[3]["step_ms"] is None


@pytest.mark.parametrize("lengths", [[50, 1_000_000], [50]])
def test_a_picture_of_any_outcomes(tmp_path: Path, lengths: list[int]) -> None:
    cases = cases_of([16, 64], lengths, with_stock=True)
    for number, outcomes in enumerate(
        (
            [measured(case, 2, 2**22) for case in cases],
            [measured(case, 2, 0) for case in cases[:1]],
            [measured(cases[0], 2, 2**22), *map(without_memory, cases[1:])],
            list(map(without_memory, cases)),
        )
    ):
        path = tmp_path / f"{number}.png"
        draw_cost(rows_of(outcomes), path)
        assert path.read_bytes().startswith(b"\x89PNG")


# --- bad input


@row("C17", "C12")
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--hidden", "0"], "--hidden"),
        (["--hidden", "64,many"], "--hidden"),
        (["--hidden", "1000000000"], "--hidden"),
        (["--hidden", "-5"], "--hidden"),
        (["--hidden", ""], "--hidden"),
        (["--hidden", "1048576"], "--hidden 1,048,576"),
        (["--lengths", "0"], "--lengths"),
        (["--lengths", "long"], "--lengths"),
        (["--lengths", "1000000000"], "--lengths"),
        (["--lengths", "1048576", "train.batch_size=2048"], "--lengths 1,048,576"),
        (["--hidden", "1-100", "--lengths", "1-100"], "--hidden and --lengths"),
        (["--seconds", "0"], "--seconds"),
        (["--seconds", "soon"], "--seconds"),
        (["--plot", "configs/smoke.yaml"], "--plot configs/smoke.yaml"),
        (["model.hidden_size=0"], "model.hidden_size"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    words: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "measure_apart", pytest.fail)
    done = run_rnncls(*SMOKE, *words)
    assert done.returncode == 2
    assert "rnncls: error[C" in done.stderr
    assert named in done.stderr
    assert done.stdout == ""


@row("C12", by="unit")
def test_files_with_too_many_tokens_for_a_size_are_refused() -> None:
    from rnncls.errors import ConfigError

    with pytest.raises(ConfigError, match="--hidden"):
        cases_of([2**14], [5], sizes=(2**20, 2**19))


@row("R32")
def test_an_engine_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "measure_apart", pytest.fail)
    done = run_rnncls(*SMOKE, "model.initial_state=learned", "train.engine=compiled")
    assert done.returncode == 5
    assert "error[R32]" in done.stderr


def test_a_config_is_needed(fails: Callable[..., str]) -> None:
    assert "no config" in fails(2, "cost")


# --- cases that end early


def limited() -> None:
    """Leave a process less memory than its longest case wants, but enough for torch."""
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))


@pytest.mark.slow
@row("R16")
def test_a_real_lack_of_memory_is_a_line_of_the_table(tmp_path: Path) -> None:
    words = [*SMOKE, "train.engine=eager", "--hidden", "64", "--lengths", "10,1000000", *QUICK]
    done = run_process(*words, "--plot", tmp_path / "cost.png", preexec_fn=limited)
    assert done.returncode == 0, done.stderr

    lines = [line for line in done.stdout.splitlines() if line.startswith("    64")]
    assert len(lines) == 4
    assert lines[1].split()[1:] == ["1,000,000", "out", "of", "memory"]
    assert lines[0].split()[1] == "10"
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "cost.png").is_file()


@row("R16")
def test_no_case_with_enough_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "measure_apart", without_memory)
    done = run_rnncls(*SMOKE, "--lengths", "5,6")
    assert done.returncode == 8
    assert done.stdout.count("out of memory") >= 4
    assert "error[R16]: out of memory: not even the smallest case" in done.stderr


@row("R18", by="unit")
def test_any_other_failure_is_reported_after_the_other_cases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail_once(case: Case) -> Outcome:
        if case.length == 5:
            return Outcome(case, None, None, "RuntimeError: odd\nforged", 1)
        return measured(case, 1, 2**21)

    monkeypatch.setattr(processes, "measure_apart", fail_once)
    done = run_rnncls(*SMOKE, "--lengths", "5,6", "--json")
    assert done.returncode == 1
    assert [case["status"] for case in json.loads(done.stdout)["cases"]] == ["failed", "measured"]
    assert "error[R18]: a case could not be measured" in done.stderr
    assert "RuntimeError: odd\\nforged" in done.stderr


@pytest.mark.parametrize(
    ("said", "exit_code", "reason", "code"),
    [
        (b"", -signal.SIGKILL, "killed", 8),
        (b"terminate called after throwing 'std::bad_alloc'\n", -signal.SIGABRT, "SIGABRT", 8),
        (b"LLVM ERROR: out of memory\n", -signal.SIGABRT, "SIGABRT", 8),
        (b"oops\n", -signal.SIGSEGV, "SIGSEGV: oops", 1),
        (b"", 3, "exit code 3", 1),
        (b'x\n{"reason": "out of memory", "exit_code": 8}\n', 8, "out of memory", 8),
        (b'{"reason": "no device cuda", "exit_code": 5}\n', 5, "no device cuda", 5),
        (b'{"measured": {"forw', -signal.SIGKILL, "killed", 8),
        (b"12\n", 0, "exit code 0", 1),
    ],
)
def test_how_the_end_of_a_process_is_understood(
    said: bytes, exit_code: int, reason: str, code: int
) -> None:
    failure = processes._answer(said, exit_code)
    assert isinstance(failure, processes._Failure)
    assert reason in failure.reason
    assert failure.exit_code == code


def test_the_last_line_of_a_process_is_its_answer() -> None:
    assert processes._answer(b'noise\n\n{"measured": {"a": 1}}\n', 0) == {"a": 1}


@pytest.mark.slow
def test_what_a_process_imports_is_not_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('a stranger')")
    (tmp_path / "rnncls.py").write_text("raise SystemExit('a stranger')")
    (case,) = cases_of([4], [2])
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place] + [str(ROOT)])
    monkeypatch.chdir(tmp_path)
    result = processes._measured("memory", case)
    assert isinstance(result, dict), result


def test_nothing_of_a_config_stands_in_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def note(command: list[str], **options: Any) -> None:
        assert not options.get("shell")
        commands.append(command)
        raise BlockingIOError

    monkeypatch.setattr(subprocess, "Popen", note)
    for case in cases_of([4, 5], [2], {"seed": 7}):
        with pytest.raises(BlockingIOError):
            measure_apart(case)
    assert commands == [[sys.executable, "-P", "-m", "rnncls.cost.worker"]] * 2


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run."""
    with suppress(OSError):
        return [int(number) for number in children_file(pid).read_text().split()]
    return []


def has_torch(pid: int) -> bool:
    """Return whether a process has imported torch: then it has read its case as well."""
    with suppress(OSError):
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    return False


def children_file(pid: int) -> Path:
    return Path(f"/proc/{pid}/task/{pid}/children")


@pytest.fixture
def measuring() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that measures for minutes, and the process of its case."""
    # Long enough for a step to outlive the test.
    words = [*SMOKE, "train.engine=eager", "--lengths", "300000", "train.batch_size=8"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([PYTHON, "-m", "rnncls", *words], **streams) as process:
        wait_for(lambda: any(map(has_torch, children_of(process.pid))))
        (child,) = children_of(process.pid)
        yield process, child


@needs_proc
@pytest.mark.usefixtures("signals_not_ignored")
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_no_process_is_left_after_a_signal(
    measuring: tuple[subprocess.Popen[str], int], number: signal.Signals
) -> None:
    process, child = measuring
    # To the command alone, not to its group, as `kill` sends it.
    process.send_signal(number)
    process.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists() or is_zombie(child))
    expected = -number if number == signal.SIGKILL else 128 + number
    assert process.returncode == expected


def is_zombie(pid: int) -> bool:
    """Return whether a process has ended and only its number is left."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_case_that_is_killed_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills without a word; so does this test."""
    (case,) = cases_of([4], [2])
    original = processes._ask

    def killing(process: "subprocess.Popen[bytes]", question: dict[str, Any]) -> bytes:
        process.kill()
        return original(process, question)

    monkeypatch.setattr(processes, "_ask", killing)
    outcome = measure_apart(case)
    assert outcome.status == "out of memory"
    assert "killed" in outcome.reason


def test_an_interrupted_measurement_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python, where Ctrl-C raises."""
    (case,) = cases_of([4], [2])
    begun = []

    def interrupted(process: "subprocess.Popen[bytes]", _: object) -> bytes:
        begun.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_apart(case)
    assert begun[0].returncode is not None


@needs_cuda
def test_on_a_gpu_its_own_memory_is_measured() -> None:
    config = parse_config({"device": "cuda", "train": {"batch_size": BATCH}}, "test")
    for case in plan_cases(config, (10, 10), [HIDDEN], [200], 0.001, True):
        outcome = measure_apart(case)
        assert outcome.status == "measured", outcome.reason
        assert outcome.memory is not None
        assert outcome.times is not None
        states = 4 * BATCH * 200 * HIDDEN
        assert 1 <= outcome.memory.activations_bytes / states <= 8
        assert outcome.times.gpu_bytes is not None
        assert outcome.times.gpu_bytes > outcome.memory.activations_bytes
        assert "cuda" in outcome.times.device
