"""Compiles the kernels of group normalisation for the first batch in a thread, while the train step is traced.

XLA compiles the forward and the backward pass for every shape of a feature map. Compiled one by one during the first
step, they take a third of the time from the start of the command to the end of that step, whereas tracing, which is
Python, uses one core only.
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
  """Compile the kernels for the batch of a step in a thread; it is stopped and joined when the context ends.

  With several replicas nothing is compiled ahead: each device compiles its own kernels when it needs them.
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
  """Return the feature maps of `images` images of height and width `to`, given those of one image of `of`.

  Only maps of whole images: the number of RoIs is not known here. Each once, the largest first: a step needs them
  first, and the memory of their compilation is free again when it runs.
  """
  strides = {each: _stride(each, of) for each in maps}  # a dictionary: each map once
  found = dict.fromkeys(each._replace(shape=(images, *_at(stride, to), each.shape[3]))
                        for each, stride in strides.items() if stride is not None)
  return sorted(found, key=lambda each: -math.prod(each.shape))


def _stride(maps: NormalisedMaps, of: Sequence[int]) -> int | None:
  """Return the stride of a map of one whole image of height and width `of`; None for any other map, as of RoIs."""
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
    except tf.errors.OpError as error:  # the step itself will fail with it, and report it
      logging.debug('not compiled ahead: %s', in_one_line(error))
      return
    _compiled.add(each)
