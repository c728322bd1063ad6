"""What a terminal shows of names, labels, tokens and values that are meant to steer it.

Each command runs on a real pseudo-terminal, in a folder in which every name and every value has
control characters, and line breaks behind which a line of rnncls is forged.
"""

import ast
import io
import json
import os
import pty
import re
import shutil
import sys
import termios
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from tqdm import tqdm

from rnncls.cli import entry
from rnncls.cli.completion import complete_word
from rnncls.config import dump_config
from rnncls.config.load import read_yaml, write_yaml
from rnncls.errors import MachineError, Problem
from rnncls.system.rows import json_text, write_json_line
from rnncls.system.streams import LenientStream, say
from rnncls.training.fit import fit
from tests.helpers import (
    PYTHON,
    ROOT,
    Completed,
    change_checkpoint,
    files_config,
    run_rnncls,
    started,
    write_jsonl,
)

# A title and a clear screen, as two bytes and as one, text from right to left, and forged lines.
STEERING = "\x1b]0;title\x07\x1b[2J\x9b2J\u202e\u2028\x7f"
HOSTILE = f"{STEERING}\nFORGED 0.99\rFORGED\x0bFORGED"

# What may be written to a terminal: lines, bars that begin anew, colours of ours, and the way up
# to another bar.
ALLOWED = re.compile(r"\x1b\[1;31m|\x1b\[33m|\x1b\[0m|\x1b\[A")


def require_harmless(output: str) -> None:
    """Fail if a terminal that shows this would be steered, or would show a forged line."""
    assert "FORGED" not in [line[:6] for line in re.split(r"[\r\n]", output)]
    rest = ALLOWED.sub("", output)
    steering = {character for character in rest if not character.isprintable()} - set("\r\n\t")
    assert not steering, rest


