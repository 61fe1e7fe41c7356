"""Layers with an output per class, taken from a run whose classes have another order, by name."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.weights.contents import Array, Contents
from rethink_tf.weights.detectron2 import Entry

# By the paths of their variables, with the number of outputs before those of classes, and for each class.
_LAYERS = (
  (re.compile(r'(?:box_predictor|cascade/predictors/\d+)/classes/(?:kernel|bias)'), 1, 1),  # the background is first
  (re.compile(r'(?:box_predictor|cascade/predictors/\d+)/deltas/(?:kernel|bias)'), 0, 4),
  (re.compile(r'mask_predictor/conv/(?:kernel|bias)'), 0, 1),
  (re.compile(r'linear/(?:kernel|bias)'), 0, 1),
)
_PARTS = ('detector', 'classifier')
# Patterns of the layers with an output per class, for PretrainedWeights.new: of this package, of Detectron2's names.
_PATTERNS = ('box_predictor/*', 'cascade/predictors/*', 'mask_predictor/*', 'linear/*', 'roi_heads.box_predictor.*',
             'roi_heads.mask_head.predictor.*', 'linear.*')
_CLASSES = ('box_predictor/classes/bias', 'linear/bias', 'roi_heads.box_predictor.cls_score.bias',
            'roi_heads.box_predictor.0.cls_score.bias', 'linear.bias')


def match(contents: Contents, arrays: Mapping[str, Array], classes: Sequence[str] | None, part: str,
          new: Sequence[str] = (), entries: Mapping[str, Entry] | None = None) -> dict[str, Array]:
  """Return the arrays of a file with the outputs of class layers in the order of `classes`.

  classes: names of the model's classes; None: not known. new: patterns of names that are not loaded.
  entries: of the model, whose values are kept for classes that only it has; None: there may be none.

  Raises:
    UserError: the file has other classes, and its class layers are not among `new`.
  """
  arrays = dict(arrays)
  layers = {name: layer for name in arrays for layer in _LAYERS if layer[0].fullmatch(name)}
  layers = {name: layer for name, layer in layers.items() if not any(fnmatch.fnmatch(name, one) for one in new)}
  if classes is None or part not in _PARTS or contents.own and not layers:
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
    common = [name for name in classes if name in names]
    if entries is not None and common:
      logging.info('%s: %d of %d classes have their outputs from it (%s); the others start anew', contents.path,
                   len(common), len(classes), ', '.join(common[:8]))
      for name, (_, before, width) in layers.items():
        if name in entries:
          initial = entries[name].variable.numpy()
          arrays[name] = _merged(np.asarray(arrays[name]), initial, names, classes, before, width)
      return arrays
    keep = ', or PretrainedWeights.match_classes = True to keep those of the classes of the same name' if common else ''
    raise UserError(f'{contents.path}: was trained on other classes ({counts}): set PretrainedWeights.new = '
                    f'{patterns(layers)} to start the layers with an output per class anew{keep}')
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


def _merged(array: np.ndarray, initial: np.ndarray, names: Sequence[str], classes: Sequence[str], before: int,
            width: int) -> np.ndarray:
  """Return the model's initial values with the outputs of the file for the classes that both have."""
  sizes = [before + width * len(one) for one in (names, classes)]
  if array.shape[-1] != sizes[0] or initial.shape[-1] != sizes[1]:  # class-agnostic
    return array
  merged = initial.astype(array.dtype)
  merged[..., :before] = array[..., :before]
  for k, name in enumerate(classes):
    if name in names:
      there = before + width * names.index(name)
      merged[..., before + width * k:before + width * (k + 1)] = array[..., there:there + width]
  return merged


def patterns(names: Iterable[str]) -> tuple[str, ...]:
  """Return the patterns for PretrainedWeights.new of the class layers among names."""
  names = list(names)
  return tuple(pattern for pattern in _PATTERNS if fnmatch.filter(names, pattern))


def check_shapes(path: str, entries: Mapping[str, Entry], arrays: Mapping[str, Array], new: Sequence[str]) -> None:
  """Compare the numbers of classes of a model and of a file that does not name its classes.

  Raises:
    UserError: they differ; it names PretrainedWeights.new.
  """
  for name in _CLASSES:
    if name not in entries or name not in arrays or any(fnmatch.fnmatch(name, pattern) for pattern in new):
      continue
    background = not name.startswith('linear')
    there, here = (int(shape[0]) - background for shape in (arrays[name].shape, entries[name].variable.shape))
    if there != here:
      raise UserError(f'{path}: was trained on {there} classes, the model has {here}: set PretrainedWeights.new = '
                      f'{patterns(entries)} to start the layers with an output per class anew')
