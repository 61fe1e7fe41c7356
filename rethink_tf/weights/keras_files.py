"""Weight files of Keras: .h5 with lists of names, .weights.h5 with numbered variables, and .keras, which wraps one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from typing import Any

import h5py

from rethink_tf.errors import UserError, excerpt, in_one_line
from rethink_tf.weights import keras_layers
from rethink_tf.weights.contents import MAX_ARRAYS, Array, Contents, check_names, temporary_folder
from rethink_tf.weights.keras_applications import contents
from rethink_tf.weights.keras_layers import Layer

_MAX_CONFIG = 16 << 20  # bytes of config.json
_DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError)


def read(path: str, shown: str) -> Contents:
  """Return the contents of an .h5 file in either of Keras' layouts. shown: its path in messages.

  Raises:
    UserError: damaged, or not a network of keras.applications that is built here.
  """
  try:
    with _opened(path) as file:
      if 'layer_names' not in file.attrs and 'model_weights' not in file:
        arrays, notes = keras_layers.by_name(_numbered(file, shown, {}), shown)
        return contents(arrays, shown, '.weights.h5', notes)
      return contents(_datasets(file, shown), shown, '.h5')
  except _DAMAGED as error:
    raise UserError(
      f'{shown}: not a complete HDF5 weight file ({in_one_line(error, 200)}): download it again') from error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[h5py.File]:
  """Open a file that stays open for its arrays, which are read on demand, and is closed if an error is raised."""
  file = h5py.File(path, 'r')
  try:
    yield file
  except BaseException:
    file.close()
    raise


def recognizes_archive(path: str) -> bool:
  """Return whether a zip archive is a .keras file."""
  try:
    with zipfile.ZipFile(path) as archive:
      return {'config.json', 'model.weights.h5'} <= set(archive.namelist()[:20])
  except (zipfile.BadZipFile, OSError, ValueError, RuntimeError):  # RuntimeError: of a later version of the format
    return False


def read_archive(path: str, shown: str) -> Contents:
  """Return the contents of a .keras file: its weights, by the names of layers in its configuration.

  Raises:
    UserError: damaged, or not a network of keras.applications that is built here.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      config, weights = (archive.getinfo(name) for name in ('config.json', 'model.weights.h5'))
      if any(entry.compress_type != zipfile.ZIP_STORED for entry in (config, weights)) or \
          config.file_size > _MAX_CONFIG or weights.file_size > os.path.getsize(path):
        raise UserError(f'{shown}: its entries are compressed: save the model again with Keras')
      names = _names_of_layers(json.loads(archive.read(config)))
      unpacked = os.path.join(temporary_folder(), 'model.weights.h5')
      with archive.open(weights) as source, open(unpacked, 'wb') as target:
        shutil.copyfileobj(source, target, 1 << 22)
    with _opened(unpacked) as file:
      arrays, notes = keras_layers.by_name(_numbered(file, shown, names), shown)
      return contents(arrays, shown, '.keras', notes)
  except (*_DAMAGED, zipfile.BadZipFile, RecursionError) as error:
    raise UserError(f'{shown}: not a complete .keras file ({in_one_line(error, 200)}): download it again') from error


def _datasets(file: h5py.File, path: str) -> dict[str, Array]:
  """Return {'conv1_conv/kernel': dataset}, by the lists of names that Keras stores as attributes.

  The weights of a model inside another one are listed under the inner model's name, each with that of its layer.
  """
  root = file['model_weights'] if 'model_weights' in file else file
  names = list(itertools.islice(_names(root), MAX_ARRAYS + 1))
  check_names([f'{layer}/{weight}' for layer, weight in names], path)
  datasets = {}
  for layer, weight in names:
    dataset = _checked(root[layer][weight], f'{layer}/{weight}', file, path)
    *parents, kind = weight.split(':')[0].split('/')
    name = f'{parents[-1] if parents else layer}/{kind}'
    if name in datasets:
      raise UserError(f'{path}: has two arrays {excerpt(name)}: save the network alone')
    datasets[name] = dataset
  return datasets


