"""Training: a pure step, many of them a dispatch, many runs a program.

    dispatch : (states [R], seeds [R], rates [R], data) -> (states [R], metrics [R])

Seeds and rates are traced, so all runs of a model are one compiled program over states stacked
along the axis of runs (``experiments.runs``). Everything random follows from a run's seed: its
initial parameters from ``fold_in(seed, 0)``, the batch of step i from ``fold_in(fold_in(seed, 1),
i)``. A state therefore holds all that the next step needs, and training that stops and goes on
ends at the very numbers of one that did not.

A run stops when its steps are done, when it has reached its aim, or at a step whose loss, gradient
or result is not finite: that step leaves the state as it was. The others do not notice.

Letters: R runs; B, A, L as in ``experiments.tasks``.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.config import Config, OptimizerConfig
from experiments.mesh import of_states, split_rows
from experiments.models.decoder import Decoder, build_decoder
from experiments.runs import Places, Run, Status, each_run, fetch, stack_runs
from experiments.tasks import NO_SOURCE, UNASKED, Batch, Task


class TrainState(NamedTuple):
    """All that changes in training, of every run."""

    step: Int[Array, "R"]
    """Steps done."""
    status: Int[Array, "R"]
    """A ``Status``."""
    params: Any
    opt_state: Any


class StepMetrics(NamedTuple):
    """What is recorded of a dispatch, of every run: means over the steps that it did."""

    step: Int[Array, "R"]
    """Steps done by its end."""
    status: Int[Array, "R"]
    """A ``Status``, at its end."""
    loss: Float[Array, "R"]
    """Of an answer, before the update: cross-entropy in nats, or the squared error; not a number
    for a run that did no step."""
    accuracy: Float[Array, "R"]
    """Share of right answers, before the update."""
    gradient_norm: Float[Array, "R"]
    """Global norm of the gradient, before it is clipped."""


def build_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns AdamW after clipping, for a peak rate of 1: warm-up, plateau, cosine to 0."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config, steps), weight_decay=config.weight_decay),
    )


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the rate of each step as a share of the peak, step by step from 0 on.

    With W steps of warm-up and F of fall, of S in all:

        i / W                         i < W
        1                             W <= i < S - F
        (1 + cos(pi (i - S + F) / F)) / 2     after it

    F = S - W is the cosine of Loshchilov and Hutter (arXiv 1608.03983); a short fall after a long
    stay is the schedule of Hu et al. (arXiv 2404.06395, section 4).
    """
    warmup = config.warmup_steps
    fall = max(min(round(config.decay_share * steps), steps - warmup), 1)
    pieces = [optax.constant_schedule(1.0), optax.cosine_decay_schedule(1.0, fall)]
    ends = [max(steps - fall, warmup)]
    if warmup:
        pieces, ends = [optax.linear_schedule(0.0, 1.0, warmup), *pieces], [warmup, *ends]
    return optax.join_schedules(pieces, ends)


