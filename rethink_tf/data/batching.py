"""What all inputs share: threads that fill batches, the data set around them, and pictures that cannot be read.

A batch is assembled in NumPy as a pure function of its number (`batch(step)`): the pictures are read and worked on by
a pool of threads straight into their places in the batch, whose memory is aligned as TensorFlow likes it. tf.data only
counts steps and keeps a few batches ahead.
"""

import abc
import atexit
import collections
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data.images import ImageError
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import retries

GREY = 127  # what stands for a picture that cannot be read
_LOGGED = 10  # occurrences that are logged one by one; later ones at each power of ten
_ALIGNMENT = 64  # bytes; TensorFlow takes over arrays that begin at a multiple of it without a copy
_BATCHES_AT_ONCE = 2  # so that the pool has work while the last pictures of a batch are finished

_in_flight: set[object] = set()  # calls from TensorFlow's threads into Python


@atexit.register
def _settle() -> None:
  """Waits, when Python ends, until tf.data has filled its buffers and none of its threads is in Python.

  Python kills such a thread as it takes itself down, and the iterator would wait for the dead one for ever.
  """
  quiet = 0
  while quiet < 5:
    time.sleep(0.01)
    quiet = 0 if _in_flight else quiet + 1


class StepFacts(NamedTuple):
  """What a training step sees, for counters and messages."""

  epoch: int  # in which the batch is complete
  image_ids: np.ndarray  # int64 [B]
  instances: int
  pixels: int  # of the resized pictures
  padded_pixels: int  # of the canvases they lie on


class Part(NamedTuple):
  """A replica's rows of a global batch: the `number`-th of `of` equal parts."""

  number: int = 0
  of: int = 1

  def rows(self, batch_size: int) -> slice:
    share = batch_size // self.of
    return slice(self.number * share, (self.number + 1) * share)


WHOLE = Part()


