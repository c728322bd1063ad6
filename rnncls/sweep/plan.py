"""What a sweep consists of: seeds and values of a grid, as members. Kept in sweep.yaml."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnncls.config import (
    Config,
    FilesConfig,
    parse_config,
    read_yaml,
    require_generated_data,
    write_yaml,
)
from rnncls.config.ranges import parse_lengths, parse_seeds
from rnncls.data.dataset import data_paths
from rnncls.data.records import fingerprint, require_unchanged_files
from rnncls.errors import ConfigError, Problem
from rnncls.rundir.lock import holding
from rnncls.rundir.paths import LOCK
from rnncls.system.files import replace, writing

PLAN, MEMBERS = "sweep.yaml", "members"
MOST_MEMBERS = 100_000
MAX_PLAN_BYTES = 60_000  # what can be read again


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    values: dict[str, str]  # of the grid's keys, as they were written
    config: Config


@dataclass(frozen=True)
class Sweep:
    """What is to be run, and how it is judged."""

    folder: Path
    members: list[Member]
    lengths: list[int]  # test lengths beside those of training
    samples: int  # per length, where not all
    fingerprints: dict[str, str]  # SHA-256 of the files of data, by path

    def run_dir(self, member: Member) -> Path:
        return self.folder / MEMBERS / member.name


class Plan(BaseModel):
    """sweep.yaml."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config: dict[str, Any]
    seeds: str
    grid: dict[
        str, Annotated[list[str], Field(strict=False)]
    ]  # YAML's sequences are read as tuples
    lengths: str | None
    samples: Annotated[int, Field(ge=1, le=10**8)]
    fingerprints: dict[str, str]


def plan(
    base: Config,
    seeds: str,
    grid: dict[str, list[str]],
    lengths: str | None,
    samples: int,
    folder: Path,
) -> Sweep:
    """A new sweep, written to `folder`, or the one that is there if it is the same. Raises ConfigError, DataError.

    `lengths`: what is tested beside the lengths of training, of which there are at most 20.
    """
    parse_seeds(seeds)  # what is wrong with them is the command line's
    if lengths is not None:
        parse_lengths(lengths)
    config = base.model_dump(mode="json")
    raw = Plan(
        config=config, seeds=seeds, grid=grid, lengths=lengths, samples=samples, fingerprints={}
    )
    sweep = _sweep_of(raw, folder, str(folder))
    paths = {path for member in sweep.members for path in _files_of(member.config)}
    raw.fingerprints.update({path: fingerprint(path) for path in sorted(paths)})
    text = write_yaml(raw.model_dump()).encode()
    if len(text) > MAX_PLAN_BYTES:
        raise ConfigError(
            Problem(
                "a very large grid",
                "--grid",
                expected=f"at most {MAX_PLAN_BYTES:,} bytes",
                id="C10",
            )
        )
    _require_unused(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with holding(folder):
        path = folder / PLAN
        if not path.exists():
            _require_unused(folder)
            with writing(path):
                replace(path, text)
        elif _read_plan(path).model_dump_json() != raw.model_dump_json():
            remedy = "another --sweep-dir, or sweep --resume"
            raise ConfigError(
                Problem("another sweep is in this folder", str(path), remedy=remedy, id="C19")
            )
    return sweep


def _require_unused(folder: Path) -> None:
    """Raises ConfigError where something else is than a sweep."""
    with writing(folder):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if PLAN not in names and any(name != LOCK and not name.startswith(".tmp-") for name in names):
        raise ConfigError(
            Problem("the folder is not empty", str(folder), remedy="another --sweep-dir", id="C19")
        )


def load_sweep(folder: Path) -> Sweep:
    """The sweep in a folder. Raises ConfigError."""
    return _sweep_of(_read_plan(folder / PLAN), folder, str(folder / PLAN))


def _read_plan(path: Path) -> Plan:
    if not path.parent.is_dir() or PLAN not in {entry.name for entry in path.parent.iterdir()}:
        remedy = "the folder of a sweep; train --resume goes on with a run"
        raise ConfigError(
            Problem(
                "no sweep",
                str(path.parent),
                expected=f"a folder with {PLAN}",
                remedy=remedy,
                id="C4",
            )
        )
    try:
        return Plan.model_validate(read_yaml(path))
    except ValidationError as error:
        found = ", ".join(
            sorted({".".join(map(str, detail["loc"])) for detail in error.errors()})[:5]
        )
        raise ConfigError(
            Problem("no sweep", str(path), expected="what rnncls sweep wrote", found=found, id="C4")
        ) from None


def _sweep_of(raw: Plan, folder: Path, source: str) -> Sweep:
    seeds = parse_seeds(raw.seeds, source)
    lengths = [] if raw.lengths is None else parse_lengths(raw.lengths, source)
    if "seed" in raw.grid or not all(raw.grid.values()):
        raise ConfigError(
            Problem(
                "no such axis of a grid",
                source,
                expected="a key with values; --seeds for seeds",
                id="C17",
            )
        )
    if (count := len(seeds) * math.prod(map(len, raw.grid.values()))) > MOST_MEMBERS:
        raise ConfigError(
            Problem(
                "a very large sweep",
                source,
                expected=f"at most {MOST_MEMBERS:,}",
                found=f"{count:,}",
                id="C10",
            )
        )
    members = []
    for texts in itertools.product(*raw.grid.values()):
        values = dict(zip(raw.grid, texts, strict=True))
        for seed in seeds:
            overrides = [*(f"{key}={text}" for key, text in values.items()), f"seed={seed}"]
            parts = [f"{key.rpartition('.')[2]}={text}" for key, text in values.items()]
            name = "_".join([*parts, f"seed={seed}"]).replace("/", "-")
            if len(name.encode()) > 200:
                raise ConfigError(
                    Problem("too long a name for a folder", source, found=name, id="C17")
                )
            members.append(Member(name, values, parse_config(raw.config, source, overrides)))
    if lengths:
        for member in members:
            require_generated_data(member.config, "--lengths")
    names, configs = ({f(member) for member in members} for f in (_name, _config))
    if len(names) < len(members) or len(configs) < len(members):
        raise ConfigError(
            Problem(
                "two members would be the same",
                source,
                expected="different seeds and values",
                id="C17",
            )
        )
    return Sweep(folder, members, lengths, raw.samples, raw.fingerprints)


def _name(member: Member) -> str:
    return member.name


def _config(member: Member) -> str:
    return member.config.model_dump_json()


def _files_of(config: Config) -> list[str]:
    return list(data_paths(config.data).values()) if isinstance(config.data, FilesConfig) else []


def require_unchanged(sweep: Sweep) -> None:
    """Members that are trained later have the files that those before had. Raises CheckpointError."""
    remedy = "the old file, or a new sweep"
    require_unchanged_files(sweep.fingerprints.items(), "sweep", remedy)
