"""Activations that are computed again in the backward pass instead of being kept (Chen et al. 2016, section 4).

tf.recompute_grad is not used: what keeps its second computation apart from the first is a comparison of a boolean with
itself, which XLA folds away; it then merges the two computations and keeps every activation after all.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def recomputed(block: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
  """The same function of one tensor, of which the backward pass keeps the input alone and then calls it again.

  Results and gradients, of the input and of all variables that `block` reads, are the same up to the order in which the
  gradients of x are added up. `block` must be free of side effects: it runs twice.
  """
  @tf.custom_gradient
  def call(x):
    def gradient(dy, variables=None):
      variables = list(variables or ())
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        again = _once_there(x, dy)
        tape.watch([again, *variables])
        y = block(again)
      dx, *rest = tape.gradient(y, [again, *variables], dy, unconnected_gradients='zero')
      return (dx, rest) if variables else dx

    return block(x), gradient

  return call


def _once_there(x, dy):
  """x, to be had only after dy: else the copy could be made, or merged with the original, in the forward pass."""
  with tf.control_dependencies([dy]):  # what TensorFlow's executor goes by
    # What XLA goes by, which knows no control dependencies: 0 times a float is not 0 to it (NaN stays NaN).
    return x + 0.0 * tf.cast(tf.reshape(dy, [-1])[0], x.dtype)
