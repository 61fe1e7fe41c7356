"""Base class of all inputs: a thread pool that fills batches, the tf.data.Dataset around it, unreadable images.

A batch is assembled in NumPy as a pure function of its number (`batch(step)`): a thread pool reads, decodes and
augments the images directly into the rows of the batch, in memory that TensorFlow takes over without a copy. tf.data
only counts steps and prefetches a few batches.
"""

import abc
import atexit
import collections
import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data.images import ImageError
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import retries
from rethink_tf.structures import Batch, Example, Input, LabelledImages, LeftOut, Source, Views

GREY = 127  # value of the pixels that no image covers, or an unreadable one
_LOGGED = 10  # occurrences that are logged one by one; later ones at each power of ten
_ALIGNMENT = 64  # bytes; TensorFlow takes over arrays that begin at a multiple of it without a copy
# Named in the errors of an input that is a graph (detection/graph_input.py).
_OF_A_GRAPH = ('DatasetToSingleElement', 'ParallelMapDataset', 'IteratorGetNext')
WAITING_SECONDS = 60.0  # for an image, after which a line names it, and again after twice that time, ...
_PARALLEL_BATCHES = 2  # keeps the thread pool busy while the last images of a batch are finished

_in_flight: set[object] = set()  # calls from TensorFlow's threads into Python


@atexit.register
def _wait_for_tf_data() -> None:
  """Wait at exit until tf.data has filled its buffers and none of its threads is in Python code.

  Python would kill such a thread during shutdown, and the iterator would wait for it forever.
  """
  idle = 0
  while idle < 5:
    time.sleep(0.01)
    idle = 0 if _in_flight else idle + 1


class StepFacts(NamedTuple):
  """Contents of the batch of a training step, for metrics and messages."""

  epoch: int  # epoch in which the batch is completed
  image_ids: np.ndarray  # int64 [B]
  instances: int
  pixels: int  # of the resized images
  padded_shape: tuple[int, int]  # height and width of each padded image

  @property
  def padded_pixels(self) -> int:
    """Pixels of the padded images."""
    return len(self.image_ids) * self.padded_shape[0] * self.padded_shape[1]


class BatchShare(NamedTuple):
  """The rows of a global batch that one replica receives: share `index` of `count` equal shares."""

  index: int = 0
  count: int = 1

  def rows(self, batch_size: int) -> slice:
    """Return the rows of this share in a batch of batch_size images."""
    size = batch_size // self.count
    return slice(self.index * size, (self.index + 1) * size)


WHOLE_BATCH = BatchShare()


