"""TensorFlow checkpoints of Keras models: model.save_weights('x', save_format='tf') and SavedModels of tf_keras.

Their layers are numbered in the order of the model (layer_with_weights-0, …), and have the names of their variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rethink_tf.weights import keras_layers
from rethink_tf.weights.contents import Contents
from rethink_tf.weights.keras_applications import contents
from rethink_tf.weights.keras_layers import Layer
from rethink_tf.weights.tf_models import Shape, open_checkpoint, tensor

_ORDER = ('kernel', 'bias', 'gamma', 'beta', 'moving_mean', 'moving_variance')


def recognizes(shapes: Mapping[str, Shape]) -> bool:
  """Return whether variables are those of such a network; networks of tf-models-official have no biases."""
  return _root(shapes) is not None


def _root(shapes: Mapping[str, Shape]) -> str | None:
  for name in sorted(shapes, key=len):
    match = re.fullmatch(r'((?:.*/)?)layer_with_weights-0/kernel', name)
    is_first = match and len(shapes[name]) == 4 and shapes[name][2] == 3  # of three channels
    if is_first and f'{match[1]}layer_with_weights-0/bias' in shapes:
      return match[1]
  return None


def read(prefix: str, path: str) -> Contents:
  """Return the contents of a checkpoint.

  Raises:
    UserError: damaged, or not a network of keras.applications that is built here.
  """
  reader, shapes = open_checkpoint(prefix, path)
  root, found = _root(shapes) or '', {}
  for name, shape in shapes.items():
    match = re.fullmatch(r'layer_with_weights-(\d{1,6})/(\w+)', name.removeprefix(root))
    if match and name.startswith(root) and match[2] in _ORDER:
      found.setdefault(int(match[1]), {})[match[2]] = tensor(reader, name, shape, path)
  layers = [Layer(None, [variables[kind] for kind in _ORDER if kind in variables])
            for _, variables in sorted(found.items())]
  arrays, notes = keras_layers.by_name(layers, path)
  return contents(arrays, path, 'checkpoint of TensorFlow', notes)
