"""Multi-query associative recall: pairs of a key and a value, then the keys alone."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.tasks.task import Batch, Floor, Split


def _draw_distinct(
    rng: PRNGKeyArray, batch_size: int, num_draws: int, log_weights: Float[Array, " choices"]
) -> Int[Array, "B draws"]:
    """Indices drawn one after another without replacement, each with p ~ exp(log_weights).

    The largest ``num_draws`` of log p plus Gumbel noise, largest first, have that law
    (Kool et al., arXiv 1903.06059).
    """
    noise = jax.random.gumbel(rng, (batch_size, log_weights.size), jnp.float32)
    return jax.lax.top_k(log_weights[None, :] + noise, num_draws)[1]


@dataclasses.dataclass(frozen=True)
class Recall:
    """MQAR, multi-query associative recall, asked once for each of the P pairs.

    Tokens: 0 is filler, 1..V/2-1 are keys, V/2..V-1 are values. A row opens with the pairs
    ``k0 v0 ... kP-1 vP-1``; the rest is S = (L - 2P) / 2 slots of two tokens, filler but for the
    queries: key i stands once more, as the first token of a slot s_i in 0..S-1. With i in 0..P-1::

        asked at  2P + 2 s_i   answer    v_i, asked for at the key itself, not shown after it
        source    2i + 1       distance  2P + 2 s_i - (2i + 1)

    Slots are drawn one after another for pairs 0, 1, ... without replacement, slot number
    x = s + 1 with p ~ x^(a - 1), where a is ``slot_power``. Keys are distinct, so that a query
    has one answer. Values are distinct too, as in Zoology's code, so that a right answer proves
    that the right pair was read. A draw costs O(B V) time and memory.

    References:
        Arora et al., Zoology (arXiv 2312.04927), section 3 and figure 2; there a = 0.01.

    Example:
        Key 6 has value 12 and is asked for at 14; key 3 has value 13 and is asked for at 8.

        >>> task = Recall(vocab_size=16, length=16, num_pairs=2)
        >>> batch = task.sample(jax.random.key(1), batch_size=1)
        >>> print(batch.inputs[0])
        [ 6 12  3 13  0  0  0  0  3  0  0  0  0  0  6  0]
        >>> for name in ("positions", "targets", "sources", "distances"):
        ...     print(name, getattr(batch, name)[0])
        positions [14  8]
        targets [12 13]
        sources [1 3]
        distances [13  5]
    """

    vocab_size: int = 256
    """V: the filler, V//2 - 1 keys, and values."""
    length: int = 64
    """L, the tokens of a row; even, and at least four a pair."""
    num_pairs: int = 8
    """P, the pairs of a row and the answers asked of it."""
    slot_power: float = 1.0
    """a in p(slot x) ~ x^(a-1): 1 draws slots uniformly, Zoology's 0.01 prefers early ones."""

    # Not annotated: constants of the task, not settings.
    source_width = 1

    def __post_init__(self):
        """Refuse settings that leave a pair without its key, its value or its slot."""
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs is {self.num_pairs}, expected at least 1")
        if self.vocab_size < 2 * self.num_pairs + 2:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, expected at least {2 * self.num_pairs + 2} "
                f"for the filler and the distinct keys and values of num_pairs={self.num_pairs}"
            )
        if self.length % 2 or self.length < 4 * self.num_pairs:
            raise ValueError(
                f"length is {self.length}, expected an even number of at least "
                f"{4 * self.num_pairs}, four tokens for each of num_pairs={self.num_pairs}"
            )
        if not (self.slot_power > 0 and math.isfinite(self.slot_power)):
            raise ValueError(f"slot_power is {self.slot_power}, expected a positive number")

    @property
    def num_classes(self) -> int:
        """V: answers share the tokens' numbering, though only values are answers."""
        return self.vocab_size

    def with_length(self, length: int) -> "Recall":
        """The same pairs with more or fewer slots; ``length`` even and at least four a pair."""
        return dataclasses.replace(self, length=length)

    def load(self, split: Split) -> tuple[()]:
        """Nothing: every row is made up, and different random keys make the splits."""
        return ()

    def describe(self) -> str:
        """One line: what a row is."""
        return (
            f"multi-query associative recall: {self.length} tokens of {self.vocab_size}; "
            f"{self.num_pairs} pairs of a key and a value, then each key once more for its value"
        )

    def floors(self, data: Any = ()) -> dict[str, Floor]:
        """Uniform guesses: among all values; among those not shown elsewhere; among the row's.

        "any value not in reach" is the floor of a model that reads every pair but the one asked
        for, and so rules out P - 1 values. "any value of the row" is that of one that reads all
        values but not which key each belongs to, accuracy 1/P. With a = 1 pairs are
        exchangeable, and nothing short of the key does better. With another a the slot of a
        query hints at its pair, and a guess by it, which is not computed here, is right more
        often than 1/P.
        """
        num_values = self.vocab_size - self.vocab_size // 2
        choices = {
            "chance": num_values,
            "any value not in reach": num_values - (self.num_pairs - 1),
            "any value of the row": self.num_pairs,
        }
        return {name: Floor(1 / number, math.log2(number)) for name, number in choices.items()}

    def sample(self, rng: PRNGKeyArray, batch_size: int, data: Any = ()) -> Batch:
        """``batch_size`` rows with P answers each (A = P), in the order of their pairs."""
        num_keys, num_pairs = self.vocab_size // 2, self.num_pairs
        num_slots = self.length // 2 - num_pairs
        rng_keys, rng_values, rng_slots = jax.random.split(rng, 3)

        even_keys = jnp.zeros(num_keys - 1, jnp.float32)
        even_values = jnp.zeros(self.vocab_size - num_keys, jnp.float32)
        slot_number = jnp.arange(1, num_slots + 1, dtype=jnp.float32)
        slot_log_weights = (self.slot_power - 1) * jnp.log(slot_number)

        keys = 1 + _draw_distinct(rng_keys, batch_size, num_pairs, even_keys)
        values = num_keys + _draw_distinct(rng_values, batch_size, num_pairs, even_values)
        slots = _draw_distinct(rng_slots, batch_size, num_pairs, slot_log_weights)

        positions = 2 * num_pairs + 2 * slots
        rows = jnp.arange(batch_size)[:, None]
        inputs = jnp.zeros((batch_size, self.length), jnp.int32)
        inputs = inputs.at[:, 0 : 2 * num_pairs : 2].set(keys)
        inputs = inputs.at[:, 1 : 2 * num_pairs : 2].set(values)
        inputs = inputs.at[rows, positions].set(keys)
        sources = jnp.arange(1, 2 * num_pairs, 2, dtype=jnp.int32)
        return Batch(
            inputs=inputs,
            positions=positions,
            targets=values,
            sources=jnp.broadcast_to(sources, (batch_size, num_pairs)),
        )
