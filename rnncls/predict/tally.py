"""Counts what predictions are worth, and says it on stderr behind the last one."""

from rnncls.data.subwords import MARK
from rnncls.data.vocabulary import END, UNKNOWN_ID
from rnncls.predict.predictor import Prediction, Predictor
from rnncls.predict.reading import Fields, Row
from rnncls.system.streams import say

MOST_NAMES_SHOWN = 5


class Tally:
    """Counts the predictions, the right ones, and those that are not meaningful."""

    def __init__(self, predictor: Predictor) -> None:
        self.labels = frozenset(predictor.labels)
        # Without <unk>, its id stands for a token like any other.
        self.has_unknown = predictor.vocabulary.has_unknown
        # What each sequence has, whatever it is: where words begin, and where it ends.
        index = predictor.vocabulary.index
        self.empty: list[int] = []
        if predictor.vocabulary.subwords is not None:
            self.empty.append(index[MARK])
        if predictor.data.end_token:
            self.empty.append(index[END])
        self.count = 0
        self.unknown = 0  # sequences of which the model knows no token
        self.mostly = 0  # others of which it knows less than half
        self.labelled = 0  # sequences with a label to compare with
        self.correct = 0
        self.foreign = 0  # sequences whose label the model does not know

    def add(self, row: Row, prediction: Prediction) -> None:
        """Count one prediction."""
        self.count += 1
        if self.has_unknown and UNKNOWN_ID in row.ids:
            num_unknown = row.ids.count(UNKNOWN_ID)
            length = len(row.ids) - sum(map(row.ids.count, self.empty))
            if num_unknown == length:
                self.unknown += 1
            elif 2 * num_unknown > length:
                self.mostly += 1

        if row.true is not None:
            self.labelled += 1
            if row.true == prediction.label:
                self.correct += 1
            elif row.true not in self.labels:
                self.foreign += 1

    def _have(self, number: int) -> str:
        return f"{number:,} of {self.count:,} sequences {'has' if number == 1 else 'have'}"

    def report(self) -> None:
        """Say on stderr what the predictions are worth."""
        if self.unknown:
            _warn(
                "D8",
                f"{self._have(self.unknown)} no token of the training data; "
                f"{_predictions(self.unknown)} not meaningful",
            )
        if self.mostly:
            _warn(
                "D8",
                f"{self._have(self.mostly)} mostly tokens that the training data lacks; "
                f"{_predictions(self.mostly)} worth little",
            )
        if self.foreign:
            # In a file without labels, another column may have the name of theirs, or the number.
            otherwise = "; if the file has no labels, the accuracy means nothing"
            _warn(
                "D6",
                f"{self._have(self.foreign)} a label that the model does not know; "
                f"{'it counts' if self.foreign == 1 else 'they count'} as wrong"
                f"{otherwise * (self.foreign == self.labelled)}",
            )
        if self.labelled:
            accuracy = self.correct / self.labelled
            without = self.count - self.labelled
            rest = f"; {without:,} without a label" if without else ""
            shown = f"accuracy: {accuracy:.4f} ({self.correct:,} of {self.labelled:,}{rest})"
            say(f"rnncls: {shown}")


def _predictions(number: int) -> str:
    return "its prediction is" if number == 1 else "their predictions are"


def _warn(id: str, message: str) -> None:
    say(f"rnncls: warning[{id}]: {message}")


class LeftOut:
    """Counts rows with fields that the first row lacks: a table has no columns for them."""

    def __init__(self, columns: list[str]) -> None:
        self.columns = frozenset(columns)
        self.count = 0
        self.names: dict[str, None] = {}  # in their order; the first ones

    def look_at(self, fields: Fields) -> None:
        """Note the fields of a row that have no column."""
        if self.columns.issuperset(fields):
            return
        self.count += 1
        for name in fields:
            if name not in self.columns and len(self.names) <= MOST_NAMES_SHOWN:
                self.names[name] = None

    def report(self) -> None:
        """Say on stderr what the table lacks."""
        if self.count:
            names = [*self.names]
            shown = ", ".join(names[:MOST_NAMES_SHOWN])
            more = ", ..." if len(names) > MOST_NAMES_SHOWN else ""
            rows = "1 row has" if self.count == 1 else f"{self.count:,} rows have"
            _warn(
                "D14",
                f"{rows} fields that the first one lacks, which are not in the table: "
                f"{shown}{more}",
            )
