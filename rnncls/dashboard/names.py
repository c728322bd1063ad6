"""How classes and sequences are called in pictures and tables: as people read them, shortened."""

from rnncls.config import FilesConfig
from rnncls.data import Task, report
from rnncls.evaluation.examples import readable
from rnncls.system.rows import text_of
from rnncls.system.shown import on_short_line

# Characters.
MOST_OF_LABEL = 40
MOST_OF_SEQUENCE = 100

# Tokens at each end of a sequence: more than there is room for.
ENDS_READ = 64


def class_names(task: Task) -> list[str]:
    """Return the names of the classes, each on a short line."""
    return [on_short_line(name, MOST_OF_LABEL) for name in report.class_names(task)]


def as_text(task: Task, ids: list[int]) -> str:
    """Return a sequence on a short line: its beginning and its end, if it is long."""
    if len(ids) > 2 * ENDS_READ:
        ids = ids[:ENDS_READ] + ids[-ENDS_READ:]
    data = task.config.data
    sequence: object = ids
    if task.vocabulary is not None and isinstance(data, FilesConfig):
        sequence = readable(ids, task.vocabulary, data.tokens)
    return on_short_line(text_of(sequence), MOST_OF_SEQUENCE)
