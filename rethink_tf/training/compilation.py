"""Compilation of group normalisation for the first batch, beside the tracing of the train step.

XLA compiles both passes for every shape of a map. Met one after the other in the first step, they take a third of the
time from command to first step; tracing, which is Python, leaves all cores but one idle before it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf
from absl import logging

from rethink_tf.errors import in_one_line
from rethink_tf.ops.group_norm import NormalisedMaps
from rethink_tf.structures import Experiment

_compiled: set[NormalisedMaps] = set()  # XLA keeps what it has compiled as long as the process lives


@contextlib.contextmanager
def ahead(experiment: Experiment, step: int) -> Iterator[None]:
  """Compile for the batch of a step in a thread of its own, which ends with what is run inside.

  Nothing is done for several replicas: each device compiles its own kernels, when it needs them.
  """
  trainer = experiment.trainer
  maps = [] if experiment.devices.replicas > 1 else [
    each for each in resized(trainer.blank_maps, trainer.blank_shape, experiment.devices.images,
                             experiment.train_input.facts(step).padded_shape) if each not in _compiled]
  if not maps:
    yield
    return
  for each in maps:
    each.passes()  # traced here: functions are made once, and two threads would make them twice
  ended = threading.Event()
  thread = threading.Thread(target=_compile, args=(maps, ended), name='compilation', daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


def resized(maps: Iterable[NormalisedMaps], of: Sequence[int], images: int, to: Sequence[int]) -> list[NormalisedMaps]:
  """Return the maps of `images` images of a shape `to` (height, width) from those of one image of a shape `of`.

  Only maps of whole images, not those of RoIs, of whose number nothing is known; each form once. The largest first: a
  step needs them first, and their memory is free again when it runs.
  """
  strides = {each: _stride(each, of) for each in maps}  # each form once
  found = dict.fromkeys(each._replace(shape=(images, *_at(stride, to), each.shape[3]))
                        for each, stride in strides.items() if stride is not None)
  return sorted(found, key=lambda each: -math.prod(each.shape))


def _stride(maps: NormalisedMaps, of: Sequence[int]) -> int | None:
  """Return the stride of a map of one whole image of a shape `of`; None for any other map."""
  fitting = (2 ** k for k in range(8) if (1, *_at(2 ** k, of)) == maps.shape[:3])
  return next(fitting, None)


def _at(stride: int, shape: Sequence[int]) -> tuple[int, ...]:
  """Return the height and width of a map at a stride: every convolution of stride 2 rounds up."""
  return tuple(-(-side // stride) for side in shape)


def _compile(maps: Sequence[NormalisedMaps], ended: threading.Event) -> None:
  for each in maps:
    if ended.is_set():
      return
    try:
      each.passes()(tf.zeros(each.shape, each.dtype))
    except tf.errors.OpError as error:  # the step itself meets it, where it is reported
      logging.debug('not compiled ahead: %s', in_one_line(error))
      return
    _compiled.add(each)
