"""Layers with an output per class, loaded by class name from weights with other classes or another order of them."""

from __future__ import annotations

import collections
import fnmatch
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.weights.contents import COCO_CLASSES, Array, Contents
from rethink_tf.weights.detectron2 import Entry, converted_shape

_BOXES = r'(?:box_predictor|cascade/predictors/\d+)/'
_BOXES_2 = r'roi_heads\.box_predictor(?:\.\d+)?\.'
# By the names of their arrays, with the number of outputs before those of classes, and for each class. The outputs are
# the last axis of a variable.
_LAYERS = (
  (re.compile(rf'{_BOXES}classes/(?:kernel|bias)|{_BOXES_2}cls_score\.(?:weight|bias)'), 1, 1),  # background first
  (re.compile(rf'{_BOXES}deltas/(?:kernel|bias)|{_BOXES_2}bbox_pred\.(?:weight|bias)'), 0, 4),
  (re.compile(r'mask_predictor/conv/(?:kernel|bias)|roi_heads\.mask_head\.predictor\.(?:weight|bias)'), 0, 1),
  (re.compile(r'linear/(?:kernel|bias)'), 0, 1),
)
_PARTS = ('detector', 'classifier')
ALLOW_NONE = 'allow_none'  # a value of PretrainedWeights.match_classes
# Patterns of the layers with an output per class, for PretrainedWeights.new: of this package, of Detectron2's names.
_PATTERNS = ('box_predictor/*', 'cascade/predictors/*', 'mask_predictor/*', 'linear/*', 'roi_heads.box_predictor.*',
             'roi_heads.mask_head.predictor.*', 'linear.*')
_CLASSES = ('box_predictor/classes/bias', 'linear/bias', 'roi_heads.box_predictor.cls_score.bias',
            'roi_heads.box_predictor.0.cls_score.bias', 'linear.bias')
# Heads that a detector has for some data only.
_HEADS = ('mask_head/', 'mask_predictor/', 'keypoint_head/', 'keypoint_predictor/', 'roi_heads.mask_head.',
          'roi_heads.keypoint_head.')


class Columns(NamedTuple):
  """The outputs of a layer taken from a file: class k takes those of the file's class place[k], or none (None)."""

  there: int  # number of classes of the file
  places: tuple[int | None, ...]

  @property
  def all_found(self) -> bool:
    return None not in self.places


