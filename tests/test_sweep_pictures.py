"""Pictures and tables of a sweep: their numbers, and that they can be read."""

import itertools
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rnncls.dashboard.markdown import in_markdown
from rnncls.sweep.outcomes import Outcome, by_setting
from rnncls.sweep.plan import Member, Sweep
from rnncls.sweep.plots.by_length import accuracy_by_length, error_rate_by_length
from rnncls.sweep.plots.grid import grid_map
from rnncls.sweep.plots.loss import losses
from rnncls.sweep.plots.steps_to_solved import steps_to_solved
from rnncls.sweep.plots.success_rate import success_rates
from rnncls.sweep.results import Evaluation, LengthResult
from rnncls.sweep.summary import Summary, success, summarize_setting
from rnncls.sweep.tables import summary_markdown
from rnncls.sweep.text import summary_text
from tests.helpers import config_of, pixels_of


class At(NamedTuple):
    """A length at which a member is tested."""

    values: tuple[str, ...]  # of the grid
    seed: int
    length: int


Accuracy = Callable[[At], float]

LENGTHS = (1, 2, 4, 50)
TRAINED = 4
STEPS = 500


def outcomes_of(
    accuracy: Accuracy, grid: dict[str, list[str]] | None = None, seeds: int = 4
) -> list[Outcome]:
    """Return outcomes of which only the accuracies matter, and the steps: 100 times seed + 1."""
    ended = []
    for values in itertools.product(*(grid or {}).values()):
        for seed in range(seeds):
            at = []
            for length in LENGTHS:
                share = accuracy(At(values, seed, length))
                at.append(LengthResult(length=length, accuracy=share, trained=length <= TRAINED))
            evaluation = Evaluation(step=STEPS, accuracy=at[0].accuracy, chance=0.25, by_length=at)
            by_key = dict(zip(grid or {}, values, strict=True))
            member = Member("_".join([*values, str(seed)]), by_key, config_of())
            is_solved = all(result.accuracy == 1 for result in at if result.trained)
            steps = 100 * (seed + 1) if is_solved else None
            ended.append(
                Outcome(member, "finished", 0, "", STEPS, evaluation, LENGTHS, steps, None)
            )
    return ended


def two_modes(at: At) -> float:
    """Return the accuracy of members of which the even ones solve the task."""
    return 1.0 if at.seed % 2 == 0 and at.length < 50 else 0.3 + 0.01 * at.seed


GRID = {"optimizer.lr": ["1e-3", "1e-2"], "train.batch_size": ["8", "16", "32"]}


