"""Stochastic gradient descent of the detection code bases (recipe of section 4).

In Keras' SGD the velocity contains the learning rate, so that after each drop of the rate it is ten times too large.
Here v = m·v + g and w = w - lr·v, with the decay in g.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError


@gin.register
class SGD(tf_keras.optimizers.Optimizer):
  """Momentum SGD of the paper's recipe: v = momentum·v + g + decay·w;  w -= rate·v.

  The last component of a variable's name tells its kind: `bias`, `gamma` or `beta` (norm parameters); anything else is
  a kernel. Weight decay applies to kernels and never to norm parameters.
  bias_rule: 'detectron': biases and norm betas have twice the learning rate and no decay; 'detectron2': biases have the
  learning rate and the decay of kernels.
  nesterov: w -= rate·(g + momentum·v) instead of rate·v (Goyal et al., section 5.1; not for detection).
  clip_norm: upper bound of the global norm of all gradients. Sparse gradients are converted to dense ones.

  Raises:
    UserError: an argument is out of range.
  """

  def __init__(
    self,
    learning_rate: float | tf_keras.optimizers.schedules.LearningRateSchedule = 0.02,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    bias_rule: str = 'detectron',
    clip_norm: float | None = None,
    nesterov: bool = False,
    name: str = 'SGD',
  ):
    # weight_decay=None: Keras' decay bypasses the velocity. jit_compile=False: the update is a single kernel anyway.
    super().__init__(name=name, weight_decay=None, global_clipnorm=clip_norm, jit_compile=False)
    if not 0 <= momentum < 1:
      raise UserError(f'SGD.momentum = {momentum} must lie in [0, 1)')
    if weight_decay < 0:
      raise UserError(f'SGD.weight_decay = {weight_decay} must not be negative')
    if bias_rule not in ('detectron', 'detectron2'):
      raise UserError(f"SGD.bias_rule = '{bias_rule}' must be 'detectron' or 'detectron2'")
    self.momentum, self.decay, self.bias_rule, self.nesterov = momentum, weight_decay, bias_rule, nesterov
    self._learning_rate = self._build_learning_rate(learning_rate)

  def build(self, var_list: Sequence[tf.Variable]) -> None:
    """Create the velocities, float32 zeros of the variables' shapes."""
    super().build(var_list)
    if not getattr(self, '_built', False):
      self.velocities = [self.add_variable_from_reference(variable, 'velocity') for variable in var_list]
      self._rules = [self.rule(variable.name) for variable in var_list]
      self._built = True

  def rule(self, name: str) -> tuple[float, float]:
    """Return (factor of the learning rate, weight decay) of a variable by its name."""
    kind = name.split(':')[0].rsplit('/', 1)[-1]
    if self.bias_rule == 'detectron' and kind in ('bias', 'beta'):
      return 2., 0.
    return 1., 0. if kind in ('gamma', 'beta') else self.decay

  def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
    """Apply one gradient, of the shape of its variable; Keras calls it for each variable."""
    if isinstance(gradient, tf.IndexedSlices):
      gradient = tf.convert_to_tensor(gradient)
    # By index: the variable's name on the second replica ends in `replica_1`.
    index = self._index_dict[self._var_key(variable)]
    velocity, (multiple, decay) = self.velocities[index], self._rules[index]
    if decay:
      gradient += decay * variable
    tf.raw_ops.ResourceApplyMomentum(
      var=variable.handle, accum=velocity.handle, lr=tf.cast(self.learning_rate, variable.dtype) * multiple,
      grad=tf.cast(gradient, variable.dtype), momentum=tf.cast(self.momentum, variable.dtype),
      use_nesterov=self.nesterov)

  def get_config(self) -> dict[str, Any]:
    return {'name': self.name, 'learning_rate': self._serialize_hyperparameter(self._learning_rate),
            'momentum': self.momentum, 'weight_decay': self.decay, 'bias_rule': self.bias_rule,
            'clip_norm': self.global_clipnorm, 'nesterov': self.nesterov}
