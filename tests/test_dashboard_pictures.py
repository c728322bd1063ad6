"""What the pictures of a run show is what they were given."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch.nn import functional as F

from rnncls.dashboard.axis_marks import log_ticks, round_ticks, spaced, spaced_inside
from rnncls.dashboard.board import levels_of
from rnncls.dashboard.draw_curves import confidence_histogram
from rnncls.dashboard.draw_grids import count_text, lengths_and_steps, percent
from rnncls.dashboard.layout import custom_scalars
from rnncls.dashboard.pictures import accuracy_by_length, calibration, confusion, results
from rnncls.dashboard.record import Bin, Confusion, Evaluation, Levels
from rnncls.data import load_task
from rnncls.rundir.tables import Row
from rnncls.system.outlines import outline
from rnncls.system.pictures import rendered
from tests.helpers import config_of, files_config, pixels_of, some_rows, write_jsonl

ROWS: list[Row] = [
    {"step": 1, "train/loss": 2.5, "train/accuracy": 0.1, "train/grad_norm": 3.0, "train/lr": 0.1},
    {
        "step": 2,
        "train/loss": 2.0,
        "train/accuracy": 0.2,
        "train/grad_norm": None,
        "train/lr": 0.2,
        "val/loss": 1.5,
        "val/accuracy": 0.25,
        "val/accuracy_by_length/10": 0.0,
        "val/accuracy_by_length/2": 0.999,
        "val/accuracy_by_length/3-4": 0.25,
    },
    {
        "step": 4,
        "train/loss": None,
        "train/accuracy": 0.4,
        "train/grad_norm": 1.0,
        "train/lr": 0.05,
        "val/loss": 0.5,
        "val/accuracy": 0.75,
        "val/accuracy_by_length/2": 1.0,
        "val/accuracy_by_length/3-4": None,
    },
    {"step": 8, "val/loss": 0.25, "val/accuracy": 1.0, "val/accuracy_by_length/2": 1.0},
]
EVALUATION = Evaluation(
    step=4000,
    accuracy=0.625,
    loss=0.5,
    calibration_error=0.125,
    confusion=Confusion(("a", "b", "c"), ((6, 2, 0), (0, 0, 0), (1, 1, 2)), 3),
    bins=(Bin(10, 0.3, 0.5), Bin(30, 0.9, 0.7)),
    errors=(),
)
LEVELS = Levels(math.log(3), num_classes=3, majority=0.4, max_grad_norm=1.5)


def lines_of(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """The points of each line that the legend names."""
    found = {}
    for line in axes.lines:
        if not str(line.get_label()).startswith("_"):
            points: Any = line.get_data()
            xs, ys = points
            found[str(line.get_label())] = (list(map(float, xs)), list(map(float, ys)))
    return found


def title_of(figure: Figure) -> str:
    (title,) = figure.texts
    return title.get_text()


def written(axes: Axes, texts: Sequence[str]) -> dict[tuple[float, float], str]:
    """Which of these texts is written at which place of the axes."""
    shapes = {np.asarray(outline(text).vertices).tobytes(): text for text in texts}
    found: dict[tuple[float, float], str] = {}
    for collection in axes.collections:
        if isinstance(collection, PathCollection):
            paths: Any = collection.get_paths()
            offsets: Any = collection.get_offsets()
            for path, (x, y) in zip(paths, offsets, strict=True):
                if path.vertices.tobytes() in shapes:
                    found[(x, y)] = shapes[path.vertices.tobytes()]
    return found


def image_of(axes: Axes) -> Any:
    (image,) = axes.images
    shades: Any = image.get_array()
    return np.ma.filled(shades, np.nan)


def test_the_curves_of_the_results_are_those_of_the_rows() -> None:
    figure = results(ROWS, EVALUATION, LEVELS)
    loss, accuracy, norm, rate, _, _ = figure.axes
    assert title_of(figure) == "step 4,000: validation accuracy 62.50%"

    lines = lines_of(loss)
    assert lines["train"][0] == [1, 2, 4]
    np.testing.assert_array_equal(lines["train"][1], [2.5, 2.0, math.nan])
    assert lines["val"] == ([2, 4, 8], [1.5, 0.5, 0.25])
    assert lines["guessing: ln 3"][1] == [math.log(3)] * 2
    assert lines["not finite"][0] == [4]
    assert loss.get_yscale() == "log"

    lines = lines_of(accuracy)
    assert lines["train"] == ([1, 2, 4], [0.1, 0.2, 0.4])
    assert lines["val"] == ([2, 4, 8], [0.25, 0.75, 1.0])
    assert lines["majority class 0.4"][1] == [0.4] * 2

    lines = lines_of(norm)
    np.testing.assert_array_equal(lines["train"][1], [3.0, math.nan, 1.0])
    assert lines["clipped to 1.5"][1] == [1.5] * 2
    assert lines_of(rate)["train"] == ([1, 2, 4], [0.1, 0.2, 0.05])

    # Everything that is finite lies inside its axes.
    for axes in (loss, accuracy, norm, rate):
        low, high = axes.get_ylim()
        for xs, ys in lines_of(axes).values():
            if max(xs) > 1:
                assert all(low < y < high for y in ys if math.isfinite(y))


@pytest.mark.parametrize(
    ("levels", "labels"),
    [
        (Levels(1.0, 3, 0.4, None), {"guessing"}),
        (Levels(None, 3, 0.4, None), set()),
        (Levels(0.0, 1, 1.0, None), set()),  # there is no 0 on a logarithmic axis
    ],
)
def test_only_lines_that_there_are_are_drawn(levels: Levels, labels: set[str]) -> None:
    figure = results(ROWS, EVALUATION, levels)
    assert set(lines_of(figure.axes[0])) == {"train", "val", "not finite"} | labels
    assert set(lines_of(figure.axes[2])) == {"train", "not finite"}


@pytest.mark.parametrize("least", [0.4, None])
def test_smoothed_losses_are_called_so_and_have_a_least(least: float | None) -> None:
    levels = replace(LEVELS, is_smoothed=True, least_loss=least)
    figure = results(ROWS, EVALUATION, levels)
    loss, accuracy = figure.axes[:2]
    lines = lines_of(loss)
    plain = lines_of(results(ROWS, EVALUATION, LEVELS).axes[0])
    np.testing.assert_array_equal(lines["train, smoothed"], plain["train"])
    assert lines["val"] == plain["val"]
    assert ("least: 0.4" in lines) == (least is not None)
    if least is not None:
        assert lines["least: 0.4"][1] == [least] * 2

    # Every line is named, beside the title and the legend of the next panel.
    legend = loss.get_legend()
    beside = accuracy.get_legend()
    assert legend is not None
    assert beside is not None
    assert {text.get_text() for text in legend.get_texts()} == set(lines)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    (title,) = figure.texts
    boxes = [
        text.get_window_extent(renderer) for text in legend.get_texts() if text.get_text().strip()
    ]
    others = [title.get_window_extent(renderer), beside.get_window_extent(renderer)]
    assert not any(box.overlaps(other) for box in boxes for other in others)

    # The accuracy of training is that of the labels as they are.
    assert {"train", "val"} < set(lines_of(accuracy))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_least_loss_is_that_of_the_best_logits(smoothing: float) -> None:
    task = load_task(config_of(train={"label_smoothing": smoothing}))
    levels = levels_of(task)
    assert levels.is_smoothed == (smoothing > 0)
    if not smoothing:
        assert levels.least_loss is None
        return

    # By descent, from logits that have nothing to do with the label.
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12)

    def loss() -> torch.Tensor:
        return F.cross_entropy(logits, torch.tensor([1]), label_smoothing=smoothing)

    def closure() -> float:
        optimizer.zero_grad()
        found = loss()
        found.backward()  # type: ignore[no-untyped-call]
        return found.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert levels.least_loss == pytest.approx(loss().item(), rel=1e-9)


def test_with_class_weights_there_is_no_least_loss(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(40))
    train = {"label_smoothing": 0.1, "class_weights": "balanced"}
    levels = levels_of(load_task(files_config(path, train=train)))
    assert (levels.is_smoothed, levels.least_loss) == (True, None)


def test_accuracy_by_length_has_lengths_in_order_and_evaluations_up_to_its_own() -> None:
    lengths, steps, _ = lengths_and_steps(ROWS)
    assert lengths == ["2", "3-4", "10"]
    assert steps == [2, 4, 8]

    figure = accuracy_by_length(ROWS, replace(EVALUATION, step=4))
    (axes,) = figure.axes
    expected = [[0.999, 1.0], [0.25, math.nan], [0.0, math.nan]]
    np.testing.assert_array_equal(image_of(axes), expected)
    assert title_of(figure) == "step 4: accuracy 62.50%, by length"

    # Only what is perfect is 100, and what is missing has no number.
    numbers = written(axes, ["100", "99", "25", "0"])
    assert numbers == {(0, 0): "99", (1, 0): "100", (0, 1): "25", (0, 2): "0"}
    assert axes.patch.get_hatch()

    everything = accuracy_by_length(ROWS, EVALUATION)
    assert image_of(everything.axes[0]).shape == (3, 3)


def test_the_confusion_has_shares_of_rows_as_shades_and_counts_as_numbers() -> None:
    figure = confusion(EVALUATION)
    (axes,) = figure.axes
    expected = [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0.25, 0.5]]
    np.testing.assert_array_equal(image_of(axes), expected)
    assert title_of(figure) == "step 4,000: accuracy 62.50%"
    numbers = written(axes, ["6", "2", "1"])
    assert numbers == {(0, 0): "6", (1, 0): "2", (0, 2): "1", (1, 2): "1", (2, 2): "2"}

    (image,) = results(ROWS, EVALUATION, LEVELS).axes[5].images
    np.testing.assert_array_equal(image.get_array(), expected)


def test_a_confusion_of_some_of_the_classes_says_how_many_there_are() -> None:
    part = replace(EVALUATION.confusion, num_classes=2000)
    figure = confusion(replace(EVALUATION, confusion=part))
    assert title_of(figure) == "step 4,000: accuracy 62.50%, 3 of 2,000 classes"


def test_many_classes_make_a_larger_picture_with_all_counts() -> None:
    counts = tuple(tuple(10 * row + column + 1 for column in range(30)) for row in range(30))
    labels = tuple(f"a rather long label {number}" for number in range(30))
    figure = confusion(replace(EVALUATION, confusion=Confusion(labels, counts, 30)))
    numbers = written(figure.axes[0], [str(count) for count in range(1, 330)])
    assert len(numbers) == 900
    assert numbers[(3, 7)] == "74"
    assert figure.get_size_inches()[1] > confusion(EVALUATION).get_size_inches()[1]


def test_calibration_has_a_point_for_each_bin_and_its_error_in_the_title() -> None:
    figure = calibration(EVALUATION)
    (axes,) = figure.axes
    assert title_of(figure) == "step 4,000: expected calibration error 0.125"
    assert lines_of(axes)["predictions"] == ([0.3, 0.9], [0.5, 0.7])
    assert lines_of(axes)["perfect"] == ([0, 1], [0, 1])

    shares = confidence_histogram(EVALUATION.bins)
    assert shares.sum() == 1
    assert shares[[6, 18]].tolist() == [0.25, 0.75]


def test_what_is_not_finite_is_left_out_of_the_calibration() -> None:
    bad = replace(EVALUATION, calibration_error=math.nan, bins=(Bin(3, math.nan, 0.0),))
    figure = calibration(bad)
    assert title_of(figure) == "step 4,000: expected calibration error not finite"
    assert lines_of(figure.axes[0])["predictions"] == ([], [])


BARE = Evaluation(0, 0.0, math.nan, math.nan, Confusion((), (), 0), (), ())
ODD_ROWS: list[Row] = [
    {
        "step": 2**53,
        "train/loss": 1e300,
        "train/grad_norm": -1.0,
        "train/lr": 1e300,
        "val/loss": 0.0,
        "val/accuracy": -5.0,
        "val/accuracy_by_length/x": 1.0,
        "val/accuracy_by_length/" + "9" * 50: 1e300,
    }
]
ODD_LABELS = ("", " ", "$x_", r"\frac{", "日本語", "x" * 5000, "\x1b[31m", "a\nb")


@pytest.mark.parametrize("rows", [[], ROWS[:1], ODD_ROWS], ids=["none", "one", "odd"])
@pytest.mark.parametrize("kind", ["bare", "odd"])
@pytest.mark.filterwarnings("error")
def test_any_rows_and_labels_can_be_drawn(rows: list[Row], kind: str) -> None:
    counts = tuple((10**12,) * len(ODD_LABELS) for _ in ODD_LABELS)
    odd = replace(EVALUATION, step=2**53, confusion=Confusion(ODD_LABELS, counts, 9))
    evaluation = BARE if kind == "bare" else odd
    pictures = [
        results(rows, evaluation, Levels(1e-300, 1, 0.0, 1e300)),
        confusion(evaluation),
        accuracy_by_length(rows, evaluation),
        calibration(evaluation),
    ]
    for figure in pictures:
        png, height, width = rendered(figure)
        assert png.startswith(b"\x89PNG")
        assert min(height, width) >= 400


def test_rendering_gives_the_picture_and_its_size() -> None:
    figure = calibration(EVALUATION)
    png, height, width = rendered(figure)
    image = imread(io.BytesIO(png))
    assert image.shape[:2] == (height, width)

    # The picture is the one that is shown without a file.
    figure.set_dpi(120)
    pixels = pixels_of(figure)
    np.testing.assert_array_equal(np.rint(image[:, :, :3] * 255), pixels)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "1"),
        (9999, "9999"),
        (10_000, "10k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (9_949_999, "9.9M"),
        (9_950_000, "10M"),
        (123_456_789, "123M"),
    ],
)
def test_counts_are_short(count: int, text: str) -> None:
    assert count_text(count) == text


def test_per_cent_is_rounded_down() -> None:
    shares = [0, 0.29, 0.57, 0.999, 0.999999, 1]
    assert [percent(share) for share in shares] == ["0", "29", "57", "99", "99", "100"]


@pytest.mark.parametrize("low", [1e-45, 1e-5, 0.003, 0.99, 2.25])
@pytest.mark.parametrize("ratio", [1.001, 1.05, 2, 7, 30, 1e4, 1e40])
def test_ticks_are_few_inside_and_in_order(low: float, ratio: float) -> None:
    high = low * ratio
    for ticks in (log_ticks(low, high), round_ticks(low, high)):
        assert 1 <= len(ticks) <= 6
        assert ticks == sorted(set(ticks))
        # Of 0.3 = 3 * 0.1 the last digit is another one.
        rounding = 1e-6 * (high - low)
        assert all(low - rounding <= tick <= high + rounding for tick in ticks)


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("need", [0.5, 1, 1.5, 2, 3.7, 100])
def test_what_is_spaced_does_not_overlap(count: int, need: float) -> None:
    shown = spaced(count, 1, need)
    assert shown[-1] == count - 1
    inside = spaced_inside(count, 1, need)
    for indices in (shown, inside):
        gaps = [after - before for before, after in pairwise(indices)]
        assert all(gap >= need for gap in gaps)

    assert all(0 <= index < count for index in inside)
    if need <= count / 2:
        assert inside


def test_each_chart_of_the_layout_has_its_tags_and_no_others() -> None:
    (value,) = custom_scalars().value
    assert value.metadata.plugin_data.plugin_name == "custom_scalars"
    layout = Layout.FromString(value.tensor.string_val[0])
    tags = {tag for row in ROWS for tag in row if tag != "step"}
    tags |= {"val/macro_f1", "train/lr_scale", "train/clip_fraction", "val/calibration_error"}

    # TensorBoard matches the beginning of a tag.
    charts = {}
    for category in layout.category:
        for chart in category.chart:
            found = {tag for tag in tags for it in chart.multiline.tag if re.match(it, tag)}
            charts[category.title, chart.title] = found
    assert charts == {
        ("learning", "loss"): {"train/loss", "val/loss"},
        ("learning", "accuracy"): {"train/accuracy", "val/accuracy"},
        ("lengths", "accuracy by length"): {
            "val/accuracy_by_length/2",
            "val/accuracy_by_length/3-4",
            "val/accuracy_by_length/10",
        },
        ("optimizer", "gradient norm"): {"train/grad_norm"},
        ("optimizer", "learning rate"): {"train/lr"},
    }
