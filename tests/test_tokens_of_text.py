"""How texts become tokens: small letters, words at punctuation, subwords, a token at the end."""

import json
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnncls.config import FilesConfig
from rnncls.config.load import parse_config
from rnncls.data import Vocabulary
from rnncls.data.cells import LONG_ROW, TokenRule, tokens_of, words_at_marks
from rnncls.data.dataset import Dataset
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.loading import load_dataset, load_labelled_files
from rnncls.data.subwords import MARK, Subwords, digest_of, text_of_parts, train_subwords
from rnncls.errors import CheckpointError, ConfigError, DataError, MachineError
from rnncls.inspect.subject import tokens_of_text
from rnncls.predict.data_files import rows_of_file
from rnncls.predict.predictor import Predictor, load, read_tokens
from rnncls.predict.reading import rows_of_lines
from rnncls.rundir import tensorfile
from rnncls.rundir.checkpoint import read_checkpoint, state_of_vocabulary
from rnncls.rundir.checkpoint_files import find_checkpoint
from rnncls.training.fit import fit
from tests.helpers import files_config, run_rnncls

row = pytest.mark.row

WHOLE: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}

# An emoji of several, its colour, accents before and after they combine, scripts without spaces or
# with vowel signs, letters that change their number, spaces of other kinds, signs without width.
ODD = [
    "Hello, World! don't snake_case 3.14",
    "👩‍👩‍👧 👍🏽 ❤️ :-)",
    "naïve nai\u0308ve NAÏVE e\u0301\u0323",
    "東京都は大きい。 한국어 ไทย",
    "हिन्दी में \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "İstanbul STRASSE Straße ΑΣ ΑΣ, ς",
    "a\u00a0b\u2003c\u3000d\u200be\u200df\ufeffg",
    "x" * 3000 + " " + "ab" * 700,
    "<unk> <end> <sep> </s> ▁mark ▁▁",
    "\u0301accent first",
]

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"tokens": "words"},
    "lowercase": {"tokens": "words", "lowercase": True},
    "marks": {"tokens": "words", "lowercase": True, "word_boundaries": "punctuation"},
    "characters": {"tokens": "characters", "lowercase": True, "end_token": True},
    "subwords": {"tokens": "subwords", "vocabulary_size": 60},
    "all": {
        "tokens": "subwords",
        "lowercase": True,
        "word_boundaries": "punctuation",
        "vocabulary_size": 90,
        "end_token": True,
        "max_length": 40,
        "truncate": "tail",
    },
}


def data_of(path: Path, **keys: Any) -> FilesConfig:
    raw = {"source": "files", "train": str(path), **WHOLE, **keys}
    return FilesConfig.model_validate(raw)


def written(path: Path, texts: list[str]) -> Path:
    """A file of texts, half of them of each class."""
    rows = [{"sequence": text, "label": "ab"[n % 2]} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def ids_in(dataset: Dataset, split: str = "train") -> list[list[int]]:
    sequences = dataset.splits[split]
    ids = sequences.tokens.tolist()
    return [ids[start:end] for start, end in pairwise(sequences.offsets.tolist())]


def names_in(dataset: Dataset, split: str = "train") -> list[list[str]]:
    tokens = dataset.vocabulary.tokens
    return [[tokens[id] for id in ids] for ids in ids_in(dataset, split)]


# --- small letters


def test_the_whole_text_becomes_small_at_once() -> None:
    rule = TokenRule("words", lowercase=True)
    # The last sigma of a word is another letter, and one letter may become two.
    assert tokens_of("ΟΔΟΣ İ ẞ", rule) == ["οδος", "i\u0307", "ß"]
    assert tokens_of(["ΟΔΟΣ", "New York"], rule) == ["οδος", "new york"]
    assert tokens_of(("AB", None, "C"), rule) == ["ab", "<sep>", "<sep>", "c"]
    assert tokens_of("AbC", TokenRule("characters", lowercase=True)) == ["a", "b", "c"]


# --- words at punctuation


def reference_words(text: str) -> list[str]:
    """The same rule, sign by sign."""
    words: list[str] = []
    may_go_on = False  # whether the next sign may belong to the last word
    for sign in text:
        joins = unicodedata.category(sign)[0] == "M" or sign in "\u200c\u200d"
        is_letter = sign.isalnum() or sign == "_"
        if sign.isspace() and not joins:
            may_go_on = False
        elif may_go_on and (
            joins or (is_letter and (words[-1][0].isalnum() or words[-1][0] == "_"))
        ):
            words[-1] += sign
        else:
            words.append(sign)
            may_go_on = True
    return words


def test_words_end_where_letters_and_marks_meet() -> None:
    assert words_at_marks(ODD[0]) == [
        *("Hello", ",", "World", "!", "don", "'", "t", "snake_case", "3", ".", "14")
    ]
    # What combines stays with what it combines with.
    assert words_at_marks("nai\u0308ve e\u0301\u0323!") == ["nai\u0308ve", "e\u0301\u0323", "!"]
    assert words_at_marks("हिन्दी में") == ["हिन्दी", "में"]
    assert words_at_marks("❤\ufe0f👍") == ["❤\ufe0f", "👍"]
    assert words_at_marks("a\u00a0b\u3000c") == ["a", "b", "c"]


def test_the_pattern_is_the_rule_sign_by_sign() -> None:
    rng = random.Random(0)
    signs = [*"ab_1é!?'-. \t\u00a0\u2003", *"\u0301\u0323\ufe0f\u200c\u200dि東ς😀👍\u200b\x1c"]
    texts = ["".join(rng.choices(signs, k=rng.randint(0, 30))) for _ in range(3000)]
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x20000)]))
    for text in [*ODD, *texts, every]:
        assert words_at_marks(text) == reference_words(text)
        # Nothing but white space is lost.
        assert "".join(words_at_marks(text)) == "".join(text.split())


