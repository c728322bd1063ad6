"""Several files as one, and files that were moved: which files are meant, and where they are."""

import gzip
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from rnncls.config import FilesConfig, load_config, parse_config
from rnncls.data.dataset import Dataset, Fingerprints
from rnncls.data.files import places
from rnncls.data.files import search as moved
from rnncls.data.files.opening import fingerprint
from rnncls.data.files.places import files_of
from rnncls.data.files.search import Search, find_moved
from rnncls.data.loading import load_dataset
from rnncls.data.moved import with_files_now
from rnncls.errors import CheckpointError, DataError, Interrupted
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.rundir.moved import OF_EVALUATION
from rnncls.rundir.restore import held_out_data
from rnncls.sweep.evaluate import evaluate_all
from rnncls.sweep.members import run_sweep
from rnncls.sweep.plan import load_sweep, plan_sweep
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import (
    files_config,
    outcome,
    run_command,
    run_rnncls,
    some_rows,
    stop_at,
    write_jsonl,
)

row = pytest.mark.row

SMALL = {"max_steps": 6, "eval_every": 3, "checkpoint_every": 3}


def parts_in(folder: Path, counts: tuple[int, ...] = (20, 30, 10)) -> list[str]:
    """Write files a.jsonl, b.jsonl, ... with so many rows each, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = some_rows(sum(counts))
    paths = []
    for number, count in enumerate(counts):
        path = folder / f"{'abcdefgh'[number]}.jsonl"
        write_jsonl(path, rows[:count])
        rows = rows[count:]
        paths.append(str(path))
    return paths


def data_of(train: object, **keys: object) -> FilesConfig:
    data = {"source": "files", "train": train, "tokens": "ids", **keys}
    found = parse_config({"data": data}, "test").data
    assert isinstance(found, FilesConfig)
    return found


# --- which files are meant


def test_a_list_a_folder_and_a_pattern_are_files(tmp_path: Path) -> None:
    paths = parts_in(tmp_path)
    (tmp_path / ".hidden.jsonl").write_text("")
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "more.csv").mkdir()

    assert files_of(str(tmp_path)) == tuple(paths)
    assert files_of(f"{tmp_path}/*.jsonl") == tuple(paths)
    assert files_of(f"{tmp_path}/**/[bc].jsonl") == tuple(paths[1:])
    # In the order in which they are named, and each once.
    assert files_of([paths[1], str(tmp_path)]) == (paths[1], paths[0], paths[2])
    # Whether a file that is named is there, is said when it is opened.
    assert files_of(["missing.csv", paths[0]]) == ("missing.csv", paths[0])


def test_a_file_may_be_called_like_a_pattern(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a[1]*.jsonl", some_rows(3))
    write_jsonl(tmp_path / "a1.jsonl", some_rows(3))
    assert files_of(f"{tmp_path}/a[1]*.jsonl") == (f"{tmp_path}/a[1]*.jsonl",)


@row("D1")
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("*.csv", ["no file fits this pattern", "nothing of that name", "ls "]),
        ("no/*.csv", ["no file fits this pattern", "there is no folder"]),
        ("fold*", ["no file fits this pattern", "folders alone"]),
        ("folder", ["a folder without data files", "notes.md", "folder/*"]),
        ("folder/empty", ["a folder without data files", "nothing"]),
    ],
)
def test_what_stands_for_no_file_is_refused(tmp_path: Path, name: str, parts: list[str]) -> None:
    (tmp_path / "folder" / "empty").mkdir(parents=True)
    (tmp_path / "folder" / "notes.md").write_text("")
    with pytest.raises(DataError) as caught:
        files_of(f"{tmp_path}/{name}")
    for part in parts:
        assert part in caught.value.render()


@row("D1")
def test_very_many_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"{number}.csv" for number in range(100))
    assert files_of(names) == names
    monkeypatch.setattr(places, "MAX_PATH_BYTES", 100)
    with pytest.raises(DataError, match="very many data files"):
        files_of(names)
    # One long path is no reason.
    assert len(files_of("x" * 200)) == 1


# --- several files as one


def same(first: Dataset, second: Dataset) -> bool:
    """Return whether two datasets have the same sequences in the same order."""
    for name, split in first.splits.items():
        other = second.splits[name]
        for key in ("tokens", "offsets", "labels"):
            if not torch.equal(getattr(split, key), getattr(other, key)):
                return False
    return first.vocabulary == second.vocabulary


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    paths = parts_in(tmp_path)
    text = "".join(Path(path).read_text() for path in paths)
    one = tmp_path / "one" / "all.jsonl"
    one.parent.mkdir()
    one.write_text(text)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(Path(paths[1]).read_text())
    packed = [paths[0], f"{tmp_path}/b.jsonl.gz", paths[2]]

    whole = load_dataset(data_of(str(one)))
    dataset = load_dataset(data_of(packed))
    assert same(dataset, whole)
    assert dataset.fingerprints["train"] == tuple(map(fingerprint, packed))

    # Each row's place is that in its own file.
    lines_of_parts = [
        (path, line)
        for path, count in zip(packed, (20, 30, 10), strict=True)
        for line in range(1, count + 1)
    ]
    for name, split in dataset.splits.items():
        assert dataset.files[name] == tuple(packed)
        for number in range(len(split)):
            path, line = lines_of_parts[int(whole.lines[name][number]) - 1]
            assert dataset.place(name, number) == f"{path}:{line}"


def test_every_split_may_have_several_files_of_any_format(tmp_path: Path) -> None:
    parts_in(tmp_path / "train")
    table = "sequence;label\n1 2;3\n"
    (tmp_path / "train" / "z.csv").write_text(table)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    data = data_of(f"{tmp_path}/train", val=f"{tmp_path}/val/*", test=[f"{tmp_path}/val/z.csv"])
    dataset = load_dataset(data)
    assert [len(dataset.splits[name]) for name in ("train", "val", "test")] == [61, 61, 1]
    assert len(dataset.files["val"]) == 4
    assert dataset.place("test", 0) == f"{tmp_path}/val/z.csv:2"


@row("D14", "D6")
def test_a_bad_row_is_named_with_its_own_file(tmp_path: Path) -> None:
    paths = parts_in(tmp_path)
    with Path(paths[1]).open("a") as file:
        file.write('{"sequence": [1], "label": "new"}\n')
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(paths[0], val=paths))
    assert f"{paths[1]}:31" in caught.value.render()

    with Path(paths[1]).open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(str(tmp_path)))
    assert f"{paths[1]}:32" in caught.value.render()
    assert "1 bad row" not in caught.value.render()


def test_a_run_keeps_the_files_that_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = parts_in(tmp_path / "data")
    config = files_config(tmp_path / "data", SMALL)
    fit(config, tmp_path / "whole")
    assert "3 files for train: a.jsonl, b.jsonl, c.jsonl" in capfd.readouterr().err

    with monkeypatch.context() as patch:
        stop_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Interrupted):
            fit(config, tmp_path / "run")
    # What comes into the folder later is none of its files.
    shutil.copy(paths[0], tmp_path / "data" / "d.jsonl")
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")

    data = load_config(tmp_path / "run" / "config.yaml").data
    assert isinstance(data, FilesConfig)
    assert data.train == tuple(paths)


@row("D18")
def test_one_changed_file_of_several_is_named(tmp_path: Path) -> None:
    paths = parts_in(tmp_path / "data")
    fit(files_config(tmp_path / "data", SMALL), tmp_path / "run")
    with Path(paths[1]).open("a") as file:
        file.write('{"sequence": [1], "label": 1}\n')
    with pytest.raises(CheckpointError) as caught:
        resume(tmp_path / "run")
    assert paths[1] in caught.value.render()
    assert "--data-dir" in caught.value.render()


def test_eval_takes_several_files_and_names_each_error_by_its_own(tmp_path: Path) -> None:
    paths = parts_in(tmp_path / "data")
    fit(files_config(Path(paths[0]), SMALL, val_fraction=0, test_fraction=0), tmp_path / "run")
    ways = (
        ["--data", "data"],
        ["--data", "data/*"],
        ["--data", paths[0], "--data", paths[1], "--data", paths[2]],
    )
    for words in ways:
        done = run_rnncls("eval", "run", *words, "--errors", "60", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["examples"] == 60

        files = {Path(error["file"]).name for error in report["mistakes"]}
        assert len(files) > 1
        for error in report["mistakes"]:
            line = Path(tmp_path, error["file"]).read_text().splitlines()[error["line"] - 1]
            assert json.loads(line)["sequence"] == error["sequence"]


def test_data_files_of_a_command_line_are_one(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 40), ("c", 3)):
        text = "".join(f"good {name} {n},x\nbad {name} {n},y\n" for n in range(count))
        path = tmp_path / "data" / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"sequence,label\n{text}")

    for words in (["data"], ["data/*.csv"], ["data/a.csv", "data/b.csv", "data/c.csv"]):
        done = run_rnncls("data", "stats", *words, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        splits = json.loads(done.stdout)["splits"]
        assert sum(split["sequences"] for split in splits.values()) == 90
        # The largest says how they are read.
        assert "b.csv: CSV, 80 rows" in done.stderr


# --- moved


def copy_of_file(path: Path, *ends: str) -> str:
    """Copy a file to the folder with these names beside it."""
    copy = path.parent.joinpath(*ends)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, copy)
    return str(copy)


@pytest.mark.parametrize(
    ("beside", "data_dir", "there"),
    [
        ("new/run", None, "new/data/x.jsonl"),
        ("new/runs/x/run", None, "new/data/x.jsonl"),
        ("new/run", None, "new/x.jsonl"),
        ("new/run", None, "new/run/x.jsonl"),
        ("new/run", "place", "place/x.jsonl"),
        ("new/run", "place", "place/data/x.jsonl"),
        ("new/run", "place", "place/deep/er/x.jsonl"),
        ("new/run", "place", "place/deep/other.jsonl"),
        ("new/run", "place/other.jsonl", "place/other.jsonl"),
    ],
)
def test_a_moved_file_is_found(
    tmp_path: Path, beside: str, data_dir: str | None, there: str
) -> None:
    path = write_jsonl(tmp_path / "old.jsonl", some_rows(5))
    hash = fingerprint(path)
    expected = copy_of_file(path, *there.split("/"))
    # Others of its name, and of its kind, are not it.
    write_jsonl(Path(copy_of_file(path, "place", "a", "x.jsonl")), some_rows(4))
    write_jsonl(Path(copy_of_file(path, "place", "a", "other.jsonl")), some_rows(6))

    folder = None if data_dir is None else tmp_path / data_dir
    search = Search(tmp_path / beside, folder)
    assert find_moved("/gone/data/x.jsonl", hash, search, set()) == expected

    # Two equal files are two.
    assert find_moved("/gone/data/x.jsonl", hash, search, {expected}) is None
    # A name of another kind would be read in another way.
    assert find_moved("/gone/data/x.csv", hash, search, set()) is None


def test_the_search_below_a_folder_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "old.jsonl", some_rows(5))
    for number in range(5):
        write_jsonl(Path(copy_of_file(path, "place", f"{number}.jsonl")), some_rows(number + 6))
    last = copy_of_file(path, "place", "last.jsonl")
    hash = fingerprint(path)

    assert find_moved("/x.jsonl", hash, Search(None, tmp_path / "place"), set()) == last
    monkeypatch.setattr(moved, "MOST_HASHED", 5)
    assert find_moved("/x.jsonl", hash, Search(None, tmp_path / "place"), set()) is None
    monkeypatch.setattr(moved, "MOST_SEEN", 5)
    assert find_moved("/last.jsonl", hash, Search(None, tmp_path / "place"), set()) == last

    # What was not looked at is said, where nothing was found.
    search = Search(None, tmp_path / "place")
    assert find_moved("/x.jsonl", hash, search, set()) is None
    assert search.described == f"below {tmp_path / 'place'} (its first 5 files)"
    monkeypatch.setattr(moved, "MOST_SEEN", 100)
    search = Search(None, tmp_path / "place")
    assert find_moved("/x.jsonl", hash, search, set()) is None
    assert search.described.endswith("place (of 6 .jsonl files, the first 5 were read)")


def test_a_file_in_its_place_does_not_stand_for_an_equal_one(tmp_path: Path) -> None:
    first = str(write_jsonl(tmp_path / "a.jsonl", some_rows(5)))
    second = str(write_jsonl(tmp_path / "b.jsonl", some_rows(5)))
    data = FilesConfig(source="files", train=(first, second))
    known: Fingerprints = {"train": (fingerprint(first), fingerprint(second))}
    named = data.model_copy(update={"train": str(tmp_path)})
    now = with_files_now(named, known, Search(), OF_EVALUATION, overridden=["train"])
    assert now.train == (first, second)
    Path(first).unlink()

    with pytest.raises(DataError, match="cannot read the data"):
        with_files_now(data, known, Search(None, tmp_path), OF_EVALUATION)

    # Files that took each other's names are those that they were.
    write_jsonl(tmp_path / "a.jsonl", some_rows(6))
    known["train"] = (known["train"][0], fingerprint(first))
    now = with_files_now(data, known, Search(None, tmp_path), OF_EVALUATION)
    assert now.train == (second, first)


def test_many_files_of_new_names_are_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "place").mkdir()
    hashes = {}
    for number in range(20):
        path = write_jsonl(tmp_path / "place" / f"new{number}.jsonl", some_rows(number + 5))
        hashes[number] = fingerprint(path)

    read = []

    def noted(path: str) -> str:
        read.append(path)
        return fingerprint(path)

    monkeypatch.setattr(moved, "fingerprint", noted)

    search = Search(None, tmp_path / "place")
    for number in range(20):
        found = find_moved(f"/gone/old{number}.jsonl", hashes[number], search, set())
        assert found == str(tmp_path / "place" / f"new{number}.jsonl")

    assert len(read) == 20
    assert capsys.readouterr().err.splitlines() == [
        f"rnncls: no old0.jsonl of the run is below {tmp_path / 'place'}: reading 20 other files"
    ]


def test_a_run_and_its_data_may_be_moved(tmp_path: Path) -> None:
    parts_in(tmp_path / "a" / "data")
    fit(files_config(tmp_path / "a" / "data", SMALL), tmp_path / "a" / "run")
    before = run_rnncls("eval", "a/run", cwd=tmp_path).stdout
    (tmp_path / "a").rename(tmp_path / "b")

    done = run_rnncls("eval", "b/run", cwd=tmp_path)
    assert done.stdout == before.replace("a/run", "b/run")
    assert done.stderr.count("files are now in") == 1
    assert f"{tmp_path}/b/data/a.jsonl" in done.stderr

    # A finished run learns the new place, and so does its best checkpoint.
    (tmp_path / "b" / "data").rename(tmp_path / "else")
    assert run_rnncls("eval", "b/run", cwd=tmp_path).returncode == 3
    done = run_rnncls("train", "--resume", "b/run", "--data-dir", "else", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "already complete" in done.stderr
    done = run_rnncls("eval", "b/run", cwd=tmp_path)
    assert done.stdout == before.replace("a/run", "b/run")

    # An override may be a folder with others in it, under other names.
    (tmp_path / "else" / "b.jsonl").rename(tmp_path / "else" / "z.jsonl")
    write_jsonl(tmp_path / "else" / "new.jsonl", some_rows(4))
    (tmp_path / "else").rename(tmp_path / "moved")
    done = run_rnncls("train", "--resume", "b/run", "data.train=moved", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = load_config(tmp_path / "b" / "run" / "config.yaml").data
    assert isinstance(data, FilesConfig)
    assert data.train == tuple(str(tmp_path / "moved" / f"{name}.jsonl") for name in "azc")
    assert run_rnncls("eval", "b/run", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_data_dir_may_be_a_tree_of_any_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", some_rows(3))
    hash = fingerprint(path)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        for _ in range(1000):
            Path("d").mkdir()
            os.chdir("d")
        path.rename("data.jsonl")
    try:
        found = find_moved(str(path), hash, Search(data_dir=tmp_path), set())
    finally:
        # shutil.rmtree, with which pytest cleans up, calls itself for each level.
        run_command(["rm", "-rf", tmp_path / "d"])
    assert found == str(tmp_path / Path(*["d"] * 1000) / "data.jsonl")


@row("D1", "D18")
def test_what_was_sought_where_and_what_helps_is_said(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", some_rows(60))
    fit(files_config(path, SMALL), tmp_path / "run")
    hash = fingerprint(path)
    path.rename(tmp_path / "other.jsonl")

    done = run_rnncls("eval", "run", "--data-dir", "missing", cwd=tmp_path)
    assert done.returncode == 3
    for part in (str(path), hash, "beside run", "below missing, which does not exist"):
        assert part in done.stderr
    assert "--data-dir FOLDER with it, or --data PATH" in done.stderr

    done = run_rnncls("train", "--resume", "run", cwd=tmp_path)
    assert done.returncode == 3
    assert "--data-dir FOLDER with it, or data.train=PATH" in done.stderr

    # A file of its name that is another one is named.
    (tmp_path / "place").mkdir()
    write_jsonl(tmp_path / "place" / "data.jsonl", some_rows(5))
    done = run_rnncls("eval", "run", "--data-dir", "place", cwd=tmp_path)
    assert f"{tmp_path}/place/data.jsonl, which is another file" in done.stderr

    write_jsonl(path, some_rows(7))
    done = run_rnncls("eval", "run", cwd=tmp_path)
    assert done.returncode == 4
    assert "the data has changed since the run began" in done.stderr
    assert hash in done.stderr


@row("C17")
def test_data_dir_is_for_what_began_earlier(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", some_rows(60))
    fit(files_config(path, SMALL), tmp_path / "run")
    for words in (["train", "data.jsonl"], ["sweep", "x.yaml"], ["eval", "run", "--data", "x.csv"]):
        done = run_rnncls(*words, "--data-dir", ".", cwd=tmp_path)
        assert done.returncode == 2
        assert "--data-dir" in done.stderr


def test_a_checkpoint_alone_finds_its_data_beside_it(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    path = write_jsonl(tmp_path / "old" / "data.jsonl", some_rows(60))
    fit(files_config(path, SMALL), tmp_path / "old" / "run")
    (tmp_path / "new").mkdir()
    shutil.copy(find_newest(tmp_path / "old" / "run"), tmp_path / "new" / "model.safetensors")
    path.rename(tmp_path / "new" / "data.jsonl")
    dataset = held_out_data(read_checkpoint(tmp_path / "new" / "model.safetensors"))
    assert dataset is not None
    assert set(dataset.files.values()) == {(str(tmp_path / "new" / "data.jsonl"),)}


@row("D18")
def test_a_sweep_and_its_data_may_be_moved(tmp_path: Path) -> None:
    parts_in(tmp_path / "a" / "data")
    config = files_config(tmp_path / "a" / "data", SMALL)
    sweep = plan_sweep(config, "0,1", {}, None, 10, tmp_path / "a" / "sweep")
    assert len(sweep.fingerprints) == 3
    assert run_sweep(sweep) == []
    before = evaluate_all(sweep.folder, None, None)

    (tmp_path / "a").rename(tmp_path / "b")
    folder = tmp_path / "b" / "sweep"
    assert evaluate_all(folder, None, None).by_member == before.by_member

    # A member that is still to be trained finds them, too; the other one needs nothing.
    shutil.rmtree(folder / "members" / "seed=1")
    (tmp_path / "b" / "data").rename(tmp_path / "b" / "elsewhere")
    with pytest.raises(DataError, match="--data-dir FOLDER"):
        run_sweep(load_sweep(folder))
    assert run_sweep(load_sweep(folder), data_dir=tmp_path / "b" / "elsewhere") == []
    after = evaluate_all(folder, None, None, tmp_path / "b" / "elsewhere")
    assert after.by_member == before.by_member
    assert after.left_out == {}


def test_a_folder_in_a_grid_stands_for_its_files_of_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_in(tmp_path / "a" / "data")
    monkeypatch.chdir(tmp_path / "a")
    config = files_config(tmp_path / "a" / "data", SMALL)
    grid = {"data.train": ["data", f"data/{Path(parts[0]).name}"]}
    sweep = plan_sweep(config, "0", grid, None, 10, tmp_path / "a" / "sweep")
    assert run_sweep(sweep) == []
    before = evaluate_all(sweep.folder, None, None)

    # Somewhere else, beside a file that is new, and seen from another folder.
    (tmp_path / "a").rename(tmp_path / "b")
    folder = tmp_path / "b" / "sweep"
    write_jsonl(tmp_path / "b" / "data" / "new.jsonl", some_rows(9))
    monkeypatch.chdir(tmp_path)

    assert run_sweep(load_sweep(folder)) == []
    after = evaluate_all(folder, None, None)
    assert after.by_member == before.by_member
    assert after.left_out == {}
