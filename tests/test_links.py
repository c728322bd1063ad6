"""Nothing outside a run or a sweep is written, whatever links a stranger has put into it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rnncls.config import load_config
from rnncls.config.ranges import DEFAULT_SAMPLES
from rnncls.sweep.members import run_sweep
from rnncls.sweep.plan import plan_sweep
from rnncls.training.fit import fit
from tests.helpers import ROOT, Completed, run_rnncls

row = pytest.mark.row

QUICK = [
    *["configs/smoke.yaml", "device=cpu", "train.engine=eager", "train.max_steps=4"],
    *["train.eval_every=2", "train.checkpoint_every=2", "train.log_every=1"],
    *["train.eval_samples=10", "data.max_length=3", "model.hidden_size=4"],
]

# What a run or a sweep has, or may have, by its path in there.
FOLDERS_OF_RUN = ["checkpoints", "profile", "projector", "plots"]
FILES_OF_RUN = [
    *[".lock", "config.yaml", "status.json", "metrics.jsonl", "metrics.csv", "crash.log"],
    *["checkpoints/best.safetensors", "checkpoints/step-00000004.safetensors"],
    *["checkpoints/step-00000002.safetensors", "checkpoints/step-00000004.safetensors.bad"],
    *["checkpoints/step-00000006.safetensors", "profile/steps.pt.trace.json"],
    "profile/profile.txt",
    *["plots/evaluations.jsonl", "plots/confusion.png"],
    *["projector_config.pbtxt", "projector/tokens.tsv", "projector/last_states_shown.tsv"],
    *[".tmp-1-abc-status.json", "events.out.tfevents.1.host.1.0", "evaluation.json"],
]
FOLDERS_OF_SWEEP = [
    *["members", "plots", "summary", "members/seed=1"],
    pytest.param("members/seed=1/checkpoints", marks=pytest.mark.slow),
    pytest.param("members/seed=1/profile", marks=pytest.mark.slow),
]
FILES_OF_SWEEP = [
    *[".lock", "sweep.yaml", "summary.json", "summary.csv", ".tmp-1-abc-summary.json"],
    *["plots/loss.png", "plots/accuracy_by_length.png", "events.out.tfevents.1.host.1.0"],
    "summary/events.out.tfevents.1.host.1.0",
    *["members/seed=1/.lock", "members/seed=1/evaluation.json", "members/seed=1/metrics.csv"],
]
# What is opened where it is, and one of those that a new file takes the place of. For the others a
# second name is what a link is: gone.
SECOND_NAMES = [
    *[".lock", "summary.json", "plots/loss.png", "summary/events.out.tfevents.1.host.1.0"],
    *["members/seed=1/.lock", "members/seed=1/metrics.csv"],
]

# What a link leads to. One that leads nowhere could be followed and what it names be made.
TARGETS = [
    "full",
    pytest.param("empty", marks=pytest.mark.slow),
    pytest.param("nowhere", marks=pytest.mark.slow),
]

Contents = dict[str, tuple[int, bytes]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and a finished sweep of two members, not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    config = load_config(ROOT / QUICK[0], QUICK[1:])
    fit(config, folder / "run")
    # Without its pictures, which take longer than the members.
    sweep = plan_sweep(config, "0,1", {}, None, DEFAULT_SAMPLES, folder / "sweep")
    assert not run_sweep(sweep, jobs=1)
    return folder


def contents(folder: Path) -> Contents:
    """Return the time and the bytes of everything below a folder, and of the folder itself."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (path.lstat().st_mtime_ns, content)
    return found


def outside(made: Path, folder: Path) -> Path:
    """Make what a stranger's links lead to: files that rnncls would change, and a full folder."""
    folder.mkdir()
    (folder / "empty").mkdir()
    (folder / "victim").write_text("mine\n")
    for name in ("full", "full/checkpoints"):
        shutil.copytree(made / "run" / "checkpoints", folder / name, dirs_exist_ok=True)
        (folder / name / ".tmp-1-abc-file").write_text("mine\n")
        (folder / name / "events.out.tfevents.9.host.1.0").write_text("mine\n")
        (folder / name / "loss.png").write_text("mine\n")
    return folder


def plant(root: Path, name: str, target: Path, make: Callable[[Path, Path], None]) -> None:
    """Put a link in the place of what is in a run or a sweep."""
    path = root / name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    make(path, target)


def soft(path: Path, target: Path) -> None:
    path.symlink_to(target)


def hard(path: Path, target: Path) -> None:
    path.hardlink_to(target)


def require_unchanged(folder: Path, before: Contents, done: Completed) -> None:
    """Require that a command ended as it should, and changed nothing in this folder."""
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr, done.stderr
    assert contents(folder) == before, f"{done.args}\n{done.stderr}"


def commands_for_run(path: Path) -> list[list[str | Path]]:
    more = ["train.max_steps=6", "train.keep_checkpoints=1"]
    return [
        ["train", *QUICK, "--run-dir", path],
        ["train", "--resume", path],
        ["train", "--resume", path, *more, "train.profile=true"],
        ["train", "--resume", path, "train.max_steps=8", "train.plots=true"],
        ["eval", path],
        ["runs", "ls", path],
    ]


def commands_that_meet(name: str, path: Path) -> list[list[str | Path]]:
    """Those of `commands_for_run` that may touch a file: few files are those of profiles or plots.

    Both take seconds. A run that only goes on takes the place of the one that profiles.
    """
    met: list[list[str | Path]] = []
    for words in commands_for_run(path):
        if "train.profile=true" in words and not name.startswith("profile"):
            words.remove("train.profile=true")
        if "train.plots=true" not in words or name.startswith(("plots", "projector", "events")):
            met.append(words)
    return met


