"""The plan of a sweep: its members, one for each seed and each combination of the grid's values.

The plan is stored as sweep.yaml, so that the sweep can be resumed and its shards agree.
"""

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnncls.config import (
    Config,
    FilesConfig,
    SumModConfig,
    parse_saved,
    read_yaml,
    write_yaml,
)
from rnncls.config.ranges import (
    MAX_READ,
    MAX_SAMPLES,
    NOTHING_LONG,
    Long,
    parse_lengths,
    parse_seeds,
    require_generated_data,
)
from rnncls.data import spread_lengths
from rnncls.data.files.opening import fingerprint
from rnncls.data.read_tables import DATA_KEYS, data_files, with_files_found
from rnncls.errors import ConfigError, Problem
from rnncls.evaluation.streaming import require_stream
from rnncls.model.rules import LATEST, StepRules
from rnncls.rundir.lock import holding
from rnncls.rundir.paths import LOCK
from rnncls.sweep.paths import FOLDERS, MEMBERS, SWEEP_FILE
from rnncls.system.files import TEMPORARY, commented, write_atomically
from rnncls.system.folders import make_numbered
from rnncls.system.refusals import writing

# All members are kept in memory, each with its config.
MOST_MEMBERS = 100_000

# The YAML reader refuses more than 64 KiB, and what is written must be readable again.
MAX_SWEEP_FILE_BYTES = 60_000

# File systems allow names of 255 bytes; the rest is a margin.
MAX_NAME_BYTES = 200

# The key of a grid that names a file beside those of the data.
VECTORS_KEY = "model.embeddings"

Grid = dict[str, list[str]]  # the values of each key, as they were written

# No file has a NUL in its path, and the system's calls refuse it with another kind of error.
FilePath = Annotated[str, Field(pattern=r"^[^\x00]*$")]


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str  # of its folder
    values: dict[str, str]  # of the grid's keys, as they were written
    config: Config

    @property
    def setting(self) -> str:
        """The grid's values as text: "optimizer.lr=1e-3"; empty without a grid."""
        return format_setting(self.values)


@dataclass(frozen=True)
class Sweep:
    """The members of a sweep, and how they are evaluated."""

    folder: Path
    members: list[Member]
    lengths: list[int]  # tested in addition to the training lengths
    samples: int  # sequences per length, where a length has more
    fingerprints: dict[str, str]  # SHA-256 of the data files, by path
    step_rules: StepRules  # the same for all members, whenever they begin
    long: Long = NOTHING_LONG  # sequences that are read a few digits at a time

    def run_dir(self, member: Member) -> Path:
        return self.folder / MEMBERS / member.name