class BatchedInput(abc.ABC):
  """Batches of a source, by number.

  Args:
    source: images with annotations.
    batch_size: of the global batch.
    max_unreadable: tolerated fraction of images that are missing or unreadable; unless it is 0, one always is.
    workers: threads that read images; None is one per core.

  Attributes: the arguments, and
    unreadable: indices of images that could not be read when they were last tried.
    failure: exception that ended the data set, None so far. TensorFlow wraps it in an OpError of many lines; callers
      raise this one instead.

  Raises:
    UserError: no images, too many missing ones, or a batch size below 1.
  """

  def __init__(self, source: Source, batch_size: int, max_unreadable: float, workers: int | None):
    if batch_size < 1:
      raise UserError(f'{type(self).__name__}: batch_size is {batch_size}; use 1 or more')
    if not 0 <= max_unreadable <= 1:
      raise UserError(f'{self._limited_by}.max_unreadable = {max_unreadable:g}: use a fraction of the images, 0 to 1')
    if len(source.image_ids) == 0:
      raise UserError(f'{source.name}: there are no images in this data set')
    self.source = source
    self.batch_size = batch_size
    self.max_unreadable = max_unreadable
    self.workers = workers
    self.unreadable: set[int] = set()
    self.failure: Exception | None = None
    self._left_out: LeftOut = getattr(source, 'left_out', LeftOut())
    self._check_left_out()
    self._tried: set[int] = set()
    self._lock = threading.Lock()
    self._assembling: dict[object, int] = {}  # calls -> number of the batch
    self._changed = threading.Condition()
    self._batches_a_step = 1  # of this host: one for each of its replicas
    self._pool = ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix='input')
    self._spec = self._signature()
    cv2.setNumThreads(1)  # the pool processes several images in parallel; OpenCV's threads would only compete with it

  @abc.abstractmethod
  def batch(self, step: int) -> Batch | Views | LabelledImages:
    """Return batch number `step` as NumPy arrays."""

  @abc.abstractmethod
  def _signature(self) -> Batch | Views | LabelledImages:
    """Return the named tuple of a batch, with a tf.TensorSpec for each field."""

  def _dataset(self, numbers: tf.data.Dataset, spec: Any = None,
               batch: Callable[[int], Any] | None = None) -> tf.data.Dataset:
    """Return batches of the given numbers in deterministic order; by default those of the method `batch`."""
    spec, assembly = spec or self._spec, _Assembly(functools.partial(self._assemble, batch or self.batch))
    reference = weakref.ref(assembly)

    def assemble(number: tf.Tensor) -> Any:
      specs = tf.nest.flatten(spec)
      tensors = tf.numpy_function(lambda n: reference()(n), [number], [one.dtype for one in specs])
      shaped = [tf.ensure_shape(tensor, one.shape) for tensor, one in zip(tensors, specs, strict=True)]
      return tf.nest.pack_sequence_as(spec, shaped)

    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    result = numbers.map(assemble, num_parallel_calls=_PARALLEL_BATCHES).prefetch(1).with_options(options)
    result.assembly = assembly  # lives as long as the data set, which its iterators hold
    return result

  def _endless(self, start_step: int, context: tf.distribute.InputContext | None) -> tf.data.Dataset:
    """Return batches of steps start_step, start_step + 1, ... by `batch(step, share)`.

    With a context of `strategy.distribute_datasets_from_function`, yields the shares of this host's replicas in turn:
    replica r of R receives the r-th share of every global batch, so that step s has the same images for any R, and a
    host reads only its own images.

    Raises:
      UserError: the batch cannot be divided evenly among the replicas.
    """
    if context is None:
      return self._dataset(count_from(start_step))
    replicas = context.num_replicas_in_sync
    local_replicas = replicas // context.num_input_pipelines
    self._batches_a_step = local_replicas
    if self.batch_size % replicas:
      raise UserError(f'a batch of {self.batch_size} images cannot be divided evenly among {replicas} replicas')
    spec = tf.nest.map_structure(
      lambda one: tf.TensorSpec([self.batch_size // replicas, *one.shape[1:]], one.dtype), self._spec)

    def batch(number: int) -> Any:
      step, replica = divmod(number, local_replicas)
      return self.batch(step, BatchShare(context.input_pipeline_id * local_replicas + replica, replicas))

    return self._dataset(count_from(start_step * local_replicas), spec, batch)

  def _assemble(self, batch: Callable[[int], Any], number: np.int64) -> tuple[np.ndarray, ...]:
    call = object()
    _in_flight.add(call)
    with self._changed:
      self._assembling[call] = int(number)
    try:
      return tuple(tf.nest.flatten(batch(int(number))))
    except Exception as error:
      self.failure = self.failure or error
      raise
    finally:
      _in_flight.discard(call)
      with self._changed:
        del self._assembling[call]
        self._changed.notify_all()

  def wait_for_step(self, step: int, seconds: float) -> bool:
    """Wait at most `seconds` until no batch of a training step is being read; return whether that is so.

    The main thread waits here, in Python, where it handles signals, before it waits for the batch within TensorFlow.
    """
    end = (step + 1) * self._batches_a_step
    with self._changed:
      return self._changed.wait_for(lambda: all(number >= end for number in self._assembling.values()), seconds)

  def _load(self, index: int, consequence: str) -> Example | np.ndarray | None:
    """Read an image; None if it is unreadable, which is counted and logged together with its consequence.

    Raises:
      UserError: too many unreadable images, or a storage error that persists after several attempts.
    """
    self._tried.add(index)
    try:
      example = retries.call(lambda: self.source.load(index), self.source.name)
      self.unreadable.discard(index)  # an earlier error has passed
      return example
    except (ImageError, OSError, tf.errors.OpError) as error:
      if not isinstance(error, ImageError) or retries.is_transient(error):
        raise UserError(f'{self.source.name}: image {self.source.image_ids[index]} cannot be read: '
                        f'{in_one_line(error)}') from error
      message = str(error)
    self._report(self.unreadable, index, f'{message}; {consequence}')
    self._check_unreadable(len(self._tried), message)
    return None

  @property
  def _limited_by(self) -> str:
    """Name in gin of the constructor whose max_unreadable applies."""
    return type(self).__name__

  def _too_many(self, count: int, images: int) -> bool:
    """Whether `count` missing or unreadable images out of `images` exceed max_unreadable."""
    return count > max(self.max_unreadable * images, 1 if self.max_unreadable else 0)

  def _check_left_out(self) -> None:
    """Raise a UserError if too many of the images that the data set lists are missing."""
    count, images = self._left_out.total, self._left_out.listed
    if self._too_many(count, images):
      raise UserError(f'{self.source.name}: {count} of {images} images cannot be used ({self._left_out}), more than '
                      f'{self._limited_by}.max_unreadable = {self.max_unreadable:g}: complete the data, or raise the '
                      'limit to do without them')

  def _check_unreadable(self, tried: int, message: str) -> None:
    """Raise a UserError if too many of the images tried so far are unreadable; message: of the last one."""
    count, missing = len(self.unreadable), self._left_out.total
    # Relative to at least a hundred images, so that one unreadable image in the first batch is not fatal.
    if self._too_many(count + missing, max(tried, min(100, len(self.source.image_ids))) + missing):
      others = f', and {missing} are missing' if missing else ''
      raise UserError(f'{self.source.name}: {count} of the first {tried} images cannot be read{others}, more than '
                      f'{self._limited_by}.max_unreadable = {self.max_unreadable:g}; repair or remove them. Last '
                      f'error: {message}')

  def _report(self, reported: set[int], index: int, message: str) -> bool:
    """Record an image once and log it: the first ones each, later ones as a count. Return False if it was recorded."""
    with self._lock:
      if index in reported:
        return False
      reported.add(index)
      count = len(reported)
    if count <= _LOGGED:
      logging.warning('%s: %s', self.source.name, message)
    elif str(count).strip('0') == '1':
      logging.warning('%s: %d such images so far: %s', self.source.name, count, message)
    return True

  def _fill_rows(self, fill: Callable[[int, int], None], indices: np.ndarray) -> None:
    """Call fill(row, index) for each row of a batch on the thread pool, and re-raise its first exception.

    Raises:
      UserError: as raised by fill.
      RuntimeError: any other exception; names the image.
    """
    def named(row: int, index: int) -> None:
      try:
        fill(row, index)
      except UserError:
        raise
      except Exception as error:
        raise RuntimeError(f'{self.source.name}: reading image {self.source.image_ids[index]} failed: '
                           f'{type(error).__name__}: {error}') from error

    reads = {self._pool.submit(named, row, index): index for row, index in enumerate(indices.tolist())}
    begin, limit = time.monotonic(), WAITING_SECONDS
    try:
      while True:
        done, pending = wait(reads, max(limit - (time.monotonic() - begin), 0), FIRST_EXCEPTION)
        for read in reads:
          if read in done:
            read.result()
        if not pending:
          return
        seconds = time.monotonic() - begin
        if seconds >= limit:
          limit = 2 * seconds
          self._report_waiting([index for read, index in reads.items() if read.running()], len(reads), seconds)
    finally:
      for read in reads:
        read.cancel()

  def _report_waiting(self, indices: list[int], images: int, seconds: float) -> None:
    if indices:  # else the threads read images of another batch, which reports them
      logging.warning('%s: waiting for data: %d of %d images of a batch have been read for %.0f s, among them image '
                      '%s: is their storage available?', self.source.name, len(indices), images, seconds,
                      self.source.image_ids[indices[0]])


@contextlib.contextmanager
def errors_of(inputs: Input) -> Iterator[None]:
  """Raise the original error of an input's threads, which TensorFlow wraps beyond recognition."""
  try:
    yield
  except tf.errors.OpError as error:
    failure = getattr(inputs, 'failure', None)
    if failure is not None:
      raise failure from error
    if getattr(inputs, 'is_graph', False) and any(operation in error.message for operation in _OF_A_GRAPH):
      raise UserError(f'{inputs.source.name}: an image cannot be read: {in_one_line(error, 200)}: python -m '
                      'rethink_tf.inspect_data with the same options names it; convert the data again') from error
    raise


class EachImageOnce:
  """Mixin of evaluation inputs, which are BatchedInputs: a known number of batches, in a fixed order."""

  num_batches: int

  def dataset(self, share: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
    """Return all batches in a fixed order; with a share (k, n) every n-th from k on, for worker k of n."""
    return self._dataset(tf.data.Dataset.range(share[0], self.num_batches, share[1]))


def count_from(start: int) -> tf.data.Dataset:
  """Return a data set start, start + 1, ...; infinite, so that workers need not agree on its end at each step."""
  return tf.data.Dataset.counter(start, 1)


def aligned_zeros(shape: list[int], dtype: np.dtype) -> np.ndarray:
  """Return zeros whose memory begins at a multiple of _ALIGNMENT bytes."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  buffer = np.zeros(size + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start:start + size].view(dtype).reshape(shape)


class BufferPool:
  """Pool of large arrays that are reused: allocating new memory takes a fifth of the time of an image.

  TensorFlow keeps a reference to an array while it reads it; when the reference is dropped, the memory returns here.
  """

  def __init__(self, limit: int = 3):
    self._limit = limit  # arrays of each size that are kept while unused
    self._free: dict[int, collections.deque[np.ndarray]] = collections.defaultdict(collections.deque)

  def take(self, shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Return an aligned array with undefined contents."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    free = self._free[size]
    try:
      memory = free.pop()
    except IndexError:
      memory = aligned_zeros([size], np.uint8)
    lease = _Lease(memory)
    weakref.finalize(lease, self._put_back, free, memory).atexit = False
    return np.asarray(lease).view(dtype).reshape(shape)

  def _put_back(self, free: collections.deque[np.ndarray], memory: np.ndarray) -> None:
    if len(free) < self._limit:
      free.append(memory)


class _Assembly:
  """A function that TensorFlow calls, holding an input, its threads and its memory.

  TensorFlow keeps every function of tf.numpy_function until the process ends; so it is given a weak reference only.
  """

  def __init__(self, function: Callable[[np.int64], tuple[np.ndarray, ...]]):
    self._function = function

  def __call__(self, number: np.int64) -> tuple[np.ndarray, ...]:
    return self._function(number)


class _Lease:
  """Base object of all arrays that view one buffer of a pool; its finaliser runs when the last of them is gone."""

  def __init__(self, memory: np.ndarray):
    self.__array_interface__ = memory.__array_interface__
