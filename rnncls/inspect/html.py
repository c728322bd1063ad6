"""One page in one file: the tokens of a sequence, coloured by how much they matter."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from rnncls.config import FilesConfig
from rnncls.data.vocabulary import UNKNOWN
from rnncls.errors import ConfigError, Problem
from rnncls.inspect.importance import MOST_GRADIENT, MOST_LEFT_OUT, Importance
from rnncls.inspect.subject import Subject
from rnncls.predict.predictor import Prediction, Predictor, ReadTokens
from rnncls.system.pictures import in_picture
from rnncls.system.refusals import write_whole

STRENGTHS = 10  # shades for each sign
MOST_LABELS_SHOWN = 10
MOST_ROWS = 20  # in the table of the tokens that matter most
MOST_CHARACTERS = 60  # of a token or a label

_LEFT_OUT = "Left out"
_GRADIENT = "Gradient times embedding"
_OF_LEFT_OUT = (
    "What log p of the whole sequence has over log p of the sequence without this token, in nats."
)
_OF_GRADIENT = (
    "The gradient of log p with respect to what is read of the token, times that, in nats: of its "
    "embedding and, where the model has some, of the n-grams that end there. "
    "Of a prediction that is nearly certain it is small for every token."
)

# A browser runs and loads nothing for this page, whatever is in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

# Blue and orange are told apart by nearly everyone; the lines below the tokens do without colour.
# Shades are see-through, so that the text has its contrast on a light and on a dark page.
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1a1a1a; --quiet: #595959;
  --rule: #d0d0d0; --for: 30, 110, 230; --against: 230, 120, 0; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --text: #f0f0f0; --quiet: #a8adb5; --rule: #3a3f47;
    --for: 60, 130, 255; --against: 240, 130, 20; }
}
body { background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.quiet { color: var(--quiet); }
.tokens { font-size: 1.1rem; line-height: 2.1; white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--rule); border-radius: .3rem; padding: .6rem .8rem; }
.tokens span { padding: .15em 0; }
.words span { padding: .15em .2em; border-radius: .2em; }
.unknown { font-style: italic; }
table { border-collapse: collapse; }
th, td { padding: .2rem .8rem .2rem 0; text-align: start; border-bottom: 1px solid var(--rule); }
.number { text-align: end; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .7em; background: rgb(var(--for)); }
.track { width: 10rem; }
@media print { * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def require_files(subject: Subject) -> None:
    """Raise ConfigError for generated sequences, of which every token matters alike."""
    if isinstance(subject.checkpoint.config.data, FilesConfig):
        return
    raise ConfigError(
        Problem(
            "--html is for runs on files: every token of a generated sequence is part of its sum",
            str(subject.checkpoint.path),
            remedy="without --html",
            id="C17",
        )
    )


def write_html(
    path: Path,
    predictor: Predictor,
    tokens: ReadTokens,
    importance: Importance,
    prediction: Prediction,
) -> None:
    """Write the page, whole or not at all. `prediction` has the labels that are shown, best first.

    Raises: WriteError.
    """
    content = html_of(predictor, tokens, importance, prediction)
    write_whole(path, content.encode())


def html_of(
    predictor: Predictor, tokens: ReadTokens, importance: Importance, prediction: Prediction
) -> str:
    """Return the page: prediction, legend, the tokens by both measures, those that matter most."""
    label = _text(str(predictor.labels[importance.label]))
    name = _text(str(predictor.checkpoint))
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Which tokens mattered for {label}</title>",
        f"<style>{_STYLE}{_shades()}</style>",
        "</head>",
        "<body>",
        f"<h1>Which tokens mattered for <bdi>{label}</bdi></h1>",
        f'<p class="quiet">{name}, step {predictor.step:,}</p>',
        *_prediction_lines(prediction),
        *_legend_lines(label),
        *_measure_lines(predictor, tokens, _LEFT_OUT, _OF_LEFT_OUT, importance.left_out),
        *_measure_lines(predictor, tokens, _GRADIENT, _OF_GRADIENT, importance.gradient),
        *_most_lines(tokens, importance),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _text(foreign: str) -> str:
    """Return foreign text as HTML, short and on one line, for an element or an attribute.

    Characters that are not printable are escaped, so that none reorders the text around it.
    """
    return escape(in_picture(foreign, MOST_CHARACTERS))


def _shades() -> str:
    """Return the rule of each shade: f1 to f10 speak for the class, a1 to a10 against it."""
    rules = []
    for strength in range(1, STRENGTHS + 1):
        # At full strength, more than half of the page's own colour stays.
        alpha = 0.45 * strength / STRENGTHS
        line = "2px" if strength > STRENGTHS // 2 else "1px"
        for name, colour, kind in (("f", "--for", "solid"), ("a", "--against", "dashed")):
            rules.append(
                f".{name}{strength} {{ background: rgba(var({colour}), {alpha:.3f}); "
                f"border-bottom: {line} {kind} rgb(var({colour})); }}"
            )
    return "\n".join(rules) + "\n"


def _shade(value: float, largest: float) -> str:
    """Return the name of a value's shade; "" for one near zero, or that is not a number."""
    # Also of NaN every comparison is false. What is not finite would leave the others without one.
    if not 0 < abs(value) <= largest:
        return ""
    strength = round(STRENGTHS * abs(value) / largest)
    if strength == 0:
        return ""
    return f"{'f' if value > 0 else 'a'}{strength}"


