"""The README and docs/ are run or checked: commands, Python, examples, names and links."""

import doctest
import importlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rnncls.cli.app import app
from rnncls.cli.entry import run
from scripts.config_page import page as config_page
from tests import helpers

ROOT = Path(__file__).parent.parent
README = "README.md"
CHINESE = "README.zh-CN.md"
ARCHITECTURE = "docs/architecture.md"
RUNS = "docs/runs.md"
INSIDE = "docs/inside.md"

PAGES = [README, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
LINKED = [*sorted(path.name for path in ROOT.glob("*.md")), *PAGES[1:]]
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in {*PAGES, *LINKED}}

BIN = Path(sys.executable).parent
SMALL = "train.max_steps=6 train.engine=eager schedule.warmup_steps=2 model.hidden_size=8"

# What is added to a command so that it does less work. It takes the place of equal options, of
# which rnncls takes one only.
SHORTER = {
    "rnncls train configs": f"{SMALL} train.eval_every=3",
    "rnncls train clicks": f"{SMALL} {' '.join(helpers.LEAN)}",
    "rnncls train parity": f"{SMALL} {' '.join(helpers.LEAN)}",
    "rnncls train --resume": "train.max_steps=9",
    "rnncls eval runs/mine": "--samples 50",
    "rnncls eval runs/vanishing": "--samples 50",
    "rnncls sweep configs": f"--seeds 0-1 {SMALL}",
    "rnncls cost configs": "--hidden 8 --lengths 4 --seconds 0.001 train.engine=eager",
    "python -m scripts.bench_pieces": "--rounds 1 --length 200",
    "python scripts/bench_data": "--rounds 1 --count 4",
    "python scripts/bench_checkpoint": "--rounds 1 --config configs/smoke.yaml",
    "python scripts/bench_recurrence": "--rounds 1 --longest 16",
    "python -m scripts.bench --regimes text --directions": (
        "--regimes tutorial --cells rnn --rounds 1 --seconds 0.01"
    ),
    "python -m scripts.bench ": (
        "--regimes tutorial --cells rnn --rounds 1 --seconds 0.01 --only 'rnncls compiled' "
        "--sequences 20"
    ),
    "python -m scripts.bench_dashboard": (
        "--pairs 1 --processes 1 --case nothing train.max_steps=20"
    ),
    "python -m scripts.bench_files": "--rows 1000",
    "python scripts/source_lines": "--files 150",
    "python scripts/digits": "--rows 2000",
    "python scripts/examples": "--steps 20",
    "python -m scripts.stdlib_sets": "--files 150",
    "python -m scripts.file_defaults": "--quick",
    "python -m scripts.bench_sweep": "--rounds 1 --steps 20",
    "python -m scripts.length_failures": "--sequences 4 --length 20 --drift-length 12",
    "python -m scripts.reproduce": "--short --only T5",
    "python -m scripts.time_to_perfect": "--seeds 0-1",
}

# Make targets are checked by a test below; `rnncls board`, which serves until it is ended, by
# test_board.py.
NOT_RUN = ("make ", "rnncls board", "pip ")


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language ("" for plain text), without fences."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT[page], re.MULTILINE | re.DOTALL)
    return [content for own, content in fenced if own == language]


def commands(page: str) -> list[str]:
    """Return every shell command of a page, in order."""
    return [line for block in blocks(page, "sh") for line in block.splitlines()]


def is_slow(block: str) -> bool:
    """Tell whether a block takes seconds: scripts, what needs them, whole sweeps, processes."""
    slow = ("python ", "rnncls sweep --resume", "rnncls cost", "torchrun ")
    return any(words in block for words in slow)


