"""Systems around one network: CBNet, Cascade R-CNN and keypoints beside the plain detector, on the same batch."""

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
from rethink_tf.experiment import Parts

PLAIN = 'plain'
SYSTEMS = {  # gin files that make the system out of the plain detector
  PLAIN: (),
  'CBNet dual': ('gin_configs/models/cbnet_dual.gin',),
  'CBNet triple': ('gin_configs/models/cbnet_triple.gin',),
  'Cascade R-CNN': ('gin_configs/models/cascade.gin',),
  'keypoints for masks': ('gin_configs/models/keypoints.gin',),
}


class Task(NamedTuple):
  """What is measured of every system."""

  name: str
  images: int
  functions: dict[str, Callable[[], Any]]  # by system
  variables: dict[str, list[tf.Variable]]  # that a call needs


def build(make: Callable[[tuple[str, ...]], Parts]) -> dict[str, Parts]:
  """All systems. make: gin files to add to a configuration -> its parts."""
  return {name: make(files) for name, files in SYSTEMS.items()}


def compare(systems: Mapping[str, Parts], rounds: int) -> list[Row]:
  """The train step and the prediction of each system, in turns, on the first batches of the plain one's data.

  Memory is what a call adds at its peak, and the variables that it needs: a step's are the optimizer's, too.
  """
  tasks = [_training(systems), _prediction(systems)]
  for task in tasks:
    for name, function in task.functions.items():
      _tell(f'{task.name}, {name}: tracing and compiling')
      measure.wait(function())
  growth: dict[tuple[str, str], float | None] = {}
  for task in tasks:
    for name, function in task.functions.items():
      _tell(f'{task.name}, {name}: memory')
      growth[task.name, name] = measure.memory_growth(function)
  rows = []
  for task in tasks:
    timings = in_turns(task.functions, rounds, warm_up=0)
    for name, parts in systems.items():
      grown = growth[task.name, name]
      memory = 0.0 if grown is None else grown + _megabytes(task.variables[name])
      parameters = sum(math.prod(variable.shape.as_list()) for variable in parts.trainer.detector.trainable_variables)
      rows.append(Row(task.name, name, timings[name], task.images, parameters=parameters, memory=memory))
  return rows


def _training(systems: Mapping[str, Parts]) -> Task:
  shape, batch, _ = next(first_batches(systems[PLAIN].training_input(), shapes=1))
  return Task(
    title('train', shape), shape[0],
    {name: functools.partial(tf.function(parts.trainer.train_step, autograph=False), batch)
     for name, parts in systems.items()},
    {name: [*parts.trainer.detector.variables, *parts.trainer.optimizer.variables] for name, parts in systems.items()})


def _prediction(systems: Mapping[str, Parts]) -> Task:
  shape, batch, _ = next(first_batches(systems[PLAIN].scoring, shapes=1))
  return Task(title('predict', shape), shape[0],
              {name: functools.partial(parts.trainer.predict_batch, batch) for name, parts in systems.items()},
              {name: parts.trainer.detector.variables for name, parts in systems.items()})


def _megabytes(variables: list[tf.Variable]) -> float:
  return sum(math.prod(variable.shape.as_list()) * variable.dtype.size for variable in variables) / 2**20


def _tell(text: str) -> None:
  print(f'  {text}', file=sys.stderr, flush=True)
