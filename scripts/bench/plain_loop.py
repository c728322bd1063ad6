"""What somebody would write who has a model and a file of sequences, without rnncls.

    python -m scripts.bench.plain_loop RUN FILE OUTPUT

Reads JSON lines, sorts the sequences by length, pads batches of 8,192 tokens, and writes the most
probable class of each, in the order of the file, with its probability.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import rnncls

BATCH_TOKENS = 8192

_MODULES: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@torch.inference_mode()
def main(run_dir: str, file: str, output: str) -> None:
    """Predict all sequences of a file of ids."""
    torch.set_num_threads(1)
    # For the weights and the vocabulary alone: what runs are torch's own modules.
    predictor = rnncls.load(run_dir)
    network = predictor.network
    model = predictor.config.model
    index = predictor.vocabulary.index
    labels = predictor.vocabulary.labels
    options: dict[str, Any] = {"num_layers": model.num_layers}
    if model.cell == "rnn":
        options["nonlinearity"] = model.nonlinearity
    rnn = _MODULES[model.cell](model.embedding_dim, model.hidden_size, **options)
    rnn.load_state_dict(network.rnn.state_dict())

    rows = []
    with Path(file).open() as lines:
        for line in lines:
            ids = [index[str(token)] for token in json.loads(line)["sequence"]]
            rows.append(torch.tensor(ids))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))

    edges = [0]
    for place, row in enumerate(order):
        if (place - edges[-1] + 1) * len(rows[row]) > BATCH_TOKENS and place > edges[-1]:
            edges.append(place)
    edges.append(len(order))

    answers: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for first, last in pairwise(edges):
        batch = [rows[row] for row in order[first:last]]
        lengths = torch.tensor([len(row) for row in batch])
        states, _ = rnn(network.embedding(pad_sequence(batch)))  # (T, B, H)
        logits = network.head(states[lengths - 1, torch.arange(len(batch))])
        best = logits.softmax(1).max(1)
        found = zip(order[first:last], best.values.tolist(), best.indices.tolist(), strict=True)
        for row, probability, label in found:
            answers[row] = (probability, label)

    with Path(output).open("w") as lines:
        for probability, label in answers:
            lines.write(json.dumps({"label": labels[label], "probability": probability}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
