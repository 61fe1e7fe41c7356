"""Layers with an output per class, taken from a run whose classes have another order, by name."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.weights.contents import Array, Contents

# By the paths of their variables, with the number of outputs before those of classes, and for each class.
_LAYERS = (
  (re.compile(r'(?:box_predictor|cascade/predictors/\d+)/classes/(?:kernel|bias)'), 1, 1),  # the background is first
  (re.compile(r'(?:box_predictor|cascade/predictors/\d+)/deltas/(?:kernel|bias)'), 0, 4),
  (re.compile(r'mask_predictor/conv/(?:kernel|bias)'), 0, 1),
  (re.compile(r'linear/(?:kernel|bias)'), 0, 1),
)
_NEW = {'detector': "('box_predictor/*', 'mask_predictor/*')", 'classifier': "('linear/*',)"}


def match(contents: Contents, arrays: Mapping[str, Array], classes: Sequence[str] | None, part: str,
          new: Sequence[str] = ()) -> dict[str, Array]:
  """Return the arrays of a file with the outputs of class layers in the order of `classes`.

  classes: names of the model's classes; None: not known. new: patterns of names that are not loaded.

  Raises:
    UserError: the file has other classes, and its class layers are not among `new`.
  """
  arrays = dict(arrays)
  layers = {name: layer for name in arrays for layer in _LAYERS if layer[0].fullmatch(name)}
  layers = {name: layer for name, layer in layers.items() if not any(fnmatch.fnmatch(name, one) for one in new)}
  if classes is None or part not in _NEW or contents.own and not layers:
    return arrays
  names = _names(contents)
  if names is None:
    if not new:
      logging.warning('%s: does not name its classes: its class k becomes class k here', contents.path)
    return arrays
  if sorted(names) != sorted(classes):
    here, there = ([name for name in one if name not in other] for one, other in ((classes, names), (names, classes)))
    first = f'{here[0]!r} is only here' if here else f'{there[0]!r} is only there' if there else 'one is repeated'
    counts = f'{len(names)} there, {len(classes)} here; {first}'
    raise UserError(f'{contents.path}: was trained on other classes ({counts}): '
                    f'set PretrainedWeights.new = {_NEW[part]} to start the layers with an output per class anew')
  positions = _positions(names, classes)
  if positions != list(range(len(positions))):
    logging.info('%s: its classes have another order; they are matched by name', contents.path)
    for name, (_, before, width) in layers.items():
      arrays[name] = _reordered(np.asarray(arrays[name]), positions, before, width)
  return arrays


def _names(contents: Contents) -> list[str] | None:
  """Return the names of the classes of a run in their order; None if they are not recorded."""
  if not contents.own or not contents.checkpoint:
    return None
  run = os.path.dirname(os.path.dirname(contents.checkpoint.rstrip('/')))
  try:
    found = identity.read(RunFolder(run, create=False))
  except UserError:
    return None
  return None if found is None or not found.categories else [entry['name'] for entry in found.categories]


def _positions(names: Sequence[str], classes: Sequence[str]) -> list[int]:
  """Return where each class stands among `names`, which are the same; the k-th of equal names is the k-th."""
  places: dict[str, list[int]] = {}
  for place, name in enumerate(names):
    places.setdefault(name, []).append(place)
  return [places[name].pop(0) for name in classes]


def _reordered(array: np.ndarray, positions: Sequence[int], before: int, width: int) -> np.ndarray:
  if array.shape[-1] != before + width * len(positions):  # class-agnostic
    return array
  columns = np.concatenate([np.arange(before), *(before + width * place + np.arange(width) for place in positions)])
  return np.take(array, columns.astype(int), axis=-1)