class SweepFile(BaseModel):
    """The content of sweep.yaml."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config: dict[str, Any]

    # Seeds, grid and lengths are kept as they were written: the same command gives the same file.
    seeds: str

    # Not strict, because the YAML reader returns tuples.
    grid: dict[str, Annotated[list[str], Field(strict=False)]]
    lengths: str | None
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    fingerprints: dict[FilePath, str]

    # What values of the grid stood for that name data files: a folder or a pattern may stand for
    # others later, and a path is relative to where the command was given.
    files: dict[str, Annotated[list[FilePath], Field(strict=False)]] = {}

    # Up to which length sequences are read a few digits at a time; older sweeps read none.
    structured: Annotated[int, Field(ge=1, le=MAX_READ)] | None = None
    until_wrong: Annotated[int, Field(ge=1, le=MAX_READ)] | None = None

    # The members of a sweep that began before there were others all go by the first rules.
    step_rules: StepRules = 1


def format_setting(values: dict[str, str], *, short: bool = False, separator: str = " ") -> str:
    """Return values of the grid as text; `short` leaves out the sections of the keys.

    >>> format_setting({"optimizer.lr": "1e-3", "train.batch_size": "8"}, short=True)
    'lr=1e-3 batch_size=8'
    """
    parts = []
    for key, text in values.items():
        label = key.rpartition(".")[2] if short else key
        parts.append(f"{label}={text}")
    return separator.join(parts)


def plan_sweep(
    base: Config,
    seeds: str,
    grid: Grid,
    lengths: str | None,
    samples: int,
    folder: Path,
    origin: str = "",
    numbered: bool = False,
    long: Long = NOTHING_LONG,
) -> Sweep:
    """Plan a sweep and write it to `folder`, or return the same sweep if it is there already.

    `lengths` are tested in addition to the training lengths (at most 20 of those); `samples` is
    the number of sequences per length, where a length has more. `origin`: where the config comes
    from, for a comment in sweep.yaml. `numbered`: the sweep is always a new one, and the name of
    its folder gets a number if it is taken. `long`: sequences that are read a few digits at a time.

    Raises: ConfigError if the plan is invalid or the folder holds something else. DataError if a
    data file cannot be read. CheckpointError if a folder in `folder` is a link. WriteError.
    """
    # A resumed sweep trains on the same files, whatever has come into a folder since.
    if isinstance(base.data, FilesConfig):
        base = base.model_copy(update={"data": with_files_found(base.data)})

    # Parsed here first, so that the messages name the options and not the folder.
    parse_seeds(seeds)
    if lengths is not None:
        parse_lengths(lengths)

    content = SweepFile(
        config=base.model_dump(mode="json"),
        seeds=seeds,
        grid=grid,
        lengths=lengths,
        samples=samples,
        fingerprints={},
        files=_files_of_grid(base, grid, str(folder)),
        structured=long.structured,
        until_wrong=long.until_wrong,
        step_rules=LATEST,
    )
    sweep = _expand(content, folder, source=str(folder))

    # Reading the data takes longest, so it comes after everything that may be refused. `sweep`
    # shares the dictionary that is filled here.
    for path in sorted(planned_files(sweep.members)):
        content.fingerprints[path] = fingerprint(path)

    folder, step_rules = _write_plan(folder, content, origin, numbered)
    return replace(sweep, folder=folder, step_rules=step_rules)


def _files_of_grid(base: Config, grid: Grid, source: str) -> dict[str, list[str]]:
    """Return the files for each value of the grid that names some: data, or word vectors.

    Raises: ConfigError for a value that is invalid. DataError, as `files_of` does.
    """
    files: dict[str, list[str]] = {}
    for key in DATA_KEYS & grid.keys():
        for text in grid[key]:
            config = parse_saved(base.model_dump(mode="json"), source, [f"{key}={text}"])
            data = cast(FilesConfig, config.data)  # no other source has these keys
            files[text] = [*data_files(data).get(key.removeprefix("data."), ())]
    for text in grid.get(VECTORS_KEY, ()):
        config = parse_saved(base.model_dump(mode="json"), source, [f"{VECTORS_KEY}={text}"])
        # The vectors of a resumed sweep are where they were, wherever it is resumed.
        if config.model.embeddings is not None:
            files[text] = [config.model.embeddings]
    return files


def load_sweep(folder: Path) -> Sweep:
    """Return the sweep in a folder. Raises ConfigError if there is none."""
    path = folder / SWEEP_FILE
    return _expand(_read_plan(path), folder, source=str(path))


def tested_lengths(sweep: Sweep, config: Config) -> list[int]:
    """Return the lengths that are tested: training lengths (at most 20) and the sweep's own.

    Data files are tested as a whole: no lengths.
    """
    if not isinstance(config.data, SumModConfig):
        return []
    return sorted({*spread_lengths(config.data), *sweep.lengths})


def _write_plan(
    folder: Path, content: SweepFile, origin: str, numbered: bool
) -> tuple[Path, StepRules]:
    """Write sweep.yaml, or check that the one in the folder says the same.

    Returns the folder, and the step rules in that file, which may be older.
    """
    text = commented(origin, write_yaml(content.model_dump())).encode()
    if len(text) > MAX_SWEEP_FILE_BYTES:
        raise ConfigError(
            Problem(
                "a very large grid" if content.grid else "very many data files",
                "--grid" if content.grid else str(folder),
                expected=f"a plan of at most {MAX_SWEEP_FILE_BYTES:,} bytes",
                found=f"{len(text):,} bytes, with {len(content.fingerprints):,} data files",
                remedy="fewer values, or fewer data files: put those of one kind together",
                id="C10",
            )
        )

    if not numbered:
        _require_unused(folder)
    with writing(folder):
        if numbered:
            folder = make_numbered(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)

    # Several shards may begin at the same time: the first one writes, the others compare.
    with holding(folder, FOLDERS):
        path = folder / SWEEP_FILE
        if not path.exists():
            _require_unused(folder)
            with writing(path):
                write_atomically(path, text)
            return folder, content.step_rules

        kept = _read_plan(path)
        if _meaning(kept, path) != _meaning(content, path):
            what = "another sweep is in this folder"
            remedy = "another --sweep-dir, or sweep --resume"
            raise ConfigError(Problem(what, str(path), remedy=remedy, id="C19"))
    return folder, kept.step_rules


def _meaning(content: SweepFile, path: Path) -> dict[str, Any]:
    """Return what a plan says, with every key of its config: it may be older than some of them.

    The step rules are nothing that a command says. No pictures are what null means for members, and
    what sweeps had before there was that key.

    Raises: ConfigError for a config that is not valid.
    """
    config = parse_saved(content.config, str(path))
    said = content.model_dump(mode="json", exclude={"step_rules"})
    meant = config.model_dump(mode="json")
    meant["train"]["plots"] = bool(config.train.plots)
    return said | {"config": meant}


def _require_unused(folder: Path) -> None:
    """Raise ConfigError if the folder holds files, but no sweep."""
    names = set()
    with writing(folder):
        if folder.exists():
            names = {path.name for path in folder.iterdir()}

    # A process that was killed while it planned leaves no more than these.
    others = [name for name in names if name != LOCK and not name.startswith(TEMPORARY)]
    if others and SWEEP_FILE not in names:
        remedy = "another --sweep-dir"
        raise ConfigError(Problem("the folder is not empty", str(folder), remedy=remedy, id="C19"))


def _read_plan(path: Path) -> SweepFile:
    """Return the content of sweep.yaml. Raises ConfigError if it is missing or damaged."""
    # By name and not with `exists`, which follows a link: a link that leads nowhere, or a file that
    # may not be read, is there, and the reader says what is wrong with it.
    folder = path.parent
    if not folder.is_dir() or SWEEP_FILE not in {entry.name for entry in folder.iterdir()}:
        expected = f"a folder with {SWEEP_FILE}"
        remedy = "the folder of a sweep; to resume a run, train --resume"
        problem = Problem("not a sweep", str(folder), expected=expected, remedy=remedy, id="C4")
        raise ConfigError(problem)

    try:
        return SweepFile.model_validate(read_yaml(path))
    except ValidationError as error:
        # A file of another kind is wrong in every key; a few of them are enough to see that.
        keys = {".".join(map(str, detail["loc"])) for detail in error.errors()}
        wrong = ", ".join(sorted(keys)[:5])
        expected = "a file written by rnncls sweep"
        problem = Problem("not a sweep", str(path), expected=expected, found=wrong, id="C4")
        raise ConfigError(problem) from None


def _expand(content: SweepFile, folder: Path, source: str) -> Sweep:
    """Return the sweep that sweep.yaml describes. `source` is where messages say it comes from."""
    seeds = parse_seeds(content.seeds, source)
    lengths = []
    if content.lengths is not None:
        lengths = parse_lengths(content.lengths, source)

    # The grid is counted before it is expanded: a few axes make more members than memory holds.
    _check_grid(content.grid, len(seeds), source)
    members = _members(content, seeds, source)

    # Values of the grid can replace the data, so every member is asked.
    if lengths:
        for member in members:
            require_generated_data(member.config)
            _require_positions(member.config, lengths, source)

    long = Long(content.structured, content.until_wrong)
    require_streams(members, long)
    _check_members(members, source)
    return Sweep(
        folder, members, lengths, content.samples, content.fingerprints, content.step_rules, long
    )


def require_streams(members: list[Member], long: Long) -> None:
    """Raise ConfigError, by its setting, for a member whose sequences cannot be read as asked."""
    for option, longest in long.options.items():
        for member in members:
            require_stream(member.config, option, longest, member.setting)


def _check_grid(grid: Grid, num_seeds: int, source: str) -> None:
    """Raise ConfigError unless the grid has values, no seeds, and not too many combinations."""
    if "seed" in grid or not all(grid.values()):
        what = "invalid axis of a grid"
        expected = "a key with values; for seeds, --seeds"
        raise ConfigError(Problem(what, source, expected=expected, id="C17"))

    num_members = num_seeds * math.prod(len(texts) for texts in grid.values())
    if num_members > MOST_MEMBERS:
        problem = Problem(
            "a very large sweep",
            source,
            expected=f"at most {MOST_MEMBERS:,}",
            found=f"{num_members:,}",
            id="C10",
        )
        raise ConfigError(problem)


def _members(content: SweepFile, seeds: list[int], source: str) -> list[Member]:
    """Return a member for each combination of values and each seed; seeds vary fastest."""
    members = []
    for texts in itertools.product(*content.grid.values()):
        values = dict(zip(content.grid, texts, strict=True))
        overrides = [f"{key}={text}" for key, text in values.items()]

        # The name says the setting to whoever lists the folder. Without the sections it is short;
        # where that makes two names equal, `_check_members` refuses the sweep.
        for seed in seeds:
            name = format_setting({**values, "seed": str(seed)}, short=True, separator="_")

            # First, because it refuses values that no name can have.
            config = parse_saved(content.config, source, [*overrides, f"seed={seed}"])

            # Values may be paths of data files.
            name = name.replace("/", "-")
            if len(name.encode()) > MAX_NAME_BYTES:
                what = "the name of a member's folder is too long"
                raise ConfigError(Problem(what, source, found=name, id="C17"))

            config = _without_control(_with_files(config, values, content.files))
            members.append(Member(name, values, config))
    return members


def _without_control(config: Config) -> Config:
    """Return the config of a member: a sweep compares its members with each other."""
    if config.train.baseline == "none":
        return config
    train = config.train.model_copy(update={"baseline": "none"})
    return config.model_copy(update={"train": train})


def _with_files(config: Config, values: dict[str, str], files: dict[str, list[str]]) -> Config:
    """Return the config with the files that the values of the grid stood for at the beginning."""
    found: dict[str, str | tuple[str, ...]] = {}
    vectors = files.get(values.get(VECTORS_KEY, ""))
    if vectors:
        model = config.model.model_copy(update={"embeddings": vectors[0]})
        config = config.model_copy(update={"model": model})
    for key, text in values.items():
        if key in DATA_KEYS and files.get(text):
            paths = files[text]
            found[key.removeprefix("data.")] = paths[0] if len(paths) == 1 else tuple(paths)
    if not found:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update=found)})


def _require_positions(config: Config, lengths: list[int], source: str) -> None:
    """Raise ConfigError for lengths that a member would have no positions for."""
    most = config.data.max_length
    if config.model.positions == "none" or most is None or max(lengths) <= most:
        return
    raise ConfigError(
        Problem(
            "lengths beyond the last position that is trained (model.positions: learned)",
            source,
            expected=f"--lengths of at most data.max_length = {most:,}",
            found=f"{max(lengths):,}",
            remedy="shorter ones, or model.positions=none",
            id="C17",
        )
    )


def _check_members(members: list[Member], source: str) -> None:
    """Raise ConfigError if two members have the same folder or the same config."""
    # Values that are written differently can be equal (1e-3 and 0.001): then the configs are, and
    # one run would be counted twice.
    names = {member.name for member in members}
    configs = {member.config.model_dump_json() for member in members}
    if len(names) < len(members) or len(configs) < len(members):
        what = "two members would be the same"
        expected = "different seeds and values"
        raise ConfigError(Problem(what, source, expected=expected, id="C17"))


def planned_files(members: list[Member]) -> set[str]:
    """Return the paths of all data files that the members read."""
    paths: set[str] = set()
    for member in members:
        if isinstance(member.config.data, FilesConfig):
            paths.update(*data_files(member.config.data).values())
    return paths
