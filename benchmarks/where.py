"""Which implementation runs where, as ``attn.explain`` says: the table of README.

    python -m benchmarks.where

Nothing is run, and no device need be there.
"""

import functools
from typing import Any

import jax
import numpy as np
import tyro

import attn
from attn import masks, scores

PLATFORMS = ("cpu", "gpu", "tpu")


def array(*shape: int, dtype: str = "bfloat16") -> Any:
    """Returns what has a shape and a dtype alone."""
    return jax.ShapeDtypeStruct(shape, dtype)


def heads(length: int = 1999, num_heads: int = 4, width: int = 128, dtype: str = "bfloat16") -> Any:
    """Returns queries, keys or values."""
    return array(2, length, num_heads, width, dtype=dtype)


def user_score(score, at, rate):
    """A score function of one's own."""
    return score - rate * abs(at.query - at.key)


def same(dtype: str) -> dict[str, Any]:
    """Returns query, key and value alike."""
    return dict.fromkeys(("query", "key", "value"), heads(dtype=dtype))


CAUSAL = {"is_causal": True}
CALLS: dict[str, dict[str, Any]] = {
    "bfloat16, float32": same("bfloat16"),
    "float64": same("float64"),
    "`is_causal`, windows, lengths": CAUSAL
    | {"local_window_size": (256, 0), "key_value_seq_lengths": np.array([1999, 7])},
    "`Segments`, `Prefix`, `Dense` and other masks": {
        "mask": masks.Segments(np.zeros((2, 1999), int)) | masks.Prefix(np.array([3, 5]))
    },
    "a mask of your own (`Where`)": {"mask": masks.Where(lambda at: (at.query ^ at.key) % 3 > 0)},
    "a bias, broadcast or not": {"bias": array(4, 1999, 1999, dtype="float32")},
    "`SoftCap`, `ALiBi`, `LogLength`": {"score": scores.SoftCap(30.0)},
    "a score function of your own, elementwise": {"score": user_score, "score_params": 0.1},
    "`RelativeBias`": {"score": scores.RelativeBias(np.zeros((32, 4), np.float32))},
    "grouped queries; V other than H": {"key": heads(num_heads=2), "value": heads(300, 2, 96)}
    | {"key": heads(300, 2)},
}
"""What a call has that others have not, by what README says of it."""


def table() -> str:
    """Returns it, in Markdown."""
    rows = [f"| output and gradient of a call with | {' | '.join(map(str.upper, PLATFORMS))} |"]
    rows.append("| --- |" + " --- |" * len(PLATFORMS))
    for name, call in CALLS.items():
        found = [_found(same("bfloat16") | call, platform) for platform in PLATFORMS]
        rows.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join(rows)


def _found(call: dict[str, Any], platform: str) -> str:
    explain = functools.partial(attn.explain, platform=platform)
    with jax.enable_x64(call["query"].dtype == "float64"):
        found = explain(**call)
    reason = found.refused.get("fused")
    has_kernels = explain(*(heads(),) * 3).implementation == "fused"
    return f"{found.implementation}: {reason}" if reason and has_kernels else found.implementation


def main() -> None:
    """Prints the table."""
    print(table())


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
