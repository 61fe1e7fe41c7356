"""Layers of a Keras model in a file, by name or by number alone, as {'conv1_conv/kernel': array}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rethink_tf.errors import UserError, excerpt
from rethink_tf.weights import keras_order
from rethink_tf.weights.contents import Array

_KINDS = {1: ('kernel',), 2: ('kernel', 'bias'), 4: ('gamma', 'beta', 'moving_mean', 'moving_variance')}


class Layer(NamedTuple):
  """The variables of a layer in Keras' order. name: None if the file only numbers its layers."""

  name: str | None
  variables: Sequence[Array]


def by_name(layers: Sequence[Layer], path: str) -> tuple[dict[str, Array], tuple[str, ...]]:
  """Return the arrays of layers that have variables, in the order of the model, and notes.

  Raises:
    UserError: numbered layers that are not those of a network of keras.applications, or two layers of one name.
  """
  if all(layer.name for layer in layers):
    return _arrays({id(layer): layer.name for layer in layers}, layers, path), ()
  shapes = {id(layer): tuple(tuple(array.shape) for array in layer.variables) for layer in layers}
  convolutions, norms, matrices = (
    [layer for layer in layers if len(shapes[id(layer)][0]) == rank and len(layer.variables) in counts]
    for rank, counts in ((4, (1, 2)), (1, (4,)), (2, (2,))))
  names_of, kinds = keras_order.vgg, (convolutions, matrices)
  if norms:
    names_of, kinds = keras_order.resnet, (convolutions, norms)
  found = names_of(*([shapes[id(layer)] for layer in kind] for kind in kinds), path)
  names = {id(layer): name for kind, given in zip(kinds, found, strict=True)
           for layer, name in zip(kind, given, strict=True)}
  if norms and len(matrices) == 1:
    names[id(matrices[0])] = 'predictions'
  note = 'its layers are numbered: they were matched with those of keras.applications by their order and shapes'
  return _arrays(names, [layer for layer in layers if id(layer) in names], path), (note,)


def _arrays(names: Mapping[int, str], layers: Sequence[Layer], path: str) -> dict[str, Array]:
  arrays = {}
  for layer in layers:
    name = names[id(layer)]
    if any(f'{name}/{kind}' in arrays for kind in ('kernel', 'gamma')):
      raise UserError(f'{path}: has two layers {excerpt(name)}: save the network alone')
    kinds = _KINDS.get(len(layer.variables)) or tuple(f'variable_{i}' for i in range(len(layer.variables)))
    arrays |= {f'{name}/{kind}': array for kind, array in zip(kinds, layer.variables, strict=True)}
  return arrays
