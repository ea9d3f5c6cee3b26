"""What a kernel is given: arrays of rows, of columns, or a part cut where its tile stands.

See ``attn.kernels.pairwise``.
"""

import jax
import jax.numpy as jnp
import numpy as np

from attn.kernels.distances import Distances
from attn.kernels.values import DISTANCE, KEY, PAIR, QUERY, Value, computed
from attn.overrides import Refused


def at_each(x: Value, tile: tuple[Value, ...], count: int) -> np.ndarray | None:
    """Returns integers that are of queries or of keys at each tile; None if they are not known.

    Nor are those known that are not exact, or may not be less than 0.
    """
    nowhere = jax.sharding.AbstractMesh((), ())  # Numbers are computed here, wherever this runs.
    try:
        with jax.sharding.use_abstract_mesh(nowhere), jax.ensure_compile_time_eval():
            of_tile = lambda n: computed(x, dict.fromkeys(tile, n), is_placed=False)  # noqa: E731
            found = np.asarray(jax.vmap(of_tile)(jnp.arange(count, dtype=jnp.int32)))
    except (
        *(jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError),
        *(AssertionError, NameError),  # The latter if a device decides it.
    ):
        return None
    if jnp.issubdtype(found.dtype, jnp.floating):
        most = 2 ** jnp.finfo(found.dtype).nmant
    elif jnp.issubdtype(found.dtype, jnp.signedinteger):
        most = jnp.iinfo(found.dtype).max // 2
    else:
        return None
    is_exact = np.max(np.abs(found), initial=0) < most and (found == np.rint(found)).all()
    return found.astype(np.int64) if is_exact else None


def check(x: Value, given: tuple[Value, ...], distances: Distances) -> None:
    """Raises unless an input is of rows, of columns, or a part cut where its tile stands."""
    rows, columns = (1, 1, *x.narrow)[-2:]
    if x.is_cut:
        along, *starts = x.operands
        axis = -1 if along.depends == QUERY else -2
        side, count = distances.sides[axis], distances.counts[axis]
        at = at_each(starts[axis], given[-3:], count)
        if at is None:
            raise Refused("it cuts an array at a place that is not known")
        if at.tolist() != [n * side for n in range(count)] or x.shape[-2:] != distances.sides:
            raise Refused("it cuts an array elsewhere than at its tile")
    elif x.is_diagonal:
        if x.shape[-2:] != distances.sides:
            raise Refused("it repeats along diagonals what is not a tile")
    elif x.depends in (PAIR, DISTANCE) or (rows != 1 and columns != 1):
        raise Refused("it holds an array of pairs")
    elif (columns != 1 and x.depends != KEY) or (rows != 1 and x.depends == KEY):
        raise Refused("it holds keys where queries are, or queries where keys are")