def answer_losses(
    task: Task, decoder: Decoder, params: Any, batch: Batch, **options: Any
) -> tuple[Float[Array, "B A"], Bool[Array, "B A"], Bool[Array, "B A"]]:
    """Returns each answer's loss, whether it is right, and whether it was asked at all.

    The loss is the cross-entropy in nats, or the squared error where answers are numbers. Where
    nothing was asked it is 0.
    """
    result: Any = decoder.apply({"params": params}, batch.inputs, batch.positions, **options)
    if task.num_classes is None:
        error = result - batch.targets
        right = jnp.abs(error) < task.tolerance  # pyright: ignore[reportAttributeAccessIssue]
        return error**2, right, jnp.ones(error.shape, bool)
    asked = batch.targets != UNASKED
    targets = jnp.where(asked, batch.targets, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(result, targets)
    right = jnp.argmax(result, axis=-1) == targets
    return jnp.where(asked, losses, 0.0), right & asked, asked


def mean_answer(
    task: Task, decoder: Decoder, params: Any, batch: Batch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns loss and accuracy of a batch, means over the answers that were asked.

    Accuracy is of those that have a source, if any has.
    """
    losses, right, asked = answer_losses(task, decoder, params, batch)
    has_source = asked & (batch.sources != NO_SOURCE)
    counted = jnp.where(jnp.any(has_source), has_source, asked)
    return jnp.sum(losses) / jnp.sum(asked), jnp.sum(right & counted) / jnp.sum(counted)


class Program(NamedTuple):
    """What trains a model; all its runs, of the search and fresh, go through one compilation."""

    init: Callable[[int], tuple[Any, Any]]
    """From a seed: parameters and the optimiser's state before the first step, on the host, for
    they need not fit into one device. Not compiled as a whole: what draws a matrix of some shape is
    compiled once for all models."""
    one: Callable[[TrainState, Any, Any, Any], tuple[TrainState, StepMetrics]]
    """What ``dispatch`` does with each run; pure."""
    dispatch: Callable[[TrainState, Any, Any, Any], tuple[TrainState, StepMetrics]]
    """From states (whose memory it reuses), seeds, rates and the task's data: the states
    ``steps_per_dispatch`` steps later."""
    stacked: TrainState
    """Shapes and dtypes of the states of all places."""
    places: Places
    """Where its runs are."""


def build_program(config: Config, model: str, places: Places, data: Any) -> Program:
    """Returns what trains one model of the config on data of such shapes."""
    decoder = build_decoder(config.task, config.model_of(model))
    optimizer = build_optimizer(config.optimizer, config.train.steps)
    aim = math.inf if config.train.stop_accuracy is None else config.train.stop_accuracy
    loss_and_gradient = jax.value_and_grad(
        lambda params, batch: mean_answer(config.task, decoder, params, batch), has_aux=True
    )

    def init(seed: int) -> tuple[Any, Any]:
        rng = jax.random.fold_in(jax.random.key(seed), 0)
        row = jax.eval_shape(functools.partial(config.task.sample, batch_size=1), rng, data=data)
        with jax.default_device(_host()):
            params = decoder.lazy_init(rng, row.inputs, row.positions)["params"]
            return params, optimizer.init(params)

    def step(seed, rate, data, state: TrainState, _):
        batch = sample_step(config, seed, state.step, data)
        (loss, accuracy), gradient = loss_and_gradient(state.params, batch)
        norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, jax.tree.map(lambda x: rate * x, updates))
        new = TrainState(state.step + 1, state.status, params, opt_state)
        finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((loss, norm, new))]
        good = jnp.all(jnp.stack(finite)) & (state.status == Status.RUNNING)
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, state)
        state = state._replace(status=jnp.where(good, state.status, Status.DIVERGED))
        return state, (good, loss, accuracy, norm)

    def many_steps(state: TrainState, seed, rate, data) -> tuple[TrainState, StepMetrics]:
        state, (good, *metrics) = jax.lax.scan(
            functools.partial(step, seed, rate, data), state, length=config.train.steps_per_dispatch
        )
        done = jnp.sum(good)
        loss, accuracy, norm = (jnp.sum(jnp.where(good, x, 0.0)) / done for x in metrics)
        is_running = state.status == Status.RUNNING
        status = jnp.select(
            [is_running & (accuracy >= aim), is_running & (state.step >= config.train.steps)],
            [Status.REACHED, Status.FINISHED],
            state.status,
        )
        return state._replace(status=status), StepMetrics(state.step, status, loss, accuracy, norm)

    def dispatch(state: TrainState, seed, rate, data) -> tuple[TrainState, StepMetrics]:
        none = jnp.full((), jnp.nan)
        return jax.lax.cond(
            state.status == Status.RUNNING,
            lambda: many_steps(state, seed, rate, data),
            lambda: (state, StepMetrics(state.step, state.status, none, none, none)),
        )

    params, opt_state = jax.eval_shape(init, 0)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32)
    one = TrainState(count, count, params, opt_state)
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((places.count, *x.shape), x.dtype), one)
    stay = of_states(places.mesh, stacked), places.sharding
    of_runs = each_run(dispatch, places, donate=True, out_shardings=stay)
    return Program(init, dispatch, of_runs, stacked, places)


def sample_step(config: Config, seed: Int[Array, ""], step: Int[Array, ""], data: Any) -> Batch:
    """Returns the batch of a step: a function of seed and step alone, whatever the model."""
    rng = jax.random.fold_in(jax.random.key(seed), 1)
    rng = jax.random.fold_in(rng, step)
    return split_rows(config.task.sample(rng, config.train.batch_size, data))


def initial_state(program: Program, runs: Sequence[Run]) -> TrainState:
    """Returns the states before the first step; models of the same shape start from the same."""
    count = program.places.count
    of_runs = [program.init(run.seed) for run in runs]
    of_places = of_runs + of_runs[-1:] * (count - len(runs))
    status: Any = np.where(np.arange(count) < len(runs), Status.RUNNING, Status.FINISHED)
    stacked = jax.tree.map(lambda *places: np.stack(places), *of_places)
    steps: Any = np.zeros(count, np.int32)
    state = TrainState(steps, status.astype(np.int32), *stacked)
    return jax.device_put(state, of_states(program.places.mesh, state))


def _host() -> Any:
    """Returns the device whose memory is the host's; None where JAX is told to use no such."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def train(
    config: Config,
    program: Program,
    runs: Sequence[Run],
    state: TrainState,
    data: Any,
    *,
    record: Callable[[StepMetrics], None],
    save: Callable[[TrainState], None],
) -> TrainState:
    """Returns the states once every run has stopped, going on from ``state``.

    Metrics are fetched while the next dispatch runs, so that the device does not wait.

    Args:
      config: of the runs.
      program: of their model.
      runs: seeds and rates.
      state: from ``initial_state`` or a checkpoint; its memory is given up.
      data: of the training split.
      record: called after every dispatch with its metrics, fetched.
      save: called at every checkpoint and at the end, after all before it was recorded.
    """
    seeds, rates = stack_runs(runs, program.places)
    steps, status = fetch((state.step, state.status))
    done, is_running = int(np.max(steps)), bool(np.any(status == Status.RUNNING))
    pending: list[StepMetrics] = []

    def recorded(keep: int) -> bool:
        """Records all but the latest ``keep`` dispatches; says whether a run goes on."""
        goes_on = True
        while len(pending) > keep:
            metrics = fetch(pending.pop(0))
            if not np.all(np.isnan(metrics.loss)):
                record(metrics)
            goes_on = bool(np.any(metrics.status == Status.RUNNING))
        return goes_on

    while is_running:
        state, metrics = program.dispatch(state, seeds, rates, data)
        pending.append(metrics)
        done += config.train.steps_per_dispatch
        saves = done % config.train.checkpoint_every == 0 or done >= config.train.steps
        is_running = recorded(keep=0 if saves else 1)
        if saves or not is_running:
            recorded(keep=0)
            save(state)
    return state
