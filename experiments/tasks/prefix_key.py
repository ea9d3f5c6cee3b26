"""Prefix-key copy: a key of a few letters, then a string; say what follows the key in it."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from experiments.tasks.bag import bag_of_tokens
from experiments.tasks.string_copy import BAR, BEGIN, NUM_LETTERS, PADDING
from experiments.tasks.task import Batch, Floor, Split


@dataclasses.dataclass(frozen=True)
class PrefixKeyCopy:
    """N-gram lookup with the key before the string: the counter-example to ``StringCopy``.

    The tokens are those of ``StringCopy``. Letters x_0 ... x_n-1 are uniform and independent, n
    uniform on M..N. The key is the W letters that stand at a place drawn uniformly from
    0..n-W-A, where A letters still follow; f is the *first* place of the string that holds the
    key, which is the place drawn or, if the string repeats itself, one before it. A row is ::

        $ key | x_0 ... x_n-1 | y_0 ... y_A-2        with y_j = x_f+W+j

    padded at its end to L = N + W + A + 2 tokens. It is asked from the second bar on for the
    letters that follow the key. With j in 0..A-1::

        asked at  n + W + 2 + j    answer    y_j
        source    f + 2W + 2 + j   distance  n - f - W

    The key is known before the string is read, so a recurrence can watch for it and keep the A
    letters that follow: a state of fixed size is enough, at any length. (The paper's own answer
    ends with ``.``; with A fixed it says nothing and is left out.)

    ``with_length`` gives strings that fill the row, M = N, as in ``StringCopy``.

    References:
        Jelassi et al., Repeat After Me (arXiv 2402.01032), section 3.3, the prefix key.

    Example:
        A string of 7 letters, at most 8; after its first 10 2 comes 14 8 24. 26 is $, 27 a bar.

        >>> task = PrefixKeyCopy(max_characters=8, min_characters=7, key_length=2, answer_length=3)
        >>> batch = task.sample(jax.random.key(4), batch_size=1)
        >>> print(batch.inputs[0])
        [26 10  2 27  8 10  2 14  8 24  5 27 14  8 29]
        >>> for name in ("positions", "targets", "sources", "distances"):
        ...     print(name, getattr(batch, name)[0])
        positions [11 12 13]
        targets [14  8 24]
        sources [7 8 9]
        distances [4 4 4]
    """

    max_characters: int = 32
    """N, the most letters of a string."""
    min_characters: int = 8
    """M, the fewest letters of a string; at least W + A."""
    key_length: int = 3
    """W, the letters of the key; at least 1."""
    answer_length: int = 4
    """A, the letters asked for; at least 1."""

    # Not annotated: constants of the task, not settings.
    vocab_size = PADDING + 1
    num_classes = PADDING + 1
    source_width = 1

    def __post_init__(self):
        """Refuse strings without room for the key and its answers, and empty ranges."""
        for name in ("key_length", "answer_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        needed = self.key_length + self.answer_length
        if self.min_characters < needed:
            raise ValueError(
                f"min_characters is {self.min_characters}, expected at least {needed}, "
                f"key_length={self.key_length} and answer_length={self.answer_length}"
            )
        if self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters is {self.max_characters}, expected at least "
                f"min_characters={self.min_characters}"
            )

    @property
    def _around(self) -> int:
        """Tokens of a full row that are not the string's: L - N."""
        return self.key_length + self.answer_length + 2

    @property
    def length(self) -> int:
        """L = N + W + A + 2."""
        return self.max_characters + self._around

    def with_length(self, length: int) -> "PrefixKeyCopy":
        """Strings of exactly length - W - A - 2 letters; ``length`` at least 2 (W + A + 1)."""
        shortest = self.key_length + self.answer_length + self._around
        if length < shortest:
            raise ValueError(
                f"length is {length}, expected at least {shortest} for two bars and twice "
                f"key_length={self.key_length} and answer_length={self.answer_length}"
            )
        characters = length - self._around
        return dataclasses.replace(self, max_characters=characters, min_characters=characters)

    def load(self, split: Split) -> tuple[()]:
        """Nothing: every row is made up, and different random keys make the splits."""
        return ()

    def describe(self) -> str:
        """One line: what a row is."""
        return (
            f"prefix-key copy: a key of {self.key_length} letters, a string of "
            f"{self.min_characters} to {self.max_characters}, then the {self.answer_length} "
            f"letters that follow the key in it ({self.length} tokens)"
        )

    def spell(self, token: int) -> str:
        """A letter, or the sign that the definition has."""
        signs = {BEGIN: "$", BAR: "|", PADDING: " "}
        return signs.get(token, chr(ord("a") + token))

    def floors(self, data: Any = ()) -> dict[str, Floor]:
        """A uniform guess among letters; the same among those of the string."""
        lengths = range(self.min_characters, self.max_characters + 1)
        return {
            "chance": Floor(accuracy=1 / NUM_LETTERS, loss=math.log2(NUM_LETTERS)),
            "any letter of the string": Floor.mean(
                [bag_of_tokens(n, NUM_LETTERS) for n in lengths], [1] * len(lengths)
            ),
        }

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` rows with A answers each, in their order."""
        rng_count, rng_letters, rng_place = jax.random.split(rng, 3)
        most, width, asked = self.max_characters, self.key_length, self.answer_length
        one_each = (batch_size, 1)
        n = jax.random.randint(rng_count, one_each, self.min_characters, most + 1, jnp.int32)
        letters = jax.random.randint(rng_letters, (batch_size, most), 0, NUM_LETTERS, jnp.int32)
        drawn = jax.random.randint(rng_place, one_each, 0, n - width - asked + 1, jnp.int32)

        i = jnp.arange(width, dtype=jnp.int32)[None, :]
        j = jnp.arange(asked, dtype=jnp.int32)[None, :]
        key = jnp.take_along_axis(letters, drawn + i, axis=1)
        starts = jnp.arange(most - width + 1, dtype=jnp.int32)
        windows = letters[:, starts[:, None] + i]
        is_key = (windows == key[:, None, :]).all(axis=2)
        # The place drawn holds the key, so the first that does is never behind it.
        found = jnp.argmax(is_key, axis=1, keepdims=True).astype(jnp.int32)
        answers = jnp.take_along_axis(letters, found + width + j, axis=1)

        rows = jnp.arange(batch_size)[:, None]
        place = jnp.arange(most, dtype=jnp.int32)[None, :]
        inputs = jnp.full((batch_size, self.length), PADDING, jnp.int32)
        inputs = inputs.at[:, 0].set(BEGIN).at[:, 1 : width + 1].set(key).at[:, width + 1].set(BAR)
        string = jnp.where(place < n, letters, PADDING)
        inputs = inputs.at[:, width + 2 : width + 2 + most].set(string)
        second_bar = n + width + 2
        inputs = inputs.at[rows, second_bar].set(BAR)
        inputs = inputs.at[rows, second_bar + 1 + j[:, :-1]].set(answers[:, :-1])
        return Batch(
            inputs=inputs,
            positions=second_bar + j,
            targets=answers,
            sources=found + 2 * width + 2 + j,
        )
