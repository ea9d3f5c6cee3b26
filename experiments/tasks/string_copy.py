"""String copy: a string of letters, then the same string again, and its end."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from experiments.tasks.bag import bag_of_tokens
from experiments.tasks.task import NO_SOURCE, UNASKED, Batch, Floor, Split

NUM_LETTERS = 26
"""Letters are 0..25."""
BEGIN = 26
"""``$``, the first token of a row."""
BAR = 27
"""``|``, after which the model is asked."""
END = 28
"""``.``, the answer after the last letter; never an input."""
PADDING = 29
"""Fills a row up; nothing is asked there."""


@dataclasses.dataclass(frozen=True)
class StringCopy:
    """Copying a string of n random letters, n uniform on M..N.

    Letters x_1 ... x_n are uniform and independent. A row is ``$ x_1 ... x_n | x_1 ... x_n``,
    padded at its end to L = 2N + 2 tokens. From the bar on it is asked for the next token; the
    last one asked for is ``.``, the end. With i in 0..n::

        asked at  n + 1 + i    answer    x_i+1, for i = n the end
        source    1 + i        distance  n

    The source of the end is the bar, for there the string is seen to end, though it shows another
    token. Rows of n < N letters have N - n answers less: these are ``UNASKED``, at the last
    position and without source.

    A row of another length asks for how long a string the model can copy: ``with_length`` gives
    strings that fill it, M = N. A model trained on 1..N is thus scored at strings of exactly N,
    2N, 4N letters with rows of 2N + 2, 4N + 2, 8N + 2 tokens.

    References:
        Jelassi et al., Repeat After Me (arXiv 2402.01032), sections 3.1 and 3.2.

    Example:
        The string is of 3 letters, at most 4; 26 is $, 27 the bar, 28 the end, 29 padding.

        >>> batch = StringCopy(max_characters=4).sample(jax.random.key(4), batch_size=1)
        >>> print(batch.inputs[0])
        [26  8 10  2 27  8 10  2 29 29]
        >>> for name in ("positions", "targets", "sources", "distances"):
        ...     print(name, getattr(batch, name)[0])
        positions [4 5 6 7 9]
        targets [ 8 10  2 28 -1]
        sources [ 1  2  3  4 -1]
        distances [ 3  3  3  3 -1]
    """

    max_characters: int = 32
    """N, the most letters of a string."""
    min_characters: int = 1
    """M, the fewest letters of a string; at least 1."""

    # Not annotated: constants of the task, not settings.
    vocab_size = PADDING + 1
    num_classes = PADDING + 1
    source_width = 1

    def __post_init__(self):
        """Refuse empty strings and empty ranges."""
        if self.min_characters < 1:
            raise ValueError(f"min_characters is {self.min_characters}, expected at least 1")
        if self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters is {self.max_characters}, expected at least "
                f"min_characters={self.min_characters}"
            )

    @property
    def length(self) -> int:
        """L = 2N + 2."""
        return 2 * self.max_characters + 2

    def with_length(self, length: int) -> "StringCopy":
        """Strings of exactly (length - 2) / 2 letters; ``length`` is even, at least 4."""
        if length < 4 or length % 2:
            raise ValueError(
                f"length is {length}, expected an even number of at least 4: "
                "a string twice, its beginning and the bar"
            )
        characters = (length - 2) // 2
        return dataclasses.replace(self, max_characters=characters, min_characters=characters)

    def load(self, split: Split) -> tuple[()]:
        """Nothing: every row is made up, and different random keys make the splits."""
        return ()

    def describe(self) -> str:
        """One line: what a row is."""
        return (
            f"string copy: {self.min_characters} to {self.max_characters} letters of "
            f"{NUM_LETTERS}, then the same string and its end ({self.length} tokens)"
        )

    def spell(self, token: int) -> str:
        """A letter, or the sign that the definition has."""
        signs = {BEGIN: "$", BAR: "|", END: ".", PADDING: " "}
        return signs.get(token, chr(ord("a") + token))

    def floors(self, data: Any = ()) -> dict[str, Floor]:
        """Guessing by how often each answer occurs, without and with knowing when to stop.

        "length alone" names the end where it comes and guesses a letter everywhere else; "any
        letter of the string" guesses one of those that stand there.
        """
        characters = np.arange(self.min_characters, self.max_characters + 1)
        num_letters, num_ends = int(characters.sum()), len(characters)
        letters = np.full(NUM_LETTERS, num_letters)
        end, guess = Floor(1.0, 0.0), Floor.of_counts(letters)
        of_strings = [bag_of_tokens(int(n), NUM_LETTERS) for n in characters]
        return {
            "chance": Floor.of_counts(np.append(letters, NUM_LETTERS * num_ends)),
            "length alone": Floor.mean([guess, end], [num_letters, num_ends]),
            "any letter of the string": Floor.mean(
                [*of_strings, end], [*map(int, characters), num_ends]
            ),
        }

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` rows with N + 1 places for answers (A = N + 1), in their order."""
        rng_count, rng_letters = jax.random.split(rng)
        most = self.max_characters
        n = jax.random.randint(rng_count, (batch_size, 1), self.min_characters, most + 1, jnp.int32)
        letters = jax.random.randint(rng_letters, (batch_size, most), 0, NUM_LETTERS, jnp.int32)

        place = jnp.arange(self.length, dtype=jnp.int32)[None, :]
        first = jnp.clip(place - 1, 0, most - 1)
        second = jnp.clip(place - n - 2, 0, most - 1)
        is_first, is_second = (place >= 1) & (place <= n), (place >= n + 2) & (place < 2 * n + 2)
        inputs = jnp.full((batch_size, self.length), PADDING, jnp.int32)
        inputs = jnp.where(is_first, jnp.take_along_axis(letters, first, axis=1), inputs)
        inputs = jnp.where(is_second, jnp.take_along_axis(letters, second, axis=1), inputs)
        inputs = jnp.where(place == 0, BEGIN, jnp.where(place == n + 1, BAR, inputs))

        i = jnp.arange(most + 1, dtype=jnp.int32)[None, :]
        letters_and_end = jnp.pad(letters, ((0, 0), (0, 1)), constant_values=END)
        answers = jnp.where(i == n, END, letters_and_end)
        return Batch(
            inputs=inputs,
            positions=jnp.where(i <= n, n + 1 + i, self.length - 1),
            targets=jnp.where(i <= n, answers, UNASKED),
            sources=jnp.where(i <= n, i + 1, NO_SOURCE),
        )