def test_a_long_text_has_the_words_of_a_short_one() -> None:
    text = "It's a day. "
    times = LONG_ROW // len(text) + 1
    assert words_at_marks(text * times) == words_at_marks(text) * times


def test_ids_and_characters_have_no_words() -> None:
    for keys, key in (
        ({"tokens": "ids", "lowercase": True}, "lowercase"),
        ({"tokens": "ids", "word_boundaries": "punctuation"}, "word_boundaries"),
        ({"tokens": "characters", "word_boundaries": "punctuation"}, "word_boundaries"),
        ({"tokens": "subwords", "min_count": 2}, "min_count"),
        ({"tokens": "subwords", "prefix_labels_field": "p"}, "prefix_labels_field"),
        ({"tokens": "words", "end_token": True, "prefix_labels_field": "p"}, "prefix_labels_field"),
    ):
        with pytest.raises(ConfigError) as error:
            parse_config({"data": {"source": "files", "train": "x", **keys}}, "test")
        (problem,) = error.value.problems
        assert problem.id == "C15"
        assert problem.where.endswith(f"data.{key}")


# --- subwords


def counts_of(num_words: int = 300, seed: int = 0) -> dict[str, int]:
    rng = random.Random(seed)
    words = {"".join(rng.choices("aabcdeé東", k=rng.randint(1, 8))) for _ in range(num_words)}
    return {word: rng.randint(1, 50) for word in sorted(words)}


def merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts with each pair as one, from the left."""
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            # What has just become one takes no part in another pair of the same rule.
            result[-1] = result[-1] + part + "\0"
        else:
            result.append(part)
    return [part.removesuffix("\0") for part in result]


def by_rules(word: str, merges: tuple[tuple[str, str], ...]) -> list[str]:
    """Reference: rule after rule, over the whole word."""
    parts = [MARK, *word]
    for pair in merges:
        parts = merged(parts, pair)
    return parts


def test_each_rule_is_of_the_most_frequent_pair_at_its_time() -> None:
    counts = counts_of()
    subwords = train_subwords(counts, 80)
    assert len(subwords.parts) == 80
    words = {word: [MARK, *word] for word in counts}
    for pair in subwords.merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for each in pairwise(parts):
                pairs[each] += counts[word]
        assert pairs[pair] == max(pairs.values())
        words = {word: merged(parts, pair) for word, parts in words.items()}


def test_words_become_parts_by_the_rules_in_their_order() -> None:
    counts = counts_of()
    subwords = train_subwords(counts, 120)
    for word in [*counts, *counts_of(500, seed=1), "aaaaaaa", ""]:
        parts = subwords.parts_of([word])
        assert parts == by_rules(word, subwords.merges)
        assert "".join(parts) == MARK + word
    # Words stay apart, and the same word is the same again.
    assert subwords.parts_of(["ab", "ab"]) == subwords.parts_of(["ab"]) * 2


def test_characters_that_training_lacks_are_parts_of_their_own() -> None:
    subwords = train_subwords({"abab": 10, "ab": 30}, 10)
    assert subwords.parts_of(["ab😀ab"]) == ["▁ab", "😀", "ab"]
    assert subwords.parts_of(["\ud800x"]) == ["▁", "\ud800", "x"]


def test_a_small_vocabulary_keeps_the_most_frequent_characters() -> None:
    counts = {"aab": 100, "aac": 90, "dd": 1, "ee": 1}
    subwords = train_subwords(counts, 4)
    assert subwords.parts == {MARK, "a", "b", "c"}
    assert train_subwords(counts, 2).parts == {MARK, "a"}
    # At random among equally frequent ones would be another one in each process.
    assert train_subwords(dict(reversed(counts.items())), 5).parts == {MARK, "a", "b", "c", "d"}


@pytest.mark.slow
def test_the_rules_are_the_same_in_each_process() -> None:
    program = (
        "from tests.test_tokens_of_text import counts_of\n"
        "from rnncls.data.subwords import train_subwords\n"
        "made = train_subwords(counts_of(), 100)\n"
        "print(made.digest, made.merges)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout


def test_parts_are_read_as_the_text_was() -> None:
    words = ["ab", "cab", "a", "bac"]
    subwords = train_subwords(dict.fromkeys(words, 3), 9)
    text = text_of_parts(subwords.parts_of(words), frozenset())
    assert text == "ab cab a bac"
    assert text_of_parts(
        ["▁a", "<unk>", "<sep>", "▁b", "<end>"], frozenset({"<sep>", "<end>"})
    ) == ("a<unk> <sep> b <end>")


def test_only_training_rows_make_the_vocabulary(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", ["aba bab", "baa abb"] * 5)
    val = written(tmp_path / "val.jsonl", ["abq abz", "zzzz ab"])
    data = data_of(train, val=str(val), tokens="subwords", vocabulary_size=50)
    dataset = load_dataset(data)
    assert not {"q", "z"} & set("".join(dataset.vocabulary.tokens))
    assert dataset.unknown_tokens == {"train": 0, "val": 6, "test": 0}
    assert names_in(dataset, "val")[1] == ["▁", *["<unk>"] * 4, *names_in(dataset, "val")[1][5:]]


def test_subwords_of_rows_are_those_of_their_words(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = list(counts_of(60))
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 20))) for _ in range(200)]
    path = written(tmp_path / "d.jsonl", texts)
    dataset = load_dataset(data_of(path, tokens="subwords", vocabulary_size=70))
    subwords = dataset.vocabulary.subwords
    assert subwords is not None
    expected = [subwords.parts_of(text.split()) for text in texts]
    assert names_in(dataset) == expected

    for truncate in ("head", "tail"):
        limited = data_of(
            path, tokens="subwords", vocabulary_size=70, max_length=9, truncate=truncate
        )
        cut = load_dataset(limited)
        # The vocabulary is of all words of a row: what is cut says something of the language, too.
        assert cut.vocabulary.tokens == dataset.vocabulary.tokens
        sides = [parts[:9] if truncate == "head" else parts[-9:] for parts in expected]
        assert names_in(cut) == sides
        assert cut.noticed["train"].truncated == sum(len(parts) > 9 for parts in expected)

    with pytest.raises(DataError) as error:
        load_dataset(data_of(path, tokens="subwords", max_length=9, truncate="error"))
    first = next(number for number, parts in enumerate(expected, 1) if len(parts) > 9)
    assert error.value.problems[0].id == "D16"
    assert error.value.problems[0].where.endswith(f":{first}")


def test_rows_are_held_out_by_their_words(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", [f"word{n} and {n * n}" for n in range(100)])
    shares = {"val_fraction": 0.2, "test_fraction": 0.2}
    words = load_dataset(data_of(path, tokens="words", **shares))
    parts = load_dataset(data_of(path, tokens="subwords", end_token=True, **shares))
    for split in ("train", "val", "test"):
        assert words.lines[split].tolist() == parts.lines[split].tolist()


def test_unknown_error_knows_every_character(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", ["abc", "bca", "cab"])
    keys: dict[str, Any] = {"tokens": "subwords", "unknown": "error"}
    with pytest.raises(DataError) as error:
        load_dataset(data_of(path, vocabulary_size=3, **keys))
    assert "data.vocabulary_size" in error.value.problems[0].remedy

    dataset = load_dataset(data_of(path, vocabulary_size=4, **keys))
    assert set(dataset.vocabulary.tokens) == {MARK, *"abc"}
    other = written(tmp_path / "other.jsonl", ["abd"])
    with pytest.raises(DataError) as error:
        load_labelled_files(str(other), data_of(path, **keys), dataset.vocabulary)
    assert error.value.problems[0].id == "D8"


@row("D8")
def test_text_of_which_nothing_is_known_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", ["abc bca", "cab"])
    other = written(tmp_path / "other.jsonl", ["東京 都", "京"])
    for end_token in (False, True):
        data = data_of(path, tokens="subwords", end_token=end_token)
        vocabulary = load_dataset(data).vocabulary
        with pytest.raises(DataError) as error:
            load_labelled_files(str(other), data, vocabulary)
        assert "no token" in error.value.problems[0].what


# --- the end


@pytest.mark.parametrize("tokens", ["words", "characters", "ids", "subwords"])
@pytest.mark.parametrize("truncate", ["head", "tail"])
def test_each_sequence_ends_with_its_token(tokens: str, truncate: str, tmp_path: Path) -> None:
    texts = ["3 1 4 1 5", "9 2", "6", "5 3 5 8 9 7"]
    path = written(tmp_path / "d.jsonl", texts)
    keys: dict[str, Any] = {"tokens": tokens, "max_length": 3, "truncate": truncate}
    without = load_dataset(data_of(path, **keys))
    dataset = load_dataset(data_of(path, **keys, end_token=True))
    # All other ids are the same, and a sequence of the longest length has one token more.
    assert dataset.vocabulary.tokens == (*without.vocabulary.tokens, "<end>")
    end = len(without.vocabulary.tokens)
    assert ids_in(dataset) == [[*ids, end] for ids in ids_in(without)]
    assert max(map(len, ids_in(dataset))) == 4
    assert dataset.unknown_tokens == without.unknown_tokens


def test_the_word_of_a_file_is_the_token_at_the_end(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", ["a <end> b", "<end>", "b a"])
    for tokens in ("words", "subwords"):
        dataset = load_dataset(data_of(path, tokens=tokens, end_token=True))
        assert dataset.vocabulary.tokens.count("<end>") == 1
        assert names_in(dataset)[1] == ["<end>", "<end>"]
    # Without the key, it is a word like any other.
    dataset = load_dataset(data_of(path, tokens="words"))
    assert dataset.vocabulary.tokens == ("<unk>", "<end>", "a", "b")


# --- the same everywhere


# One of them has all that the others have.
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "all")) for kind in KINDS]
)
def test_training_and_all_ways_to_predict_have_the_same_ids(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", ODD)
    config = files_config(path, **WHOLE, **KINDS[kind])
    fit(config, tmp_path / "run")
    data = config.data
    assert isinstance(data, FilesConfig)
    dataset = load_dataset(data)
    expected = ids_in(dataset)

    predictor = load(tmp_path / "run")
    assert predictor.vocabulary == dataset.vocabulary
    evaluated = load_labelled_files(str(path), data, predictor.vocabulary)
    assert ids_in(evaluated, str(path)) == expected

    bad = BadRows(path)
    assert [each.ids for each in rows_of_file(predictor, path, bad)] == expected
    lines = [(text.encode(), number) for number, text in enumerate(ODD, 2)]
    assert [each.ids for each in rows_of_lines(predictor, lines, bad)] == expected
    typed = [(text, number) for number, text in enumerate(ODD, 1)]
    assert [each.ids for each in rows_of_lines(predictor, typed, bad)] == expected
    assert bad.count == 0
    assert [tokens_of_text(predictor, text).ids for text in ODD] == expected
    for text, ids in zip(ODD, expected, strict=True):
        (answer,) = predictor.predict([text])
        assert answer.probability == answer_to(predictor, ids)

    # As the command line gives it, one by one.
    done = run_rnncls("predict", tmp_path / "run", ODD[0], "--json")
    assert json.loads(done.stdout)["probability"] == pytest.approx(
        answer_to(predictor, expected[0]), abs=1e-6
    )
    resumed = run_rnncls("train", "--resume", tmp_path / "run", "train.max_steps=42")
    assert resumed.returncode == 0, resumed.stderr
    assert load(tmp_path / "run").vocabulary == predictor.vocabulary


def answer_to(predictor: Predictor, ids: list[int]) -> float:
    from rnncls.predict.predictor import predict_ids

    return predict_ids(predictor, [ids])[0].probability


def test_a_list_of_words_is_read_as_their_text(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", ["ab cd", "cd ef"] * 3)
    fit(files_config(path, **WHOLE, **KINDS["all"]), tmp_path / "run")
    predictor = load(tmp_path / "run")
    assert read_tokens(predictor, ["AB", "cd"]) == read_tokens(predictor, "ab CD")
    done = run_rnncls("explain", tmp_path / "run", "ab xcd")
    assert done.returncode == 0, done.stderr
    assert "<end>" in done.stdout
    prefixes = run_rnncls("predict", tmp_path / "run", "--prefixes", "--json", "ab")
    assert json.loads(prefixes.stdout)["tokens"][-1] == "<end>"


def test_prefixes_of_ids_end_with_a_text(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", ["3 1", "4 1 5"])
    fit(files_config(path, **WHOLE, tokens="ids", end_token=True), tmp_path / "run")
    done = run_rnncls("predict", tmp_path / "run", "--prefixes", "--json", "3 1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == [3, 1, "<end>"]


def test_unknown_sequences_are_warned_of_with_an_end_token(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", ["ab cd", "cd ef"] * 3)
    fit(files_config(path, **WHOLE, tokens="subwords", end_token=True), tmp_path / "run")
    file = tmp_path / "new.txt"
    file.write_text("東京 都\nab cd\nab 東京都東京\n")
    done = run_rnncls("predict", tmp_path / "run", "--input", file)
    assert "1 of 3 sequences has no token of the training data" in done.stderr
    assert "1 of 3 sequences has mostly tokens that the training data lacks" in done.stderr


# --- checkpoints


def changed_state(run: Path, target: Path, **subwords: Any) -> Path:
    """A copy of a run's checkpoint with other rules of subwords."""
    text, tensors = tensorfile.read(find_checkpoint(run))
    state = json.loads(text)
    state["vocabulary"]["subwords"].update(subwords)
    tensorfile.write(target, json.dumps(state), tensors)
    return target


