"""Collects the bad rows of a file, or skips them, and words what is wrong with them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from rnncls.errors import DataError, Problem
from rnncls.system.streams import say

# Ids among which one is none are mistyped. Where most rows have no ids, they are words.
NO_ID_REMEDY = "fix the line"
NO_IDS_REMEDY = "data.tokens=words"

# Measurements, which are no words either: nearly every one is a token of its own.
FRACTIONS = "numbers with fractions are not tokens"
FRACTIONS_REMEDY = "bin them into integers first, such as 1.511 into 15: round(10 * value)"

MOST_SHOWN = 5  # bad lines of a file, and lines with the same cause
# Nobody fixes more of them, and a small packed file may have 2^27: reading stops there.
MOST_BAD_ROWS = 250_000

MOST_SKIPPED_SHOWN = 100  # the others are counted


class BadRows:
    """Collects the bad rows of one file: the first few in full, the others counted.

    What is wrong with more than a few rows is told once, with the lines of the first.
    """

    remedy = "fix or remove the line"  # of rows that have none of their own

    def __init__(self, path: str | Path, stops: bool = True) -> None:
        self.path = path
        self.stops = stops  # at MOST_BAD_ROWS
        self.count = 0
        self.problems: list[Problem] = []  # the first of each cause
        self.causes: Counter[tuple[str, str, str]] = Counter()
        self.num_without_ids = 0  # rows
        self.has_fractions = False

        # Good rows whose text looks like a list: how many, and the place of the first.
        self.num_like_lists = 0
        self.first_like_list = ""

    def add(
        self,
        line: int,
        what: str,
        expected: str = "",
        found: str = "",
        remedy: str = "",
        id: str = "D14",
    ) -> None:
        """Add a bad row by its line; the other arguments are those of a `Problem`.

        Raises: DataError if they are very many, and nobody wants them skipped.
        """
        self.count += 1
        self.num_without_ids += id == "D7"
        self.has_fractions = self.has_fractions or what == FRACTIONS
        self.note(
            Problem(
                what,
                f"{self.path}:{line}",
                expected=expected,
                found=found,
                remedy=remedy or self.remedy,
                id=id,
            )
        )
        if self.stops and self.count >= MOST_BAD_ROWS:
            self.raise_if_any()

    def note(self, problem: Problem) -> None:
        """Keep the problem, if it is one of the first with its cause."""
        cause = _cause_of(problem)
        if cause in self.causes or len(self.causes) < MOST_SHOWN:
            self.causes[cause] += 1
            if self.causes[cause] <= MOST_SHOWN:
                self.problems.append(problem)

    def add_problem(self, line: int, problem: Problem) -> None:
        """Add a problem that does not know its line."""
        self.add(
            line,
            problem.what,
            expected=problem.expected,
            found=problem.found,
            remedy=problem.remedy,
            id=problem.id or "D14",
        )

    def note_like_list(self, line: int) -> None:
        """Count a good row whose text looks like a list."""
        self.num_like_lists += 1
        self.first_like_list = self.first_like_list or f"{self.path}:{line}"

    def finish(self, num_good: int) -> None:
        """Report the bad rows, after the last row. Raises: DataError if there are any."""
        self.raise_if_any(num_good)

    def raise_if_any(self, num_good: int | None = None) -> None:
        """Raise DataError if there are bad rows, with the first of them and their number.

        `num_good` is the number of the other rows, None if nobody has counted them.
        """
        if not self.problems:
            return

        num_rows = None if num_good is None else self.count + num_good
        shown: list[Problem] = []
        num_told = 0  # bad rows that are shown, or counted in what is shown
        told = set()
        for problem in self.problems:
            cause = _cause_of(problem)
            if cause in told or len(shown) == MOST_SHOWN:
                continue

            count = self.causes[cause]
            if count > MOST_SHOWN or 1 < count == num_rows:
                shown.append(self._told_once(cause, num_rows))
                num_told += count
                told.add(cause)
            else:
                shown.append(problem)
                num_told += 1

        # The last problem says how many there are in all, if not every one is shown.
        if self.count > num_told:
            what = f"{self.count:,} bad rows in all"
            if self.count >= MOST_BAD_ROWS:
                what = f"{self.count:,} bad rows so far: the others were not looked for"
            remedy = "data.bad=skip leaves them out, counted and listed"
            shown.append(Problem(what, str(self.path), remedy=remedy, id=shown[0].id))
        raise DataError(*(self._with_remedy(problem, num_rows) for problem in shown))

    def _with_remedy(self, problem: Problem, num_rows: int | None) -> Problem:
        """Return the problem with what helps where most of the rows have no ids."""
        if problem.id != "D7" or problem.remedy != NO_ID_REMEDY or num_rows is None:
            return problem
        if 2 * self.num_without_ids <= num_rows or self.has_fractions:
            return problem
        return replace(problem, remedy=NO_IDS_REMEDY)

    def _told_once(self, cause: tuple[str, str, str], num_rows: int | None) -> Problem:
        """Return the problem of all rows with this cause: that of the first, with the others."""
        first, *others = [problem for problem in self.problems if _cause_of(problem) == cause]
        count = self.causes[cause]
        if count == num_rows:
            share = f"in all {count:,} rows"
        else:
            share = (
                f"in {count:,} rows" if num_rows is None else f"in {count:,} of {num_rows:,} rows"
            )

        lines = ", ".join(problem.where.rpartition(":")[2] for problem in others)
        also = f"likewise in {'line' if count == 2 else 'lines'} {lines}"
        also += ", ..." if count > MOST_SHOWN else ""
        found = f"{first.found}; {also}" if first.found else also
        return replace(first, what=f"{first.what}, {share}", found=found)


class Skipping(BadRows):
    """Reports each bad row on stderr, or raises DataError at the first one if `stop`.

    So are rows skipped in training, in an evaluation, and by predict.
    """

    remedy = "--bad skip"

    def __init__(self, path: str | Path, stop: bool = False, rows: str = "sequences") -> None:
        # Whoever skips bad rows wants what is left, however many they are.
        super().__init__(path, stops=False)
        self.stop = stop
        self.rows = rows  # what they are called where they are counted

    def note(self, problem: Problem) -> None:
        """Report one bad row. Raises: DataError if `stop`."""
        if self.stop:
            # Whatever else helps, the row can be left out.
            if self.remedy not in problem.remedy:
                problem = replace(problem, remedy=f"{problem.remedy}; or {self.remedy}")
            raise DataError(problem)
        if self.count > MOST_SKIPPED_SHOWN:
            return

        detail = f": {problem.found}" if problem.found else ""
        message = f"rnncls: skipped {problem.where}: {problem.what}{detail}"
        say(message)

    def finish(self, num_good: int) -> None:
        """Report how many rows were skipped. Raises: DataError if there was no good one."""
        if not self.count:
            return

        # Of all skipped rows, also those that were not shown.
        total = self.count + num_good
        message = f"rnncls: skipped {self.count:,} of {total:,} {self.rows}"
        say(message)
        if not num_good:
            raise DataError(Problem("0 sequences are left", str(self.path), id="D2"))


def bad_rows_of(path: str | Path, bad: str) -> BadRows:
    """Return what collects the bad rows of a file, or skips them, as data.bad says."""
    return Skipping(path, rows=f"rows of {path}") if bad == "skip" else BadRows(path)


def _cause_of(problem: Problem) -> tuple[str, str, str]:
    """Return what problems of the same cause have in common; places and values differ."""
    return problem.what, problem.expected, problem.remedy
