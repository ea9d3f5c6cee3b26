"""Which implementation runs where, as ``attn.explain`` says: the table of README.

    python -m benchmarks.where

Nothing is run, and no device need be there.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import attn
from attn import masks, scores

COLUMNS = {"CPU": "cpu", "GPU (Hopper)": "gpu", "TPU": "tpu"}
"""Platforms, by what README says of them."""


def array(*shape: int, dtype: str = "bfloat16") -> Any:
    """Returns what has a shape and a dtype alone."""
    return jax.ShapeDtypeStruct(shape, dtype)


def heads(length: int = 1998, num_heads: int = 4, width: int = 128, dtype: str = "bfloat16") -> Any:
    """Returns queries, keys or values."""
    return array(2, length, num_heads, width, dtype=dtype)


def user_score(score, at, rate):
    """A score function of one's own."""
    return score - rate * abs(at.query - at.key)


def softened(score, at, rate):
    """One with a derivative of its own."""
    return jax.nn.softplus(rate * score)


def by_distance(score, at, table):
    """One that looks up how far apart two are."""
    return score + table[jnp.clip(at.key - at.query, -8, 8) + 8]


def apart(score, at, places):
    """One by how far apart two are in a space of their own."""
    return score - jnp.sum((places[at.query] - places[at.key]) ** 2, axis=-1)


def in_cases(score, at, factors):
    """One of several cases."""
    is_far, is_past = at.key < at.query - 64, at.key < at.query
    return jnp.select([is_far, is_past], [score * factors[0], score * factors[1]], score)


def by_kind(score, at, table):
    """One that looks up what kind both are of."""
    return score + table[at.query % 8, at.key % 8]


def by_pair(score, at, table):
    """One that looks up the pair."""
    return score + table[at.head, at.query, at.key]


def by_rows(score, at, table):
    """One that looks up how many rows and columns are between them, in an image of 64 columns."""
    rows, columns = at.key // 64 - at.query // 64, at.key % 64 - at.query % 64
    return score + table[rows + 31, columns + 63]


def same(dtype: str) -> dict[str, Any]:
    """Returns query, key and value alike."""
    return dict.fromkeys(("query", "key", "value"), heads(dtype=dtype))


CALLS: dict[str, list[dict[str, Any]]] = {
    "bfloat16, float16": [same("bfloat16"), same("float16")],
    "float32": [same("float32")],
    "float64": [same("float64")],
    "`is_causal`, a window of the past": [{"is_causal": True}, {"local_window_size": (256, 0)}],
    "other windows, lengths": [
        {"local_window_size": (256, 16)},
        {"key_value_seq_lengths": np.array([1998, 7]), "query_seq_lengths": np.array([3, 1998])},
    ],
    "`Segments`, `Prefix`, `Strided`, `Dense`": [
        {"mask": masks.Segments(np.zeros((2, 1998), int))},
        {"mask": masks.Prefix(np.array([3, 5])) | ~masks.Strided(3)},
        {"mask": masks.Dense(np.ones((1998, 1998), bool))},
    ],
    "a mask of your own (`Where`)": [{"mask": masks.Where(lambda at: (at.query ^ at.key) % 3 > 0)}],
    "a bias, broadcast or not": [
        {"bias": array(*shape, dtype="float32")} for shape in ((4, 1998, 1998), (4, 1, 1998))
    ],
    "`SoftCap`, `ALiBi`, `LogLength`": [
        {"score": scores.SoftCap(30.0)},
        {"score": scores.ALiBi(np.ones(4, np.float32))},
        {"score": scores.LogLength(0.1)},
    ],
    "a score function of your own, elementwise": [
        {"score": user_score, "score_params": 0.1},
        {"score": softened, "score_params": 0.1},
    ],
    "`RelativeBias`, a table of your own by distance": [
        {"score": scores.RelativeBias(np.zeros((32, 4), np.float32))},
        {"score": by_distance, "score_params": np.zeros(17, np.float32)},
    ],
    "features of both, a choice of cases, a table of kinds": [
        {"score": apart, "score_params": np.zeros((1998, 3), np.float32)},
        {"score": in_cases, "score_params": np.ones(2, np.float32)},
        {"score": by_kind, "score_params": np.zeros((8, 8), np.float32)},
    ],
    "a number of your own for each pair": [
        {"score": by_pair, "score_params": np.zeros((4, 1998, 1998), np.float32)}
    ],
    "a long table by both, but not by distance": [
        {"score": by_rows, "score_params": np.zeros((63, 127), np.float32)}
    ],
    "grouped queries": [{"key": heads(num_heads=2), "value": heads(num_heads=2)}],
    "V other than H": [{"value": heads(width=96)}],
    "a scale of your own": [{"scale": 0.1}],
}
"""What calls have that others have not, by what README says of it."""


def table() -> str:
    """Returns it, in Markdown.

    Raises:
      ValueError: if calls of a row differ.
    """
    rows = [f"| output and gradient of a call with | {' | '.join(COLUMNS)} |"]
    rows.append("| --- |" + " --- |" * len(COLUMNS))
    for name, calls in CALLS.items():
        cells = [{_found(same("bfloat16") | call, x) for call in calls} for x in COLUMNS.values()]
        if max(map(len, cells)) > 1:
            raise ValueError(f"{name}: expected calls that run alike, came {cells}")
        rows.append(f"| {name} | {' | '.join(cell for (cell,) in cells)} |")
    return "\n".join(rows)


def _found(call: dict[str, Any], platform: str) -> str:
    with jax.enable_x64(call["query"].dtype == "float64"):
        found = attn.explain(**call, platform=platform)
    if found.implementation != "blockwise" or platform == "cpu":
        return found.implementation
    return f"blockwise: {found.refused['fused']}"


def main() -> None:
    """Prints the table."""
    print(table())


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
