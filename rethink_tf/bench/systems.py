"""Variants of a detector beside the plain one, on the same batch: CBNet, Cascade R-CNN, keypoints; recomputation."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from rethink_tf.bench import measure
from rethink_tf.bench.detectors import first_batches, title
from rethink_tf.bench.measure import Row, in_turns
from rethink_tf.structures import Experiment

PLAIN = 'plain'
SYSTEMS = {  # gin files that change the plain detector into the system
  PLAIN: (),
  'CBNet dual': ('gin_configs/models/cbnet_dual.gin',),
  'CBNet triple': ('gin_configs/models/cbnet_triple.gin',),
  'Cascade R-CNN': ('gin_configs/models/cascade.gin',),
  'keypoints for masks': ('gin_configs/models/keypoints.gin',),
}
RECOMPUTATION = {PLAIN: (), 'recomputation': ('gin_configs/runtime/recompute.gin',)}  # differ in training alone


class Task(NamedTuple):
  """A function of every system that is measured."""

  name: str
  images: int
  functions: dict[str, Callable[[], Any]]  # by system
  variables: dict[str, list[tf.Variable]]  # by system, that a call uses


def build(make: Callable[[tuple[str, ...]], Experiment], variants: Mapping[str, tuple[str, ...]]
          ) -> dict[str, Experiment]:
  """Build all variants. make: gin files added to the configuration -> experiment."""
  return {name: make(files) for name, files in variants.items()}


def compare(systems: Mapping[str, Experiment], rounds: int, predict: bool = True) -> list[Row]:
  """Measure train step and prediction of all systems, alternating, on the first batches of the plain one.

  Memory is the peak that a call adds, and its variables; those of a step include the optimizer's.
  """
  tasks = [_training(systems), *([_prediction(systems)] if predict else [])]
  for task in tasks:
    for name, function in task.functions.items():
      _log(f'{task.name}, {name}: tracing and compiling')
      measure.wait(function())
  growth: dict[tuple[str, str], float | None] = {}
  for task in tasks:
    for name, function in task.functions.items():
      _log(f'{task.name}, {name}: memory')
      growth[task.name, name] = measure.memory_growth(function)
  rows = []
  for task in tasks:
    timings = in_turns(task.functions, rounds, warm_up=0)
    for name, built in systems.items():
      grown = growth[task.name, name]
      memory = 0.0 if grown is None else grown + _megabytes(task.variables[name])
      parameters = sum(math.prod(variable.shape.as_list()) for variable in
                       built.trainer.detector.trainable_variables)
      rows.append(Row(task.name, name, timings[name], task.images, parameters=parameters, memory=memory))
  return rows


def _training(systems: Mapping[str, Experiment]) -> Task:
  shape, batch, _ = next(first_batches(systems[PLAIN].train_input, shapes=1))
  return Task(
    title('train', shape), shape[0],
    {name: functools.partial(tf.function(built.trainer.train_step, autograph=False), batch)
     for name, built in systems.items()},
    {name: [*built.trainer.detector.variables, *built.trainer.optimizer.variables]
     for name, built in systems.items()})


def _prediction(systems: Mapping[str, Experiment]) -> Task:
  shape, batch, _ = next(first_batches(systems[PLAIN].eval_input, shapes=1))
  return Task(title('predict', shape), shape[0],
              {name: functools.partial(built.trainer.predict_batch, batch) for name, built in systems.items()},
              {name: built.trainer.detector.variables for name, built in systems.items()})


def _megabytes(variables: list[tf.Variable]) -> float:
  return sum(math.prod(variable.shape.as_list()) * variable.dtype.size for variable in variables) / 2**20


def _log(text: str) -> None:
  print(f'  {text}', file=sys.stderr, flush=True)