def _checked(dataset: Any, name: str, file: h5py.File, path: str) -> h5py.Dataset:
  """Return a data set, which may refer to any other file of this machine, if it is an array in its own file."""
  if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual or \
      dataset.file.filename != file.filename or dataset.dtype.kind not in 'fiu':
    raise UserError(f'{path}: {excerpt(name)} is not an array of numbers in this file: download it again')
  return dataset


def _names(root: h5py.Group) -> Iterator[tuple[str, str]]:
  """Yield the names of layers, also of those that a file lists many times, with those of their weights."""
  for layer in map(_text, root.attrs['layer_names']):
    for weight in map(_text, root[layer].attrs['weight_names']):
      yield layer, weight


def _text(name: bytes | str) -> str:
  return name.decode() if isinstance(name, bytes) else str(name)


def _numbered(file: h5py.File, path: str, names: dict[str, str]) -> list[Layer]:
  """Return the layers <container>/<class>_<n>/vars/<k> of the largest container; Keras 3 also stores their names."""
  found: dict[str, dict[str, dict[int, h5py.Dataset]]] = {}
  seen = []

  def visit(name: str, item: Any) -> bool | None:
    seen.append(name)
    match = re.fullmatch(r'(?:(.+)/)?([^/]+)/vars/(\d{1,4})', name)
    if match and not (match[1] or '').startswith('optimizer') and isinstance(item, h5py.Dataset):
      container = found.setdefault(match[1] or '', {})
      container.setdefault(match[2], {})[int(match[3])] = _checked(item, name, file, path)
    return True if len(seen) > 10 * MAX_ARRAYS else None

  if file.visititems(visit):
    raise UserError(f'{path}: {len(seen):,} objects are too many for a network: use another file')
  for chunk in range(0, len(seen), MAX_ARRAYS):  # of groups too, so that they may be more than the arrays
    check_names(seen[chunk:chunk + MAX_ARRAYS], path)
  if not found:
    raise UserError(f'{path}: an HDF5 file without weights of Keras: give the file of model.save_weights or model.save')
  container = max(found, key=lambda name: len(found[name]))
  layers = []
  for group in sorted(found[container], key=_place):
    variables = found[container][group]
    recorded = file[f'{container}/{group}/vars' if container else f'{group}/vars'].attrs.get('name')
    name = _text(recorded) if recorded is not None else names.get(group)
    if name is not None:
      check_names([name], path)
    layers.append(Layer(name, [variables[k] for k in sorted(variables)]))
  return layers


def _place(group: str) -> tuple[str, int]:
  """Return the class and the number of a layer: conv2d, conv2d_1, …"""
  match = re.fullmatch(r'(.+?)(?:_(\d{1,6}))?', group)
  return match[1], int(match[2] or 0)


def _names_of_layers(config: Any) -> dict[str, str]:
  """Return {'conv2d_1': 'conv2_block1_1_conv'} of the model in a configuration that has most layers."""
  models, waiting = [], [config]
  while waiting and len(models) < 100:
    model = waiting.pop()
    inner = model.get('config') if isinstance(model, dict) else None
    layers = inner.get('layers') if isinstance(inner, dict) else None
    if isinstance(layers, list):
      models.append(layers)
      waiting += layers
  names, counts = {}, {}
  for layer in max(models, key=len, default=[]):
    if isinstance(layer, dict) and isinstance(layer.get('class_name'), str) and isinstance(layer.get('config'), dict):
      group = re.sub(r'([a-z])([A-Z])', r'\1_\2', re.sub(r'(.)([A-Z][a-z0-9]+)', r'\1_\2', layer['class_name'])).lower()
      counts[group] = counts.get(group, -1) + 1
      names[group if not counts[group] else f'{group}_{counts[group]}'] = str(layer['config'].get('name'))
  return names
