"""Four sources of text behind one stateless `Dataset.batch`: synthetic, stdlib, text and c4.

A window of text is seq_len + 1 tokens, the sequence and the label of its last token; windows of
a prepared dataset begin seq_len tokens apart. Which windows a step reads depends on its number
alone, so that a run that is resumed, or spread over devices, reads what it would have read.

A prepared dataset is a folder with `train.bin` and `validation.bin` (packed uint16 tokens, EOS
after each document, no padding: P1, section 2.1), the SentencePiece model that made them, and
`manifest.json` with counts and checksums. Validation holds whole documents that training never
sees.

Tokens are believed only as far as the manifest vouches for them: sizes are compared whenever a
dataset is opened, checksums once per process before the first token is read.
"""

import dataclasses
import functools

import numpy as np

from proxies_lib.config import DataOrder, TrainConfig, refuse
from proxies_lib.prepared import SPLITS, tokens_of

COPY_SHARE, COPY_LAG = 0.5, 5  # the structure of `synthetic`


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Tokens that a run reads; `path` is None for synthetic.

    `fingerprint` identifies corpus and tokenizer: tokens of another fingerprint are never read.
    """

    name: str
    vocab_size: int
    fingerprint: str
    path: str | None = None

    def batch(self, split, seed, step, batch_size, seq_len, shard=0, n_shards=1) -> np.ndarray:
        """Rows of int32 windows (batch_size / n_shards, seq_len + 1), by the arguments alone.

        Training visits every window once per epoch, in an order that `seed` fixes. Validation
        ignores `seed`: every run is judged on the same windows. Raises UserError where the
        shards do not divide a batch, or a split is smaller than one.
        """
        if batch_size % n_shards or not 0 <= shard < n_shards:
            allowed = f"must be in 0..n_shards-1, n_shards dividing {batch_size}"
            refuse("shard", f"{shard}/{n_shards}", allowed)
        # Windows are numbered through all steps; a shard is a range of a batch's numbers.
        share = batch_size // n_shards
        first = step * batch_size + shard * share
        if self.path is None:
            return synthetic_windows(self.vocab_size, split, seed, first, share, seq_len + 1)
        tokens = tokens_of(self)[split]
        n_windows = (len(tokens) - 1) // seq_len
        if n_windows < batch_size:
            allowed = f"{self.name} has only {n_windows} {split} windows of {seq_len} tokens"
            refuse("batch_size", batch_size, allowed)
        epochs, windows = np.divmod(np.arange(first, first + share), n_windows)
        if split == "train":
            for epoch in np.unique(epochs):
                now = epochs == epoch
                windows[now] = _permutation(n_windows, seed, int(epoch))[windows[now]]
        return tokens[windows[:, None] * seq_len + np.arange(seq_len + 1)].astype(np.int32)

    def chunk(
        self, order: DataOrder, begin: int, train: TrainConfig, seq_len: int, shard=0, n_shards=1
    ) -> np.ndarray:
        """The training batches of steps begin … begin + log_every − 1.

        (log_every, batch_size / n_shards, seq_len + 1).
        """
        steps = range(begin, begin + train.log_every)
        part = (train.batch_size, seq_len, shard, n_shards)
        return np.stack([self._of_step(order, step, *part) for step in steps])

    def _of_step(
        self, order: DataOrder, step: int, batch_size: int, seq_len: int, shard: int, n_shards: int
    ) -> np.ndarray:
        """The training batch of `step`, after the interventions in the order of the data."""
        number = step
        if step >= order.skip_step:
            number += order.skip_batches
        if order.rare_batch <= number < order.rare_batch + order.rare_batches:
            return self._rare(order, number, batch_size, seq_len, shard, n_shards)
        if order.corpus_batches:
            number %= order.corpus_batches
        return self.batch("train", order.seed, number, batch_size, seq_len, shard, n_shards)

    def _rare(
        self,
        order: DataOrder,
        number: int,
        batch_size: int,
        seq_len: int,
        shard: int,
        n_shards: int,
    ) -> np.ndarray:
        """Rare batch `number`: one token, the same in all of them, or uniform noise."""
        if order.rare_kind == "repeated":
            token = int(_uniform((3, order.seed), (1,))[0] * self.vocab_size)
            return np.full((batch_size // n_shards, seq_len + 1), token, np.int32)
        share = batch_size // n_shards
        noise = _uniform((4, order.seed, number), (batch_size, seq_len + 1))
        rows = noise[shard * share : (shard + 1) * share]
        return (rows * self.vocab_size).astype(np.int32)


@functools.lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n windows in an epoch."""
    # The order of uniform draws: Generator.permutation may change between NumPy releases,
    # random() does not.
    return np.argsort(_uniform((1, seed, epoch), (n,)), kind="stable")


def _uniform(key: tuple, shape: tuple) -> np.ndarray:
    """Draws from [0, 1), a stream of their own for each key.

    Keys begin with 1 for the order, 2 for synthetic, 3 for the rare token, 4 for noise.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(shape)


# ------------------------------------------------------------------ synthetic


def zipf(vocab_size: int) -> np.ndarray:
    """Unigram probabilities of `synthetic`, ∝ 1/rank."""
    p = 1.0 / np.arange(1, vocab_size + 1)
    return p / p.sum()


# Runs of one seed read the same batches: a worker draws them once for all of its runs.
@functools.lru_cache(maxsize=1024)
def synthetic_windows(
    vocab_size: int, split: str, seed: int, first: int, count: int, length: int
) -> np.ndarray:
    """`count` windows of Zipfian tokens.

    Each is, with probability COPY_SHARE, a copy of the token COPY_LAG before it. Unlimited and
    identical on every machine; validation is a stream of its own, the same for every seed.
    Read-only.
    """
    stream = (2, SPLITS.index(split), seed if split == "train" else 0)
    numbers = range(first, first + count)
    # Of each window, one draw a token for what is fresh, one for whether it is copied instead.
    draws = np.stack([_uniform((*stream, number), (2, length)) for number in numbers])
    below = np.cumsum(zipf(vocab_size))[:-1]
    tokens = np.searchsorted(below, draws[:, 0], side="right").astype(np.int32)
    copied = draws[:, 1] < COPY_SHARE
    # In order: what is copied may be a copy.
    for t in range(COPY_LAG, length):
        tokens[:, t] = np.where(copied[:, t], tokens[:, t - COPY_LAG], tokens[:, t])
    tokens.flags.writeable = False
    return tokens


def synthetic_entropy(vocab_size: int, seq_len: int) -> float:
    """Entropy floor of `synthetic`, the best loss possible, for windows of seq_len + 1.

    In nats per predicted token.
    """
    p = zipf(vocab_size)
    fresh = -np.sum(p * np.log(p))
    # Given that the token COPY_LAG before is y, token x has q_x + COPY_SHARE·[x = y].
    q = (1 - COPY_SHARE) * p
    plogp = q * np.log(q)
    given = -(plogp.sum() - plogp + (q + COPY_SHARE) * np.log(q + COPY_SHARE))
    first = min(COPY_LAG - 1, seq_len)  # targets 1 … COPY_LAG − 1 have nothing to copy
    return float((first * fresh + (seq_len - first) * np.sum(p * given)) / seq_len)
