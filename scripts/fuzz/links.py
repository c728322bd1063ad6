"""Runs and sweeps of a stranger: links, second names, pipes and odd things in every place of them.

Whatever is there, a command may change the run or sweep that it was given, and nothing else.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from scripts.fuzz.scene import (
    HALF_COMMANDS,
    RUN_COMMANDS,
    SWEEP_COMMANDS,
    Command,
    Failed,
    attempt,
    changes,
    command,
    content_of,
    copied,
    outcome_of,
)

# What a command makes in a run and in a sweep, beyond what is there already.
MADE_IN_RUNS = [
    ".lock", "profile", "profile/steps.pt.trace.json", "crash.log", "status.json", "metrics.jsonl",
    "metrics.csv", "config.yaml", "evaluation.json", "checkpoints", "checkpoints/.tmp-1-ab-x",
    "checkpoints/step-00000006.safetensors", "checkpoints/step-00000005.safetensors",
    "checkpoints/best.safetensors", "checkpoints/step-00000004.safetensors.bad", ".tmp-1-ab-status",
    "events.out.tfevents.1.host.1.0", "events.out.tfevents.9999999999.host.1.0", "plots",
    "plots/evaluations.jsonl", "plots/confusion.png", "plots/.tmp-1-ab-x", "projector",
    "projector/tokens.tsv", "projector_config.pbtxt", "profile/profile.txt",
]  # fmt: skip
MADE_IN_SWEEPS = [
    ".lock", "plots", "plots/loss.png", "plots/accuracy_by_length.png", "members", "crash.log",
    "summary.json", "summary.csv", "sweep.yaml", ".tmp-1-ab-summary.json", "plots/.tmp-1-ab-x",
    "members/.tmp-1-ab-x", "members/seed=1", "members/seed=0/evaluation.json",
    "events.out.tfevents.9999999999.host.1.0", "summary", "summary/events.out.tfevents.1.host.1.0",
    *[f"members/seed=1/{name}" for name in MADE_IN_RUNS],
]  # fmt: skip

# Of fresh, a folder that has nothing but what was planted. One is there more often, because it
# takes a tenth of the time of the others.
FRESH_COMMANDS = [
    *[command("train --config tiny.yaml --run-dir fresh", "fresh")] * 4,
    command("train --config tiny.yaml --run-dir fresh train.profile=true", "fresh"),
    command("sweep --config tiny.yaml --seeds 0-1 --sweep-dir fresh --jobs 1", "fresh"),
]

TARGETS: list[tuple[str, list[Command], list[str]]] = [
    ("run", RUN_COMMANDS, MADE_IN_RUNS),
    ("sweep", SWEEP_COMMANDS, MADE_IN_SWEEPS),
    ("half", HALF_COMMANDS, MADE_IN_SWEEPS),
    ("fresh", FRESH_COMMANDS, MADE_IN_RUNS + MADE_IN_SWEEPS),
]


def one_link(rng: random.Random, folder: Path) -> str:
    """Plant one or two things in a run or a sweep, and run a command on it."""
    target, commands, made = rng.choice(TARGETS)
    chosen = rng.choice(commands)
    if target == "fresh":
        work = copied(folder)
        (work / "fresh").mkdir()
    else:
        work = copied(folder, target, *(["other"] if target == "run" else []))
    outside = folder / "outside"
    shutil.copytree(work / target, outside / "copy")
    (outside / "file").write_text("yours\n")
    (outside / "empty").mkdir()

    planted = [
        planted_thing(work / target, made, outside, rng) for _ in range(rng.choice((1, 1, 2)))
    ]
    left_out = may_change(folder, work, chosen)
    before = content_of(folder, left_out)
    ended = attempt(chosen.words, work)
    what = f"{'; '.join(planted)}: {' '.join(chosen.words)}"

    difference = changes(before, content_of(folder, left_out))
    if difference:
        raise Failed("wrote outside", f"{what}: {difference.replace(str(folder), '')}")
    return outcome_of([what], ended)


def may_change(folder: Path, work: Path, chosen: Command) -> list[Path]:
    """Return the log of a case, and what its command may change.

    A member that is named is a run of its own, wherever a link above it leads.
    """
    names = [work / name for name in chosen.writes]
    names += [work / word for word in chosen.words if word.startswith(tuple(chosen.writes))]
    return [folder / "log", *names, *(Path(os.path.realpath(name)) for name in names)]


def planted_thing(root: Path, made: list[str], outside: Path, rng: random.Random) -> str:
    """Put something in a place of a run or a sweep and return a description."""
    place = rng.choice(places(root, made, rng))
    plant = rng.choice(PLANTS)

    # A folder above the place may be a link that was planted before, and is not followed.
    parents = [root / parent for parent in place.relative_to(root).parents]
    if any(parent.is_symlink() for parent in parents):
        return "nothing"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        plant(place, outside, rng)
    except (FileExistsError, NotADirectoryError):
        return "nothing"
    return f"{plant.__name__} {place.relative_to(root)}"


def places(root: Path, made: list[str], rng: random.Random) -> list[Path]:
    """Return the folders, the files, or the places of what will be made."""
    there = sorted(root.rglob("*"))
    folders = [path for path in there if path.is_dir() and not path.is_symlink()]
    files = [path for path in there if path not in folders]
    return rng.choice([folders, files, [root / name for name in made]]) or [root / made[0]]


# --- what is planted


def link_to_its_content(place: Path, outside: Path, rng: random.Random) -> None:
    """Move a file or folder outside, and leave a link to it."""
    moved = outside / f"moved-{rng.randrange(2**32)}"
    if place.exists():
        place.rename(moved)
    elif "." in place.name:
        moved.write_text("{}\n")
    else:
        moved.mkdir()
    place.symlink_to(rng.choice([str(moved), os.path.relpath(moved, place.parent)]))


def link_to_folder(place: Path, outside: Path, rng: random.Random) -> None:
    """Leave a link to a folder outside."""
    removed(place)
    place.symlink_to(rng.choice([outside, outside / "empty", outside / "copy"]))


def link_to_file(place: Path, outside: Path, rng: random.Random) -> None:
    """Leave a link to a file outside, absolute or relative."""
    removed(place)
    to = str(outside / "file")
    place.symlink_to(rng.choice([to, os.path.relpath(to, place.parent)]))


def second_name(place: Path, outside: Path, rng: random.Random) -> None:
    """Leave a file that has another name outside, as in a copy that shares its files (`cp -al`)."""
    if place.is_file() and not place.is_symlink() and rng.random() < 0.7:
        os.link(place, outside / f"shared-{rng.randrange(2**32)}")
        return
    removed(place)
    os.link(outside / "file", place)


def link_to_nothing(place: Path, outside: Path, rng: random.Random) -> None:
    """Leave a link to a name outside that is not there, or in a folder that is not there."""
    removed(place)
    place.symlink_to(outside / rng.choice(["new", "empty/new", "none/new"]))


def link_to_itself(place: Path, outside: Path, rng: random.Random) -> None:  # noqa: ARG001
    """Leave a link to itself, or to a folder above it."""
    removed(place)
    place.symlink_to(rng.choice([place.name, ".", "..", "../.."]))


def pipe(place: Path, outside: Path, rng: random.Random) -> None:  # noqa: ARG001
    """Leave a pipe that nobody writes into."""
    removed(place)
    os.mkfifo(place)


def folder_or_file(place: Path, outside: Path, rng: random.Random) -> None:  # noqa: ARG001
    """Leave a folder in the place of a file, and the other way round."""
    is_folder = place.is_dir()
    removed(place)
    if is_folder:
        place.write_bytes(rng.randbytes(10))
    else:
        place.mkdir()
        if rng.random() < 0.5:
            (place / "inner").write_text("x")


def odd_content(place: Path, outside: Path, rng: random.Random) -> None:  # noqa: ARG001
    """Leave a file with other content, or a large one of zeros that takes no room."""
    removed(place)
    if rng.random() < 0.2:
        with place.open("wb") as file:
            file.truncate(rng.choice((2**27, 2**40)))
        return
    content = rng.choice([b"", b"{}", b"[]", b"null\n", b"\0" * 100, b"\xff\xfe", b"{" * 9999])
    place.write_bytes(content)


def locked_up(place: Path, outside: Path, rng: random.Random) -> None:  # noqa: ARG001
    """Take the rights away. Whoever is root may do all the same."""
    if place.is_symlink():
        return
    if not place.exists():
        place.write_text("{}")
    place.chmod(0)


def removed(place: Path) -> None:
    """Remove what is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


PLANTS: list[Callable[[Path, Path, random.Random], None]] = [
    link_to_its_content, link_to_its_content, link_to_folder, link_to_file, second_name,
    second_name, link_to_nothing, link_to_itself, pipe, folder_or_file, odd_content, locked_up,
]  # fmt: skip
