"""How much tokens matter, against predictions of shortened texts and finite differences; the page.

Tokens and labels come from anywhere, so the page is parsed as a browser would.
"""

import math
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from rnncls.config import FilesConfig
from rnncls.config.load import parse_config
from rnncls.data import Vocabulary
from rnncls.errors import ConfigError, WriteError, on_one_line
from rnncls.inspect import importance
from rnncls.inspect.html import html_of, require_files, write_html
from rnncls.inspect.importance import Importance, gradient_at_embeddings, importance_of
from rnncls.inspect.subject import Subject, load_subject, tokens_of_text
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.predictor import Predictor, ReadTokens, predict_ids
from rnncls.training.fit import fit
from tests.helpers import files_config, some_rows, write_jsonl

NUM_TOKENS = 40

SHAPES = [
    {"cell": cell, "num_layers": layers, "bidirectional": both}
    for cell, layers, both in product(["rnn", "lstm", "gru"], [1, 2], [False, True])
]
SHAPES += [
    {"cell": "rnn", "nonlinearity": "relu", "bias": False, "num_layers": 2, "bidirectional": True},
    {"cell": "gru", "bias": False, "bidirectional": True},
    {"cell": "lstm", "bias": False},
]
SHAPES += [
    {"cell": cell, "bidirectional": both, "pooling": pooling, "initial_state": "learned"}
    for cell, both, pooling in product(
        ["rnn", "lstm"], [False, True], ["mean", "max", "last_mean_max"]
    )
]


def network_of(**shape: Any) -> RNNClassifier:
    torch.manual_seed(3)
    arguments = {"nonlinearity": "tanh", **shape}
    network = RNNClassifier(NUM_TOKENS, 3, embedding_dim=5, hidden_size=7, **arguments).eval()
    if network.initial_state is not None:
        torch.nn.init.normal_(network.initial_state)
    return network