def commands_for_sweep(path: Path) -> list[list[str | Path]]:
    return [
        ["sweep", *QUICK, "--seeds", "0,1", "--jobs", "1", "--sweep-dir", path],
        ["sweep", "--resume", path, "--jobs", "1"],
        ["eval", path],
        ["runs", "ls", "--all", path],
    ]


@row("K7")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FOLDERS_OF_RUN)
def test_a_link_in_place_of_a_folder_of_a_run(
    name: str, target: str, made: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    victim = outside(made, tmp_path / "outside")
    shutil.copytree(made / "run", path)
    plant(path, name, victim / target, soft)
    before = contents(victim)
    mine = contents(path)

    for words in commands_for_run(path):
        done = run_rnncls(*words)
        require_unchanged(victim, before, done)
        if words[0] == "train":
            assert done.returncode == 4, done.stderr
            assert f"error[K7]: a symbolic link in place of a folder ({path / name})" in done.stderr
    # Not even a lock was taken.
    assert contents(path) == mine


@row("K7")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FOLDERS_OF_RUN)
def test_a_link_in_place_of_a_folder_of_a_new_run(
    name: str, target: str, made: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    victim = outside(made, tmp_path / "outside")
    plant(path, name, victim / target, soft)
    before = contents(victim)

    done = run_rnncls("train", *QUICK, "--run-dir", path, "train.profile=true")
    require_unchanged(victim, before, done)
    assert done.returncode == 4, done.stderr
    assert "error[K7]: a symbolic link in place of a folder" in done.stderr
    assert [child.name for child in path.iterdir()] == [name]


@row("K7")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FOLDERS_OF_SWEEP)
def test_a_link_in_place_of_a_folder_of_a_sweep(
    name: str, target: str, made: Path, tmp_path: Path
) -> None:
    path = tmp_path / "sweep"
    victim = outside(made, tmp_path / "outside")
    shutil.copytree(made / "sweep", path)
    # Something is left to be trained, so that a member is begun and the pictures are drawn anew.
    shutil.rmtree(path / "members" / "seed=1")
    plant(path, name, victim / target, soft)
    before = contents(victim)

    for words in commands_for_sweep(path):
        done = run_rnncls(*words)
        require_unchanged(victim, before, done)
        if words[0] == "sweep":
            assert done.returncode == 4, done.stderr
            assert f"error[K7]: a symbolic link in place of a folder ({path / name})" in done.stderr


@row("K7")
def test_a_link_in_place_of_a_log_is_named(made: Path, tmp_path: Path) -> None:
    path = shutil.copytree(made / "run", tmp_path / "run")
    plant(path, "metrics.jsonl", tmp_path / "nowhere", soft)
    done = run_rnncls("train", "--resume", path, "train.max_steps=8")
    assert done.returncode == 6, done.stderr
    message = f"cannot write: symbolic links are not followed ({path / 'metrics.jsonl'})"
    assert message in done.stderr
    assert not (tmp_path / "nowhere").exists()


@row("K7")
@pytest.mark.slow
@pytest.mark.parametrize("make", [soft, hard])
@pytest.mark.parametrize("name", FILES_OF_RUN)
def test_a_link_in_place_of_a_file_of_a_run(
    name: str, make: Callable[[Path, Path], None], made: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    victim = outside(made, tmp_path / "outside")
    shutil.copytree(made / "run", path)
    for target in ("victim", "nowhere"):
        if make is soft or target == "victim":
            plant(path, name, victim / target, make)
            before = contents(victim)
            for words in commands_that_meet(name, path):
                require_unchanged(victim, before, run_rnncls(*words))


@row("K7")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [*((name, soft) for name in FILES_OF_SWEEP), *((name, hard) for name in SECOND_NAMES)],
)
def test_a_link_in_place_of_a_file_of_a_sweep(
    name: str, make: Callable[[Path, Path], None], made: Path, tmp_path: Path
) -> None:
    path = tmp_path / "sweep"
    victim = outside(made, tmp_path / "outside")
    shutil.copytree(made / "sweep", path)
    plant(path, name, victim / "victim", make)
    before = contents(victim)
    for words in commands_for_sweep(path):
        require_unchanged(victim, before, run_rnncls(*words))


@pytest.mark.parametrize("name", [".lock", "metrics.csv"])
def test_a_copy_that_shares_its_files_with_a_run_is_not_changed(
    name: str, made: Path, tmp_path: Path
) -> None:
    """As `cp -al` and backups by rsync make them."""
    shutil.copytree(made / "run", tmp_path / "run")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy, copy_function=os.link)
    before = contents(copy)
    done = run_rnncls("train", "--resume", tmp_path / "run", "train.max_steps=6")
    assert done.returncode == 0, done.stderr
    assert contents(copy)[name] == before[name]


def test_the_directory_that_is_named_may_be_a_link(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "elsewhere")
    (tmp_path / "run").symlink_to("elsewhere")
    done = run_rnncls("train", "--resume", tmp_path / "run", "train.max_steps=6")
    assert done.returncode == 0, done.stderr

    (tmp_path / "empty").mkdir()
    (tmp_path / "new").symlink_to("empty")
    done = run_rnncls("train", *QUICK, "--run-dir", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "empty" / "checkpoints" / "best.safetensors").is_file()
