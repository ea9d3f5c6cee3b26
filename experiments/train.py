"""Training: a pure step, many of them a dispatch, and a state that is never left broken.

Everything random follows from ``config.seed``: initial parameters from ``fold_in(seed, 0)``, the
batch of step i from ``fold_in(fold_in(seed, 1), i)``. A state therefore holds all that the next
step needs, and training that stops and goes on ends at the very numbers of one that did not.

A step whose loss, gradient or result is not finite leaves the state as it was, so the state after a
dispatch is always the last good one, and its step names the step that failed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.config import Config, OptimizerConfig
from experiments.models.decoder import Decoder, build_decoder
from experiments.tasks import Batch


class TrainState(NamedTuple):
    """All that changes in training."""

    step: Int[Array, ""]
    """Steps done."""
    params: Any
    opt_state: Any


class StepMetrics(NamedTuple):
    """What is recorded of a step, on its batch, before its update."""

    loss: Float[Array, "..."]
    """Mean cross-entropy of an answer, in nats."""
    accuracy: Float[Array, "..."]
    """Share of right answers."""
    gradient_norm: Float[Array, "..."]
    """Global norm of the gradient, before it is clipped."""


class NonFiniteLoss(RuntimeError):
    """A step's loss, gradient or new state was not finite; the state before it is kept."""


def build_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns AdamW after clipping, with linear warm-up and cosine decay to 0 at ``steps``."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config, steps), weight_decay=config.weight_decay),
    )


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the rate of each step."""
    peak, warmup = config.learning_rate, config.warmup_steps
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, decay_steps=max(steps, warmup + 1)
    )


def initial_state(config: Config, mixer: str, data: Any) -> TrainState:
    """Returns the state before the first step; the same parameters for mixers of the same shape."""
    decoder = build_decoder(config.task, config.model, mixer)
    rng = jax.random.fold_in(jax.random.key(config.seed), 0)
    batch = jax.eval_shape(functools.partial(config.task.sample, batch_size=1), rng, data=data)
    inputs, positions = (jnp.zeros(x.shape, x.dtype) for x in (batch.inputs, batch.positions))
    optimizer = build_optimizer(config.optimizer, config.train.steps)

    @jax.jit
    def init() -> TrainState:
        params = decoder.init(rng, inputs, positions)["params"]
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return init()


def answer_losses(
    decoder: Decoder, params: Any, batch: Batch
) -> tuple[Float[Array, "B A"], Float[Array, "B A"]]:
    """Returns the cross-entropy of every answer, in nats, and 1 where the likeliest is right."""
    logits: Any = decoder.apply({"params": params}, batch.inputs, batch.positions)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return losses, (jnp.argmax(logits, axis=-1) == batch.targets).astype(losses.dtype)


def build_dispatch(
    config: Config, mixer: str
) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """Returns a jitted function that runs ``steps_per_dispatch`` steps and their metrics.

    It takes the state (whose memory it reuses) and the task's data; metrics have one entry a step.
    """
    decoder = build_decoder(config.task, config.model, mixer)
    optimizer = build_optimizer(config.optimizer, config.train.steps)
    data_rng = jax.random.fold_in(jax.random.key(config.seed), 1)

    def mean_loss(params: Any, batch: Batch):
        losses, correct = answer_losses(decoder, params, batch)
        return jnp.mean(losses), jnp.mean(correct)

    def step(data: Any, state: TrainState, _) -> tuple[TrainState, StepMetrics]:
        batch = sample_step(config, data_rng, state.step, data)
        (loss, accuracy), gradient = jax.value_and_grad(mean_loss, has_aux=True)(
            state.params, batch
        )
        norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, opt_state)
        finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((loss, norm, new))]
        good = jnp.all(jnp.stack(finite))
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, state)
        return state, StepMetrics(loss, accuracy, norm)

    @functools.partial(jax.jit, donate_argnums=(0,))
    def dispatch(state: TrainState, data: Any) -> tuple[TrainState, StepMetrics]:
        steps = config.train.steps_per_dispatch
        return jax.lax.scan(functools.partial(step, data), state, length=steps)

    return dispatch


def sample_step(config: Config, data_rng: PRNGKeyArray, step: Int[Array, ""], data: Any) -> Batch:
    """Returns the batch of a step: a function of seed and step alone, whatever the mixer."""
    return config.task.sample(jax.random.fold_in(data_rng, step), config.train.batch_size, data)


def train(
    config: Config,
    mixer: str,
    state: TrainState,
    data: Any,
    *,
    record: Callable[[int, StepMetrics], None],
    save: Callable[[TrainState], None],
) -> TrainState:
    """Returns the trained state, going on from ``state``.

    Args:
      config: of the run.
      mixer: which of its mixers.
      state: from ``initial_state`` or a checkpoint; its memory is given up.
      data: of the training split.
      record: called after every dispatch with its first step and its metrics, fetched.
      save: called at every checkpoint step and at the last, after all before it was recorded.

    Raises:
      NonFiniteLoss: naming the step, after the state before it was saved.
    """
    dispatch = build_dispatch(config, mixer)
    first = int(state.step)
    while first < config.train.steps:
        state, metrics = dispatch(state, data)
        metrics = jax.device_get(metrics)
        done = int(state.step) - first
        if done < config.train.steps_per_dispatch:
            record(first, StepMetrics(*(x[:done] for x in metrics)))
            save(state)
            raise NonFiniteLoss(
                f"{mixer}: at step {int(state.step)} the loss is {metrics.loss[done]}, the "
                f"gradient's norm {metrics.gradient_norm[done]}, and with the update not all is "
                "finite; the state before it is kept"
            )
        record(first, metrics)
        first += done
        if first % config.train.checkpoint_every == 0 or first >= config.train.steps:
            save(state)
    return state
