"""FLOPs of a training step: what its products take, wherever they stand in the program.

Of models that attend they follow from the sizes: six a parameter of a matrix and token, and what
``attn.explain`` says of attention, whose loops go as far as the mask leaves tiles. Of the others
the products of the step are counted as JAX traces it, loops as often as they go round:

    dot_general         2 (numbers of the result) (numbers summed)
    fft of n            5 n log2 n, of real numbers half of it

What is elementwise is left out: products are what a chip's peak is of.
"""

import functools
import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

import attn
from experiments.config import Config
from experiments.models import MIXERS
from experiments.train import Program


def flops_of(config: Config, model: str, program: Program, data: Any) -> float:
    """Returns the FLOPs of a training step of one run.

    Args:
      config: of the run.
      model: one of its models.
      program: that trains it.
      data: of the training split, arrays or their shapes.
    """
    settings = config.model_of(model)
    if MIXERS[settings.mixer].has_weights:
        params, _ = jax.eval_shape(program.init, 0)
        return _of_sizes(config, model, params)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), program.stacked)
    seed, rate = (jax.ShapeDtypeStruct((), x) for x in ("int32", "float32"))
    traced = jax.make_jaxpr(program.one)(state, seed, rate, data)
    return products(traced.jaxpr) / config.train.steps_per_dispatch


def _of_sizes(config: Config, model: str, params: Any) -> float:
    """Returns those of a model that attends.

    A parameter of a matrix is multiplied with every token, twice more in the backward pass; the
    embedding, as what it is multiplied with, with every answer.
    """
    settings, task, rows = config.model_of(model), config.task, config.train.batch_size
    leaves = jax.tree_util.tree_leaves_with_path(params)
    matrices = sum(x.size for path, x in leaves if "kernel" in jax.tree_util.keystr(path[-1:]))
    heads = settings.num_heads, settings.width // settings.num_heads
    x = jax.ShapeDtypeStruct((rows, task.length, *heads), settings.dtype)
    reach = MIXERS[settings.mixer].reach(settings)
    window = None if reach is None else (reach, 0)
    attended = attn.explain(x, x, x, is_causal=True, local_window_size=window).gradient.flops
    sample = functools.partial(task.sample, batch_size=rows)
    answers = jax.eval_shape(sample, jax.random.key(0), data=task.load("train")).targets.size
    logits = answers * settings.width * (task.num_classes or 1)
    return 6 * (matrices * rows * task.length + logits) + settings.num_layers * attended


def products(jaxpr: Jaxpr | ClosedJaxpr) -> float:
    """Returns the FLOPs of the products in a program; of branches those of the greatest.

    A ``while``, whose length is not known, counts once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        out: Any = equation.outvars[0].aval.shape if equation.outvars else ()  # pyright: ignore
        inside = [products(x) for value in params.values() for x in _jaxprs(value)]
        if name == "dot_general":
            ((summed, _), _), left = params["dimension_numbers"], equation.invars[0].aval
            total += 2 * math.prod(out) * math.prod(left.shape[n] for n in summed)  # pyright: ignore
        elif name == "fft":
            lengths = math.prod(params["fft_lengths"])
            several = math.prod(out[: -len(params["fft_lengths"])])
            whole = 5 * several * lengths * math.log2(lengths)
            total += whole if params["fft_type"] in (0, 1) else whole / 2
        elif name == "cond":
            total += max(inside)
        else:
            total += params.get("length", 1) * sum(inside) if name == "scan" else sum(inside)
    return total


def _jaxprs(value: Any) -> list[Jaxpr | ClosedJaxpr]:
    if isinstance(value, (ClosedJaxpr, Jaxpr)):
        return [value]
    return [x for part in value for x in _jaxprs(part)] if isinstance(value, (tuple, list)) else []
