"""Training loops of plain torch: that of a textbook, and stock modules at their best."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

from rnncls.data import Batch, FilesTask
from rnncls.training.states import new_state
from scripts.bench.regimes import LR, MOST_STEPS, SEQUENCES, N, Regime, orders

# Takes at least so many steps, and returns how many.
Run = Callable[[int], int]

_MODULES: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Sequences(Dataset[tuple[Tensor, int]]):
    """The data set of the textbook loop: 20,000 sequences, made or read beforehand."""

    def __init__(self, regime: Regime) -> None:
        task = regime.task()
        if isinstance(task, FilesTask):
            lengths = task.train.lengths.tolist()
            self.rows = list(torch.split(task.train.tokens.long(), lengths))
            self.labels: list[int] = task.train.labels.tolist()
            return

        generator = torch.Generator().manual_seed(0)
        shortest = regime.min_length
        longest = regime.max_length
        drawn = torch.randint(shortest, longest + 1, (SEQUENCES,), generator=generator)
        self.rows = [torch.randint(N, (length,), generator=generator) for length in drawn.tolist()]
        self.labels = [int(row.sum()) % N for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[index], self.labels[index]


class Classifier(nn.Module):
    """The model of a textbook: embedding, nn.RNN, GRU or LSTM, linear head on the last states."""

    def __init__(self, regime: Regime) -> None:
        super().__init__()
        num_tokens, num_classes = regime.task().sizes
        self.embedding = nn.Embedding(num_tokens, regime.embedding_dim)
        self.directions = regime.directions
        self.rnn = _MODULES[regime.cell](
            regime.embedding_dim,
            regime.hidden_size,
            regime.num_layers,
            batch_first=True,
            bidirectional=regime.directions == 2,
        )
        self.head = nn.Linear(regime.directions * regime.hidden_size, num_classes)

    def of_packed(self, tokens: Any) -> Tensor:
        """Return the logits of packed ids or packed inputs, (B, N)."""
        _, final = self.rnn(tokens)
        hidden = final[0] if isinstance(final, tuple) else final
        # One direction is what most textbooks have: it takes no more operations than theirs.
        last = hidden[-1] if self.directions == 1 else torch.cat((hidden[-2], hidden[-1]), 1)
        logits: Tensor = self.head(last)
        return logits

    def of_padded(self, padded: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits, (B, N), of padded ids (B, T): each last state is picked.

        In two directions that would be wrong: the second one would begin with the padding.
        """
        output, _ = self.rnn(self.embedding(padded))
        last = lengths.to(output.device) - 1
        logits: Tensor = self.head(output[torch.arange(len(lengths)), last])
        return logits

    def of_batch(self, batch: Batch, packed: bool = True) -> Tensor:
        """Return the logits of one of our batches, (B, N)."""
        tokens = batch.tokens
        if packed:
            return self.of_packed(tokens._replace(data=self.embedding(tokens.data)))
        return self.of_padded(*pad_packed_sequence(tokens, batch_first=True))


def textbook(regime: Regime, packed: bool) -> Run:
    """Return the loop of a textbook.

    DataLoader, pad_sequence, pack_padded_sequence if `packed`, a module of torch, clip_grad_norm_,
    Adam, loss.item(). Where batches are bucketed, a batch sampler makes the same ones as ours.
    """

    def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
        rows, labels = zip(*samples, strict=True)
        lengths = torch.tensor([len(row) for row in rows])
        return pad_sequence(list(rows), batch_first=True), lengths, torch.tensor(labels)

    order = orders(regime.task())
    options: dict[str, Any] = {"batch_size": regime.batch_size, "shuffle": True, "drop_last": True}
    if order is not None:
        options = {"batch_sampler": [rows.tolist() for rows in order]}
    loader = DataLoader(Sequences(regime), collate_fn=collate, **options)
    model = Classifier(regime).to(regime.device)
    optimizer = torch.optim.Adam(model.parameters(), LR)

    def logits_of(padded: Tensor, lengths: Tensor) -> Tensor:
        if not packed:
            return model.of_padded(padded, lengths)
        embedded = model.embedding(padded)
        return model.of_packed(
            pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        )

    def forever() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            yield from loader

    batches = forever()

    def run(steps: int) -> int:
        total = 0.0
        for _ in range(steps):
            padded, lengths, labels = next(batches)
            padded = padded.to(regime.device)
            labels = labels.to(regime.device)

            optimizer.zero_grad()
            loss = F.cross_entropy(logits_of(padded, lengths), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
        return steps

    return run


def tuned(regime: Regime, packed: bool) -> Run:
    """Return a loop of stock modules at their best, with our batches and fused Adam."""
    model = Classifier(regime).to(regime.device)
    optimizer = torch.optim.Adam(model.parameters(), LR, fused=True)
    batches = regime.task().batches(0, MOST_STEPS)

    def run(steps: int) -> int:
        for _ in range(steps):
            batch = next(batches).to(torch.device(regime.device))
            optimizer.zero_grad()
            loss = F.cross_entropy(model.of_batch(batch, packed), batch.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()
        return steps

    return run


def float64_losses(regime: Regime, batches: list[Batch]) -> list[float]:
    """Return the losses of stock modules in float64 on these batches, from our initial weights."""
    device = torch.device(regime.device)
    state = new_state(regime.task())
    model = Classifier(regime).double().to(device)
    model.load_state_dict(state.model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), LR)

    losses = []
    for batch in batches:
        moved = batch.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model.of_batch(moved), moved.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