@pytest.fixture(scope="module")
def run_of_subwords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subwords")
    path = written(folder / "d.jsonl", ["banana bandana", "cabana ananas", *ODD[:3]])
    keys: dict[str, Any] = {"tokens": "subwords", "vocabulary_size": 60}
    fit(files_config(path, **WHOLE, **keys), folder / "run")
    return folder / "run"


def test_a_checkpoint_keeps_the_rules(run_of_subwords: Path) -> None:
    checkpoint = read_checkpoint(find_checkpoint(run_of_subwords))
    vocabulary = checkpoint.vocabulary
    assert vocabulary is not None
    assert vocabulary.subwords is not None
    assert vocabulary.subwords.digest == digest_of(vocabulary.subwords)
    assert state_of_vocabulary(vocabulary) == checkpoint.state.vocabulary


@row("K24")
def test_another_version_is_refused_only_if_it_differs(
    run_of_subwords: Path, tmp_path: Path
) -> None:
    same = changed_state(run_of_subwords, tmp_path / "same.safetensors", tokenizers="0.1")
    assert load(same).predict(["banana"]) == load(run_of_subwords).predict(["banana"])

    other = changed_state(
        run_of_subwords, tmp_path / "other.safetensors", tokenizers="0.1", digest="0" * 64
    )
    with pytest.raises(CheckpointError) as error:
        load(other)
    assert error.value.problems[0].id == "K24"
    commands: list[list[str | Path]] = [["predict", other, "banana"], ["eval", other]]
    for words in commands:
        done = run_rnncls(*words)
        assert done.returncode == 4
        assert "pip install tokenizers==0.1" in done.stderr
    # What a model consists of can be told by any version.
    assert run_rnncls("model", "show", other).returncode == 0