def sweep_of(folder: Path, ended: Sequence[Outcome], loss: float | None = 0.5) -> Sweep:
    """Return a sweep in which each of the members has logged this loss at two steps."""
    sweep = Sweep(folder, [outcome.member for outcome in ended], [], 1, {}, 2)
    for member in sweep.members:
        sweep.run_dir(member).mkdir(parents=True, exist_ok=True)
        rows = [json.dumps({"step": step, "train/loss": loss}) for step in (10, 20)]
        (sweep.run_dir(member) / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    return sweep


def labelled(axes: Axes) -> dict[str, Any]:
    """Return the lines of a legend by their labels."""
    lines = {str(line.get_label()): line for line in axes.lines}
    return {label: line for label, line in lines.items() if not label.startswith("_")}


def test_solved_and_unsolved_members_have_medians_of_their_own() -> None:
    (axes,) = accuracy_by_length(outcomes_of(two_modes)).axes
    lines = labelled(axes)
    solved = lines["solved, 2 of 4"]
    others = lines["not solved, 2 of 4"]
    assert list(solved.get_ydata()) == [1, 1, 1, median([0.30, 0.32])]
    assert list(others.get_ydata()) == pytest.approx([median([0.31, 0.33])] * 4)

    # Apart in colour and without it.
    assert solved.get_color() != others.get_color()
    assert solved.get_linestyle() != others.get_linestyle()
    assert solved.get_markerfacecolor() != others.get_markerfacecolor()


@pytest.mark.parametrize(("lowest", "start"), [(1.0, 0.998), (0.95, 0.945), (0.3, -0.03)])
def test_the_axis_of_accuracies_begins_where_it_says(lowest: float, start: float) -> None:
    (axes,) = accuracy_by_length(outcomes_of(lambda _: lowest)).axes
    assert axes.get_ylim()[0] == pytest.approx(start)
    assert ("begins at" in axes.get_ylabel()) == (start > 0)
    if start > 0:
        assert axes.get_ylabel() == f"accuracy (axis begins at {start:g})"
    # Everything is in the picture.
    assert axes.get_ylim()[0] < lowest <= 1 < axes.get_ylim()[1]


def test_no_error_is_drawn_on_a_floor_that_is_named() -> None:
    ended = outcomes_of(lambda at: 1.0 if at.length < 50 else 0.99)
    (axes,) = error_rate_by_length(ended).axes
    rates = list(labelled(axes)["solved, 4 of 4"].get_ydata())
    assert rates == pytest.approx([0.005, 0.005, 0.005, 0.01])
    named = dict(zip(axes.get_yticks(), axes.get_yticklabels(), strict=True))
    assert named[rates[0]].get_text() == "no error"

    # Where all make errors, there is no such place.
    (axes,) = error_rate_by_length(outcomes_of(lambda _: 0.5)).axes
    assert "no error" not in [label.get_text() for label in axes.get_yticklabels()]


def test_the_share_solved_rises_at_the_steps_at_which_members_solve_it() -> None:
    (axes,) = steps_to_solved(outcomes_of(two_modes)).axes
    (line,) = labelled(axes).values()
    # Seeds 0 and 2, at 100 times seed + 1; the others never.
    assert line.get_label() == "2 of 4"
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [
        *[(0, 0), (100, 25), (300, 50), (STEPS, 50)]
    ]


def test_success_rates_have_their_intervals_and_counts() -> None:
    ended = outcomes_of(two_modes, GRID)
    (axes,) = success_rates(ended).axes
    drawn = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    low, high = success([1.0, 0.0, 1.0, 0.0], 0.99).ci95
    # Beside the lines between the rows: a point and an interval for each level of each setting.
    assert [x for x in drawn if len(x) == 1] == [[50.0]] * 3 * 6
    intervals = [x for x in drawn if len(x) == 2 and x != [0, 1]]
    assert intervals == [[100 * low, 100 * high]] * 3 * 6
    assert [text.get_text() for text in axes.texts] == ["2 / 2 / 2 of 4"] * 6
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "lr=1e-3\nbatch_size=8"


def written(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_grid_of_two_keys_has_a_map() -> None:
    def by_rate(at: At) -> float:
        return 1.0 if at.values[0] == "1e-2" and at.seed < int(at.values[1]) // 8 else 0.5

    ended = outcomes_of(by_rate, GRID)
    figure = grid_map(ended)
    assert figure is not None
    rates = ["0 %\n0 of 4", "25 %\n1 of 4", "0 %\n0 of 4", "50 %\n2 of 4"]
    assert written(figure) == [*rates, "0 %\n0 of 4", "100 %\n4 of 4"]

    # A pair of which nothing has ended is hatched, not 0.
    figure = grid_map([replace(ended[0], evaluation=None), *ended[4:]])
    assert figure is not None
    assert written(figure) == [*rates[1:], "0 %\n0 of 4", "100 %\n4 of 4"]
    assert [patch.get_hatch() for patch in figure.axes[0].patches] == ["///"]

    # Where all do alike, a rate would say nothing.
    figure = grid_map(outcomes_of(lambda at: 1.0 if at.length < 50 else float(at.values[0]), GRID))
    assert figure is not None
    assert written(figure) == ["0.001", "0.010"] * 3
    assert figure.axes[0].get_title().startswith("median accuracy at the longest length")

    for keys in ({}, {"optimizer.lr": ["1", "2"]}, {"optimizer.lr": ["1", "2"], "seed": ["1"]}):
        assert grid_map(outcomes_of(two_modes, keys)) is None


def pictures(ended: list[Outcome], sweep: Sweep) -> list[Figure]:
    figures = [accuracy_by_length(ended), error_rate_by_length(ended), losses(sweep, ended)]
    return [*figures, steps_to_solved(ended), success_rates(ended)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("grid", "seeds"),
    [
        ({}, 1),
        ({"optimizer.lr": ["1e-3", "1e-2"]}, 4),
        ({"data.label_field": ["a" * 200, "b" * 200], "model.cell": ["rnn", "gru"]}, 2),
        pytest.param({"seed": [str(n) for n in range(30)]}, 2, marks=pytest.mark.slow),
    ],
)
def test_legends_hide_nothing_and_everything_is_inside(
    grid: dict[str, list[str]], seeds: int, tmp_path: Path
) -> None:
    ended = outcomes_of(two_modes, grid, seeds)
    for figure in pictures(ended, sweep_of(tmp_path, ended)):
        height, width, _ = pixels_of(figure).shape
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        (axes,) = figure.axes
        inside = axes.get_window_extent(renderer)
        # Room for the curves, at the size of a card too.
        assert inside.width > width / 2.5
        assert inside.height > 0.25 * width
        for legend in figure.legends:
            box = legend.get_window_extent(renderer)
            assert box.y1 <= inside.y0
            assert box.x0 >= 0
            assert box.x1 <= width
            assert box.y0 >= 0
        around = axes.get_tightbbox(renderer)
        assert around is not None
        assert around.x0 >= -1
        assert around.x1 <= width + 1
        assert around.y1 <= height + 1


def test_losses_say_whether_labels_are_smoothed(tmp_path: Path) -> None:
    for number, (values, said) in enumerate(
        [
            (["0"], "training loss (nats)"),
            (["0.3"], "training loss (nats), of smoothed labels"),
            (["0.3", "0"], "training loss (nats), not of the same labels"),
        ]
    ):
        ended = []
        for outcome in outcomes_of(two_modes, {"train.label_smoothing": values}):
            member = outcome.member
            train = {"label_smoothing": float(member.values["train.label_smoothing"])}
            config = member.config.model_copy(
                update={"train": member.config.train.model_copy(update=train)}
            )
            ended.append(replace(outcome, member=replace(member, config=config)))
        figure = losses(sweep_of(tmp_path / str(number), ended), ended)
        assert figure.axes[0].get_ylabel() == said


def test_a_sweep_without_a_finite_loss_says_so(tmp_path: Path) -> None:
    ended = outcomes_of(two_modes)
    figure = losses(sweep_of(tmp_path, ended, loss=None), ended)
    assert written(figure) == ["no finite loss was logged"]
    assert pixels_of(figure).size


# --- tables


def as_html(markdown: str) -> str:
    """Return what TensorBoard makes of a text."""
    with warnings.catch_warnings():
        # Of a part of it that it no longer uses.
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.plugin_util import markdown_to_safe_html
    return str(markdown_to_safe_html(markdown))


def summary_of(ended: list[Outcome]) -> Summary:
    settings = [summarize_setting(*item) for item in by_setting(ended).items()]
    return Summary(settings, ended)


def test_the_first_table_is_the_same_in_text_and_in_tensorboard() -> None:
    summary = summary_of(outcomes_of(two_modes, GRID))
    table = summary_text(summary).split("\n\n")[0].splitlines()
    html = as_html(summary_markdown(summary))
    rows = re.findall("<tr>(.*?)</tr>", html.partition("</table>")[0], re.DOTALL)
    cells = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert [unescape(" ".join(row)).split() for row in cells] == [line.split() for line in table]
    assert html.count("<table>") == 4


@pytest.mark.parametrize(
    "foreign",
    [
        "a|b",
        "*a* _b_ __c__ `d`",
        "<script>alert(1)</script>",
        "[a](http://b)",
        "![a](http://b)",
        "&amp; &#65;",
        "# a",
        "a_b_c \\| \\",
        "http://a.b",
        "~~a~~",
    ],
)
def test_values_of_a_grid_are_shown_as_they_are(foreign: str) -> None:
    html = as_html(f"| a |\n| :--- |\n| x{in_markdown(foreign, 80)} |")
    (cell,) = re.findall("<td[^>]*>(.*?)</td>", html, re.DOTALL)
    assert unescape(cell) == f"x{foreign}"
    assert "<" not in cell
