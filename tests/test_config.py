"""Strict YAML, overrides and validation: one meaning, or a clear message that names the place."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rnncls.config import (
    Config,
    FilesConfig,
    config_schema,
    dump_config,
    flatten,
    load_config,
    num_parameters,
    parse_config,
    sizes,
    with_numbers,
)
from rnncls.config.defaults import BY_SOURCE, default_warmup, number
from rnncls.config.keys import Key, all_keys, find_keys, keys_as_table, keys_in_full
from rnncls.config.names import ALIASES
from rnncls.config.strict_yaml import parse
from rnncls.errors import ConfigError
from rnncls.model.build import build_model
from tests.helpers import ROOT, config_of

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
KEYS = list(flatten(Config()))


def problems_of(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return caught.value.render()


def load_text_config(text: str) -> Config:
    return parse_config(parse(text, "here").value, "here")


def load_text(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(path, overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E-3", 0.001),
        ("1e3", 1000.0),
        ("2.5", 2.5),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ('"010"', "010"),
        ("'no'", "no"),
        ("adam", "adam"),
        ("[0.9, 0.999]", (0.9, 0.999)),
        ("123456789012345678", 123456789012345678),
    ],
)
@pytest.mark.row("C7")
def test_scalars_have_the_value_they_look_like(text: str, value: object) -> None:
    document = parse(f"a: {text}", "here")
    assert document.value == {"a": value}
    assert type(document.value["a"]) is type(value)
    assert not document.problems


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "yes",
        "on",
        "off",
        "No",
        "TRUE",
        "Null",
        "010",
        "0x1F",
        "12:30:45",
        "2024-01-01",
        "1_000",
        "0b11",
    ],
)
@pytest.mark.row("C8")
def test_what_yaml_1_1_would_convert_silently_is_refused(tmp_path: Path, text: str) -> None:
    message = problems_of(tmp_path, f"train:\n  max_steps: {text}\n")
    assert "error[C8]" in message
    assert "c.yaml:2:14, train.max_steps" in message
    assert f'"{text}"' in message


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.row("C6")
def test_a_duplicate_key_is_refused_with_both_lines(tmp_path: Path, nested: bool) -> None:
    text = (
        "train:\n  max_steps: 5\n  max_steps: 6\n" if nested else "seed: 1\ndevice: cpu\nseed: 2\n"
    )
    message = problems_of(tmp_path, text)
    first, again = (2, 3) if nested else (1, 3)
    assert f"first on line {first}, again on line {again}" in message


@pytest.mark.parametrize(
    ("text", "id", "part"),
    [
        ("", "C4", "found:    nothing"),
        ("~", "C4", "mapping"),
        ("- 1", "C4", "mapping"),
        ("7", "C4", "mapping"),
        ("seed: 1\n---\nseed: 2\n", "C4", "second YAML document"),
        ("3: 4", "C4", "must be a word"),
        ("? [a]\n: 1", "C4", "must be a word"),
        ("\tseed: 1", "C3", "c.yaml:1:1"),
        ("train: {max_steps: 5", "C3", "c.yaml:1:"),
        ("seed: 1\ndevice cpu\n", "C3", "device cpu"),
        ("seed: &a 1", "C13", "anchors"),
        ("seed: 1\ntrain: *a", "C13", "aliases"),
        ("seed: !!python/object/apply:os.system ['touch canary']", "C14", "tags"),
        ("!!map {seed: 1}", "C14", "tags"),
        ("[" * 10_000, "C13", "deep"),
        ("a: " + "{a: " * 10_000, "C13", "deep"),
        ("a: 1\n" * 20_000, "C13", "too large"),
        ("seed: 1\x00", "C2", "U+0000"),
        ("data: 5", "C9", "a section with the keys source, modulus"),
        ("data:", "C9", "a section with the keys source, modulus"),
    ],
)
@pytest.mark.row("C2", "C3", "C4", "C9", "C13", "C14")
def test_files_that_are_no_config(tmp_path: Path, text: str, id: str, part: str) -> None:
    message = problems_of(tmp_path, text)
    assert f"error[{id}]" in message
    assert part in message
    assert not (tmp_path / "canary").exists()


@pytest.mark.row("C2")
def test_bytes_that_are_no_utf_8_are_located_and_a_byte_order_mark_is_accepted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_config(path).seed == 3
    path.write_bytes(b"seed: \xff\n")
    with pytest.raises(ConfigError, match="not text") as caught:
        load_config(path)
    assert "byte 0xff at offset 6" in caught.value.render()


@pytest.mark.row("C1")
def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read") as caught:
            load_config(path)
        assert str(path) in caught.value.render()


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    text = """
data:
  modulus: 010
  min_lenght: 2