class BatchedInput(abc.ABC):
  """Batches of a source, by number.

  Args:
    source: with name, image_ids [N], load(i).
    batch_size: of the global batch.
    max_unreadable: share of unreadable pictures that is put up with.
    workers: threads that read pictures; None is one per core.

  Attributes: the arguments, and
    unreadable: indices of pictures that could not be read.
    failure: the exception that ended the data set, None so far. TensorFlow wraps it into an OpError of many lines;
      callers raise this one instead.

  Raises:
    UserError: no images, or a batch size below 1.
  """

  def __init__(self, source: Any, batch_size: int, max_unreadable: float, workers: int | None):
    if batch_size < 1:
      raise UserError(f'{type(self).__name__}: batch_size is {batch_size}; use 1 or more')
    if len(source.image_ids) == 0:
      raise UserError(f'{source.name}: there are no images in this data set')
    self.source = source
    self.batch_size = batch_size
    self.max_unreadable = max_unreadable
    self.workers = workers
    self.unreadable: set[int] = set()
    self.failure: Exception | None = None
    self._tried: set[int] = set()
    self._lock = threading.Lock()
    self._pool = ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix='input')
    self._spec = self._signature()
    cv2.setNumThreads(1)  # the pool works on several pictures at once; OpenCV's own threads would only get in its way

  @abc.abstractmethod
  def batch(self, step: int) -> Any:
    """Batch number `step` in NumPy arrays."""

  @abc.abstractmethod
  def _signature(self) -> Any:
    """The named tuple of a batch, of tf.TensorSpec."""

  def _dataset(self, numbers: tf.data.Dataset, spec: Any = None,
               batch: Callable[[int], Any] | None = None) -> tf.data.Dataset:
    """Batches of the given numbers, in this order whatever the threads do; by default of what `batch` gives."""
    spec, batch = spec or self._spec, batch or self.batch

    def assemble(number: tf.Tensor) -> Any:
      specs = tf.nest.flatten(spec)
      tensors = tf.numpy_function(lambda n: self._assemble(batch, n), [number], [one.dtype for one in specs])
      shaped = [tf.ensure_shape(tensor, one.shape) for tensor, one in zip(tensors, specs, strict=True)]
      return tf.nest.pack_sequence_as(spec, shaped)

    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return numbers.map(assemble, num_parallel_calls=_BATCHES_AT_ONCE).prefetch(1).with_options(options)

  def _endless(self, start_step: int, context: tf.distribute.InputContext | None) -> tf.data.Dataset:
    """Batches of steps start_step, start_step + 1, ... by `batch(step, part)`.

    With a context, as `strategy.distribute_datasets_from_function` gives it, those of this host's replicas in turn:
    replica r of R has the r-th part of every global batch, so that step s has the same images on any R, and a host
    reads no more than its own.

    Raises:
      UserError: the batch cannot be shared out evenly.
    """
    if context is None:
      return self._dataset(count_from(start_step))
    replicas = context.num_replicas_in_sync
    here = replicas // context.num_input_pipelines
    if self.batch_size % replicas:
      raise UserError(f'a batch of {self.batch_size} images cannot be shared out evenly among {replicas} replicas')
    spec = tf.nest.map_structure(
      lambda one: tf.TensorSpec([self.batch_size // replicas, *one.shape[1:]], one.dtype), self._spec)

    def batch(number: int) -> Any:
      step, replica = divmod(number, here)
      return self.batch(step, Part(context.input_pipeline_id * here + replica, replicas))

    return self._dataset(count_from(start_step * here), spec, batch)

  def _assemble(self, batch: Callable[[int], Any], number: np.int64) -> tuple[np.ndarray, ...]:
    call = object()
    _in_flight.add(call)
    try:
      return tuple(tf.nest.flatten(batch(int(number))))
    except Exception as error:
      self.failure = self.failure or error
      raise
    finally:
      _in_flight.discard(call)

  def _load(self, index: int, consequence: str) -> Any:
    """Reads a picture; None when it cannot be read, which is counted and logged with its consequence.

    Raises:
      UserError: too many pictures of the data set cannot be read, or storage fails for longer than a moment.
    """
    self._tried.add(index)
    try:
      return retries.call(lambda: self.source.load(index), self.source.name)
    except (ImageError, OSError, tf.errors.OpError) as error:
      if not isinstance(error, ImageError) or retries.is_transient(error):
        raise UserError(f'{self.source.name}: image {self.source.image_ids[index]} cannot be read: '
                        f'{in_one_line(error)}') from error
      message = f'{error}; {consequence}'
    self._report(self.unreadable, index, message)
    count, tried = len(self.unreadable), len(self._tried)
    # A share of the first hundred at least, so that one bad picture in the first batch ends nothing.
    if count > self.max_unreadable * max(tried, min(100, len(self.source.image_ids))):
      raise UserError(f'{self.source.name}: {count} of the first {tried} images cannot be read, more than '
                      f'max_unreadable = {self.max_unreadable:g}; mend or remove them, the last was: {message}')
    return None

  def _report(self, found: set[int], index: int, message: str) -> bool:
    """Notes an image once and logs it: the first ones, then how many they are. False if it was known."""
    with self._lock:
      if index in found:
        return False
      found.add(index)
      count = len(found)
    if count <= _LOGGED:
      logging.warning('%s: %s', self.source.name, message)
    elif str(count).strip('0') == '1':
      logging.warning('%s: %d images like this so far: %s', self.source.name, count, message)
    return True

  def _together(self, fill: Callable[[int, int], None], indices: np.ndarray) -> None:
    """Calls fill(row, index) for each row of a batch, on the pool; the first exception is raised here.

    Raises:
      UserError: as the rows raise it.
      RuntimeError: anything unforeseen, naming the picture.
    """
    def named(row: int, index: int) -> None:
      try:
        fill(row, index)
      except UserError:
        raise
      except Exception as error:
        raise RuntimeError(f'{self.source.name}: reading image {self.source.image_ids[index]} failed: '
                           f'{type(error).__name__}: {error}') from error

    for _ in self._pool.map(named, range(len(indices)), indices.tolist()):
      pass


def count_from(start: int) -> tf.data.Dataset:
  """start, start + 1, ...: without an end, which spares several workers to ask one another for it at each step."""
  return tf.data.Dataset.counter(start, 1)


def every_nth(batches: int, share: tuple[int, int]) -> tf.data.Dataset:
  """The numbers of the batches of an evaluation that worker `share[0]` of `share[1]` takes."""
  return tf.data.Dataset.range(share[0], batches, share[1])


def aligned_zeros(shape: list[int], dtype: np.dtype) -> np.ndarray:
  """Zeros that begin at a multiple of _ALIGNMENT bytes."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  buffer = np.zeros(size + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start:start + size].view(dtype).reshape(shape)


class Shelf:
  """Large arrays for use again and again: fresh memory costs a fifth of the time that a picture takes.

  TensorFlow keeps an array of ours alive as long as it reads it; when it lets go, the memory returns here.
  """

  def __init__(self, limit: int = 3):
    self._limit = limit  # arrays of each size that are kept while unused
    self._free: dict[int, collections.deque[np.ndarray]] = collections.defaultdict(collections.deque)

  def take(self, shape: list[int], dtype: np.dtype) -> np.ndarray:
    """An aligned array with anything in it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    free = self._free[size]
    try:
      memory = free.pop()
    except IndexError:
      memory = aligned_zeros([size], np.uint8)
    lease = _Lease(memory)
    weakref.finalize(lease, self._put_back, free, memory).atexit = False
    return np.asarray(lease).view(dtype).reshape(shape)

  def _put_back(self, free, memory):
    if len(free) < self._limit:
      free.append(memory)


class _Lease:
  """What the arrays on borrowed memory hold on to; it goes when the last of them goes."""

  def __init__(self, memory: np.ndarray):
    self.__array_interface__ = memory.__array_interface__
