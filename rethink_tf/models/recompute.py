"""Gradient checkpointing: activations are recomputed in the backward pass (Chen et al. 2016, section 4).

tf.recompute_grad is not used: it separates the second computation from the first by comparing a boolean with itself.
XLA folds that away, merges the two computations and keeps all activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf


def recomputed(block: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
  """Return the same function of one tensor, with only its input kept for the backward pass, which calls it again.

  Results and gradients, of the input and of all variables that `block` reads, are the same up to the order in which
  gradients of x are summed. `block` must have no side effects: it runs twice.
  """
  @tf.custom_gradient
  def call(x: tf.Tensor):
    def gradient(dy: tf.Tensor, variables: Sequence[tf.Variable] | None = None):
      variables = list(variables or ())
      with tf.GradientTape(watch_accessed_variables=False) as tape:
        delayed = _delayed(x, dy)
        tape.watch([delayed, *variables])
        y = block(delayed)
      dx, *rest = tape.gradient(y, [delayed, *variables], dy, unconnected_gradients='zero')
      return (dx, rest) if variables else dx

    return block(x), gradient

  return call


def _delayed(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
  """Return x, available only after dy, so that nothing is recomputed, or merged with the original, before."""
  with tf.control_dependencies([dy]):  # for TensorFlow's executor
    # For XLA, which ignores control dependencies and does not simplify 0 times a float (NaN stays NaN).
    return x + 0.0 * tf.cast(tf.reshape(dy, [-1])[0], x.dtype)
