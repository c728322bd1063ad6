"""What the first layer reads of each token: its embedding, the n-grams that end there, its place.

An n-gram is n tokens of a sequence in a row. Its embedding is the row of a table that a hash of its
ids names, as in fastText (Joulin et al. 2017, "Bag of tricks for efficient text classification");
n-grams with the same hash share a row. Those with the unknown token, which may be any word, have
none. All of it is a function of the sequence's own tokens: rows are packed as in torch's
PackedSequence, and padding is never seen.

Letters: B sequences of S tokens in all; E numbers of an embedding; K lengths of n-grams.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rnncls.data.vocabulary import UNKNOWN_ID
from rnncls.errors import Problem
from rnncls.model.dropout import (
    NO_KEYS,
    Keys,
    dropped,
    kept,
    places_of_packed,
    places_of_sequences,
    random_input_keys,
)
from rnncls.model.pieces import Rows
from rnncls.model.splitmix import finalize, signed

# Knuth's multiplier for numbers modulo 2**64, of MMIX.
_FACTOR = signed(6364136223846793005)

MARK_ID = -1  # stands before the first token of each sequence
NO_NGRAM = -1  # in the place of a row of the table


class InputDropout(NamedTuple):
    """Dropout probabilities outside the recurrence."""

    tokens: float = 0.0
    ngrams: float = 0.0
    embedding: float = 0.0
    head: float = 0.0


NO_DROPOUT = InputDropout()


def ngram_rows(
    ids: Tensor, batch_sizes: Tensor, sizes: Sequence[int], table: int, has_unknown: bool
) -> Tensor:
    """Return the row of the table of each n-gram, (S, K) int64, by the token at which it ends.

    `ids` (S,) are packed with these batch sizes. An n-gram may begin with a mark before the first
    token, whose id is -1. There is NO_NGRAM where a sequence is too short yet even so, and for
    n-grams with the unknown token. Modulo 2**64, with SplitMix64's finalizer:

        h_0 = 0,  h_k = (h_(k-1) + id_k + 1) * 6364136223846793005
        row = (finalize(h_n) >> 1) mod table

    where id_1 is the last token of the n-gram, and id_n its first one. So a row is the same on
    every machine.

    >>> ids = torch.tensor([3, 1, 4])
    >>> ngram_rows(ids, torch.tensor([1, 1, 1]), [2], 100, has_unknown=False).tolist()
    [[57], [81], [11]]
    """
    # The row of the token before each. Behind all others stand that of the mark, which is before
    # each first token, and that of nothing, which is before the mark.
    mark = len(ids)
    previous = torch.cat([batch_sizes[:1], batch_sizes[:-1]])
    before = torch.arange(mark + 2)
    before[:mark] -= previous.repeat_interleave(batch_sizes)
    before[: int(batch_sizes[0])] = mark
    before[mark] = mark + 1
    before = before.to(ids.device)
    ids = F.pad(ids.long(), (0, 2), value=MARK_ID)

    found = []
    where = torch.arange(mark, device=ids.device)
    hashes = torch.zeros_like(where)
    is_ngram = torch.ones_like(where, dtype=torch.bool)
    for length in range(1, max(sizes) + 1):
        tokens = ids[where]
        is_ngram = is_ngram & (where <= mark)
        if has_unknown:
            is_ngram = is_ngram & (tokens != UNKNOWN_ID)
        hashes = (hashes + tokens + 1) * _FACTOR

        if length in sizes:
            # A shift of signed numbers fills up with the sign, which does not belong there.
            rows = (finalize(hashes.clone()) >> 1) & (2**63 - 1)
            found.append(torch.where(is_ngram, rows % table, NO_NGRAM))
        where = before[where]
    return torch.stack(found, 1)


def beyond_positions(length: int, most: int) -> Problem:
    """Return the problem of a sequence of so many tokens, for a model of `most` positions."""
    return Problem(
        "a sequence beyond the last position that was trained (model.positions: learned)",
        expected=f"at most {most:,} tokens: data.max_length of the run",
        found=f"{length:,} tokens",
        remedy="shorter ones, or a run with a larger data.max_length, or model.positions=none",
        id="D13",
    )


class InputLayer(nn.Module):
    """The embeddings of a model, and the dropout that acts on tokens, n-grams and embeddings.

    `has_unknown`: whether the id UNKNOWN_ID stands for all unknown tokens.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        ngrams: Sequence[int] = (),
        ngram_table: int = 65536,
        num_positions: int = 0,
        dropout: InputDropout = NO_DROPOUT,
        has_unknown: bool = False,
    ) -> None:
        super().__init__()
        # The names of the modules are those of the tensors in a checkpoint. N-grams and positions
        # begin at zero and draw nothing, so that all else begins as it would without them.
        self.embedding = _embedding(num_embeddings, embedding_dim)
        self.ngrams = tuple(ngrams)
        self.ngram_embedding = _zeros(ngram_table, embedding_dim) if ngrams else None
        self.position_embedding = _zeros(num_positions, embedding_dim) if num_positions else None
        self.input_dropout = dropout
        self.has_unknown = has_unknown

    @property
    def num_positions(self) -> int | None:
        """How many tokens a sequence may have at most; None: any number."""
        table = self.position_embedding
        return None if table is None else table.num_embeddings

    @property
    def num_in_tables(self) -> int:
        """How many parameters there are in the tables of tokens, n-grams and positions."""
        tables = (self.embedding, self.ngram_embedding, self.position_embedding)
        return sum(table.weight.numel() for table in tables if table is not None)

    @property
    def needs_whole(self) -> bool:
        """Whether what is read of a token depends on those before it, or on their number."""
        return bool(self.ngrams) or self.position_embedding is not None

    def embedded(self, tokens: PackedSequence) -> Tensor:
        """Return what the first recurrent layer reads of packed ids, (S, E), without dropout.

        Raises: ValueError for a sequence beyond the last position.
        """
        return self.embed(self.token_rows(tokens, NO_KEYS), NO_KEYS)

    def token_rows(self, tokens: PackedSequence, keys: Keys) -> Rows:
        """Return what `embed` needs to know of each token: tensors of S rows each.

        The ids; with n-grams, their rows of the table (S, K); with positions, the time steps (S,);
        and where dropout acts, the places (S,) as `dropout.kept` wants them. Of some of the rows,
        `embed` makes what it makes of them among all.

        Raises: ValueError for a sequence beyond the last position.
        """
        ids = tokens.data
        sizes = tokens.batch_sizes
        places: list[Tensor] = []
        if self._drops(keys):
            places.append(places_of_packed(tokens, keys))
            ids = self._with_dropped_tokens(ids, places[0], keys)

        rows: list[Tensor] = [ids]
        if self.ngram_embedding is not None:
            table = self.ngram_embedding.num_embeddings
            rows.append(ngram_rows(ids, sizes, self.ngrams, table, self.has_unknown))
        if self.num_positions is not None:
            if len(sizes) > self.num_positions:
                raise ValueError(
                    f"a sequence of {len(sizes):,} tokens, and the model has positions for "
                    f"{self.num_positions:,}"
                )
            rows.append(torch.arange(len(sizes)).repeat_interleave(sizes).to(ids.device))
        return (*rows, *places)

    def num_token_rows(self, keys: Keys) -> int:
        """Return how many tensors `token_rows` returns."""
        return 1 + bool(self.ngrams) + (self.num_positions is not None) + self._drops(keys)

    def embed(self, rows: Rows, keys: Keys) -> Tensor:
        """Return what the first recurrent layer reads of rows of `token_rows`, (S, E)."""
        ids, *more = rows
        places = more.pop() if self._drops(keys) else None
        data: Tensor = self.embedding(ids)

        if self.ngram_embedding is not None:
            data = data + self._of_ngrams(self.ngram_embedding, more.pop(0), places, keys)
        if self.position_embedding is not None:
            data = data + self.position_embedding(more.pop(0))
        rate = self.input_dropout.embedding
        if places is not None and rate > 0 and keys.of_inputs is not None:
            data = dropped(keys.of_inputs.embedding, places, data, rate)
        return data

    def embed_padded(self, tokens: Tensor, keys: Keys) -> Tensor:
        """Return what the first recurrent layer reads of ids (B, T) in a rectangle, (T, B, E).

        Raises: ValueError for a rectangle beyond the last position.
        """
        by_time = tokens.t()
        if not self.needs_whole and not self._drops(keys):
            plain: Tensor = self.embedding(by_time)
            return plain

        # As packed rows of sequences that all have T tokens: what is said of padding is never read.
        longest, count = by_time.shape
        packed = PackedSequence(by_time.reshape(-1), torch.full((longest,), count))
        return self.embed(self.token_rows(packed, keys), keys).view(longest, count, -1)

    def with_input_keys(self, keys: Keys) -> Keys:
        """Return keys that have those of dropout outside the recurrence, if it acts.

        Where there are none, torch's generator draws them.
        """
        if keys.of_inputs is not None or not self.training or max(self.input_dropout) == 0:
            return keys
        return keys._replace(of_inputs=random_input_keys())

    def drop_summary(self, summary: Tensor, keys: Keys) -> Tensor:
        """Return what the head sees, (B, W), with dropout where it acts."""
        rate = self.input_dropout.head
        if not self.training or rate == 0 or keys.of_inputs is None:
            return summary
        places = places_of_sequences(len(summary), summary.device, keys)
        return dropped(keys.of_inputs.head, places, summary, rate)

    def _drops(self, keys: Keys) -> bool:
        """Return whether dropout acts on single tokens."""
        if not self.training or keys.of_inputs is None:
            return False
        rates = self.input_dropout
        return max(rates.tokens, rates.ngrams, rates.embedding) > 0

    def _with_dropped_tokens(self, ids: Tensor, places: Tensor, keys: Keys) -> Tensor:
        """Return ids (S,) of which some have become that of the unknown token."""
        rate = self.input_dropout.tokens
        if rate == 0 or keys.of_inputs is None:
            return ids
        stays = kept(keys.of_inputs.tokens, places, 1, rate)[:, 0]
        return torch.where(stays, ids, UNKNOWN_ID)

    def _of_ngrams(
        self, table: nn.Embedding, ngrams: Tensor, places: Tensor | None, keys: Keys
    ) -> Tensor:
        """Return the sum of the embeddings of the n-grams that end at each token, (S, E)."""
        weights = (ngrams != NO_NGRAM).to(table.weight.dtype)  # (S, K)
        rate = self.input_dropout.ngrams
        if places is not None and rate > 0 and keys.of_inputs is not None:
            weights = dropped(keys.of_inputs.ngrams, places, weights, rate)

        # One after the other, so that the order of the sum is the same everywhere.
        vectors = table(ngrams.clamp(min=0))  # (S, K, E)
        total: Tensor = vectors[:, 0] * weights[:, :1]
        for number in range(1, ngrams.shape[1]):
            total = total + vectors[:, number] * weights[:, number : number + 1]
        return total


def _embedding(num_embeddings: int, embedding_dim: int) -> nn.Embedding:
    """Return nn.Embedding(num_embeddings, embedding_dim), which may be on the meta device."""
    # There the module's own random numbers would import torch._dynamo, which takes as long as torch
    # itself. On a real device they are the first weights, and must stay what they are.
    if torch.empty(0).is_meta:
        weight = torch.empty(num_embeddings, embedding_dim)
        return nn.Embedding(num_embeddings, embedding_dim, _weight=weight)
    return nn.Embedding(num_embeddings, embedding_dim)


def _zeros(num_embeddings: int, embedding_dim: int) -> nn.Embedding:
    """Return an nn.Embedding that begins at zero; nothing is drawn."""
    weight = torch.zeros(num_embeddings, embedding_dim)
    return nn.Embedding(num_embeddings, embedding_dim, _weight=weight)
