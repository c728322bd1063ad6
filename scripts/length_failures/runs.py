"""Reads trained runs, and puts together what is measured of each."""

from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import typer

from rnncls.config import Config, SumModConfig
from rnncls.model.classifier import RNNClassifier
from rnncls.rundir.checkpoint_files import find_newest, load_checkpoint
from scripts.length_failures.measuring import (
    Array,
    Network,
    Numbers,
    class_means,
    drift,
    greatest_growth,
    lyapunov_exponents,
    margins,
)

# All runs get the same digits.
SEED = 5
# So many random sequences, of the lengths of training, have the class means.
NUM_MEANS = 2000
NUM_EXPONENTS = 8
# So many pairs of digits alternate at most.
MOST_PAIRS = 100
# So many zeros at the beginning are looked at by themselves.
NUM_FIRST = 20
# So many time steps are kept of each decade.
PER_DECADE = 12


def run_directories(path: Path) -> list[Path]:
    """Return the run directory itself, or all that are below it, such as those of a sweep."""
    if (path / "checkpoints").is_dir():
        return [path]
    return sorted(folder.parent for folder in path.rglob("checkpoints"))


def network_of(model: RNNClassifier) -> Network:
    """Return the weights of a model with one layer in one direction."""
    weights = {name: each.detach().cpu().numpy() for name, each in model.named_parameters()}
    inputs = weights["embedding.weight"] @ weights["rnn.weight_ih_l0"].T
    for name in ("rnn.bias_ih_l0", "rnn.bias_hh_l0"):
        if name in weights:
            inputs = inputs + weights[name]
    nonlinearity = str(model.rnn.nonlinearity)
    return Network(
        weights["rnn.weight_hh_l0"],
        inputs,
        weights["head.weight"],
        weights["head.bias"],
        nonlinearity,
    )


def require_plain(path: Path, config: Config) -> SumModConfig:
    """Return the data of a config whose network is the one that is measured here."""
    model = config.model
    is_plain = model.cell == "rnn" and model.num_layers == 1 and not model.bidirectional
    is_plain &= model.pooling == "last" and model.initial_state == "zeros" and not model.skip
    is_plain &= not model.ngrams and model.positions == "none"
    if not is_plain or not isinstance(config.data, SumModConfig):
        message = (
            f"{path}: what is measured here is one nn.RNN layer on sum_mod, in one direction, with "
            "model.pooling last, model.initial_state zeros and no skip, n-grams or positions"
        )
        raise typer.BadParameter(message)
    return config.data


def setting_of(config: Config) -> str:
    """Return which of the ingredients a run has, in words; the gain too, where it is not 0.3."""
    words = []
    if config.train.label_smoothing:
        words.append(f"smoothing {config.train.label_smoothing:g}")
    if config.model.state_noise:
        words.append(f"noise {config.model.state_noise:g}")
    if config.data.source == "sum_mod" and config.data.repeat_share:
        words.append(f"repeats {config.data.repeat_share:g}")
    if config.model.init_gain != 0.3:
        words.append(f"gain {config.model.init_gain:g}")
    return ", ".join(words) or "none of them"


def measure(path: Path, num_sequences: int, length: int, drift_length: int) -> dict[str, Any]:
    """Return what is measured of the newest checkpoint of a run, as JSON has it."""
    checkpoint, model = load_checkpoint(find_newest(path), device="cpu")
    data = require_plain(path, checkpoint.config)
    network = network_of(model)

    generator = np.random.default_rng(SEED)
    num_digits = len(network.inputs)
    random = generator.integers(0, num_digits, (num_sequences, length))
    short = generator.integers(0, num_digits, (NUM_MEANS, data.max_length))
    means = class_means(network, short)

    drifts = {}
    for name, digits in repeating(num_digits, drift_length).items():
        drifts[name] = measured_drift(network, digits, means)
    return {
        "run": str(path),
        "setting": setting_of(checkpoint.config),
        "seed": checkpoint.config.seed,
        "step": checkpoint.state.step,
        "trained_to": data.max_length,
        "margins": measured_margins(network, random),
        "drift": drifts,
        "exponents": measured_exponents(network, random[0], drift_length),
    }