def shorter(command: str) -> str:
    """Return the same command with less work: fewer steps, seeds and samples."""
    for beginning, addition in SHORTER.items():
        if command.startswith(beginning):
            for option in re.findall(r"--[a-z-]+", addition):
                command = re.sub(rf" {option}[ =](\"[^\"]*\"|\S+)", "", command)
            return f"{command} {addition}"
    return command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that looks like the project to the commands, with the README's own data."""
    for name in ("configs", "scripts"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)

    rows = [{"sequence": "home shop cart pay", "label": "bought"}] * 30
    rows += [{"sequence": f"home search{number}", "label": "left"} for number in range(30)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "clicks.jsonl").write_text(lines)
    table = "".join(f"{row['sequence']},{row['label']}\n" for row in rows)
    (tmp_path / "clicks.csv").write_text(f"sequence,label\n{table}")

    # Bits with their parity after each of them.
    bits = [[int(bit) for bit in f"{number:b}"] for number in range(40)]
    odd = [[sum(each[:end]) % 2 for end in range(1, len(each) + 1)] for each in bits]
    with (tmp_path / "parity.jsonl").open("w") as file:
        for each, after in zip(bits, odd, strict=True):
            row_of_bits = {"sequence": each, "label": after[-1], "after": after}
            file.write(json.dumps(row_of_bits) + "\n")

    monkeypatch.chdir(tmp_path)
    return tmp_path


Run = Callable[[str], str]


@pytest.fixture
def run_command(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command in `home` and return its stdout; `rnncls` in this process, which is faster."""

    def run_rnncls(command: str) -> str:
        # What a shell does with "> FILE".
        command, _, file = command.partition(" > ")
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        capsys.readouterr()
        exit_code = run()
        printed = capsys.readouterr()
        assert exit_code == 0, f"{command}\n{printed.err}"
        if file:
            (home / file).write_text(printed.out)
        return printed.out

    def run_other(command: str) -> str:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        own = {**os.environ, "PATH": path}
        done = helpers.run_command(shlex.split(command), cwd=home, env=own)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done.stdout

    def run_any(command: str) -> str:
        return run_rnncls(command) if command.startswith("rnncls ") else run_other(command)

    return run_any


def runnable(page: str, slow: bool) -> list[str]:
    """Return the commands of a page's fast or slow blocks, without those that are not run here."""
    chosen = [block for block in blocks(page, "sh") if is_slow(block) == slow]
    lines = [line for block in chosen for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(NOT_RUN)]


def run_all(lines: list[str], run_command: Run) -> None:
    """Run the commands in order, each of which must succeed and print something."""
    ran = set()
    for command in map(shorter, lines):
        # Made shorter, scripts that need nothing of other commands may be the same.
        if command.startswith("python ") and command in ran:
            continue
        ran.add(command)
        printed = run_command(command)
        assert printed or "--output" in command, command


# Together, the commands of each of the other pages take seconds.
QUICK_PAGES = (README, "docs/data.md", "docs/performance.md")


def quick_pages() -> list[Any]:
    pages = [page for page in PAGES if runnable(page, slow=False)]
    return [
        pytest.param(page, marks=() if page in QUICK_PAGES else pytest.mark.slow) for page in pages
    ]


@pytest.mark.parametrize("page", quick_pages())
def test_every_quick_command_of_a_page_runs(page: str, run_command: Run) -> None:
    run_all(runnable(page, slow=False), run_command)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page, slow=True)])
def test_every_slow_command_of_a_page_runs(page: str, run_command: Run) -> None:
    run_all(runnable(page, slow=True), run_command)


def test_the_output_of_the_readme_has_the_words_of_the_program(run_command: Run) -> None:
    train = "rnncls train configs/smoke.yaml --run-dir runs/words"
    printed = run_command(shorter(train)) + run_command("rnncls eval runs/words")

    shown = next(block for block in blocks(README, "") if "accuracy: " in block)
    of_the_program = {without_numbers(line) for line in printed.splitlines()}
    for line in shown.splitlines():
        if line.startswith(("run directory:", "steps:", "accuracy:", "loss:", "length ")):
            wanted = without_numbers(line)
            assert wanted in of_the_program or wanted.startswith("run directory:"), line


def without_numbers(line: str) -> str:
    return re.sub(r"[\d.,]+", "#", line)


def test_the_smallest_network_is_shown_as_the_program_shows_it(run_command: Run) -> None:
    printed = run_command("rnncls explain --demo").splitlines()
    (shown,) = [block for block in blocks(INSIDE, "") if block.startswith("The smallest network")]
    assert set(shown.splitlines()) - {"..."} <= set(printed)


