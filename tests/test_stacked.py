"""Members of a stack train as if each were alone, whatever happens to the others."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.config import Config
from rnncls.data import load_task
from rnncls.errors import Interrupted, MachineError, NonFiniteError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.rundir.restore import restore_model
from rnncls.steps import chunks
from rnncls.steps.captured.graphs import StepRequest, pad_block
from rnncls.steps.captured.stack import Stack, StackedRuns, shape_of
from rnncls.sweep import groups as sweep_groups
from rnncls.sweep import members as sweep_members
from rnncls.sweep.groups import Group, plan_groups
from rnncls.sweep.members import run_sweep
from rnncls.sweep.plan import load_sweep, plan_sweep
from rnncls.system.signals import StopRequest
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from rnncls.training.run import Shared
from rnncls.training.states import new_state
from tests.helpers import (
    CASES,
    SAFETY_S,
    config_of,
    config_with,
    files_config,
    losses,
    needs_cuda,
    run_rnncls,
    some_rows,
    write_jsonl,
)


def together(
    actions: list[Callable[[Shared], object]], stop: StopRequest | None = None
) -> list[Exception | None]:
    """Run each in a thread with a place in one stack; return what they raised."""
    stack, errors = Stack(len(actions)), list[Exception | None]([None] * len(actions))

    def run(number: int) -> None:
        stack_member = stack.members[number]
        try:
            actions[number](Shared(stop or StopRequest(), lambda _: None, stack_member.steps))
        except Exception as error:
            errors[number] = error
        finally:
            stack_member.leave()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY_S)
        assert not thread.is_alive()
    return errors


def fitting(config: Config, run_dir: Path) -> Callable[[Shared], object]:
    return lambda shared: fit(config, run_dir, shared=shared)


def logged(run_dir: Path) -> list[float]:
    return [
        json.loads(line)["train/loss"]
        for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]


def trained_losses(run_dir: Path) -> list[float]:
    """Return the losses of the lines that have one; evaluations have lines of their own."""
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def changed(config: Config, **sections: Any) -> Config:
    seed = sections.pop("seed", config.seed)
    parts = {
        name: getattr(config, name).model_copy(update=values) for name, values in sections.items()
    }
    return config.model_copy(update={"seed": seed, **parts})


@pytest.mark.parametrize("log_every", [pytest.param(1, marks=pytest.mark.slow), 25])
@pytest.mark.parametrize("name", CASES)
def test_members_that_differ_in_values_have_the_losses_of_eager_runs(
    name: str, log_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if log_every > 1:
        monkeypatch.setattr(chunks, "CHUNK_SECONDS", 10.0)  # many steps at a time
    base = config_with(
        "eager", CASES[name], max_steps=100, log_every=log_every, eval_every=50, histogram_every=50
    )
    lr = base.optimizer.lr
    decay = (
        {"betas": (0.8, 0.99), "eps": 1e-6} if base.optimizer.name != "sgd" else {"momentum": 0.5}
    )
    configs = [
        base,
        changed(
            base,
            seed=7,
            optimizer={"lr": 2 * lr, "weight_decay": 0.5},
            train={"max_grad_norm": 0.1},
        ),
        changed(
            base, seed=8, optimizer=decay, model={"init_gain": 0.5}, schedule={"name": "linear"}
        ),
    ]
    assert len({shape_of(config) for config in configs}) == 1

    errors = together(
        [fitting(config, tmp_path / f"{number}") for number, config in enumerate(configs)]
    )
    assert errors == [None] * 3

    for number, config in enumerate(configs):
        checkpoint = read_checkpoint(find_newest(tmp_path / f"{number}"))
        expected = fit(config, tmp_path / f"eager-{number}").model.state_dict()
        assert logged(tmp_path / f"{number}") == pytest.approx(
            logged(tmp_path / f"eager-{number}"), rel=1e-5
        )
        for key, value in restore_model(checkpoint).state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


def test_what_cannot_share_a_stack_has_another_shape(tmp_path: Path) -> None:
    base = config_of()
    for section, values in (
        ("model", {"hidden_size": 9}),
        ("train", {"batch_size": 3}),
        ("optimizer", {"name": "adam"}),
        ("data", {"max_length": 11}),
    ):
        assert shape_of(changed(base, **{section: values})) != shape_of(base)
    assert shape_of(changed(base, model={"cell": "gru"})) is None
    assert shape_of(files_config(write_jsonl(tmp_path / "d.jsonl", some_rows(50)))) is None


def test_a_member_that_diverges_or_ends_early_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    base = config_with("eager", {}, max_steps=60, eval_every=10)
    wild = changed(
        base, optimizer={"lr": 1e30}, train={"max_grad_norm": None}, schedule={"warmup_steps": 0}
    )
    short = changed(base, seed=2, train={"stop_at_accuracy": 0.01})
    (tmp_path / "alone").mkdir()
    expected = {
        seed: losses(changed(base, seed=seed), tmp_path / "alone" / f"{seed}") for seed in (0, 2)
    }
    errors = together(
        [fitting(config, tmp_path / f"{n}") for n, config in enumerate((base, wild, short))]
    )
    assert [type(error) for error in errors] == [type(None), NonFiniteError, type(None)]
    assert logged(tmp_path / "0") == pytest.approx(expected[0], rel=1e-5)
    assert logged(tmp_path / "2") == pytest.approx(expected[2][:10], rel=1e-5)


def test_members_go_on_from_different_steps(tmp_path: Path) -> None:
    base = config_with("eager", {}, max_steps=50, checkpoint_every=10)
    configs = [changed(base, seed=seed) for seed in range(3)]
    for seed, config in enumerate(configs):
        losses(config, tmp_path / f"eager-{seed}")
    stop = StopRequest()

    def first_part(shared: Shared) -> object:
        def update(_: int) -> None:
            if len(logged(tmp_path / "0")) > 12:
                stop.number = 15

        return fit(configs[0], tmp_path / "0", shared=Shared(stop, update, shared.engine))

    assert isinstance(together([first_part], stop)[0], Interrupted)
    taken = len(logged(tmp_path / "0"))
    assert 12 < taken < 50
    rest = [fitting(config, tmp_path / f"{seed}") for seed, config in enumerate(configs)][1:]
    assert together([lambda shared: resume(tmp_path / "0", shared=shared), *rest]) == [None] * 3
    for seed in range(3):
        assert logged(tmp_path / f"{seed}") == pytest.approx(
            logged(tmp_path / f"eager-{seed}"), rel=1e-5
        )


@pytest.mark.parametrize("engine", ["auto", "captured"])
def test_members_of_a_stack_that_fails_take_eager_steps_unless_captured_ones_were_asked_for(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(StackedRuns, "take_steps", fail)
    monkeypatch.setattr(
        "rnncls.training.fit.choose", lambda *_: (None, "")
    )  # of a device that is not there
    configs = [changed(config_with(engine, {}, max_steps=20), seed=seed) for seed in range(2)]
    errors = together(
        [fitting(config, tmp_path / f"{seed}") for seed, config in enumerate(configs)]
    )
    assert capsys.readouterr().err.count("warning[R32]: eager steps") == (engine == "auto")
    if engine == "captured":
        assert [str(error) for error in errors] == [
            "operation not permitted when stream is capturing"
        ] * 2
    else:
        assert errors == [None, None]
        monkeypatch.undo()
        expected = losses(changed(configs[1], train={"engine": "eager"}), tmp_path / "eager")
        assert logged(tmp_path / "1") == pytest.approx(expected, rel=1e-6)


def test_a_sweep_of_stacks_makes_ordinary_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = config_with("eager", {}, max_steps=40, log_every=20)
    sweep = plan_sweep(
        base, "0-2", {"optimizer.lr": ["1e-3", "1e-2"]}, "1,2", 20, tmp_path / "sweep"
    )
    monkeypatch.setattr(
        sweep_members,
        "plan_groups",
        lambda members, *_: [Group(members, len(members), stacked=True)],
    )
    assert run_sweep(sweep) == []
    assert run_sweep(sweep) == []  # all are done, and leave the stack
    alone = losses(sweep.members[4].config, tmp_path / "alone")
    assert logged(sweep.run_dir(sweep.members[4])) == pytest.approx(alone, rel=1e-5)
    member = sweep.run_dir(sweep.members[0])
    assert run_rnncls("train", "--resume", member, "train.max_steps=45").returncode == 0
    assert run_rnncls("predict", member, "1 2").returncode == 0
    assert run_rnncls("eval", member, "--lengths", "1-2").returncode == 0


def test_members_are_grouped_by_how_they_can_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = config_of(train={"engine": "auto"})
    grid = {"model.hidden_size": ["8", "16"], "model.cell": ["rnn", "gru"]}
    members = plan_sweep(base, "0-2", grid, None, 10, tmp_path / "s").members
    (on_cpu,) = plan_groups(members, jobs=2)
    assert (len(on_cpu.members), on_cpu.threads, on_cpu.stacked) == (12, 2, False)
    states = {"model.initial_state": ["zeros", "learned"]}
    apart = plan_sweep(base, "0-2", states, None, 10, tmp_path / "apart").members
    assert [(len(group.members), group.threads) for group in plan_groups(apart, jobs=2)] == [
        (3, 2),
        (3, 1),
    ]

    monkeypatch.setattr(sweep_groups, "resolve_device", lambda _: torch.device("cuda"))
    on_cuda = plan_groups(members, jobs=2)
    sizes = [(len(group.members), group.threads, group.stacked) for group in on_cuda]
    assert sizes == [(2, 2, True), (1, 1, False), (2, 2, True), (1, 1, False), (6, 1, False)]
    assert len(plan_groups(members, jobs=None)[0].members) == 3

    # Stacks, and compiled steps, know the last state of a recurrence that begins at zero alone.
    cuda = torch.device("cuda")
    for key, values in {
        "model.pooling": ["last", "mean"],
        "model.initial_state": ["zeros", "learned"],
        "train.objective": ["sequence", "prefix"],
        "train.recompute_every": ["null", "2"],
        "train.truncate_after": ["null", "2"],
    }.items():
        members = plan_sweep(base, "0-2", {key: values}, None, 10, tmp_path / key).members
        monkeypatch.setattr(sweep_groups, "resolve_device", lambda _: cuda)
        stack, rest = plan_groups(members, jobs=None)
        assert (len(stack.members), stack.stacked) == (3, True)
        assert (len(rest.members), rest.stacked) == (3, False)
        assert {member.name.split("seed")[0] for member in rest.members} != {
            member.name.split("seed")[0] for member in stack.members
        }

    eager = plan_sweep(
        config_of(train={"engine": "captured"}, device="cpu"), "0", {}, None, 10, tmp_path / "t"
    ).members
    monkeypatch.undo()
    assert not plan_groups(eager, None)[0].stacked

    ((member, error),) = run_sweep(load_sweep(tmp_path / "t"))
    assert isinstance(error, MachineError)
    assert member.name == "seed=0"


def test_a_member_without_a_turn_is_not_touched_whatever_lies_in_its_batches() -> None:
    base = config_with("eager", {"data": {"max_length": 9}})
    tasks = [
        load_task(changed(base, seed=seed, data={"max_length": most}))
        for seed, most in enumerate((9, 2))
    ]
    states = [new_state(task) for task in tasks]
    stacked = StackedRuns(list(zip(states, tasks, strict=True)))
    turns = {}
    for place, task in enumerate(tasks):
        block, rates = next(chunks.with_rates(task, 0))
        turns[place] = StepRequest(
            pad_block(block, rates, 8, torch.device("cpu")), 0, states[place].totals
        )
    assert stacked.take_steps(turns, 3) == [3, 3]

    before = [
        {name: part.clone() for name, part in state.model.state_dict().items()} for state in states
    ]
    for present, absent in ((0, 1), (1, 0)):
        kept = (
            stacked.flat[absent].clone(),
            stacked.counts[absent].clone(),
            states[absent].totals.steps,
        )
        assert stacked.take_steps({present: turns[present]}, 5)[present] == 5
        assert torch.equal(stacked.flat[absent], kept[0])
        assert torch.equal(stacked.counts[absent], kept[1])
        assert states[absent].totals.steps == kept[2]
    assert all(
        not torch.equal(states[0].model.state_dict()[name], part)
        for name, part in before[0].items()
    )
    assert stacked.flat[:, 1].abs().sum(1).min() > 0  # gradients, for histograms


@pytest.mark.parametrize("bias", [0.0, math.nan])
def test_to_prepare_a_step_is_to_change_nothing(bias: float) -> None:
    task = load_task(config_with("eager", {"data": {"max_length": 9}}))
    state = new_state(task)
    stacked = StackedRuns([(state, task)])
    block, rates = next(chunks.with_rates(task, 0))
    turn = StepRequest(pad_block(block, rates, 8, torch.device("cpu")), 0, state.totals)
    stacked.take_steps({0: turn}, 3)
    state.model.head.bias.data[0] = bias
    kept = [
        part.clone()
        for part in (stacked.flat, stacked.counts, stacked.graphs.sums, stacked.graphs.position)
    ]
    stacked.graphs.forget()
    for width in (1, 4, 9):
        stacked.graphs._step_of(width)
    for before, after in zip(
        kept,
        (stacked.flat, stacked.counts, stacked.graphs.sums, stacked.graphs.position),
        strict=True,
    ):
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("log_every", [1, 50])
@needs_cuda
def test_a_sweep_on_cuda_is_one_stack_of_the_eager_runs(
    log_every: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, case in CASES.items():
        base = config_with("captured", case, max_steps=100, log_every=log_every).model_copy(
            update={"device": "cuda"}
        )
        sweep = plan_sweep(
            base, "0-2", {"optimizer.lr": ["1e-3", "1e-2"]}, "1,2", 20, tmp_path / name
        )
        assert [group.stacked for group in plan_groups(sweep.members, None)] == [True]
        assert run_sweep(sweep) == []
        for member in sweep.members[1:5:3]:
            eager_dir = tmp_path / f"{name}-eager-{member.name}"
            fit(changed(member.config, train={"engine": "eager"}), eager_dir)
            expected = trained_losses(eager_dir)
            actual = trained_losses(sweep.run_dir(member))
            assert len(actual) == 100 // log_every
            assert actual[:20] == pytest.approx(expected[:20], rel=1e-4)
            assert actual == pytest.approx(expected, rel=1e-2)
    assert "R32" not in capfd.readouterr().err


@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_step_of_a_stack_waits_for_the_device() -> None:
    for name, case in CASES.items():
        config = config_with("captured", case).model_copy(update={"device": "cuda"})
        tasks = [load_task(changed(config, seed=seed)) for seed in range(3)]
        states = [new_state(task) for task in tasks]
        stacked = StackedRuns(list(zip(states, tasks, strict=True)))
        turns = {}
        for place, task in enumerate(tasks):
            block, rates = next(chunks.with_rates(task, 0))
            staged = pad_block(block, rates, config.train.batch_size, torch.device("cuda"))
            turns[place] = StepRequest(staged, 0, states[place].totals)
        assert stacked.take_steps(turns, 3) == [3, 3, 3], name
        try:
            torch.cuda.set_sync_debug_mode("error")
            stacked.graphs._step(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        captured = len(stacked.graphs.steps)
        assert stacked.take_steps({1: turns[1]}, 20)[1] == 20
        assert captured <= len(stacked.graphs.steps) <= 8
