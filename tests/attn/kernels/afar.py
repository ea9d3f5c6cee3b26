"""Calls of attention compiled for a chip that is not here, whose memory is printed.

    python -m tests.attn.kernels.afar TARGET PRECISION CASE ...

A line is of a case: its name, which kernels its program and that of its gradient call, and bytes.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import attn
from attn import masks, scores
from experiments.targets import chip_of, devices_of


def array(*shape, dtype="bfloat16"):
    """The type of an array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def sizes(B=2, T=1024, S=None, N=4, K=2, H=64, V=None, dtype="bfloat16"):
    """Types of query, key and value."""
    S, V = S or T, V or H
    return [array(B, *x, dtype=dtype) for x in ((T, N, H), (S, K, H), (S, K, V))]


def attend(*x, **options):
    """Attention by kernels."""
    return attn.dot_product_attention(*x, implementation="fused", **options)


ids, lengths = array(2, 1024, dtype="int32"), array(2, dtype="int32")
LONG = {"B": 1, "T": 131072, "N": 2, "K": 1, "H": 128}
causal = {"is_causal": True}
CASES = {
    "plain": (sizes(), lambda q, k, v: attend(q, k, v)),
    "float32": (sizes(dtype="float32"), lambda q, k, v: attend(q, k, v, **causal)),
    "float32, 128 wide": (sizes(dtype="float32", H=128), lambda q, k, v: attend(q, k, v, **causal)),
    **{
        f"width {H}": (sizes(H=H), lambda q, k, v: attend(q, k, v, **causal))
        for H in (96, 128, 192, 256)
    },
    "values of another width": (sizes(H=96, V=128), lambda q, k, v: attend(q, k, v, **causal)),
    "any length": (sizes(T=1999, S=777), lambda q, k, v: attend(q, k, v, **causal)),
    "few queries": (
        [*sizes(T=3, S=8192), lengths],
        lambda q, k, v, n: attend(q, k, v, key_value_seq_lengths=n),
    ),
    "one query": (sizes(T=1, S=1024), lambda q, k, v: attend(q, k, v, **causal, alignment="end")),
    "segments, lengths": (
        [*sizes(), ids, lengths],
        lambda q, k, v, ids, lengths: attend(
            q, k, v, mask=masks.Causal() & masks.Segments(ids), key_value_seq_lengths=lengths
        ),
    ),
    "prefix, window": (
        [*sizes(), lengths],
        lambda q, k, v, n: attend(q, k, v, mask=masks.Window(200, 0) | masks.Prefix(n)),
    ),
    "dense": (
        [*sizes(), array(2, 1, 1024, 1024, dtype="bool")],
        lambda q, k, v, mask: attend(q, k, v, mask=mask),
    ),
    "a user's mask": (
        sizes(),
        lambda q, k, v: attend(q, k, v, mask=masks.Where(lambda at: (at.query ^ at.key) % 3 > 0)),
    ),
    "a user's score function": (
        [*sizes(), array(4, dtype="float32")],
        lambda q, k, v, p: attend(
            q,
            k,
            v,
            score_params=p,
            score=lambda s, at, p: jnp.tanh(s) * p[at.head] - jnp.log1p(jnp.abs(at.query - at.key)),
        ),
    ),
    "float16": (sizes(dtype="float16"), lambda q, k, v: attend(q, k, v, **causal)),
    "quotients and signs": (
        sizes(),
        lambda q, k, v: attend(
            q,
            k,
            v,
            score=lambda s, at, _: jnp.sign(s) - jnp.abs(s) ** 0.7 + jnp.floor(s),
            mask=masks.Where(lambda at: (at.query + at.key) // 7 % 2 == 0),
        ),
    ),
    "nothing of the score": (
        sizes(),
        lambda q, k, v: attend(q, k, v, score=lambda s, at, _: jnp.zeros_like(s)),
    ),
    "a cap that is given": (
        [*sizes(), array(4, dtype="float32")],
        lambda q, k, v, p: attend(q, k, v, score=scores.SoftCap(p), **causal),
    ),
    "bias and mask, wide": (
        [
            *sizes(T=2048, H=256, dtype="float32"),
            array(4, 2048, 2048, dtype="float32"),
            array(4, 2048, 2048, dtype="bool"),
            array(32, 4, dtype="float32"),
        ],
        lambda q, k, v, bias, mask, p: attend(q, k, v, bias, mask, score=scores.RelativeBias(p)),
    ),
    "768 wide": (sizes(H=768, dtype="float32"), lambda q, k, v: attend(q, k, v, **causal)),
    "a table of offsets": (
        [*sizes(), array(4, 33, dtype="float32"), array(33, dtype="bool")],
        lambda q, k, v, p, allowed: attend(
            q,
            k,
            v,
            score_params=p,
            score=lambda s, at, p: s + p[at.head, jnp.clip(at.key - at.query, -16, 16) + 16],
            mask=masks.Where(lambda at: allowed[jnp.abs(at.key - at.query) % 33]),
        ),
    ),
    "features of both": (
        [*sizes(), array(1024, 3, dtype="float32")],
        lambda q, k, v, p: attend(
            q,
            k,
            v,
            score_params=p,
            score=lambda s, at, p: s - jnp.linalg.norm(p[at.query] - p[at.key] + 0.1, axis=-1),
            mask=masks.Where(lambda at: jnp.any(p[at.query] > p[at.key], -1)),
        ),
    ),
    "many features": (
        [*sizes(), array(1024, 32, dtype="float32")],
        lambda q, k, v, p: attend(
            q,
            k,
            v,
            score_params=p,
            score=lambda s, at, p: s + jnp.sum(p[at.query] * p[at.key], axis=-1),
        ),
    ),
    "a table of kinds": (
        [*sizes(), array(4, 8, 8, dtype="float32"), array(2, 1024, dtype="int32")],
        lambda q, k, v, p, kind: attend(
            q,
            k,
            v,
            score_params=p,
            score=lambda s, at, p: (
                s + p[at.head, kind[at.batch[0], at.query], kind[at.batch[0], at.key]]
            ),
        ),
    ),
    "as many entries as may be": (
        [*sizes(), array(64, dtype="float32")],
        lambda q, k, v, p: attend(
            q,
            k,
            v,
            score_params=p,
            score=lambda s, at, p: s + p[(at.query * at.key) % 64],
        ),
    ),
    "cases, steps": (
        [*sizes(), array(6, dtype="float32")],
        lambda q, k, v, p: attend(
            q,
            k,
            v,
            score_params=p,
            score=lambda s, at, p: jnp.select(
                [at.key < at.query - 64, at.key < at.query],
                [p[jnp.searchsorted(jnp.arange(5.0), s)] * s, jnp.polyval(p, s)],
                s,
            ),
        ),
    ),
    "a network of a score": (
        [*sizes(), array(2, 16, dtype="float32")],
        lambda q, k, v, p: attend(
            q, k, v, score_params=p, score=lambda s, at, p: jax.nn.gelu(s[..., None] * p[0]) @ p[1]
        ),
    ),
    "a bias that is looked up": (
        [*sizes(), array(4, 1024, 1024, dtype="float32")],
        lambda q, k, v, p: attend(
            q,
            k,
            v,
            score_params=p,
            score=lambda s, at, p: s + p[at.head, at.query, at.key],
            mask=masks.Where(lambda at: p[0][at.query, at.key] > 0),
        ),
    ),
    "derivatives of their own": (
        [*sizes(), array(dtype="float32")],
        lambda q, k, v, p: attend(
            q,
            k,
            v,
            score_params=p,
            score=lambda s, at, p: (
                jax.nn.relu(s) + p * jax.nn.softplus(jax.nn.gelu(s, approximate=False))
            ),
        ),
    ),
    **{
        name: (sizes(), lambda q, k, v, f=f: attend(q, k, v, score=lambda s, at, _: f(s)))
        for name, f in (
            ("inverses", lambda s: jnp.arctan(jax.nn.elu(s)) * jnp.cbrt(s)),
            ("remainders", lambda s: jnp.sinh(s) % 3.0),
        )
    },
    "soft cap": (sizes(), lambda q, k, v: attend(q, k, v, score=scores.SoftCap(20.0), **causal)),
    **{
        f"relative bias{name}": (
            [*sizes(**of), array(32, of["N"], dtype="float32")],
            lambda q, k, v, p: attend(q, k, v, score=scores.RelativeBias(p), **causal),
        )
        for name, of in (
            ("", {"N": 4}),
            (" of long rows", LONG),
        )
    },
    "bias": (
        [*sizes(), array(4, 1024, 1024, dtype="float32")],
        lambda q, k, v, bias: attend(q, k, v, bias, **causal),
    ),
    "dropout": (
        sizes(),
        lambda q, k, v: attend(q, k, v, dropout_rate=0.1, dropout_rng=jax.random.key(0)),
    ),
    "long, wide": (
        sizes(**(LONG | {"H": 256, "dtype": "float32"})),
        lambda q, k, v: attend(q, k, v, **causal),
    ),
    "long": (
        sizes(**LONG),
        lambda q, k, v: attend(q, k, v, local_window_size=(4096, 0)),
    ),
}


def main(target, precision, *names):
    """Compiles the cases for one chip of the target."""
    jax.config.update("jax_default_matmul_precision", precision)
    chip, devices = chip_of(target), devices_of(target)
    mesh = Mesh(np.array(devices[:1]), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec())
    call = "tpu_custom_call" if chip.platform == "tpu" else "mosaic_gpu_v2"
    for name in names:
        arrays, function = CASES[name]
        x = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in arrays]
        floats = [n for n, a in enumerate(x) if jnp.issubdtype(a.dtype, jnp.floating)]
        gradient = jax.grad(lambda *x, f=function: jnp.sum(f(*x).astype(jnp.float32)), floats)
        for program in (function, gradient):
            with attn.compiled_for(chip.platform, chip.capability):
                lowered = jax.jit(program).lower(*x)
                memory = lowered.compile().memory_analysis()
            print(name, lowered.as_text().count(call), memory.temp_size_in_bytes, sep=";")


if __name__ == "__main__":
    main(*sys.argv[1:])