optimizer:
  name: Adam
train:
  batch_size: "32"
  max_grad_norm: .nan
  max_steps: 5
  max_steps: 6
lr: 3
"""
    message = problems_of(
        tmp_path, text, "model.dropout=.5", "data.min_length=9", "nonsense", "train.seed=no"
    )

    for part in (
        "c.yaml:3:12, data.modulus",
        'unknown key "min_lenght" (' + str(tmp_path / "c.yaml") + ":4:3, data.min_lenght)",
        "did you mean data.min_length?",
        "expected: one of adam, adamw, sgd",
        '"32" (text)',
        "expected: number, above 0, or null",
        'duplicate key "max_steps"',
        "did you mean optimizer.lr?",
        "override model.dropout=.5, model.dropout",
        "malformed override",
        "override train.seed=no",
        "did you mean seed=no?",
    ):
        assert part in message, part

    assert message.count("rnncls: error") == 11


@pytest.mark.row("C15")
def test_a_problem_of_two_keys_names_both(tmp_path: Path) -> None:
    for override, parts in {
        "data.min_length=9": ("data.min_length", "data.max_length = 5"),
        "model.dropout=0.1": ("model.dropout", "num_layers"),
        "optimizer.momentum=0.9": ("optimizer.momentum", "optimizer.name"),
        "schedule.min_lr=1": ("schedule.min_lr", "optimizer.lr"),
    }.items():
        message = problems_of(tmp_path, "seed: 0", override)
        assert all(part in message for part in parts), message


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.row("C5")
def test_a_misspelt_key_gets_the_right_suggestion(tmp_path: Path, key: str) -> None:
    section, _, name = key.rpartition(".")
    for index in range(len(name)):
        typo = name[:index] + name[index + 1 :]
        if len(typo) < 2 or f"{section}.{typo}".strip(".") in KEYS:
            continue  # `l` for `lr` could be anything
        if typo in ALIASES:
            continue  # `embedding` is what others call embedding_dim
        text = f"{section}:\n  {typo}: 1\n" if section else f"{typo}: 1\n"
        assert f"did you mean {key}?" in problems_of(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("data.modulus", ["2", "97"], ["1", "0", "-3", "2.0", "true", '"10"', "null", "[10]"]),
        ("data.max_value", ["0", "null", "20"], ["-1", "1.5"]),
        ("data.min_length", ["1", "5"], ["0", "-1"]),
        ("model.hidden_size", ["1", "64"], ["0", "1e2", "true"]),
        ("model.nonlinearity", ["tanh", "relu"], ["Tanh", "gelu", "null", "1"]),
        ("model.bias", ["true", "false"], ["1", '"true"', "null"]),
        ("model.dropout", ["0", "0.0"], ["1", "1.5", "-0.1"]),
        ("model.init_gain", ["0.3", "1", "null"], ["0", "-1", ".inf"]),
        ("model.pooling", ["last", "mean", "max", "last_mean_max"], ["sum", "[last]", "null"]),
        ("model.initial_state", ["zeros", "learned"], ["0", "null", "random"]),
        ("train.objective", ["sequence", "prefix"], ["prefixes", "null"]),
        ("train.diagnostics_every", ["1", "1048576", "null"], ["0", "-1", "1048577", "1.5"]),
        ("train.recompute_every", ["1", "1048576", "null"], ["0", "-1", "1048577", "1.5"]),
        ("train.truncate_after", ["1", "1048576", "null"], ["0", "-1", "1048577", "all"]),
        ("optimizer.weight_decay", ["0", "1e-2", "null"], ["-0.1", "none"]),
        ("optimizer.lr", ["1e-3", "1"], ["0", "-1e-3", ".nan", ".inf", "1e999", "fast"]),
        (
            "optimizer.betas",
            ["[0.9, 0.99]", "[0, 0]"],
            ["[0.9]", "[0.9, 1]", "0.9", "[0.9, 0.9, 0.9]"],
        ),
        (
            "schedule.warmup_steps",
            ["0", "10", "1099511627776", "null"],
            ["-1", "1.5", "1099511627777"],
        ),
        ("train.eval_samples", ["1", "1099511627776", "null"], ["0", "1.0", "1099511627777"]),
        ("train.max_steps", ["0", "1"], ["-1", "true"]),
        ("train.max_grad_norm", ["null", "0.5"], ["0", "-1"]),
        ("train.batch_size", ["1"], ["0", "10000000"]),
        ("train.stop_at_accuracy", ["1", "0.5", "null"], ["0", "1.1"]),
        ("model.state_noise", ["0", "0.5", "100"], ["-0.1", "100.1", "null", "x"]),
        ("train.label_smoothing", ["0", "0.999"], ["-0.1", "1", "null", "x"]),
        ("data.repeat_share", ["0", "0.5", "1"], ["-0.1", "1.1", "null", "x"]),
        ("seed", ["0", "4294967295"], ["-1", "4294967296", "1.0"]),
        ("device", ["auto", "cpu", "cuda", "cuda:1"], ["gpu", "cuda:", "CPU", "1"]),
    ],
)
@pytest.mark.row("C9", "C10", "C11")
def test_ranges_and_types(tmp_path: Path, key: str, good: list[str], bad: list[str]) -> None:
    for value in good:
        assert flatten(load_text(tmp_path, "data: {modulus: 10}", f"{key}={value}"))
    for value in bad:
        message = problems_of(tmp_path, "data: {modulus: 10}", f"{key}={value}")
        assert f"override {key}={value}, {key}" in message
        assert "expected:" in message
        assert "found:" in message


@pytest.mark.parametrize(
    ("overrides", "other", "remedy"),
    [
        (
            ["train.objective=prefix", "model.bidirectional=true"],
            "model.bidirectional: true",
            "model.bidirectional=false",
        ),
        (
            ["train.objective=prefix", "model.pooling=mean"],
            "model.pooling: mean",
            "model.pooling=last",
        ),
        (
            ["train.objective=prefix", "model.pooling=max"],
            "model.pooling: max",
            "model.pooling=last",
        ),
        (
            ["train.objective=prefix", "model.pooling=last_mean_max"],
            "model.pooling: last_mean_max",
            "model.pooling=last",
        ),
        (
            ["train.recompute_every=5", "train.truncate_after=4"],
            "train.truncate_after = 4",
            "train.recompute_every=null",
        ),
    ],
)
@pytest.mark.row("C15")
def test_what_prefixes_and_pieces_cannot_be_combined_with(
    overrides: list[str], other: str, remedy: str, tmp_path: Path
) -> None:
    message = problems_of(tmp_path, "seed: 1", *overrides)
    assert "error[C15]" in message
    assert overrides[0].partition("=")[0] in message
    assert other in message

    # What it says helps: a key that is given again has its last value.
    assert f"try:      {remedy}" in message
    assert load_text(tmp_path, "seed: 1", *overrides, remedy)


@pytest.mark.row("C15")
def test_prefixes_of_files_need_the_field_with_their_labels(tmp_path: Path) -> None:
    files = "data: {source: files, train: a.jsonl}"
    message = problems_of(tmp_path, files, "train.objective=prefix")
    assert "error[C15]" in message
    assert "train.objective" in message
    assert "data.prefix_labels_field: null" in message
    assert load_text(tmp_path, files, "train.objective=prefix", "data.prefix_labels_field=labels")


def test_pieces_may_be_as_long_as_what_has_a_gradient(tmp_path: Path) -> None:
    pieces = ("train.recompute_every=4", "train.truncate_after=4")
    config = load_text(tmp_path, "seed: 1", *pieces, "train.objective=prefix")
    assert (config.train.recompute_every, config.train.truncate_after) == (4, 4)


@pytest.mark.row("C12")
def test_a_model_too_large_for_any_machine_is_refused_without_allocating(tmp_path: Path) -> None:
    message = problems_of(tmp_path, "model: {hidden_size: 1048576, num_layers: 1024}")
    assert "bytes of weights" in message


def test_overrides_win_and_the_last_one_wins(tmp_path: Path) -> None:
    config = load_text(
        tmp_path, "seed: 1\noptimizer: {lr: 1e-3}\n", "seed=2", "optimizer.lr=1e-4", "seed=3"
    )
    assert (config.seed, config.optimizer.lr) == (3, 1e-4)


def test_a_config_is_frozen() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.train.max_steps = 3


def test_a_config_saved_and_read_again_is_the_same(tmp_path: Path) -> None:
    config = config_of(data={"max_value": 1}, optimizer={"betas": [0.5, 0.75], "lr": 2e-4}, seed=9)
    assert load_text(tmp_path, dump_config(config)) == config


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_read_or_refused_in_our_own_words(text: str) -> None:
    with suppress(ConfigError):  # anything else fails the test
        parse(text, "here")


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L"]), min_size=1),
        st.floats(allow_nan=False),
    )
)
def test_floats_survive_writing_and_reading(values: dict[str, float]) -> None:
    text = "".join(f'"{key}": {value!r}\n' for key, value in values.items()).replace(
        ": inf", ": .inf"
    )
    assert (parse(text.replace(": -inf", ": -.inf"), "here").value or {}) == values


@pytest.mark.row("C9")
def test_a_separator_is_one_of_four(tmp_path: Path) -> None:
    files = "data: {source: files, train: a.csv}"
    for value in ("auto", "tab", "';'", "','", "'|'"):
        assert flatten(load_text(tmp_path, files, f"data.separator={value}"))
    for value in ("':'", "comma", "null", "''"):
        with pytest.raises(ConfigError):
            load_text(tmp_path, files, f"data.separator={value}")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_its_header_says_command_result_and_time(path: Path) -> None:
    load_config(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"rnncls train --config {path.relative_to(ROOT)}" in text
    assert "expected:" in text
    assert "time:" in text


def test_the_default_config_is_the_schema_default() -> None:
    assert load_config(ROOT / "configs" / "sum_mod_10_plain.yaml") == Config()


def test_the_json_schema_describes_every_key_of_both_sources() -> None:
    schema = json.loads(json.dumps(config_schema()))
    files = load_text_config("data: {source: files, train: x.jsonl}")
    for key in {*KEYS, *flatten(files)}:
        section, _, name = key.rpartition(".")
        kinds = (
            [schema["$defs"]["SumModConfig"], schema["$defs"]["FilesConfig"]]
            if section == "data"
            else []
        )
        if section not in ("", "data"):
            kinds = [schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]]
        places = [kind for kind in kinds or [schema] if name in kind["properties"]]
        assert places, key
        for place in places:
            assert place["properties"][name]["description"], key
            assert place["additionalProperties"] is False
    assert yaml.safe_load(dump_config(Config())).keys() == schema["properties"].keys()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_parameter_count_is_that_of_the_model(
    bidirectional: bool, bias: bool, num_layers: int
) -> None:
    shape = {"bidirectional": bidirectional, "bias": bias, "num_layers": num_layers}
    for cell, pooling, initial in (
        ("rnn", "last", "zeros"),
        ("rnn", "last_mean_max", "learned"),
        ("gru", "mean", "learned"),
        ("lstm", "max", "learned"),
    ):
        own = {"cell": cell, "pooling": pooling, "initial_state": initial}
        config = config_of(model={**shape, **own})
        assert num_parameters(config, *sizes(config)) == sum(
            parameter.numel() for parameter in build_model(config).parameters()
        )


# --- defaults that depend on the data source


def by_source(config: Config) -> dict[str, object]:
    values = flatten(config)
    return {key: values[key] for key in BY_SOURCE["files"]}


OF_DIGITS = {
    "model.init_gain": 0.3,
    "optimizer.weight_decay": 0.3,
    "schedule.warmup_steps": 500,
    "train.eval_samples": 2000,
}


def test_null_is_the_default_of_the_data_source(tmp_path: Path) -> None:
    nulls = [f"{key}=null" for key in OF_DIGITS]
    assert by_source(Config()) == OF_DIGITS
    assert by_source(load_text(tmp_path, "seed: 1", *nulls)) == OF_DIGITS

    # What is counted in the files is not known yet.
    of_files = {
        "model.init_gain": 1.0,
        "optimizer.weight_decay": 0.3,
        "schedule.warmup_steps": None,
        "train.eval_samples": None,
    }
    assert by_source(Config(data=FilesConfig(source="files", train="x.jsonl"))) == of_files
    text = "data: {source: files, train: x.jsonl}"
    assert by_source(load_text(tmp_path, text, *nulls)) == of_files


@pytest.mark.parametrize("text", ["seed: 1", "data: {source: files, train: x.jsonl}"])
def test_a_number_that_was_given_wins_over_the_default(tmp_path: Path, text: str) -> None:
    given = {
        "model.init_gain": 0.7,
        "optimizer.weight_decay": 0.0,
        "schedule.warmup_steps": 0,
        "train.eval_samples": 7,
    }
    config = load_text(tmp_path, text, *(f"{key}={value}" for key, value in given.items()))
    assert by_source(config) == given
    assert with_numbers(config, max_steps=1000, num_validation=50) == config


def test_the_warm_up_is_a_share_of_the_steps_that_a_run_will_have(tmp_path: Path) -> None:
    text = "data: {source: files, train: x.jsonl}"
    config = load_text(tmp_path, text, "train.max_steps=1000")
    assert with_numbers(config).schedule.warmup_steps == 30
    assert with_numbers(config, max_steps=200).schedule.warmup_steps == 6

    # Epochs may end the run before: without the files, nobody knows.
    epochs = load_text(tmp_path, text, "train.max_steps=1000", "train.max_epochs=3")
    assert with_numbers(epochs).schedule.warmup_steps is None
    assert with_numbers(epochs, max_steps=200).schedule.warmup_steps == 6

    steps = (0, 16, 17, 34, 50, 5000, 2**40)
    assert [default_warmup(count) for count in steps] == [0, 0, 1, 1, 2, 150, 32985348833]


def test_a_default_that_nothing_has_filled_in_is_never_taken_for_a_number() -> None:
    assert number(0) == 0
    assert number(0.0) == 0.0
    with pytest.raises(ValueError, match="nothing has filled in"):
        number(None)


# --- config keys


def test_every_key_of_both_sources_has_one_line_that_fits_the_terminal() -> None:
    files = load_text_config("data: {source: files, train: x.jsonl}")
    lines = keys_as_table(all_keys(), 120).splitlines()
    assert max(map(len, lines)) <= 120

    names = [line.split()[0] for line in lines]
    assert set(names) == {"key", *KEYS, *flatten(files)}
    # One line each, and two for those that both data sections have: source, max_length, layout.
    assert len(names) - len(set(names)) == 3

    # Columns begin where the heading says, and no word is cut.
    starts = [lines[0].index(name) for name in ("values", "default", "meaning")]
    for line, key in zip(lines[1:], all_keys(), strict=True):
        assert all(line[start - 1] == " " != line[start] for start in starts), line
        shown = line[starts[-1] :].removesuffix("...").split()
        assert shown == key.meaning.split()[: len(shown)]

    # A pipe gets whole sentences; a narrow terminal the columns that it has room for.
    whole = keys_as_table(all_keys()).splitlines()
    assert not any(line.endswith(" ...") for line in whole)
    narrow = keys_as_table(all_keys(), 80).splitlines()
    assert max(map(len, narrow)) <= 80
    assert narrow[0].split() == ["key", "values", "default"]


def test_words_of_keys_show_ranges_defaults_and_no_pattern() -> None:
    (warmup,) = find_keys("schedule.warmup_steps")
    assert warmup.default == {"sum_mod": 500, "files": "3 %"}
    assert "500, files: 3 %" in keys_as_table([warmup])
    assert "integer, 0 to 1,099,511,627,776, or null" in keys_in_full([warmup])

    (device,) = find_keys("device")
    assert device.range == "auto, cpu, cuda or cuda:INDEX"

    (separator,) = find_keys("separator")
    assert separator.values == 'auto, ",", ";", tab, "|"'

    text = (
        keys_as_table(all_keys()) + keys_in_full(all_keys()) + json.dumps(config_schema()["$defs"])
    )
    for hidden in ("^(", "Literal", "Annotated", "SumMod ", "<class"):
        assert hidden not in text


def test_a_key_is_found_by_its_name_its_last_part_and_its_section() -> None:
    assert [key.name for key in find_keys("optimizer.lr")] == ["optimizer.lr"]
    assert [key.name for key in find_keys("lr")] == ["optimizer.lr"]
    # A word that names no key is looked for in what the keys mean.
    assert {key.name for key in find_keys("padding")} == {"data.layout"}
    assert [key.name for key in find_keys("Gradients")] == [
        "train.max_grad_norm",
        "train.histogram_every",
        "train.truncate_after",
    ]
    assert [key.name for key in find_keys("name")] == ["optimizer.name", "schedule.name"]
    assert [key.source for key in find_keys("max_length")] == ["sum_mod", "files"]
    assert {key.name for key in find_keys("model")} == {
        key for key in KEYS if key.startswith("model.")
    }

    # By the other names that overrides are refused with.
    for name in ("learning_rate", "--learning-rate", "train.lr", "LR"):
        assert [key.name for key in find_keys(name)] == ["optimizer.lr"]
    assert [key.name for key in find_keys("epochs")] == ["train.max_epochs"]

    for name, remedy in {
        "hiden_size": "did you mean model.hidden_size?",
        "optimizer.": "rnncls config keys",
        "vocab_size": "the data says how many tokens there are",
        "": "rnncls config keys",
    }.items():
        with pytest.raises(ConfigError) as caught:
            find_keys(name)
        assert remedy in caught.value.render()


@pytest.mark.parametrize("key", all_keys(), ids=lambda key: f"{key.name}-{key.source}")
def test_messages_say_what_a_key_takes_as_the_list_of_keys_does(key: Key) -> None:
    data = {"source": "files", "train": "x.csv"} if key.source == "files" else {}
    with pytest.raises(ConfigError) as caught:
        load_config({"data": data}, {key.name: {}})
    expected = caught.value.problems[0].expected.removeprefix("one of ")
    assert expected == ("sum_mod, files" if key.name == "data.source" else key.values)


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("data.train=5", "data.train", "text or list of texts, at most 4,096"),
        ("data.train=[]", "data.train", "text or list of texts, at most 4,096"),
        ("data.val=[a.csv, 7]", "data.val.1", "text, at most 4,096 characters"),
        ("data.sequence_field=1.5", "data.sequence_field", "text or list of texts, 1 to 64"),
        ("data.sequence_field=[title, null]", "data.sequence_field.1", "text"),
    ],
)
def test_a_key_that_takes_text_or_a_list_has_one_message(
    override: str, key: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"data": {"source": "files", "train": "x.csv"}}, [override])
    (problem,) = caught.value.problems
    assert problem.what == f"bad value for {key}"
    assert problem.expected.startswith(expected)
    assert problem.where.startswith(f"override {override}")


def test_what_predict_calls_stop_is_error_in_a_config() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"data": {"source": "files", "train": "x.csv", "bad": "stop"}})
    (problem,) = caught.value.problems
    assert problem.remedy == "error"


# --- dicts


def test_a_dict_is_the_config_that_its_file_would_be(tmp_path: Path) -> None:
    sections = {"data": {"modulus": 7}, "optimizer": {"betas": [0.5, 0.9]}, "seed": 4}
    betas = {"optimizer.betas": [0.5, 0.9], "data": {"modulus": 7}}
    text = "data: {modulus: 7}\noptimizer: {betas: [0.5, 0.9]}\nseed: 4"
    expected = load_text(tmp_path, text, "optimizer.lr=1e-3", "train.max_grad_norm=null")

    overrides = {"optimizer.lr": 1e-3, "train.max_grad_norm": None}
    assert load_config(sections, overrides) == expected
    assert load_config(sections, ["optimizer.lr=1e-3", "train.max_grad_norm=null"]) == expected
    assert load_config(tmp_path / "c.yaml", overrides) == expected
    assert sections == {
        "data": {"modulus": 7},
        "optimizer": {"betas": [0.5, 0.9]},
        "seed": 4,
    }
    assert load_config({}) == Config()
    assert load_config({"seed": 4}, {**betas, **overrides}) == expected
    assert load_config({}, "optimizer.lr=1e-3") == load_config({}, ["optimizer.lr=1e-3"])
    assert flatten(load_config({"seed": np.arange(4)[3]}))["seed"] == 3


def test_paths_in_a_dict_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config({"data": {"source": "files", "train": Path("x.csv")}}, {"data.val": "y"})
    assert isinstance(config.data, FilesConfig)
    assert config.data.train == str(tmp_path / "x.csv")
    assert config.data.val == str(tmp_path / "y")


def test_problems_of_a_dict_are_named_by_their_place_in_it() -> None:
    sections = {"optimizer": {"lr": -1, "betas": [0.1, 2]}, "train": {"max_stepz": 3}}
    with pytest.raises(ConfigError) as caught:
        load_config(sections, {"model.dropout": 2, "a.b.c": 1, "data.modulus": "7"})
    message = caught.value.render()
    for part in (
        'bad value for optimizer.lr (config["optimizer"]["lr"], optimizer.lr)',
        'config["optimizer"]["betas"][1], optimizer.betas.1',
        'unknown key "max_stepz" (config["train"]["max_stepz"], train.max_stepz)',
        "did you mean train.max_steps?",
        "override model.dropout=2, model.dropout",
        "malformed override",
        'found:    "7" (text)',
    ):
        assert part in message, part
    assert message.count("rnncls: error") == 6


def test_a_section_that_is_null_is_to_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, "model:\ntrain: null", "data=null")
    assert [problem.remedy for problem in caught.value.problems] == ["leave it out"] * 3
    # An override gives it a key.
    assert flatten(load_text(tmp_path, "model:", "model.num_layers=2"))["model.num_layers"] == 2


@pytest.mark.parametrize(
    ("sections", "id", "part"),
    [
        ({"optimizer.lr": 1e-3}, "C5", '{"optimizer": {"lr": ...}}'),
        ({"data": {7: 1}}, "C4", 'a key must be a word: 7 (config["data"])'),
        ({7: 1}, "C4", "a key must be a word: 7 (config)"),
        ({"data": 7}, "C9", "a section with the keys source, modulus"),
        ({"data": None}, "C9", "a section with the keys source, modulus"),
    ],
)
def test_dicts_that_are_no_config(sections: dict[str, object], id: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(sections)
    message = caught.value.render()
    assert f"error[{id}]" in message
    assert part in message