@contextmanager
def terminal(shown: list[str]) -> Iterator[io.TextIOWrapper]:
    """Give a stream that is a terminal; at the end, `shown` has what was written to it."""
    outside, inside = pty.openpty()
    termios.tcsetwinsize(inside, (24, 100))
    content = bytearray()

    def read() -> None:
        # At the other end's close, Linux raises and others return nothing.
        with suppress(OSError):
            while part := os.read(outside, 65536):
                content.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(inside, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield stream
    finally:
        reader.join()
        os.close(outside)
        # A terminal makes \r\n of each line end.
        shown.append(content.decode().replace("\r\n", "\n"))


def on_terminal(*words: str | Path, cwd: Path, last_defence: bool = False) -> tuple[int, str]:
    """Run `rnncls words` with a terminal for stdout and stderr; returns exit code and output.

    Without the `last_defence` the streams are plain: then what is shown must be harmless by itself.
    """
    shown: list[str] = []
    with (
        terminal(shown) as stream,
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(action="default"),  # as in a process: it is shown
    ):
        patch.setattr(sys, "argv", ["rnncls", *map(str, words)])
        patch.setattr(sys, "stdout", LenientStream(stream, True) if last_defence else stream)
        patch.setattr(sys, "stderr", LenientStream(stream, False) if last_defence else stream)
        patch.chdir(cwd)
        exit_code = entry.run()
    return exit_code, shown[0]


# --- streams


def test_nothing_that_is_written_to_a_terminal_steers_it() -> None:
    for is_result in (True, False):
        shown: list[str] = []
        with terminal(shown) as stream:
            lenient = LenientStream(stream, is_result)
            print(STEERING, "\ttext", file=lenient)
            print("漢字 é 🙂", file=lenient)
            print("a\rb", file=lenient)
        assert "\\x1b]0;title\\x07\\x1b[2J\\x9b2J\\u202e\\u2028\\x7f" in shown[0]
        assert "漢字 é 🙂" in shown[0]
        assert "a\\rb" in shown[0]
        require_harmless(shown[0])


def test_in_a_pipe_the_results_are_whole_and_messages_are_not() -> None:
    for is_result in (True, False):
        content = io.StringIO()
        LenientStream(content, is_result).write(f"{STEERING}\n")
        assert (content.getvalue() == f"{STEERING}\n") == is_result
        if not is_result:
            require_harmless(content.getvalue())


def test_bars_still_move_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    with terminal(shown) as stream:
        monkeypatch.setattr(sys, "stderr", LenientStream(stream, False))
        settings: dict[str, Any] = {"total": 3, "ncols": 60, "mininterval": 0}
        with tqdm(**settings) as outer, tqdm(**settings, leave=False, desc=STEERING) as inner:
            outer.update(3)
            inner.update(3)
            tqdm.write("between", file=sys.stderr)
    assert "\r100%|" in shown[0]
    assert "\n\r" in shown[0]
    assert "\x1b[A" in shown[0]
    assert "between\n" in shown[0]
    require_harmless(shown[0])


def test_what_is_said_is_one_line_and_its_label_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown: list[str] = []
    with terminal(shown) as stream:
        monkeypatch.setattr(sys, "stderr", LenientStream(stream, False))
        say(f"rnncls: warning[D1]: {HOSTILE}")
    assert shown[0].startswith("\x1b[33mrnncls: warning[D1]\x1b[0m: \\x1b]0;title")
    assert shown[0].count("\n") == 1
    require_harmless(shown[0])


@pytest.mark.parametrize("field", ["what", "where", "expected", "found", "remedy"])
def test_each_field_of_a_problem_is_one_line(field: str) -> None:
    problem = Problem(**{"what": "wrong", field: HOSTILE})
    text = MachineError(problem).render()
    assert text.count("\n") == (0 if field in ("what", "where") else 1)
    assert "\\nFORGED 0.99\\rFORGED" in text
    require_harmless(text)


# --- JSON and YAML

TEXTS = st.text(st.characters(), max_size=60)


@example(HOSTILE)
@example("\udcff")
@example("\U000e0001\U0001f642")
@given(TEXTS)
def test_json_is_printable_and_means_the_same(text: str) -> None:
    value = {text: [text, 1.5, None, True]}
    for readable in (True, False):
        written = json_text(value, readable)
        assert written.isprintable()
        assert json.loads(written) == value
    assert json_text("é漢🙂", readable=True) == '"é漢🙂"'


def test_json_has_no_number_that_is_none() -> None:
    value = {"a": float("nan"), "b": [float("inf"), {"c": (-float("inf"), 1.5)}]}
    assert json_text(value) == '{"a": null, "b": [null, {"c": [null, 1.5]}]}'


def test_a_json_line_is_json_in_any_encoding() -> None:
    content = io.BytesIO()
    file = io.TextIOWrapper(content, encoding="latin-1", errors="backslashreplace")
    write_json_line(file, {"label": "é漢"})
    file.flush()
    assert json.loads(content.getvalue().decode("latin-1")) == {"label": "é漢"}


@example(HOSTILE)
@example("\u2028 a " * 30)
@example(" \u202e'\"\\")
@example("x" * 200 + "\u202e")
@given(TEXTS)
def test_yaml_is_printable_and_means_the_same(tmp_path_factory: Any, text: str) -> None:
    # Half a character is no text, and no config has it.
    text = re.sub("[\ud800-\udfff]", "?", text)
    value = {"key": text, "list": [text, "plain"], "section": {text: 1}}
    written = write_yaml(value)
    assert all(character.isprintable() or character == "\n" for character in written)

    # By any reader of YAML, too, but for what YAML 1.1 reads as other kinds.
    assert yaml.safe_load(written)["list"][0] == text or text.isprintable()
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(written, "utf-8")
    assert read_yaml(path) == {**value, "list": (text, "plain")}


# --- commands


class Hostile:
    """A folder in which every name and value is hostile: a data file, a run, a sweep, a config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / f"d{HOSTILE}.jsonl"
        self.config = folder / f"c{HOSTILE}.yaml"
        self.run = folder / f"r{HOSTILE}"
        self.fields = (f"text{HOSTILE}", f"label{HOSTILE}")

        self.tokens = tokens = STEERING.replace("\u2028", "")
        rows = []
        for number in range(60):
            words = f"w{number % 5}{tokens} w{tokens}{' and more' * (number % 3)}"
            rows.append({self.fields[0]: words, self.fields[1]: f"L{number % 3}{HOSTILE}"})
        rows.append({self.fields[0]: f"w0{tokens} w{tokens}", self.fields[1]: f"L1{HOSTILE}"})
        self.data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

        settings = files_config(self.data, {"max_steps": 14}).model_dump(mode="json")
        settings["data"] |= {
            "tokens": "words",
            "sequence_field": self.fields[0],
            "label_field": self.fields[1],
        }
        self.config.write_text(f"# from \u202eFORGED\n{write_yaml(settings)}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hostile, int, str]:
    """A run that was trained on a terminal, and what was shown."""
    hostile = Hostile(tmp_path_factory.mktemp("shown"))
    exit_code, shown = on_terminal(
        "train", hostile.config, "--run-dir", hostile.run, cwd=hostile.folder
    )
    return hostile, exit_code, shown


def test_training_shows_nothing_that_steers(trained: tuple[Hostile, int, str]) -> None:
    hostile, exit_code, shown = trained
    assert exit_code == 0, shown
    require_harmless(shown)
    # The bar of reading shows the file's name, and the bar of training moves.
    assert "\rd\\x1b]0;title" in shown
    assert "100%|" in shown
    config = (hostile.run / "config.yaml").read_text()
    assert all(character.isprintable() or character == "\n" for character in config)


# Words of command lines. DATA, RUN and CONFIG stand for the hostile ones.
HARMLESS = [
    ["train", "CONFIG", "--check", "train.engine=eager"],
    ["train", "--resume", "RUN"],
    ["train", "--resume", "RUN", "train.max_steps=16"],
    ["train", "--resume", "RUN", f"model.cell={HOSTILE}"],
    ["train", "CONFIG", "--run-dir", "RUN"],
    ["train", "CONFIG", "--name", f"a/{HOSTILE}"],
    ["train", "CONFIG", f"optimizer.lr={HOSTILE}"],
    ["train", "CONFIG", f"{HOSTILE}=1"],
    ["train", "CONFIG", "--device", HOSTILE],
    ["train", "CONFIG", "--init-from", HOSTILE],
    ["train", "CONFIG", f"data.train={HOSTILE}"],
    ["train", HOSTILE],
    [HOSTILE],
    ["runs", HOSTILE],
    ["train", f"--{HOSTILE}"],
    ["eval", "RUN", "--errors", "5", "--confusion"],
    ["eval", "RUN", "--json", "--errors", "5"],
    ["eval", "RUN", "--data", HOSTILE],
    ["eval", HOSTILE],
    ["predict", "RUN", "--input", "DATA"],
    ["predict", "RUN", "--input", "DATA", "--echo", "--top-k", "2"],
    ["predict", "RUN", "--input", "DATA", "--json", "--echo"],
    ["predict", "RUN", "--input", "DATA", "--output", f"out{HOSTILE}.jsonl"],
    ["predict", "RUN", "--input", "DATA", "--prefixes", "--top-k", "2"],
    ["predict", "RUN", "--input", "DATA", "--prefixes", "--json"],
    ["predict", "RUN", f"x {HOSTILE}"],
    ["predict", "RUN", "--input", HOSTILE],
    ["predict", "RUN", "--input", "DATA", "--sequence-field", HOSTILE],
    ["explain", "RUN", "--gradients", "--output", HOSTILE],
    ["explain", "RUN", f"w0 {HOSTILE}"],
    ["explain", "RUN", "TOKENS", "--label", "CLASS"],
    ["explain", "RUN", "TOKENS", "--json"],
    ["explain", "RUN", "TOKENS", "--html", f"page{HOSTILE}.html"],
    ["explain", "RUN", "TOKENS", "--label", HOSTILE],
    ["explain", "RUN", "TOKENS", "--graph", f"graph{HOSTILE}.svg"],
    ["explain", "RUN", "TOKENS", "--graph", f"graph{HOSTILE}.dot"],
    ["explain", "RUN", "TOKENS", "--graph", f"graph{HOSTILE}.mmd", "--json"],
    ["explain", "RUN", "TOKENS", "--graph", f"no{HOSTILE}/graph.svg"],
    ["explain", "RUN", "--graph", f"rolled{HOSTILE}.svg", "--rolled"],
    ["explain", "RUN", "--padding"],
    ["explain", "RUN", "--padding", "--json"],
    ["explain", "RUN", "--padding", "--output", f"padding{HOSTILE}.png"],
    ["explain", "RUN", "--gradients", "--output", f"gradients{HOSTILE}.png"],
    ["explain", "RUN", "--gradients", "--json"],
    ["explain", "RUN", "--states", f"states{HOSTILE}.png"],
    ["explain", "RUN", "--states", "states.png", "--json"],
    ["explain", "RUN", "--padding", "--data-dir", HOSTILE],
    ["explain", "RUN", f"data.{HOSTILE}=1"],
    ["explain", "RUN", f"{HOSTILE}.csv"],
    ["explain", HOSTILE, "w0"],
    ["data", "check", "CONFIG"],
    ["data", "stats", "CONFIG"],
    ["data", "stats", "CONFIG", "--json"],
    ["data", "sample", "CONFIG"],
    ["data", "check", "CONFIG", "data.tokens=ids"],
    ["data", "check", "CONFIG", "data.tokens=ids", "data.bad=skip"],
    ["data", "check", "CONFIG", f"data.label_field={HOSTILE}"],
    ["data", "check", "DATA"],
    ["init", "DATA"],
    ["init", "DATA", "--sequence-field", "TEXT", "--label-field", "LABEL"],
    ["init", "DATA", "--tokens", HOSTILE],
    ["init", HOSTILE],
    ["model", "show", "RUN"],
    ["model", "show", "RUN", "--json"],
    ["model", "show", "CONFIG"],
    ["config", "show", "CONFIG"],
    ["config", "show", "CONFIG", "--json"],
    ["config", "show", "CONFIG", f"data.train={HOSTILE}"],
    ["config", "check", "CONFIG"],
    ["config", "check", "CONFIG", f"seed={HOSTILE}"],
    ["config", "keys", HOSTILE],
    ["config", "schema", "--output", f"schema{HOSTILE}.json"],
    ["runs", "ls", "."],
    ["runs", "ls", ".", "--json"],
    ["runs", "ls", HOSTILE],
    ["runs", "ls", ".", "--filter", f"config={HOSTILE}"],
    ["runs", "ls", ".", "--filter", HOSTILE],
    ["runs", "ls", ".", "--sort", HOSTILE],
    ["runs", "diff", "RUN", "OTHER"],
    ["runs", "diff", "RUN", "OTHER", "--json"],
    ["runs", "diff", "RUN", HOSTILE],
    ["sweep", "CONFIG", "--seeds", HOSTILE],
    ["sweep", "CONFIG", "--grid", HOSTILE],
    ["sweep", "CONFIG", "--shard", HOSTILE],
    ["sweep", "--resume", HOSTILE],
]


@pytest.fixture(scope="module")
def other(trained: tuple[Hostile, int, str]) -> Path:
    """A copy of the run, of which every text that rnncls shows was replaced."""
    hostile, _, _ = trained
    path = hostile.folder / f"o{HOSTILE}"
    shutil.copytree(hostile.run, path)

    config = (path / "config.yaml").read_text().replace("separator: null", "separator: ;")
    (path / "config.yaml").write_text(config.replace(": text", ": other"))
    status = json.loads((path / "status.json").read_text())
    status |= {"error_id": HOSTILE, "best_step": HOSTILE, "host": HOSTILE}
    (path / "status.json").write_text(json.dumps(status))
    rows = [{"step": 5, f"val/{HOSTILE}": 0.5, "train/loss": HOSTILE}]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("words", HARMLESS, ids=lambda words: " ".join(words).partition("\x1b")[0])
def test_a_command_shows_nothing_that_steers(
    words: list[str], trained: tuple[Hostile, int, str], other: Path
) -> None:
    hostile, _, _ = trained
    named = {
        "DATA": hostile.data.name,
        "CONFIG": hostile.config.name,
        "RUN": hostile.run.name,
        "OTHER": other.name,
        "TEXT": hostile.fields[0],
        "LABEL": hostile.fields[1],
        "TOKENS": f"w0{hostile.tokens} w{hostile.tokens} {HOSTILE}",
        "CLASS": f"L1{HOSTILE}",
    }
    words = [named.get(word, word) for word in words]
    exit_code, shown = on_terminal(*words, cwd=hostile.folder)
    assert exit_code != 1, shown
    assert shown.strip()
    require_harmless(shown)
    if "--json" in words and exit_code == 0 and words[0] not in ("predict", "explain"):
        lines = [line for line in shown.splitlines() if line.startswith(("{", "["))]
        json.loads(lines[-1])


@pytest.mark.parametrize("ending", ["svg", "dot", "mmd", "html"])
def test_a_drawing_of_hostile_tokens_is_printable(
    ending: str, trained: tuple[Hostile, int, str]
) -> None:
    """Pictures and pages are opened in editors and on terminals, and are text there."""
    hostile, _, _ = trained
    text = f"w0{hostile.tokens} $x$ <b>'&quot;\" w{STEERING} \U000e0041 \udcff"
    option = "--html" if ending == "html" else "--graph"
    drawing = hostile.folder / f"drawing.{ending}"
    done = run_rnncls("explain", hostile.run, text, option, drawing)
    assert done.returncode == 0, done.stderr
    content = drawing.read_text("utf-8")
    # Spaces of matplotlib's own, and what keeps "\\n" apart in Mermaid.
    allowed = {"svg": "\n\xa0", "mmd": "\n\u200b"}.get(ending, "\n")
    assert {letter for letter in content if not letter.isprintable()} <= set(allowed)
    if ending == "svg":
        ElementTree.fromstring(content)
    if ending != "dot":  # where "<" means nothing within quotes
        assert "<b>" not in content.replace("<b><bdi>", "")


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
def test_a_table_on_a_terminal_does_not_steer_it(
    format: str, trained: tuple[Hostile, int, str]
) -> None:
    hostile, _, _ = trained
    words = ["predict", hostile.run.name, "--input", hostile.data.name, "--format", format]
    exit_code, shown = on_terminal(*words, cwd=hostile.folder, last_defence=True)
    assert exit_code in (0, 2), shown
    # A table has cells of several lines: it is data, and a person asked for it.
    require_harmless(shown.replace("FORGED", ""))


@pytest.mark.slow
def test_a_process_on_a_terminal_shows_nothing_that_steers(
    trained: tuple[Hostile, int, str],
) -> None:
    hostile, _, _ = trained
    shown: list[str] = []
    with terminal(shown) as stream:
        for words in (["config", "show", hostile.config], ["runs", "ls", hostile.folder]):
            command = [PYTHON, "-m", "rnncls", *map(str, words)]
            with started(command, stdin=stream, stdout=stream, stderr=stream) as process:
                assert process.wait() == 0
    assert shown[0].count("FORGED") >= 6
    require_harmless(shown[0])


def test_the_words_that_tab_offers_are_printable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (f"c{HOSTILE}.yaml", "c.yaml", "cé.yaml"):
        Path(name).touch()
    Path(f"d{HOSTILE}").mkdir()
    assert complete_word("c") == ["c.yaml", "cé.yaml"]


# --- the code

# What is printed that does not say by itself that it is escaped: who adds to these has looked.
LOOKED_AT = {
    # Blocks of lines, of which each was put on one line where it was made.
    "message",
    "warning",
    "text",
    "keys_as_table(found, width)",
    "keys_in_full(found)",
    "dump_config(resolved).rstrip()",
    "made.text",
    "report.to_text(task)",
    # Numbers, and a metric of the config.
    "_result(state.step, state.best_metric, state.best_value, state.best_step)",
    "f'n-gram control: {result}'",
    "report.to_text()",
    # Numbers, and the names of kinds of sequences.
    "'\\n'.join([report.to_text(), *long_lines(on_long)])",
    "report.to_text(resolved, rows)",
    "text_of(trace(question))",
    "json_text(shown.to_json()) if as_json else shown.to_text()",
    "f'{heading_of(subject)}\\n\\n{result.to_text()}'",
    "sample_text(task)",
    "accuracy_table(accuracies)",
    "describe_check(checked)",
    "task.described_size(name)",
    "_answer(predictor, str(text), read.ids, top_k)",
    # Columns, whose cells were.
    "f'  {line}'",
    "indent + '  '.join(line).rstrip()",
    "f'  {name}  {tensor.parameters:>13,}  {tensor.share:>6.1%}'",
    "f'  {total}  {description.parameters:>13,}  {1:>6.1%}  {description.bytes:,} bytes'",
    # Addresses, whose parts are escaped.
    "link(running.url, sweeps_below(folder, running.folder))",
    "link(url, sweeps)",
    # Words of ours.
    "LOADING",
    "f\"\\r{' ' * len(LOADING)}\\r\"",
    "f'rnncls {__version__}'",
    "f'\\n{heading}' if pairs else f'\\n{heading}: no difference'",
    "f'ok: {num_tokens:,} different tokens, {classes}'",
    "f'steps: {state.step:,}; best val/{state.best_metric}: {best}'",
    "f'compiling the training step (once, about 20 s); {kept}'",
    "f'{error.render()}\\n  set aside: {name}'",
}


def is_escaped(shown: ast.expr) -> bool:
    """Return whether an expression says by itself that what it shows is escaped, or a number."""
    if isinstance(shown, ast.Constant):
        return True
    if isinstance(shown, ast.Call):
        name = ast.unparse(shown.func)
        return name in ("on_one_line", "json_text") or name.endswith(".render")
    if isinstance(shown, ast.FormattedValue):
        kind = ast.unparse(shown.format_spec)[-2:-1] if shown.format_spec else ""
        return kind in (",", "f", "%", "g") or is_escaped(shown.value)
    return isinstance(shown, ast.JoinedStr) and all(map(is_escaped, shown.values))


def test_whatever_is_printed_is_escaped_or_was_looked_at() -> None:
    """A print that shows a name or a value as it is would be a fault that nobody sees."""
    unknown = set()
    for path in (ROOT / "rnncls").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            shown = call.args if ast.unparse(call.func) in ("print", "tqdm.write") else []
            # What stands in front of a bar or behind it.
            shown += [word.value for word in call.keywords if word.arg == "desc"]
            for one in shown:
                if not is_escaped(one) and ast.unparse(one) not in LOOKED_AT:
                    unknown.add(f"{path.relative_to(ROOT)}: {ast.unparse(one)}")
    assert unknown == set()


# --- sweeps, and files of other kinds


@pytest.fixture(scope="module")
def swept(trained: tuple[Hostile, int, str]) -> tuple[Path, str]:
    """A sweep over two files of hostile names, and what was shown."""
    hostile, _, _ = trained
    again = hostile.folder / f"a{hostile.data.name}"
    shutil.copy(hostile.data, again)
    axis = "data.train=" + ",".join(f"{json.dumps(str(path))}" for path in (hostile.data, again))
    sweep = hostile.folder / f"s{HOSTILE}"
    words = [hostile.config.name, "--grid", axis, "--seeds", "0", "--sweep-dir", sweep.name]
    exit_code, shown = on_terminal("sweep", *words, cwd=hostile.folder)
    assert exit_code == 0, shown
    return sweep, shown


@pytest.mark.slow
def test_a_sweep_shows_nothing_that_steers(swept: tuple[Path, str]) -> None:
    sweep, shown = swept
    require_harmless(shown)
    text = (sweep / "sweep.yaml").read_text()
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "--resume", "SWEEP"],
        ["sweep", "--resume", "SWEEP", "--json"],
        ["eval", "SWEEP"],
        ["eval", "SWEEP", "--json"],
        ["explain", "SWEEP", "w0"],
        ["runs", "ls", ".", "--all"],
        ["runs", "ls", "SWEEP"],
        ["runs", "ls", ".", "--json"],
    ],
)
def test_a_changed_sweep_shows_nothing_that_steers(
    words: list[str], swept: tuple[Path, str]
) -> None:
    """Its files are from anywhere: what they say is shown, and escaped."""
    sweep, _ = swept
    one, other = sorted((sweep / "members").iterdir())
    status = json.loads((one / "status.json").read_text())
    status |= {"error_id": HOSTILE, "state": "failed", "exit_code": 3}
    (one / "status.json").write_text(json.dumps(status))
    (one / "evaluation.json").unlink(missing_ok=True)
    (one / ".lock").write_text(HOSTILE)
    (other / "evaluation.json").write_text(json.dumps({HOSTILE: HOSTILE}))

    words = [sweep.name if word == "SWEEP" else word for word in words]
    exit_code, shown = on_terminal(*words, cwd=sweep.parent)
    assert exit_code != 1, shown
    require_harmless(shown)


def test_a_huge_token_or_label_makes_no_huge_line(tmp_path: Path) -> None:
    huge = "x" * 30_000
    rows = [([f"{huge}{number % 5}", huge], f"{huge}{number % 3}") for number in range(60)]
    path = write_jsonl(tmp_path / "d.jsonl", [*rows, ([f"{huge}0", huge], f"{huge}1")])
    config = files_config(path, {"max_steps": 2}, tokens="words")
    fit(config, tmp_path / "run")
    (tmp_path / "c.yaml").write_text(dump_config(config))
    for words in (["data", "check", "c.yaml"], ["data", "stats", "c.yaml"], ["init", "d.jsonl"]):
        require_short_lines(run_rnncls(*words, cwd=tmp_path))
    for words in (["data", "sample", "c.yaml"], ["model", "show", "run"], ["eval", "run"]):
        require_short_lines(run_rnncls(*words, cwd=tmp_path))


def require_short_lines(done: Completed) -> None:
    assert done.returncode == 0, done.stderr
    assert 0 < max(map(len, (done.stdout + done.stderr).splitlines())) < 1500


def hostile_files(folder: Path) -> dict[str, Path]:
    """Make files of other kinds, whose inner names and contents are hostile."""
    inner = HOSTILE.replace("\x1b", "").replace("\x07", "").replace("\x0b", "")
    made = {}
    for name, content in {
        "broken.yaml": f"a: [{inner}",
        "steering.yaml": f"a: {HOSTILE}",
        "keys.yaml": json.dumps({HOSTILE: {HOSTILE: HOSTILE}, "train": {HOSTILE: HOSTILE}}),
        "values.yaml": json.dumps({"train": {"max_steps": HOSTILE}, "data": {"source": HOSTILE}}),
        "broken.jsonl": f'{{"sequence": "{STEERING}',
        "broken.json": f'[{{"sequence": "{STEERING}"}}, {HOSTILE}',
        "wide.csv": f'"a{HOSTILE}","b{HOSTILE}"\n{STEERING}\n{STEERING},b,c\n',
    }.items():
        made[name] = folder / name
        made[name].write_text(content)

    made["two.zip"] = folder / "two.zip"
    with zipfile.ZipFile(made["two.zip"], "w") as file:
        file.writestr(f"one{HOSTILE}.csv", "a,b\n1,2\n")
        file.writestr(f"two{HOSTILE}.csv", "a,b\n1,2\n")

    # openpyxl refuses control characters, but not those that turn a text around.
    book = openpyxl.Workbook()
    book.active.title = "one\u202e"
    book.create_sheet("two\u2028")
    for sheet in book.worksheets:
        sheet.append(["text\u202e\nFORGED", "label\u202e\nFORGED"])
        sheet.append(["a\u202e\nFORGED", "b\u202e\nFORGED"])
    made["book.xlsx"] = folder / "book.xlsx"
    book.save(made["book.xlsx"])

    table = pyarrow.table({f"text{HOSTILE}": [b"\x1b[2J"], f"label{HOSTILE}": [{HOSTILE: 1}]})
    made["table.parquet"] = folder / "table.parquet"
    pyarrow.parquet.write_table(table, made["table.parquet"])
    return made


def test_no_file_steers_a_terminal(tmp_path: Path) -> None:
    for name, path in hostile_files(tmp_path).items():
        commands = [["init"], ["data", "check"]]
        if name.endswith(".yaml"):
            commands = [["config", "show"], ["config", "check"], ["model", "show"], ["sweep"]]
        for command in commands:
            exit_code, shown = on_terminal(*command, path.name, cwd=tmp_path)
            # A workbook is read, and what is odd in it quoted.
            assert exit_code in ((0, 3) if name == "book.xlsx" else (2, 3)), shown
            assert ("error" in shown) == (exit_code != 0)
            require_harmless(shown)


def test_a_checkpoint_that_says_anything_does_not_steer(trained: tuple[Hostile, int, str]) -> None:
    """The texts of a checkpoint, but for those that are checked, may be any."""
    hostile, _, _ = trained
    run = hostile.folder / f"k{HOSTILE}"
    shutil.copytree(hostile.run, run)
    versions = {HOSTILE: HOSTILE, "torch": HOSTILE}
    for path in (run / "checkpoints").iterdir():
        change_checkpoint(path, lambda state, _: state.update(versions=versions, device=HOSTILE))

    name = run.name
    for command in (["model", "show", name], ["eval", name], ["train", "--resume", name]):
        words = [*command, "train.max_steps=20"] if "train" in command else command
        exit_code, shown = on_terminal(*words, cwd=hostile.folder)
        assert exit_code != 1, shown
        require_harmless(shown)