def named(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
  """Return the names of the classes of a file as PretrainedWeights.file_classes gives them.

  Raises:
    UserError: neither 'coco' nor names.
  """
  if given is None:
    return None
  if given == 'coco':
    return COCO_CLASSES
  if isinstance(given, str) or not given or not all(isinstance(name, str) for name in given):
    raise UserError(f"PretrainedWeights.file_classes = {given!r}: use 'coco', or the names of all classes in the order "
                    "of the file, as ('cat', 'dog')")
  return tuple(given)


def match(contents: Contents, entries: Mapping[str, Entry], arrays: Mapping[str, Array],
          classes: Sequence[str] | None, part: str, new: Sequence[str] = (),
          merge: bool | str = False) -> dict[str, Entry]:
  """Return the entries of a model whose class layers take the outputs of a file by class name.

  classes: names of the model's classes; None: not known. new: patterns of names that are not loaded.
  merge: classes that only the model has keep their initial values, those that only the file has are left out; with
  ALLOW_NONE also if no class is common.

  Raises:
    UserError: the file has other classes, and its class layers are not among `new`; with `merge` True, none is common.
  """
  entries = dict(entries)
  layers = {name: layer for name in arrays for layer in _LAYERS if layer[0].fullmatch(name) and name in entries}
  layers = {name: layer for name, layer in layers.items() if not any(fnmatch.fnmatch(name, one) for one in new)}
  if classes is None or part not in _PARTS or not layers and (contents.own or contents.classes):
    return entries
  names = names_of(contents)
  if names is None:
    _handle_unnamed(contents, layers, new, merge)
    return entries
  _check_number(contents, entries, arrays, layers, len(names))
  names, classes = ([unicodedata.normalize('NFC', name) for name in each] for each in (names, classes))
  columns = _columns(names, classes)
  if not columns.all_found or len(names) != len(classes):
    common = [name for name, place in zip(classes, columns.places, strict=True) if place is not None]
    if not merge or not common and merge != ALLOW_NONE:
      raise _other_classes(contents, names, classes, layers, common, merge)
    _log_common(contents.path, names, classes, common)
  elif columns.places != tuple(range(len(classes))):
    logging.info('%s: its classes have another order; they are matched by name', contents.path)
  else:
    return entries
  for name, (_, before, width) in layers.items():
    entries[name] = _by_class(entries[name], columns, before, width)
  return entries


def _handle_unnamed(contents: Contents, layers: Iterable[str], new: Sequence[str], merge: bool | str) -> None:
  """Refuse a file without names of its classes if they are to be matched, else warn."""
  if merge and layers:
    raise UserError(f'{contents.path}: does not name its classes: set PretrainedWeights.file_classes to their names '
                    "in its order, 'coco' for the 80 of COCO, or PretrainedWeights.new = "
                    f'{patterns(layers)} to reinitialize the layers with one output per class')
  if not new:
    logging.warning('%s: does not name its classes: its class k becomes class k here', contents.path)


def _log_common(path: str, names: Sequence[str], classes: Sequence[str], common: Sequence[str]) -> None:
  """Log which of the model's `classes` take outputs of a file, whose classes are `names`."""
  spelling = _spelling(names, classes)
  if common:
    logging.info('%s: %d of %d classes take their outputs from it (%s); the others are reinitialized%s', path,
                 len(common), len(classes), ', '.join(common[:8]), spelling)
  else:
    logging.warning('%s: it has none of the %d classes by name: their outputs are reinitialized%s', path, len(classes),
                    spelling)


def match_heads(contents: Contents, entries: Mapping[str, Entry],
                arrays: Mapping[str, Array]) -> tuple[dict[str, Entry], dict[str, Array]]:
  """Return entries and arrays without heads that only the model has, which stay random, or that only the file has."""
  def without(ours: Mapping[str, object], theirs: Mapping[str, object]) -> set[str]:
    return {head for head in _HEADS if any(name.startswith(head) for name in ours)
            and not any(name.startswith(head) for name in theirs)}

  anew, unused = without(entries, arrays), without(arrays, entries)
  for heads, what in ((anew, 'is not in it and is reinitialized'), (unused, 'is not loaded: the model has none')):
    if heads:
      names = ', '.join(sorted(head.rstrip('/.').rpartition('.')[2] for head in heads))
      logging.info('%s: %s %s', contents.path, names, what)
  return ({name: entry for name, entry in entries.items() if not name.startswith(tuple(anew))},
          {name: array for name, array in arrays.items() if not name.startswith(tuple(unused))})


def names_of(contents: Contents) -> Sequence[str] | None:
  """Return the names of the classes of a file in their order, of a run those it has recorded; None if not known."""
  if contents.classes or not contents.own or not contents.checkpoint:
    return contents.classes
  run = os.path.dirname(os.path.dirname(contents.checkpoint.rstrip('/')))
  try:
    found = identity.read(RunFolder(run, create=False))
  except UserError:
    return None
  return None if found is None or not found.categories else [entry['name'] for entry in found.categories]


def _columns(names: Sequence[str], classes: Sequence[str]) -> Columns:
  """Return the index among `names` of each class; the k-th of equal names is the k-th."""
  places: dict[str, list[int]] = collections.defaultdict(list)
  for place, name in enumerate(names):
    places[name].append(place)
  return Columns(len(names), tuple(places[name].pop(0) if places[name] else None for name in classes))


def _check_number(contents: Contents, entries: Mapping[str, Entry], arrays: Mapping[str, Array],
                  layers: Iterable[str], number: int) -> None:
  for name in layers:
    if name in _CLASSES:
      there = _outputs(entries[name], arrays[name]) - _background(name)
      if there != number:
        raise UserError(f'{contents.path}: has outputs for {there} classes, and {number} names of classes: give '
                        'PretrainedWeights.file_classes the name of each, in the order of the file')


def _other_classes(contents: Contents, names: Sequence[str], classes: Sequence[str], layers: Iterable[str],
                   common: Sequence[str], merge: bool | str) -> UserError:
  here, there = ([name for name in one if name not in other] for one, other in ((classes, names), (names, classes)))
  first = f'{here[0]!r} is only here' if here else f'{there[0]!r} is only there' if there else 'one is repeated'
  counts = f'{len(names)} there, {len(classes)} here; {first}'
  keep = ', or PretrainedWeights.match_classes = True to keep those of the classes of the same name' if common else ''
  keep = keep if common or not merge else f', or PretrainedWeights.match_classes = {ALLOW_NONE!r}'
  none = f', none of which has the name of one here{_spelling(names, classes)}' if merge else ''
  return UserError(f'{contents.path}: was trained on other classes{none} ({counts}): set PretrainedWeights.new = '
                   f'{patterns(layers)} to reinitialize the layers with one output per class{keep}')


def _spelling(names: Sequence[str], classes: Sequence[str]) -> str:
  """Return the classes that differ from one of the file only in capitals and separators, '' if none does."""
  def key(name: str) -> str:
    return re.sub(r'[\W_]+', '', name.casefold())

  there = {key(name): name for name in names}
  found = [f'{name!r} is {there[key(name)]!r} there' for name in classes if name not in names and key(name) in there]
  return f' ({", ".join(found[:3])}{", …" if found[3:] else ""}: rename it to keep its outputs)' if found else ''


def _by_class(entry: Entry, columns: Columns, before: int, width: int) -> Entry:
  """Return an entry that takes the outputs of a file by class, and the model's initial values for classes it lacks."""
  initial = None if columns.all_found else np.array(entry.variable.numpy())
  wanted = int(entry.variable.shape[-1])

  def convert(array: np.ndarray) -> np.ndarray:
    array = entry.convert(array)
    sizes = [before + width * number for number in (columns.there, len(columns.places))]
    if [array.shape[-1], wanted] != sizes:  # class-agnostic, or of another shape, which is refused
      return array
    found = np.empty([*array.shape[:-1], wanted], array.dtype) if initial is None else initial.astype(array.dtype)
    if found.shape[:-1] != array.shape[:-1]:
      return array
    found[..., :before] = array[..., :before]
    for k, place in enumerate(columns.places):
      if place is not None:
        here, there = before + width * k, before + width * place
        found[..., here:here + width] = array[..., there:there + width]
    return found

  return Entry(entry.variable, convert)


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
    there, here = _outputs(entries[name], arrays[name]), int(entries[name].variable.shape[-1])
    if there != here:
      raise UserError(f'{path}: was trained on {there - _background(name)} classes, the model has '
                      f'{here - _background(name)}: set PretrainedWeights.new = {patterns(entries)} to '
                      'reinitialize the layers with one output per class, or name its classes '
                      '(PretrainedWeights.file_classes) and keep those of the same name (match_classes)')


def _outputs(entry: Entry, array: Array) -> int:
  shape = converted_shape(entry, tuple(array.shape)) or tuple(array.shape)
  return int(shape[-1]) if shape else 0


def _background(name: str) -> int:
  return int(not name.startswith('linear'))
