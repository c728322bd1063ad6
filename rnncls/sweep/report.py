"""Write the summary and the pictures of a sweep into its folder, once members have ended."""

from collections.abc import Iterator
from contextlib import contextmanager

from rnncls.rundir.lock import holding
from rnncls.sweep.paths import FOLDERS
from rnncls.sweep.plan import Sweep
from rnncls.sweep.plots.draw import draw
from rnncls.sweep.summary import Summary, summarize, write_summary


@contextmanager
def updated_summary(sweep: Sweep, *, plots: bool) -> Iterator[Summary]:
    """Summarise the sweep for the body, and write summary.json, summary.csv, plots/ and summary/
    after it, also when the body raises.

    `plots`: whether to draw, which takes seconds. Raises: WriteError.
    """
    # The folder is held from reading to writing, so that of two shards that end at the same time
    # the later summary is the one that stays. The body comes before the writing, so that a full
    # disk does not keep a summary from being shown; and the writing follows in any case, so that a
    # stdout that cannot be written to does not keep it from being stored.
    with holding(sweep.folder, FOLDERS):
        summary = summarize(sweep)
        try:
            yield summary
        finally:
            write_summary(sweep, summary)
            if plots:
                draw(sweep, summary)
