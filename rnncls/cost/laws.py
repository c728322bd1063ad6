"""How cost grows: O(B T d^2) for time and O(B T d) for memory, each through the smallest case.

B sequences of T tokens and hidden size d take B T d^2 multiplications in the recurrence, and keep
B T d numbers for the backward pass. A ratio above 1 means that a case costs more than that.
"""

from collections.abc import Callable, Sequence

from rnncls.cost.cases import Case
from rnncls.cost.processes import Outcome

# Below, what a case adds to a process cannot be told from what the process does by itself.
LEAST_BYTES = 2**20

TIME = 2  # the power of d
MEMORY = 1


def fitted(
    outcomes: Sequence[Outcome],
    power: int,
    value_of: Callable[[Outcome], float | None],
    least: float = 0.0,
) -> list[float | None]:
    """Return what O(B T d^power) says of each outcome, through the smallest one measured.

    rnncls and torch have a smallest one each. It must have at least the value `least`; without it,
    nothing is known, and None stands for that.
    """
    smallest: dict[str, tuple[Case, float]] = {}
    for outcome in outcomes:
        value = value_of(outcome)
        case = outcome.case
        known = smallest.get(case.implementation)
        is_smaller = known is None or work(case, power) < work(known[0], power)
        if value and value >= least and is_smaller:
            smallest[case.implementation] = (case, value)

    values: list[float | None] = []
    for outcome in outcomes:
        known = smallest.get(outcome.case.implementation)
        if known is None:
            values.append(None)
            continue
        base, value = known
        values.append(value * work(outcome.case, power) / work(base, power))
    return values


def work(case: Case, power: int) -> int:
    """Return B T d^power."""
    return int(case.num_tokens * case.hidden_size**power)