def test_the_graph_in_a_page_is_the_one_that_the_program_writes(
    home: Path, run_command: Run
) -> None:
    run_command(f"rnncls train configs/sum_mod_10_plain.yaml --run-dir runs/mine {SMALL}")
    run_command("rnncls explain runs/mine --graph rolled.mmd --rolled")

    # A smaller network has the same graph with other sizes.
    (shown,) = blocks(INSIDE, "mermaid")
    assert shown == (home / "rolled.mmd").read_text().replace(" 8", " 256")


@pytest.mark.slow
def test_what_the_inside_page_shows_is_what_its_commands_print(run_command: Run) -> None:
    """The whole runs, not the shorter ones: the page says what comes out and what it means."""
    printed = "".join(run_command(command) for command in runnable(INSIDE, slow=False))
    of_the_program = set(map(words_of, printed.splitlines()))

    # The equation, and what the run on files prints, which takes minutes to train.
    left_out = ("h_t = f(", "after each token\nt  token     says")
    for block in blocks(INSIDE, ""):
        if not block.startswith(left_out):
            assert {words_of(line) for line in block.splitlines()} <= {*of_the_program, "..."}, (
                block
            )


def words_of(line: str) -> str:
    """Return a line of a table or a sentence with "#" for each number, and single spaces.

    Whether classes lie in a circle can be another matter on another machine.
    """
    words = re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", re.sub(r" (yes|no)$", "", line))
    return " ".join(words.split())


def test_every_command_of_the_program_is_on_a_page() -> None:
    shown = "\n".join(command for page in PAGES for command in commands(page))
    for name in program_commands():
        assert f"rnncls {name}" in shown


def program_commands() -> Iterator[str]:
    """Yield the names of all commands, such as "train" and "config show"."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield command.name or command.callback.__name__

    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            yield f"{group.name} {command.callback.__name__}"


def test_make_knows_the_targets_that_the_pages_and_the_help_name() -> None:
    done = helpers.run_command(["make", "help"])
    assert done.returncode == 0, done.stderr
    targets = [
        "install",
        "train",
        "test",
        "test-slow",
        "test-pythons",
        "chaos",
        "check",
        "format",
        "golden",
    ]
    for target in [*targets, "docs", "clean"]:
        assert f"make {target} " in done.stdout

    for command in (command for page in PAGES for command in commands(page)):
        if command.startswith("make "):
            done = helpers.run_command([*command.split(), "-n"])
            assert done.returncode == 0, command


def test_the_python_of_the_readme_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(README, "python")
    quick = code.replace('"train.max_steps": 200', '"train.max_steps": 6, "train.engine": "eager"')
    assert quick != code

    exec(compile(quick, README, "exec"), {})
    assert "accuracy: " in capsys.readouterr().out
    assert (home / "runs" / "from_python" / "config.yaml").is_file()


def files_shown() -> list[str]:
    """The data files that README and docs/data.md show."""
    shown = [*blocks(README, ""), *blocks("docs/data.md", "")]
    return [text for text in shown if text.startswith(("sequence,label", '{"sequence"'))]


@pytest.mark.parametrize("text", files_shown())
def test_a_data_file_that_a_page_shows_is_one_that_trains(
    text: str, home: Path, run_command: Run
) -> None:
    header = "sequence,label\n" if text.startswith("sequence") else ""
    name = "shown.csv" if header else "shown.jsonl"
    (home / name).write_text(header + 20 * text.removeprefix(header))
    printed = run_command(
        f"rnncls train {name} {SMALL} {' '.join(helpers.LEAN)} --run-dir runs/shown"
    )
    assert "steps: 6;" in printed


def test_pages_show_data_files_of_words_and_of_ids() -> None:
    assert len(files_shown()) >= 4


@pytest.mark.usefixtures("home")
def test_the_python_page_is_a_program_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for code in blocks("docs/python.md", "python"):
        quick = code.replace("train: {max_steps: 100}", "train: {max_steps: 20, engine: eager}")
        # A block that shows something prints it.
        capsys.readouterr()
        exec(compile(quick, "docs/python.md", "exec"), names)
        assert capsys.readouterr().out or "print(" not in code

    assert names["unknown"] == ["checkout"]
    assert Path("plain.pt").is_file()


def test_the_worked_examples_are_true() -> None:
    worked = str(ROOT / "docs" / "how-it-works.md")
    results = doctest.testfile(worked, module_relative=False, encoding="utf-8")
    assert results.failed == 0
    assert results.attempted >= 8

    for name in ("data.batches", "evaluation.metrics"):
        module = importlib.import_module(f"rnncls.{name}")
        results = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
        assert results.failed == 0
        assert results.attempted > 0


def test_the_chinese_readme_has_the_same_code_blocks_and_sections() -> None:
    def fenced(name: str) -> list[str]:
        return re.findall(r"^```.*?^```$", TEXT[name], re.MULTILINE | re.DOTALL)

    def links(name: str) -> list[str]:
        targets = re.findall(r"\]\(([^)#]+)\)", TEXT[name])
        return [target for target in targets if target not in (README, CHINESE)]

    assert fenced(README) == fenced(CHINESE)
    assert len(anchors(README)) == len(anchors(CHINESE))
    assert links(README) == links(CHINESE)


def test_the_config_page_is_the_one_that_make_docs_writes() -> None:
    assert TEXT["docs/config.md"] == config_page(), "run make docs"


def test_the_map_names_every_module_and_only_modules_that_exist() -> None:
    for folder in sorted((ROOT / "rnncls").iterdir()):
        if not folder.is_dir() or folder.name == "__pycache__":
            continue
        paths = [path for path in folder.rglob("*.py") if not path.name.startswith("__")]
        modules = {path.relative_to(folder).as_posix() for path in paths}
        assert modules_on_the_map(folder.name) == modules, folder.name

    for path in (ROOT / "rnncls").glob("*.py"):
        assert path.name.startswith("__") or f"`{path.name}`" in TEXT[ARCHITECTURE], path


def modules_on_the_map(package: str) -> set[str]:
    """Return the modules in the first column of a package's table."""
    section = TEXT[ARCHITECTURE].split(f"\n### {package}\n")[1].split("\n## ")[0]
    rows = section.split("\n### ")[0].splitlines()
    first_column = "".join(row.split("|")[1] for row in rows if row.startswith("| `"))
    return set(re.findall(r"`([\w/]+\.py)`", first_column))


