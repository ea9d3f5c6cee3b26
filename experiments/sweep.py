"""All runs of one model: the search for its learning rate, then fresh seeds at that rate.

    search   every rate x every tuning seed, each run scored on the valid split
    choice   the lowest of the rates by which most runs reach the aim about as soon as by any;
             where none does, that of the least loss
    fresh    the reported seeds at that rate

Both stages go through one compiled program. The seeds of the search are never reported, and
neither the choice nor an early stop sees the test split.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments import probes
from experiments.config import NEAR, Config
from experiments.evaluate import Answers, Questions, build_ask, rounded, summarise
from experiments.models.decoder import receptive_field, state_bytes
from experiments.records import ModelRecord, StageRecord
from experiments.runs import Run, Status, fetch, places_for
from experiments.train import (
    Program,
    StepMetrics,
    TrainState,
    build_program,
    initial_state,
    train,
)


class Diverged(RuntimeError):
    """No run of a stage has stayed finite; the last good states are kept."""


Watch = Callable[[str, str, int, int], Callable[[StepMetrics], None]]
"""Told model, stage, number of runs and steps that are done already, gives what is called with
metrics, to show progress."""


def sweep(
    config: Config, model: str, record: ModelRecord, questions: Questions, watch: Watch
) -> None:
    """Does what is left to do of a model's runs, down to its evaluation.

    Raises:
      Diverged: if of the search, or of the fresh seeds, no run has stayed finite.
    """
    if record.is_evaluated:
        return
    begun = time.monotonic()
    earlier = record.cost.get("seconds", {"train": 0.0})["train"]

    def note_time() -> float:
        seconds = round(earlier + time.monotonic() - begun, 1)
        record.write_cost({"seconds": {"train": seconds}})
        return seconds

    rates, seeds = config.sweep.learning_rates, config.tuning_seeds
    search = [Run(seed, rate) for rate in rates for seed in seeds]
    places = places_for(config.mesh, len(search), config.sweep.seeds)
    everywhere = NamedSharding(places.mesh, PartitionSpec())
    train_data = jax.device_put(questions.data["train"], everywhere)
    program = build_program(config, model, places, train_data)
    if search and record.search is None:
        stage = record.stage("search", search)
        state = do_stage(config, model, program, stage, train_data, watch, note_time)
        scores = validate(config, model, program, stage, state, questions)
        record.write_search({"runs": scores, "chosen": choose(scores)})
    rate = rates[0] if record.search is None else record.search["chosen"]
    stage = record.stage("fresh", [Run(seed, rate) for seed in config.reported_seeds])
    state = do_stage(config, model, program, stage, train_data, watch, note_time)
    trained, asking = note_time(), time.monotonic()
    evaluation, steps = evaluate(config, model, program, stage, state, questions)
    seconds = {"train": trained, "evaluate": round(time.monotonic() - asking, 1)}
    record.write_evaluation(evaluation, {"seconds": seconds, "cost": steps})


def do_stage(
    config: Config,
    model: str,
    program: Program,
    stage: StageRecord,
    data: Any,
    watch: Watch,
    note_time: Callable[[], Any],
) -> TrainState:
    """Returns the states of a stage once all its runs have stopped, going on where it stands."""
    state = stage.resume(initial_state(program, stage.runs))
    show = watch(model, stage.path.name, len(stage.runs), int(np.max(fetch(state.step))))

    def record(metrics: StepMetrics) -> None:
        stage.append(metrics)
        show(metrics)

    def save(state: TrainState) -> None:
        stage.save(state)
        note_time()

    state = train(config, program, stage.runs, state, data, record=record, save=save)
    ends = fetch((state.status, state.step))
    lost = [
        f"seed {run.seed}, rate {run.learning_rate:g}: step {step + 1}"
        for run, status, step in zip(stage.runs, *ends, strict=False)
        if status == Status.DIVERGED
    ]
    if len(lost) == len(stage.runs):
        raise Diverged(
            f"{stage.path}: the loss, its gradient or the state after it is not finite in any run "
            f"({'; '.join(lost)}); the states before these steps are kept"
        )
    return state


def validate(
    config: Config,
    model: str,
    program: Program,
    stage: StageRecord,
    state: TrainState,
    questions: Questions,
) -> list[dict[str, Any]]:
    """Returns how each run of a search stands on the valid split, by what it is scored by."""
    length = config.task.length
    ask = build_ask(config, model, program.places, length)
    counts = np.arange(program.places.count) < len(stage.runs)
    answers = ask(state.params, counts, questions.rows("valid", length))
    return [
        {
            **run._asdict(),
            "status": Status(int(status)).name.lower(),
            "steps": int(step),
            "reached": reached_after(config, stage, i, Status(int(status)), int(step), of_run),
            "accuracy": rounded(of_run.right[of_run.scored].mean()),
            "loss": rounded(of_run.loss[of_run.scored].mean()),
        }
        for i, (run, status, step, of_run) in enumerate(
            zip(stage.runs, *fetch((state.status, state.step)), answers, strict=False)
        )
    ]


def reached_after(
    config: Config, stage: StageRecord, i: int, status: Status, step: int, answers: Answers
) -> int | None:
    """Returns after how many steps a run of a search was where it was to be, None if it is not.

    That is where it stopped or, of runs that never stop, where training answers were right by
    ``success_accuracy``, if those of the valid split are in the end.
    """
    if config.train.stop_accuracy is not None:
        return step if status == Status.REACHED else None
    success = config.evaluate.success_accuracy
    if status == Status.DIVERGED or answers.right[answers.scored].mean() < success:
        return None
    first = stage.steps_to(success, i)
    return step if first is None else first


def choose(scores: list[dict[str, Any]]) -> float:
    """Returns the learning rate to report, from the scores of a search.

    Of the rates by which most runs have reached the aim (``reached_after``), the lowest that took
    at most ``NEAR`` times the steps of the soonest: of two rates that learn about as fast, the
    higher is nearer to the one at which a run gets nowhere. If none has reached it, the one with
    the least median loss. A run that has diverged has the greatest loss of all.
    """
    of_rates: dict[float, list[dict[str, Any]]] = {}
    for score in scores:
        of_rates.setdefault(score["learning_rate"], []).append(score)

    def reached(rate: float) -> int:
        return sum(run["reached"] is not None for run in of_rates[rate])

    def steps(rate: float) -> float:
        taken = [run["reached"] for run in of_rates[rate] if run["reached"] is not None]
        return statistics.mean(taken)

    def loss(rate: float) -> float:
        return statistics.median(
            math.inf if run["status"] == "diverged" else run["loss"] for run in of_rates[rate]
        )

    most = max(map(reached, of_rates))
    if most == 0:
        return min(of_rates, key=loss)
    best = [rate for rate in of_rates if reached(rate) == most]
    return min(rate for rate in best if steps(rate) <= NEAR * min(map(steps, best)))


def evaluate(
    config: Config,
    model: str,
    program: Program,
    stage: StageRecord,
    state: TrainState,
    questions: Questions,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Returns what the fresh runs of a model reach, with what is seen inside them, and its cost."""
    num_runs = len(stage.runs)
    counts = np.arange(program.places.count) < num_runs
    lengths: list[dict[str, Any]] = [{} for _ in range(num_runs)]
    for length in config.evaluation_lengths:
        ask = build_ask(config, model, program.places, length)
        answers = ask(state.params, counts, questions.rows("test", length))
        for of_length, of_run in zip(lengths, answers, strict=True):
            of_length[str(length)] = summarise(of_run)
    threshold, (statuses, steps) = (
        config.evaluate.success_accuracy,
        fetch((state.status, state.step)),
    )
    runs = [
        {
            **run._asdict(),
            "status": Status(int(statuses[i])).name.lower(),
            "steps": int(steps[i]),
            "steps_to_threshold": stage.steps_to(threshold, i),
            "lengths": lengths[i],
        }
        for i, run in enumerate(stage.runs)
    ]
    good = [i for i in range(num_runs) if statuses[i] != Status.DIVERGED]
    settings, params = config.model_of(model), fetch(state.params)

    def trained(i: int) -> Any:
        return jax.tree.map(lambda x: x[i], params)

    ends = (jax.device_put((trained(i), program.init(stage.runs[i].seed)[0])) for i in good)
    inside = probes.probe(config, model, ends, questions)
    evaluation = {
        "model": model,
        "parameters": sum(x.size for x in jax.tree.leaves(trained(0))),
        "state_bytes": state_bytes(settings, config.task.length),
        "reach": receptive_field(settings),
        "learning_rate": stage.runs[0].learning_rate,
        "runs": runs,
        "inside": [
            {"seed": stage.runs[i].seed, **seen} for i, seen in zip(good, inside, strict=False)
        ],
    }
    return evaluation, probes.cost(config, model, trained(good[0]), questions)
