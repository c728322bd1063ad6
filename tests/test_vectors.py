"""Word vectors of a file: which tokens get which, what a bad file says, frozen embeddings."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnncls.config import Config, load_config
from rnncls.config.load import parse_config
from rnncls.data import load_task
from rnncls.data.vectors import Vectors, read_vectors
from rnncls.errors import CheckpointError, ConfigError, DataError, Interrupted, MachineError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_checkpoint, find_newest, load_checkpoint
from rnncls.steps import eager
from rnncls.steps.state import TrainState
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from rnncls.training.states import new_state
from tests.helpers import PYTHON, Completed, outcome, run_command, run_rnncls, stop_at

row = pytest.mark.row

WORDS = [f"w{number}" for number in range(12)]
WIDTH = 3


def vector_of(word: str) -> list[float]:
    """Return three numbers that are those of this word alone, exact in float32."""
    return [len(word) + 0.5, sum(map(ord, word)) / 8, -1.25]


def lines_of(words: list[str]) -> str:
    """Return the words and their vectors as a file of GloVe has them."""
    return "".join(f"{word} {' '.join(map(str, vector_of(word)))}\n" for word in words)


def write_vectors(path: Path, words: list[str]) -> Path:
    path.write_text(lines_of(words))
    return path


def write_texts(path: Path, seed: int = 0) -> Path:
    """Write texts of WORDS, "The" and "Sun"; their first word says which label is likely."""
    rng = random.Random(seed)
    words = [*WORDS, "The", "Sun"]
    lines = ["sequence,label"]
    for _ in range(120):
        drawn = rng.choices(words, k=rng.randint(1, 6))
        lines.append(f"{' '.join(drawn)},{'ab'[words.index(drawn[0]) % 2]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def config_of(data: Path, vectors: Path | None, /, **sections: Any) -> Config:
    """Return the config of a small run on `data` that begins with `vectors`."""
    raw: dict[str, Any] = {
        "data": {"source": "files", "train": str(data)},
        "model": {"embedding_dim": WIDTH, "hidden_size": 5},
        "schedule": {"warmup_steps": 0},
        "train": {"max_steps": 12, "batch_size": 8, "eval_every": 6, "checkpoint_every": 4},
        "device": "cpu",
    }
    raw["train"] |= {"engine": "eager", "plots": False}
    if vectors is not None:
        raw["model"]["embeddings"] = str(vectors)
    for name, value in sections.items():
        raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_config(raw, "test")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.csv")


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    return write_vectors(tmp_path / "vectors.txt", [*WORDS[:7], "the", "other"])


def read(path: Path, *tokens: str, width: int = WIDTH) -> Vectors:
    return read_vectors(str(path), tokens, width)


# --- which token gets which vector


@given(
    st.lists(st.text("aAbB é\u00a0İ1.-", min_size=1, max_size=4), min_size=1, max_size=12),
    st.lists(st.text("aAbB é\u00a0İ1.-", min_size=1, max_size=4), unique=True, min_size=1),
    st.booleans(),
)
def test_a_token_has_the_vector_of_its_word_or_of_its_lower_case_form(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], tokens: list[str], has_header: bool
) -> None:
    # By a dict that knows the whole file, and by the words as they were written. A number in front
    # of the others in the first line would be one of the vector.
    words = ["first", *words]
    rows: dict[str, list[float]] = {}
    lines = []
    for number, word in enumerate(words):
        vector = [number + 0.25, -number, 0.5]
        rows.setdefault(word, vector)
        lines.append(f"{word} {' '.join(map(str, vector))}")
    if has_header:
        lines.insert(0, f"{len(words)} {WIDTH}")
    path = tmp_path_factory.mktemp("drawn") / "vectors.txt"
    path.write_text("\n".join(lines) + "\n")

    expected = [rows.get(token, rows.get(token.lower())) for token in tokens]
    if not any(expected):
        with pytest.raises(DataError):
            read(path, *tokens)
        return
    found = read(path, *tokens)
    assert found.found.tolist() == [vector is not None for vector in expected]
    assert found.values.tolist() == [vector or [0, 0, 0] for vector in expected]


@pytest.mark.parametrize("pack", [None, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("header", ["", f"{len(WORDS)} {WIDTH}\n"])
@pytest.mark.parametrize("end", ["\n", " \n", "\r\n"])
def test_both_formats_are_read_plain_and_packed(
    tmp_path: Path, pack: Callable[[bytes], bytes] | None, header: str, end: str
) -> None:
    # word2vec's own program writes a space behind the last number.
    content = (header + lines_of(WORDS)).replace("\n", end).encode()
    path = tmp_path / "vectors"
    path.write_bytes(content if pack is None else pack(content))
    found = read(path, "w3", "none", "w11")
    assert found.found.tolist() == [True, False, True]
    assert found.values.tolist() == [vector_of("w3"), [0, 0, 0], vector_of("w11")]


def test_tabs_separate_as_spaces_do_and_marks_and_blank_lines_are_no_words(tmp_path: Path) -> None:
    path = tmp_path / "vectors.tsv"
    path.write_text("\ufeff" + lines_of(WORDS).replace(" ", "\t") + "\n\n")
    assert read(path, "w0", "w1").values.tolist() == [vector_of("w0"), vector_of("w1")]


def test_a_word_with_spaces_keeps_them_also_in_the_first_line(tmp_path: Path) -> None:
    # GloVe 840B has such words. Those of characters have the space itself.
    path = tmp_path / "vectors.txt"
    path.write_text("at home 1 2 3\nw0 4 5 6\n. . . 7 8 9\n  10 11 12\n")
    found = read(path, "at home", "w0", ". . .", " ", "home", ".")
    assert found.found.tolist() == [True, True, True, True, False, False]
    assert found.values[:4].flatten().tolist() == list(range(1, 13))


def test_what_no_token_needs_is_only_counted(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("x one two three\nw0 1 2 3\ny nan inf -\n")
    assert read(path, "w0").values.tolist() == [[1, 2, 3]]


def test_a_run_begins_with_the_vectors_and_draws_the_others_as_without(
    data: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = load_task(config_of(data, vectors, model={"init_gain": 0.1}))
    without = load_task(config_of(data, None, model={"init_gain": 0.1}))
    assert task.vocabulary is not None
    model = new_state(task).model
    drawn = new_state(without).model
    for name, weight in model.state_dict().items():
        if name != "embedding.weight":
            assert torch.equal(weight, drawn.state_dict()[name]), name

    found = 0
    for token, index in task.vocabulary.index.items():
        expected = drawn.embedding.weight[index].tolist()
        # The gain is for what is drawn.
        if token in WORDS[:7] or token == "The":
            expected = vector_of(token if token in WORDS else "the")
            found += 1
        assert model.embedding.weight[index].tolist() == expected, token

    # What is said is what was counted independently.
    train = task.dataset.splits["train"].tokens.tolist()  # type: ignore[attr-defined]
    tokens = [task.vocabulary.tokens[number] for number in train]
    share = sum(token in WORDS[:7] or token == "The" for token in tokens) / len(tokens)
    said = capsys.readouterr().err
    assert f"{found} of {len(task.vocabulary.tokens)} tokens of the vocabulary" in said
    assert f"({100 * share:.1f} % of the training tokens) have a vector in {vectors}" in said


# --- what goes wrong


def refused(path: Path, text: str | bytes, *tokens: str) -> str:
    """Return what a file with this content is refused with."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        read(path, *(tokens or WORDS))
    return caught.value.problems[0].render()