def test_the_map_says_where_to_add_what_and_names_real_files() -> None:
    table = TEXT[ARCHITECTURE].split("\n## I want to add ...\n")[1].split("\n## ")[0]
    added = ("a cell", "a file format", "a metric", "an optimizer", "an engine", "a command")
    for what in (*added, "a view of explain"):
        assert f"\n| {what} |" in table

    for named in re.findall(r"`((?:[\w]+/)+[\w]+\.py)`", table):
        candidates = (ROOT / named, ROOT / "rnncls" / named, ROOT / "rnncls" / "steps" / named)
        assert any(path.is_file() for path in candidates), named


def test_every_name_on_the_map_is_in_the_code() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "rnncls").rglob("*.py"))
    paths = TEXT[ARCHITECTURE].split("\n## The path of one batch\n")[1]
    paths = paths.split("\n## Outside the package\n")[0]

    for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", paths):
        if not name.endswith((".py", ".yaml", ".md", ".json")):
            last = name.rpartition(".")[2]
            assert re.search(rf"\b{last}\b", code), name


def test_the_tag_table_has_every_tag() -> None:
    from rnncls.rundir.log import TAGS

    for tag in TAGS:
        assert f"`{tag}`" in TEXT["docs/dashboards.md"]


def test_the_pages_name_real_configs_and_every_config_but_the_smallest() -> None:
    text = "\n".join(TEXT[page] for page in PAGES)
    for path in re.findall(r"configs/\S+\.yaml", text):
        assert (ROOT / path).is_file(), path
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert path.stem in text or path.stem == "smoke"


@pytest.mark.parametrize("page", LINKED)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", TEXT[page], flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link:
            continue
        target, _, fragment = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.is_file(), link
        if fragment:
            name = path.resolve().relative_to(ROOT).as_posix()
            assert fragment in anchors(name), link


def anchors(page: str) -> list[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    prose = re.sub(r"^```.*?^```$", "", TEXT[page], flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]
