"""What lasts is left out of the collections of cycles; what comes after it is collected."""

import gc
import weakref
from collections.abc import Generator
from pathlib import Path

import pytest

from rnncls.predict.predictor import load
from rnncls.system.collector import lasting


class Node:
    """May refer to itself, which the collector alone can undo."""

    itself: "Node | None" = None


def cycle() -> "weakref.ref[Node]":
    """Make a cycle to which nothing refers."""
    node = Node()
    node.itself = node
    return weakref.ref(node)


@pytest.fixture(autouse=True)
def _nothing_lasts() -> Generator[None]:
    yield
    gc.unfreeze()


def test_what_is_made_inside_is_never_looked_at_again_and_the_rest_is() -> None:
    with lasting():
        assert not gc.isenabled()
        inside = cycle()
    after = cycle()

    gc.collect()
    assert inside() is not None
    assert after() is None


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_collector_goes_on_as_before_also_after_an_error(was_enabled: bool) -> None:
    (gc.enable if was_enabled else gc.disable)()
    try:
        with pytest.raises(InterruptedError), lasting(), lasting():
            raise InterruptedError
        assert gc.isenabled() is was_enabled
    finally:
        gc.enable()


def test_a_predictor_leaves_the_collector_of_its_process_alone(run_dir: Path) -> None:
    lasting_before = gc.get_freeze_count()
    load(run_dir).predict(["1 2 0", "2 1"] * 10)
    assert gc.get_freeze_count() == lasting_before
    assert gc.isenabled()