@row("D28")
@pytest.mark.parametrize(
    ("text", "line", "found", "remedy"),
    [
        ("w0 1 2 3 4 5\n", 1, "5 numbers", "model.embedding_dim=5"),
        ("12 300\n" + "w0 1 2 3\n", 1, "300 numbers", "model.embedding_dim=300"),
        ("w0 1\nw1 1 2 3\n", 1, "1 number", "model.embedding_dim=1"),
        ('{"sequence": "a b c d"}\n', 1, "0 numbers", "the text format"),
        ("w0 1 2 3\nw1 1 2\n", 2, "2 numbers", "the whole file"),
        ("w0 1 2 3\nother 1 2\n", 2, "2 numbers", "the whole file"),
        ("w0 1 2 3\nw1\n", 2, "0 numbers", "the whole file"),
        ("w0 1 2 3\nw1 1 x 3\n", 2, "'x'", "the line"),
        ("w0 1  3\n", 1, "''", "the line"),
        ("w0 1 2 3\n\nw1 1 2 nan\n", 3, "'nan'", "the line"),
        ("w0 1 2 3\nw1 1 -inf 3\n", 2, "'-inf'", "the line"),
        ("w0 1 2 3\nw1 1 2 1e39\n", 2, "'1e39'", "the line"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, line: int, found: str, remedy: str) -> None:
    path = tmp_path / "vectors.txt"
    said = refused(path, text)
    assert "error[D28]" in said
    assert f"({path}:{line})" in said
    assert f"found:    {found}" in said
    assert remedy in said.split("try:")[1]


@row("D28")
def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path / "vectors.txt", f"13 {WIDTH}\n{lines_of(WORDS)}")
    assert "ends early" in said
    assert "13 words, as line 1 says" in said


@row("D29")
@pytest.mark.parametrize("text", [lines_of(["x", "W0"]), "", f"0 {WIDTH}\n"])
def test_a_file_without_any_of_the_tokens_is_refused(tmp_path: Path, text: str) -> None:
    assert "error[D29]" in refused(tmp_path / "vectors.txt", text)


def test_the_binary_format_and_what_is_no_text_are_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, WIDTH)).astype(np.float32)
    binary = f"2 {WIDTH}\n".encode()
    binary += b"".join(
        b"w%d " % number + row.tobytes() + b"\n" for number, row in enumerate(values)
    )
    said = refused(tmp_path / "vectors.bin", binary)
    assert "rnncls: error[D" in said

    said = refused(tmp_path / "latin.txt", "w0 1 2 3\nw1 1 2 3\né 1 2 3\n".encode("latin-1"))
    assert "latin.txt:3" in said
    assert "data.encoding" not in said