def some_ids(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(NUM_TOKENS, (length,), generator=generator).tolist()


def predictor_of(
    tokens: list[str], labels: tuple[str, ...] = ("x", "y", "z"), kind: str = "words", **shape: Any
) -> Predictor:
    """A network with random weights whose vocabulary begins with these tokens."""
    rest = [f"token{number}" for number in range(NUM_TOKENS - len(tokens))]
    data = FilesConfig(source="files", train="none", tokens=kind)  # type: ignore[arg-type]
    config = parse_config({"data": data.model_dump(exclude_none=True)}, "test")
    vocabulary = Vocabulary((*tokens, *rest), labels, has_unknown=False)
    return Predictor(network_of(**shape), vocabulary, labels, config, Path("run"), 7, data)


# --- left out


def assert_left_out_as_predicted(predictor: Predictor, ids: list[int]) -> None:
    """Compare with `predict` of the whole text and of each text without one of its tokens."""
    texts = [[predictor.vocabulary.tokens[id] for id in ids]]
    texts += [texts[0][:number] + texts[0][number + 1 :] for number in range(len(ids))]
    logarithms = []
    for prediction in predictor.predict(texts, top_k=3):
        logarithms.append(math.log(dict(prediction.top)["y"]))

    found = importance_of(predictor.network, ids, label=1).left_out
    assert found is not None
    assert found == pytest.approx([logarithms[0] - without for without in logarithms[1:]], abs=2e-6)
    assert max(map(abs, found)) > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_left_out_is_what_predict_says_of_the_shortened_text(shape: dict[str, Any]) -> None:
    predictor = predictor_of([], **shape)
    assert_left_out_as_predicted(predictor, some_ids(9))
    assert_left_out_as_predicted(predictor, some_ids(2))


def test_left_out_of_more_texts_than_a_batch_has() -> None:
    """200 texts of 199 tokens are two batches."""
    assert_left_out_as_predicted(predictor_of([], cell="gru", bidirectional=True), some_ids(200))


# --- gradient


@pytest.mark.parametrize("piece", [3, 2048])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_finite_differences(
    shape: dict[str, Any], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, through the network's own forward of packed ids."""
    monkeypatch.setattr(importance, "PIECE_STEPS", piece)
    network = network_of(**shape).double()
    # Different tokens: the row of a token is that of one place.
    ids = torch.randperm(NUM_TOKENS)[:8]
    packed = pack_sequence([ids])

    @torch.no_grad()
    def scaled(number: int, factor: float) -> float:
        """Log p of the class with the embedding of one token scaled."""
        row = network.embedding.weight[ids[number]]
        before = row.clone()
        row *= factor
        log_p = network(packed).log_softmax(1)[0, 2]
        row.copy_(before)
        return float(log_p)

    step = 1e-5
    expected = []
    for number in range(len(ids)):
        expected.append((scaled(number, 1 + step) - scaled(number, 1 - step)) / (2 * step))

    found = importance_of(network, ids.tolist(), label=2).gradient
    assert found == pytest.approx(expected, abs=1e-9)
    assert max(map(abs, expected)) > 1e-3


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_long_sequence_has_the_gradient_of_autograd(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "PIECE_STEPS", 64)
    network = network_of(cell=cell, num_layers=2, bidirectional=True)
    ids = torch.tensor(some_ids(300))

    embedded: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    with network.embedding.register_forward_hook(keep):
        network(pack_sequence([ids])).log_softmax(1)[0, 1].backward()
    network.zero_grad()

    embeddings, gradient = gradient_at_embeddings(network, ids, label=1)
    assert torch.equal(embeddings, embedded[0])
    torch.testing.assert_close(gradient, embedded[0].grad, rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_inference_mode_of_the_caller_changes_nothing() -> None:
    network = network_of(cell="lstm", bidirectional=True)
    with torch.inference_mode():
        inside = importance_of(network, [1, 2, 3], 0)
    assert inside == importance_of(network, [1, 2, 3], 0)


def test_what_is_too_long_or_too_short_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of()
    assert importance_of(network, [4], 0).left_out is None
    assert importance_of(network, [4], 0).gradient is not None

    monkeypatch.setattr(importance, "MOST_LEFT_OUT", 6)
    monkeypatch.setattr(importance, "MOST_GRADIENT", 8)
    assert len(importance_of(network, some_ids(6), 0).left_out or []) == 6
    of_seven = importance_of(network, some_ids(7), 0)
    assert of_seven.left_out is None
    assert len(of_seven.gradient or []) == 7
    assert len(importance_of(network, some_ids(8), 0).gradient or []) == 8
    assert importance_of(network, some_ids(9), 0).gradient is None


# --- the page


class Page(HTMLParser):
    """What a browser finds in a page: elements with attributes, and the text of each token."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.measures: list[list[tuple[str, dict[str, str | None]]]] = []  # (text, attributes)
        self.texts: list[str] = []  # of each measure, with what is between the tokens
        self.text = ""
        self.feed(content)
        self.close()

    @property
    def is_in_tokens(self) -> bool:
        return "tokens" in self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag in ("meta", "link"):
            return
        is_tokens = (attributes.get("class") or "").startswith("tokens")
        self.open.append("tokens" if is_tokens else tag)
        if is_tokens:
            self.measures.append([])
            self.texts.append("")
        elif self.is_in_tokens:
            self.measures[-1].append(("", attributes))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() in (tag, "tokens")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.is_in_tokens:
            self.texts[-1] += data
            if self.open[-1] == "span":
                before, attributes = self.measures[-1][-1]
                self.measures[-1][-1] = (before + data, attributes)


ELEMENTS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "bdi"}
ELEMENTS |= {"table", "tr", "th", "td", "span"}

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "&lt;b&gt;",
    "</p></body>",
    "<!--",
    "\x1b[31mred\x07",
    "line\nbreak",
    "\u202eabc\u202c",
    "\u2066isolated",
    "\ud800",
    "x" * 500,
    "שלום",
    "سلام",
    "日本語",
    "é",
]


def page_of(
    predictor: Predictor, names: list[str], found: Importance | None = None, num_left_out: int = 0
) -> Page:
    ids = predictor.vocabulary.encode(names)
    found = found or importance_of(predictor.network, ids, 0)
    (prediction,) = predict_ids(predictor, [ids], 10)
    content = html_of(predictor, ReadTokens(ids, names, num_left_out), found, prediction)
    assert content.startswith("<!doctype html>\n")
    # Line breaks are those of the page itself.
    assert all(character.isprintable() or character == "\n" for character in content)
    page = Page(content)
    assert page.open == []
    return page


def test_hostile_tokens_and_labels_are_text() -> None:
    labels = ("<script>alert(2)</script>", "\u202eevil", "'\"&")
    page = page_of(predictor_of(HOSTILE, labels), HOSTILE)

    assert {tag for tag, _ in page.elements} == ELEMENTS
    assert len(page.measures) == 2
    for measure in page.measures:
        shown = [text for text, _ in measure]
        assert [text for text in shown if " ... " not in text] == [
            on_one_line(token) for token in HOSTILE if len(token) < 60
        ]
        assert len(shown) == len(HOSTILE)
        assert max(map(len, shown)) == 60
        for token, (_, attributes) in zip(HOSTILE, measure, strict=True):
            # What has escapes is read from the left, also among words that are not.
            direction = set() if token.isprintable() else {"dir"}
            assert attributes.keys() == {"class", "title"} | direction
    for label in labels:
        assert on_one_line(label) in page.text

    # Nothing is loaded, and nothing is run.
    names = {name for _, attributes in page.elements for name in attributes}
    assert names <= {
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "dir",
        "title",
    } | {"style"}
    policies = [value["content"] for tag, value in page.elements if "http-equiv" in value]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_colours_say_sign_and_size() -> None:
    predictor = predictor_of(["a", "b", "c", "d", "e"])
    found = Importance(0, [1.0, -2.0, 0.001, 0.0, math.nan], [0.5, 0.1, -0.5, math.inf, 0.0])
    page = page_of(predictor, ["a", "b", "c", "d", "e"], found)
    left_out, gradient = page.measures
    assert [attributes["class"] for _, attributes in left_out] == ["f5", "a10", "", "", ""]
    assert [attributes["class"] for _, attributes in gradient] == ["f10", "f2", "a10", "", ""]
    assert [attributes["title"] for _, attributes in left_out][:3] == ["+1", "-2", "+0.001"]
    assert "Strongest colour: 2 nats." in page.text

    # Those that matter most come first, whatever their sign.
    rows = page.text[page.text.index("The tokens that matter most") :].splitlines()
    assert rows[2:7] == ["2b-2+0.1", "1a+1+0.5", "3c+0.001-0.5", "4d+0+inf", "5e+nan+0"]


def test_words_are_apart_and_characters_are_as_in_the_text() -> None:
    words = page_of(predictor_of(["a", "b"]), ["a", "b", "a"])
    assert words.texts == ["a b a"] * 2

    text = [*"a b  ש\t"]
    characters = page_of(predictor_of(["a", "b", " ", "ש", "\t"], kind="characters"), text)
    assert characters.texts == ["a b  ש\\t"] * 2
    directions = [attributes.get("dir") for tag, attributes in characters.elements if tag == "p"]
    assert directions.count("auto") == 2


def test_the_page_says_what_is_not_there() -> None:
    predictor = predictor_of(["a"])
    assert "nothing would be left" in page_of(predictor, ["a"]).text
    assert "5 more tokens were cut off" in page_of(predictor, ["a", "a"], num_left_out=5).text

    none = Importance(0, None, None)
    text = page_of(predictor, ["a"] * 600, none).text
    assert "Not computed: the sequence has 600 tokens, more than 512." in text
    assert "more than 10,000" in text
    assert "matter most" not in text


def test_an_unknown_token_is_marked() -> None:
    predictor = predictor_of(["<unk>", "a"])
    read = ReadTokens([0, 1], ["never seen", "a"], 0)
    (prediction,) = predict_ids(predictor, [read.ids])
    content = html_of(predictor, read, importance_of(predictor.network, read.ids, 0), prediction)
    unknown, known = Page(content).measures[0]
    assert unknown[0] == "never seen"
    assert (unknown[1]["class"] or "").endswith("unknown")
    assert (unknown[1]["title"] or "").endswith("(unknown, read as <unk>)")
    assert "unknown" not in (known[1]["class"] or "")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A run on files of ids."""
    folder = tmp_path_factory.mktemp("importance")
    fit(files_config(write_jsonl(folder / "d.jsonl", some_rows(200))), folder / "run")
    return load_subject(folder / "run")


def test_the_page_of_a_run_is_written_whole(subject: Subject, tmp_path: Path) -> None:
    require_files(subject)
    read = tokens_of_text(subject.predictor, "3 1 4 1")
    found = importance_of(subject.network, read.ids, 0)
    (prediction,) = predict_ids(subject.predictor, [read.ids], 3)

    path = tmp_path / "page.html"
    write_html(path, subject.predictor, read, found, prediction)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.texts == ["3 1 4 1"] * 2
    assert f"probability {prediction.probability:.4f}" in page.text

    with pytest.raises(WriteError, match="R9"):
        write_html(tmp_path / "missing" / "page.html", subject.predictor, read, found, prediction)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.row("C17")
def test_a_generated_sequence_has_no_page(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="--html is for runs on files") as raised:
        require_files(load_subject(run_dir))
    assert raised.value.problems[0].id == "C17"
