"""Batches for test-time augmentation: the images of an evaluation at several sizes."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from rethink_tf.data.augment import Resize
from rethink_tf.data.batching import BatchedInput, BufferPool, EachImageOnce, aligned_zeros
from rethink_tf.data.buckets import assign
from rethink_tf.data.detection.input import NOT_SCORED, EvalInput, write_image
from rethink_tf.errors import UserError
from rethink_tf.structures import Views


class ViewsInput(EachImageOnce, BatchedInput):
  """Batches for test-time augmentation: every image once, resized from the original to several sizes.

  Args:
    inputs: input of the plain evaluation, which provides source, batch size, workers and max_unreadable.
    resizes: one for each view. The images of a batch have the same padded shape in every view.

  Raises:
    UserError: no views.
  """

  def __init__(self, inputs: EvalInput, resizes: Sequence[Resize]):
    if not resizes:
      raise UserError('ViewsInput: there are no views; use one size or more')
    self._num_views = len(resizes)
    super().__init__(inputs.source, inputs.batch_size, inputs.max_unreadable, inputs.workers)
    self._sizes = [resize.largest_sizes(inputs.source.sizes) for resize in resizes]  # V of [N, 2]
    self._padded_shapes = [resize.padded_shapes for resize in resizes]
    buckets = np.stack([assign(*pair) for pair in zip(self._sizes, self._padded_shapes, strict=True)], axis=1)  # [N, V]
    combinations, members = np.unique(buckets, axis=0, return_inverse=True)
    self._batches = [(combinations[i], images[start:start + inputs.batch_size])
                     for i, images in ((i, np.flatnonzero(members.ravel() == i)) for i in range(len(combinations)))
                     for start in range(0, len(images), inputs.batch_size)]
    self.num_batches = len(self._batches)
    self._buffers = BufferPool()

  def batch(self, step: int) -> Views:
    """Return batch number `step` of num_batches."""
    buckets, indices = self._batches[step]
    shapes = [shapes[bucket].tolist() for shapes, bucket in zip(self._padded_shapes, buckets, strict=True)]
    b, used = self.batch_size, len(indices)
    image_ids, original_sizes = aligned_zeros([b], np.int64) - 1, aligned_zeros([b, 2], np.int32)
    image_ids[:used], original_sizes[:used] = self.source.image_ids[indices], self.source.sizes[indices]
    original_sizes[used:] = shapes[0]
    views = Views(image_ids, original_sizes,
                  images=tuple(self._buffers.take([b, *shape, 3], np.uint8) for shape in shapes),
                  image_sizes=tuple(np.tile(np.array(shape, np.float32), (b, 1)) for shape in shapes),
                  view_scales=tuple(np.ones([b, 2], np.float32) for _ in shapes))
    for images, image_sizes, scales, sizes in zip(*views[2:], self._sizes, strict=True):
      images[used:] = 0
      image_sizes[:used] = sizes[indices]
      scales[:used] = sizes[indices] / self.source.sizes[indices]

    def fill(row: int, index: int) -> None:
      example = self._load(index, NOT_SCORED)
      for images, sizes in zip(views.images, self._sizes, strict=True):
        write_image(images[row], None if example is None else example.image, sizes[index])

    self._fill_rows(fill, indices)
    return views

  @property
  def _limited_by(self) -> str:
    return 'EvalInput'

  def _signature(self) -> Views:
    def views(shape: list[int | None], dtype: tf.DType) -> tuple[tf.TensorSpec, ...]:
      return tuple(tf.TensorSpec([self.batch_size, *shape], dtype) for _ in range(self._num_views))

    return Views(tf.TensorSpec([self.batch_size], tf.int64), tf.TensorSpec([self.batch_size, 2], tf.int32),
                 views([None, None, 3], tf.uint8), views([2], tf.float32), views([2], tf.float32))