@row("D28", "D29", "D1")
def test_the_command_ends_with_the_code_of_data(tmp_path: Path, data: Path, vectors: Path) -> None:
    def said_of(path: Path) -> str:
        keys = [f"model.embeddings={path}", "model.embedding_dim=4"]
        done = run_rnncls("train", data, "--run-dir", tmp_path / "run", *keys)
        assert done.returncode == 3, done.stderr
        assert not (tmp_path / "run" / "checkpoints").exists()
        return done.stderr

    assert "try:      model.embedding_dim=3" in said_of(vectors)
    assert "error[D1]" in said_of(tmp_path / "none.txt")
    assert "error[D1]" in said_of(tmp_path)
    (tmp_path / "foreign.txt").write_text("hallo 1 2 3 4\n")
    assert "error[D29]" in said_of(tmp_path / "foreign.txt")


def test_generated_digits_and_embeddings_that_nobody_trained_are_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="word vectors are for words"):
        parse_config({"model": {"embeddings": "x"}}, "test")
    with pytest.raises(ConfigError, match=r"model\.embeddings=FILE"):
        config_of(data, None, model={"freeze_embeddings": True})


# --- where the file is looked for, and where it is not


def test_a_path_is_relative_to_the_config_and_in_an_override_to_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    path = folder / "mine.yaml"
    path.write_text(
        "data: {source: files, train: texts.csv}\nmodel: {embeddings: ../v.txt, embedding_dim: 3}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_config(path).model.embeddings == str(tmp_path / "v.txt")
    changed = load_config(path, ["model.embeddings=w.txt"])
    assert changed.model.embeddings == str(tmp_path / "w.txt")
    assert load_config(path, ["model.embeddings=null"]).model.embeddings is None


def test_after_the_first_step_nobody_needs_the_file(
    tmp_path: Path, data: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(data, vectors)
    undisturbed = fit(config, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted):
            fit(config, tmp_path / "run")

    vectors.unlink()
    resumed = resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    assert torch.equal(resumed.model.embedding.weight, undisturbed.model.embedding.weight)

    assert run_rnncls("eval", tmp_path / "run").returncode == 0
    done = run_rnncls("predict", tmp_path / "run", input="w0 w1\n")
    assert done.returncode == 0, done.stderr
    assert run_rnncls("explain", tmp_path / "run", "w0 w1").returncode == 0
    shown = run_rnncls("model", "show", tmp_path / "run")
    assert shown.returncode == 0, shown.stderr


def test_weights_of_another_run_take_the_place_of_the_file(
    tmp_path: Path, data: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(data, vectors, model={"freeze_embeddings": True})
    trained = fit(config, tmp_path / "run")
    vectors.unlink()
    capsys.readouterr()
    state = fit(config, tmp_path / "next", init_from=tmp_path / "run")
    assert f"{vectors} is not read" in capsys.readouterr().err
    assert torch.equal(state.model.embedding.weight, trained.model.embedding.weight)


@pytest.mark.usefixtures("data")
def test_members_of_a_sweep_and_a_check_read_the_file_once(tmp_path: Path, vectors: Path) -> None:
    overrides = ["model.embedding_dim=3", "train.max_steps=4", "train.engine=eager", "device=cpu"]
    path = tmp_path / "config.yaml"
    path.write_text("data: {source: files, train: texts.csv}\nmodel: {embeddings: vectors.txt}\n")
    swept = run_rnncls(
        "sweep", "--config", path, "--seeds", "0-2", "--sweep-dir", tmp_path / "sweep", *overrides
    )
    assert swept.returncode == 0, swept.stderr
    assert swept.stderr.count("tokens of the vocabulary") == 1

    # Another content is read again.
    vectors.write_text(lines_of(WORDS[:2]))
    checked = run_rnncls("train", "--config", path, "--check", *overrides)
    assert checked.returncode == 0, checked.stderr
    assert checked.stderr.count("2 of 15 tokens of the vocabulary") == 1


@pytest.mark.usefixtures("data", "vectors")
def test_a_sweep_over_files_of_vectors_is_resumed_from_anywhere(tmp_path: Path) -> None:
    write_vectors(tmp_path / "more.txt", WORDS)
    path = tmp_path / "config.yaml"
    path.write_text("data: {source: files, train: texts.csv}\nmodel: {embedding_dim: 3}\n")
    words: list[str | Path] = ["sweep", "--config", path, "--seeds", "0"]
    words += ["--sweep-dir", tmp_path / "sweep"]
    words += ["train.max_steps=3", "device=cpu", "--grid", "model.embeddings=vectors.txt,more.txt"]
    done = run_rnncls(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "elsewhere").mkdir()
    again = run_rnncls("sweep", "--resume", tmp_path / "sweep", cwd=tmp_path / "elsewhere")
    assert again.returncode == 0, again.stderr


# --- frozen embeddings

VARIANTS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "adam": {"optimizer": {"name": "adam", "weight_decay": 0.1}},
    "sgd": {"optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1}},
    "gru": {"model": {"cell": "gru", "bidirectional": True, "num_layers": 2, "dropout": 0.3}},
    "lstm": {"model": {"cell": "lstm", "pooling": "last_mean_max"}, "data": {"layout": "padded"}},
    "pieces": {"train": {"recompute_every": 2}, "model": {"bidirectional": True}},
    "truncated": {"train": {"truncate_after": 2}, "model": {"cell": "gru"}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_frozen_embeddings_stay_and_all_else_is_trained(
    tmp_path: Path, data: Path, vectors: Path, name: str
) -> None:
    sections = {section: dict(values) for section, values in VARIANTS[name].items()}
    sections["model"] = {"freeze_embeddings": True, **sections.get("model", {})}
    sections["optimizer"] = {"weight_decay": 0.1, **sections.get("optimizer", {})}
    sections["train"] = {
        "diagnostics_every": 5,
        "histogram_every": 5,
        **sections.get("train", {}),
    }
    config = config_of(data, vectors, **sections)
    before = new_state(load_task(config)).model.state_dict()
    state = fit(config, tmp_path / "run")
    for key, weight in state.model.state_dict().items():
        assert torch.equal(weight, before[key]) == (key == "embedding.weight"), key

    checkpoint = read_checkpoint(find_newest(tmp_path / "run"))
    assert checkpoint.optim
    assert not any(key.endswith("embedding.weight") for key in checkpoint.optim)


def test_the_gradient_of_the_others_is_what_it_is_without(
    tmp_path: Path, data: Path, vectors: Path
) -> None:
    # The norm is that of what is trained: nothing is clipped, and one step moves all else alike.
    weights = []
    for is_frozen in (False, True):
        model = {"freeze_embeddings": is_frozen}
        train = {"max_grad_norm": None, "max_steps": 1}
        state = fit(config_of(data, vectors, model=model, train=train), tmp_path / str(is_frozen))
        weights.append(state.model.state_dict())
    for name in weights[0].keys() - {"embedding.weight"}:
        assert torch.equal(weights[0][name], weights[1][name]), name


def test_a_frozen_run_resumes_to_the_bit_and_refuses_foreign_moments(
    tmp_path: Path, data: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(data, vectors, model={"freeze_embeddings": True})
    fit(config, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted):
            fit(config, tmp_path / "run")
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    with pytest.raises(CheckpointError, match=r"freeze_embeddings: true -> false"):
        resume(tmp_path / "run", ["model.freeze_embeddings=false", "train.max_steps=20"])


def test_a_frozen_run_skips_steps_that_are_not_finite(
    tmp_path: Path, data: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = eager.train_step

    def stepping(state: TrainState, *arguments: Any) -> None:
        bias = state.model.head.bias
        kept = bias.detach().clone()
        if state.step == 3:
            bias.data[0] = float("nan")
        original(state, *arguments)
        if state.step == 4:
            bias.data.copy_(kept)

    monkeypatch.setattr(eager, "train_step", stepping)
    config = config_of(
        data, vectors, model={"freeze_embeddings": True}, train={"max_skipped_steps": 1}
    )
    state = fit(config, tmp_path / "run")
    assert state.step == 12
    # One update less than steps.
    moments = state.optimizer.state[state.model.head.bias]
    assert moments["step"] == 11


def test_other_engines_say_why_they_cannot(tmp_path: Path, data: Path, vectors: Path) -> None:
    frozen = {"freeze_embeddings": True}
    config = config_of(data, vectors, model=frozen, train={"engine": "compiled"})
    with pytest.raises(MachineError, match=r"model\.freeze_embeddings is true"):
        fit(config, tmp_path / "run")


@pytest.mark.slow
def test_processes_that_train_together_have_the_bits_of_one(
    tmp_path: Path, data: Path, vectors: Path
) -> None:
    frozen = {"freeze_embeddings": True}
    model = config_of(data, vectors, model=frozen).model_dump(mode="json")
    cases = [{"name": "frozen", "size": size, "config": model | {"seed": 1}} for size in (1, 2)]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done: Completed = run_command([PYTHON, "-m", "tests.together", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    ended = [json.loads((tmp_path / "2" / f"frozen.{rank}.json").read_text()) for rank in (0, 1)]
    assert ended[0]["bits"] == ended[1]["bits"]
    one = load_checkpoint(find_checkpoint(tmp_path / "1" / "frozen"))[1].state_dict()
    two = load_checkpoint(find_checkpoint(tmp_path / "2" / "frozen"))[1].state_dict()
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-4, atol=1e-5)
    assert torch.equal(one["embedding.weight"], two["embedding.weight"])


def test_the_checkpoint_is_read_where_the_path_is_none(
    tmp_path: Path, data: Path, vectors: Path
) -> None:
    fit(config_of(data, vectors), tmp_path / "run")
    vectors.unlink()
    config = read_checkpoint(find_newest(tmp_path / "run")).config
    assert config.model.embeddings == str(vectors)
    assert load_config(tmp_path / "run" / "config.yaml").model.embeddings == str(vectors)
