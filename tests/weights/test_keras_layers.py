"""Layers by name: one array for a name."""

import numpy as np
import pytest

from rethink_tf.errors import UserError
from rethink_tf.weights import keras_layers
from rethink_tf.weights.keras_layers import Layer


def test_kinds_of_variables():
  layers = [Layer('a', [np.zeros([1, 1, 2, 2])]), Layer('b', [np.zeros(2)] * 4), Layer('c', [np.zeros(2)] * 3)]
  arrays, notes = keras_layers.by_name(layers, 'x')
  assert list(arrays) == ['a/kernel', 'b/gamma', 'b/beta', 'b/moving_mean', 'b/moving_variance', 'c/variable_0',
                          'c/variable_1', 'c/variable_2'] and notes == ()


def test_two_layers_of_one_name_are_refused():
  with pytest.raises(UserError, match="x: has two layers 'a'"):
    keras_layers.by_name([Layer('a', [np.zeros([1, 1, 2, 2])])] * 2, 'x')