def repeating(num_digits: int, length: int) -> dict[str, Numbers]:
    """Return sequences that repeat digits, (K, length), by name.

    "zeros": each digit but 0, then zeros. "repeated": each digit but 0 again and again.
    "alternating": pairs of different digits in turn.
    """
    others = np.arange(1, num_digits)
    zeros = np.zeros((len(others), length), np.int64)
    zeros[:, 0] = others

    pairs = np.array(list(permutations(range(num_digits), 2)))
    if len(pairs) > MOST_PAIRS:
        chosen = np.random.default_rng(SEED).permutation(len(pairs))[:MOST_PAIRS]
        pairs = pairs[chosen]
    return {
        "zeros": zeros,
        "repeated": np.repeat(others[:, None], length, axis=1),
        "alternating": pairs[:, np.arange(length) % 2],
    }


def kept_times(length: int) -> list[int]:
    """Return time steps from 1 to `length`, dense at first."""
    count = 1 + int(PER_DECADE * np.log10(length))
    return sorted({round(float(time)) for time in np.geomspace(1, length, count)})


def measured_margins(network: Network, digits: Numbers) -> dict[str, Any]:
    """Return the margins of random sequences by time, and how many are wrong, and since when."""
    found = margins(network, digits)
    times = kept_times(digits.shape[1])
    kept = found[:, np.array(times) - 1]
    is_wrong = ~(found > 0)
    first = np.where(is_wrong.any(1), is_wrong.argmax(1) + 1, 0)
    return {
        "times": times,
        "median": listed(np.median(kept, axis=0)),
        "first_percentile": listed(np.percentile(kept, 1, axis=0)),
        "lowest": listed(kept.min(0)),
        "wrong": listed(is_wrong[:, np.array(times) - 1].mean(0)),
        "sequences": len(digits),
        "ever_wrong": int((first > 0).sum()),
        "first_wrong": int(first[first > 0].min()) if first.any() else None,
    }


def measured_drift(network: Network, digits: Numbers, means: Array) -> dict[str, Any]:
    """Return how far states are from their class means by time: the median and the largest."""
    found = drift(network, digits, means)
    times = kept_times(digits.shape[1])
    places = np.array(times) - 1
    return {
        "times": times,
        "seen_median": listed(np.median(found.seen[:, places], axis=0)),
        "seen_largest": listed(found.seen[:, places].max(0)),
        "rest_median": listed(np.median(found.rest[:, places], axis=0)),
        "rest_largest": listed(found.rest[:, places].max(0)),
        "lowest_margin": listed(found.margins[:, places].min(0)),
        "ends": dict(Counter(found.ends)),
        "sequences": len(digits),
        "ever_wrong": int((~(found.margins > 0)).any(1).sum()),
    }


def measured_exponents(network: Network, random: Numbers, length: int) -> dict[str, Any]:
    """Return the leading Lyapunov exponents along random digits and along zeros.

    Along zeros, each digit begins a sequence. Those of the sequence with the largest count here; a
    fifth of its digits pass before, in which a state may have gone to another class. "first_zeros"
    is what an error can grow by at most on the first 20 zeros, where the class is still the right
    one.
    """
    count = min(NUM_EXPONENTS, len(network.recurrent))
    zeros = repeating(len(network.inputs), length // 2)["zeros"]
    along = [lyapunov_exponents(network, each, count, length // 10) for each in zeros]
    growths = [greatest_growth(network, each[: 1 + NUM_FIRST]) for each in zeros]
    worst = max(along, key=lambda exponents: float(exponents[0]))
    return {
        "random": listed(lyapunov_exponents(network, random[:length], count, length // 10)),
        "zeros": listed(worst),
        "first_zeros": listed(np.array([max(growths)])),
        "zeros_leading": listed(np.array([each[0] for each in along])),
    }


def listed(values: Array) -> list[float]:
    """Return numbers with six digits, as a file has them."""
    return [float(f"{float(value):.6g}") for value in values]
