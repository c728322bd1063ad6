"""The programs of scripts/examples learn what they say, and padding has no part in it."""

import re

import pytest
import torch
from torch.nn import functional as F

from rnncls.data import Batch, collate
from scripts.examples import encoder_decoder, generator
from scripts.examples.encoder_decoder import END, PADDING, EncoderDecoder, backwards
from scripts.examples.generator import MOST_TOKENS, Generator, is_right
from tests.helpers import PYTHON, ROOT, run_command

# Of different lengths, so that a batch of all of them is padded.
SEQUENCES = [[3, 1, 4], [5], [9, 2, 6, 5, 3], [8, 9]]


def batch_of(*sequences: list[int]) -> Batch:
    labels = torch.tensor([sum(digits) % 10 for digits in sequences])
    return collate([torch.tensor(digits) for digits in sequences], labels)


def test_the_targets_are_the_digits_backwards_and_an_end() -> None:
    assert backwards(batch_of([3, 1, 4], [5])).tolist() == [
        [4, 1, 3, END],
        [5, END, PADDING, PADDING],
    ]


@pytest.mark.parametrize("kind", [EncoderDecoder, Generator])
def test_padding_does_not_change_the_loss(kind: type[EncoderDecoder] | type[Generator]) -> None:
    torch.manual_seed(0)
    model = kind()
    together = model(batch_of(*SEQUENCES))

    # The mean over all tokens and one END of each sequence, whatever stands beside it.
    alone = sum(model(batch_of(digits)) * (len(digits) + 1) for digits in SEQUENCES)
    torch.testing.assert_close(together, alone / sum(len(digits) + 1 for digits in SEQUENCES))


def test_what_is_held_out_is_not_trained_on() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder()
    torch.testing.assert_close(model(batch_of([3, 1, 4], [9, 1])), model(batch_of([3, 1, 4])))


def test_a_generator_is_asked_for_each_next_token_and_the_end() -> None:
    torch.manual_seed(0)
    model = Generator()
    read = collate([torch.tensor([generator.END, 3, 1, 4])], torch.tensor([8])).tokens
    state = model.initial_state.weight[8].view(1, 1, -1)
    logits = model.network.prefix_logits(read, (state,))

    loss = F.cross_entropy(logits, torch.tensor([3, 1, 4, generator.END]))
    torch.testing.assert_close(model(batch_of([3, 1, 4])), loss)


def test_a_decoder_says_the_same_whatever_stands_beside_a_sequence() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder()
    encoder_decoder.train(model, seed=0, steps=20)
    together = model.greedy(batch_of(*SEQUENCES).tokens, steps=6)
    for digits, said in zip(SEQUENCES, together, strict=True):
        assert torch.equal(model.greedy(batch_of(digits).tokens, steps=6)[0], said)


def test_a_decoder_reads_what_it_has_said() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder()
    encoder_decoder.train(model, seed=0, steps=20)
    tokens = batch_of(*SEQUENCES).tokens
    said = model.greedy(tokens, steps=6)

    # All at once, from the tokens that were said, each is the likeliest after those before it.
    before = torch.cat([torch.full((len(said), 1), END), said[:, :-1]], dim=1)
    hidden, _ = model.decoder(model.embedding(before), *model.encoder.final_state(tokens))
    assert torch.equal(model.head(hidden).argmax(2), said)


def test_a_generator_reads_what_it_has_said() -> None:
    torch.manual_seed(0)
    model = Generator()
    generator.train(model, seed=0, steps=20)

    # So cold that the likeliest token is drawn each time.
    classes = torch.arange(10)
    said = model.sample(classes, temperature=1e-4, seed=0)
    for label, digits in zip(classes, said, strict=True):
        tokens = collate([torch.tensor([generator.END, *digits])], label.unsqueeze(0)).tokens
        state = model.initial_state(label).view(1, 1, -1)
        likeliest = model.network.prefix_logits(tokens, (state,)).argmax(1)
        assert likeliest.tolist()[:MOST_TOKENS] == [*digits, generator.END][:MOST_TOKENS]


def test_a_generator_ends_and_draws_the_same_again() -> None:
    torch.manual_seed(0)
    model = Generator()
    classes = torch.arange(200) % 10
    said = model.sample(classes, temperature=1.0, seed=3)
    assert all(len(digits) <= MOST_TOKENS for digits in said)
    assert len(set(map(tuple, said))) > 100
    assert model.sample(classes, temperature=1.0, seed=3) == said
    assert model.sample(classes, temperature=1.0, seed=4) != said


@pytest.mark.parametrize(
    ("digits", "label", "right"),
    [
        ([8], 8, True),
        ([9, 9], 8, True),
        ([3, 1, 4, 1, 9], 8, True),
        ([3, 1], 8, False),
        ([], 0, False),
        ([3, 3, 3, 3, 3, 3], 8, False),
    ],
)
def test_a_sequence_is_right_by_its_sum_and_length(
    digits: list[int], label: int, right: bool
) -> None:
    assert is_right(digits, label) == right


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "claims"),
    [
        ("encoder_decoder", {"exact matches": 99.5}),
        ("generator", {"temperature 1.0": 99.0, "temperature 0.5": 99.9}),
    ],
)
def test_a_program_learns_what_it_says(program: str, claims: dict[str, float]) -> None:
    done = run_command([PYTHON, f"scripts/examples/{program}.py"], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "step 3,000: loss" in done.stderr
    for name, percent in claims.items():
        (reached,) = re.findall(rf"^{name}: ([\d.]+)%", done.stdout, re.MULTILINE)
        assert float(reached) >= percent, done.stdout


@pytest.mark.parametrize("program", ["encoder_decoder", "generator"])
def test_a_program_is_short(program: str) -> None:
    assert len((ROOT / f"scripts/examples/{program}.py").read_text().splitlines()) <= 120