def _prediction_lines(prediction: Prediction) -> list[str]:
    label = _text(str(prediction.label))
    lines = [
        f"<p>Predicted: <b><bdi>{label}</bdi></b>, probability {prediction.probability:.4f}</p>",
        '<table><tr><th>label</th><th class="number">probability</th><th></th></tr>',
    ]
    for name, probability in prediction.top[:MOST_LABELS_SHOWN]:
        bar = f'<span class="bar" style="width: {100 * probability:.1f}%"></span>'
        lines.append(
            f'<tr><td><bdi>{_text(str(name))}</bdi></td><td class="number">{probability:.4f}</td>'
            f'<td class="track">{bar}</td></tr>'
        )
    lines.append("</table>")
    return lines


def _legend_lines(label: str) -> list[str]:
    """Say what the colours mean; `label` is HTML."""
    samples = []
    for name, meaning in (("a", "against"), ("f", "for")):
        shades = [f"{name}{strength}" for strength in (10, 7, 4, 1)]
        if name == "f":
            shades.reverse()
        swatches = "".join(f'<span class="{shade}">&nbsp;&nbsp;&nbsp;</span>' for shade in shades)
        samples.append(f"{swatches} speaks {meaning} <bdi>{label}</bdi>")
    return [
        f'<p class="legend">{" &nbsp; ".join(samples)}</p>',
        "<p>p is the probability of this label. The strongest colour is the largest value of each "
        "measure. The number of a token shows when the pointer rests on it. A token in italics is "
        "unknown to the model.</p>",
    ]


def _measure_lines(
    predictor: Predictor,
    tokens: ReadTokens,
    heading: str,
    meaning: str,
    values: Sequence[float] | None,
) -> list[str]:
    """Return the sequence in the colours of one measure, or why there is none."""
    lines = [f"<h2>{heading}</h2>", f'<p class="quiet">{meaning}</p>']
    if values is None:
        return [*lines, f"<p>{_why_none(heading, len(tokens.ids))}</p>"]

    largest = max((abs(value) for value in values if abs(value) < float("inf")), default=0.0)
    spans = []
    for number, value in enumerate(values):
        classes = [_shade(value, largest)]
        known = tokens.names[number] in predictor.vocabulary.index
        if not known:
            classes.append("unknown")
        spans.append(_span(tokens.names[number], value, " ".join(filter(None, classes)), known))

    # Characters stand beside each other, as in the text. The direction is that of the text itself.
    is_text = predictor.data.tokens == "characters"
    kind = "characters" if is_text else "words"
    lines.append(f'<p class="tokens {kind}" dir="auto">{("" if is_text else " ").join(spans)}</p>')
    lines.append(f'<p class="quiet">Strongest colour: {largest:.4g} nats.{_cut(tokens)}</p>')
    return lines


def _why_none(heading: str, length: int) -> str:
    if heading == _LEFT_OUT and length == 1:
        return "Without its only token, nothing would be left of the sequence."
    most = MOST_LEFT_OUT if heading == _LEFT_OUT else MOST_GRADIENT
    return f"Not computed: the sequence has {length:,} tokens, more than {most:,}."


def _cut(tokens: ReadTokens) -> str:
    if not tokens.num_left_out:
        return ""
    return f" {tokens.num_left_out:,} more tokens were cut off, as in training."


def _span(token: str, value: float, classes: str, is_known: bool) -> str:
    """Return a token with its colour, and its number for the pointer."""
    unknown = "" if is_known else f" (unknown, read as {escape(UNKNOWN)})"
    # In a line from right to left, the backslash of an escape would stand on its other side.
    direction = "" if token.isprintable() else ' dir="ltr"'
    title = f"{value:+.4g}{unknown}"
    return f'<span class="{classes}" title="{title}"{direction}>{_text(token)}</span>'


def _most_lines(tokens: ReadTokens, importance: Importance) -> list[str]:
    """Return the table of the tokens that matter most, by the first measure that there is."""
    columns = {_LEFT_OUT: importance.left_out, _GRADIENT: importance.gradient}
    known = {name: values for name, values in columns.items() if values is not None}
    if not known:
        return []

    # Stable: of equal values those come first that do so in the sequence; NaN is last.
    first = next(iter(known.values()))
    order = sorted(range(len(first)), key=lambda number: -_magnitude(first[number]))
    header = "".join(f'<th class="number">{escape(name.lower())}</th>' for name in known)
    lines = [
        "<h2>The tokens that matter most</h2>",
        f'<table><tr><th class="number">position</th><th>token</th>{header}</tr>',
    ]
    for number in order[:MOST_ROWS]:
        cells = _number_cells(values[number] for values in known.values())
        lines.append(
            f'<tr><td class="number">{number + 1:,}</td>'
            f"<td><bdi>{_text(tokens.names[number])}</bdi></td>{cells}</tr>"
        )
    lines.append("</table>")
    return lines


def _magnitude(value: float) -> float:
    return abs(value) if value == value else -1.0


def _number_cells(values: Iterable[float]) -> str:
    return "".join(f'<td class="number">{value:+.3g}</td>' for value in values)
