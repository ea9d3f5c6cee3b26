"""Arrays on many devices, whose types tell where they are.

Inside ``jax.shard_map`` a type tells over which axes of the mesh an array varies. An operation that
mixes an array that varies with one that does not first makes the second vary too, and the transpose
of that is a sum over devices. A call of attention does so once with what it is given, before its
loops over tiles, so that arrays agree within them and no sum over devices is in a loop.

On a mesh with explicit axes a type tells how an array is cut, and every operation must say how its
result is. A call of attention says it of its results; XLA finds the rest.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.sharding import NamedSharding, PartitionSpec, auto_axes
from jaxtyping import DTypeLike


def varying(*trees: Any) -> tuple[str, ...]:
    """Returns the axes over which any of the arrays varies; none outside of ``jax.shard_map``."""
    arrays = (x for x in jax.tree.leaves(trees) if hasattr(x, "dtype"))
    return tuple(sorted({axis for x in arrays for axis in of_type(jax.typeof(x))}))


def of_type(kind: Any) -> frozenset[str]:
    """Returns the axes over which arrays of this type vary."""
    return getattr(getattr(kind, "manual_axis_type", None), "varying", frozenset())


def abstract(shape: tuple[Any, ...], dtype: DTypeLike, operands: Sequence[Any]) -> ShapedArray:
    """Returns the type of a result that varies as the operand, given by its type, that varies most.

    All that vary do so over the same axes; see ``vary``.
    """
    most = max(operands, key=lambda x: len(of_type(x)))
    if not of_type(most):
        return ShapedArray(shape, dtype)
    sharding = NamedSharding(most.sharding.mesh, PartitionSpec())
    return ShapedArray(shape, dtype, sharding=sharding, manual_axis_type=most.manual_axis_type)


def unvarying(shape: tuple[Any, ...], dtype: DTypeLike) -> Any:
    """Returns the shape and dtype of a result that varies over no axes, which types must say."""
    kind = getattr(jax.typeof(jnp.zeros((), dtype)), "manual_axis_type", None)
    return jax.ShapeDtypeStruct(
        shape, dtype, **({} if kind is None else {"manual_axis_type": kind})
    )


def automatic(function: Callable, like: Any, num_axes: int, *trees: Any) -> Any:
    """Returns ``function(*trees)``, in which XLA decides how arrays are cut.

    Args:
      function: of the trees.
      like: an array; if its mesh has no explicit axes, the function is called as it is.
      num_axes: so many of the first axes of every result are cut as those of ``like``.
      *trees: pytrees; what is no array in them is passed as it is.
    """
    sharding = jax.typeof(like).sharding
    explicit = getattr(sharding.mesh, "explicit_axes", ())
    if not explicit:
        return function(*trees)
    arrays, rebuild = arrays_of(trees)
    out_sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:num_axes]))
    of_arrays = auto_axes(
        lambda *arrays: function(*rebuild(arrays)), axes=explicit, out_sharding=out_sharding
    )
    return of_arrays(*arrays)


def arrays_of(tree: Any) -> tuple[list[Any], Callable]:
    """Returns the arrays of a pytree, and a function from as many to a tree with these in it.

    NumPy's scalars are no arrays: options may be such.
    """
    leaves, structure = jax.tree.flatten(tree)
    is_array = [hasattr(x, "dtype") and not isinstance(x, np.generic) for x in leaves]

    def rebuild(arrays):
        arrays = iter(arrays)
        every = [next(arrays) if given else x for x, given in zip(leaves, is_array, strict=True)]
        return jax.tree.unflatten(structure, every)

    return [x for x, given in zip(leaves, is_array, strict=True) if given], rebuild


def reshard(x: Any, mesh: Any, spec: PartitionSpec) -> Any:
    """Returns the array cut as the spec says and, where it says nothing, as it was."""
    own = jax.typeof(x).sharding
    before = tuple(own.spec) if own.mesh.axis_names else ()
    before += (None,) * (x.ndim - len(before))
    after = tuple(spec) + (None,) * (x.ndim - len(spec))
    new = (b if a is None else a for a, b in zip(after, before, strict=True))

    def is_explicit(axes):
        names = axes if isinstance(axes, tuple) else (axes,)
        return set(names) <= set(mesh.explicit_axes)

    # Of other axes, types say nothing.
    new = (axes if is_explicit(axes) else None for axes in new)
    return jax.reshard(x, NamedSharding(mesh, PartitionSpec(*new)))


def vary(tree: Any, axes: tuple[str, ...]) -> Any:
    """Returns the tree with each of its arrays varying over all of these axes."""

    def cast(x):
        missing = tuple(axis for axis in axes if axis not in varying(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(lambda x: cast(x) if hasattr(x, "dtype") else x, tree) if axes else tree


def example(shape: tuple[Any, ...], dtype: DTypeLike, axes: tuple[str, ...]) -> Any:
    """Returns what has the type of an array that varies over these axes, to trace with."""
    return vary(jnp.zeros(shape, dtype), axes) if axes else jax.ShapeDtypeStruct(shape, dtype)