@row("K4")
@pytest.mark.parametrize("merges", [[[0, 100_000]], [[-1, 1]], [[0, 0]], [[1]], "ab", None])
def test_rules_about_no_tokens_are_refused(
    merges: Any, run_of_subwords: Path, tmp_path: Path
) -> None:
    path = changed_state(run_of_subwords, tmp_path / "bad.safetensors", merges=merges)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert error.value.problems[0].id == "K4"


@row("R38")
def test_without_the_package_the_command_is_named(
    run_of_subwords: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    path = written(tmp_path / "d.jsonl", ["ab cd", "cd ef"])
    with pytest.raises(MachineError):
        load(run_of_subwords)
    commands: list[list[Any]] = [
        ["train", path, "--tokens", "subwords", "--run-dir", tmp_path / "run"],
        ["data", "check", path, "--tokens", "subwords"],
        ["predict", run_of_subwords, "banana"],
        ["eval", run_of_subwords],
    ]
    for words in commands:
        done = run_rnncls(*words)
        assert done.returncode == 5, done.stderr
        assert "pip install 'rnncls[text]'" in done.stderr
    # Other tokens need no package.
    assert load_dataset(data_of(path, tokens="words")).vocabulary.num_embeddings == 4


@pytest.mark.slow
def test_nothing_else_imports_the_package() -> None:
    program = "import sys, rnncls, rnncls.training.fit, rnncls.predict.predictor\n"
    program += "sys.exit('tokenizers' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@row("K8")
def test_weights_of_other_tokens_are_refused(run_of_subwords: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", ["banana bandana", "cabana ananas"])
    for keys, key in (
        ({"tokens": "words"}, "data.tokens"),
        ({"tokens": "subwords", "end_token": True}, "data.end_token"),
        # A vocabulary without <unk> would have another token in its place.
        ({"tokens": "subwords", "unknown": "error"}, "data.unknown"),
    ):
        config = files_config(path, **WHOLE, **keys)
        with pytest.raises(CheckpointError) as error:
            fit(config, tmp_path / "other", init_from=run_of_subwords)
        assert error.value.problems[0].id == "K8"
        assert error.value.problems[0].where == key

    # The rules are those of the first run, whatever the new file has.
    config = files_config(path, **WHOLE, tokens="subwords")
    fit(config, tmp_path / "same", init_from=run_of_subwords)
    assert load(tmp_path / "same").vocabulary.tokens == load(run_of_subwords).vocabulary.tokens


# --- init and data


def test_init_writes_what_was_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", ["Good film!", "Bad film!"] * 20)
    done = run_rnncls(
        *("init", path, "--tokens", "subwords", "data.lowercase=true"),
        *("data.word_boundaries=punctuation", "data.vocabulary_size=40", "data.end_token=true"),
    )
    assert done.returncode == 0, done.stderr
    config = tmp_path / "made.yaml"
    config.write_text(done.stdout.replace(f"train: {path}", "train: d.jsonl"))
    shown = run_rnncls("config", "show", config)
    assert shown.returncode == 0, shown.stderr
    for line in (
        "tokens: subwords",
        "lowercase: true",
        "word_boundaries: punctuation",
        "vocabulary_size: 40",
        "end_token: true",
    ):
        assert line in shown.stdout
    stats = run_rnncls("data", "stats", config)
    assert "<end>" in stats.stdout

    refused = run_rnncls("init", path, "--tokens", "characters", "data.word_boundaries=punctuation")
    assert refused.returncode == 2
    assert "characters have no words" in refused.stderr


def test_lengths_count_the_token_at_the_end(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", ["a b c", "a b"])
    lengths = load_dataset(data_of(path, tokens="words", end_token=True)).splits["train"].lengths
    assert np.asarray(lengths).tolist() == [4, 3]


def test_a_part_that_looks_like_a_token_with_a_meaning_is_a_part() -> None:
    subwords = train_subwords({"x<end>": 50, "<end>y": 50}, 60, special=["<end>"])
    assert "<end>" in subwords.parts
    assert "<end>" not in subwords.special
    tokens = tuple(dict.fromkeys([*sorted(subwords.parts), "<end>"]))
    vocabulary = Vocabulary(tokens, ("a", "b"), has_unknown=False, subwords=subwords)
    assert isinstance(vocabulary.subwords, Subwords)
    assert subwords.parts_of(["<end>"]) == by_rules("<end>", subwords.merges)
