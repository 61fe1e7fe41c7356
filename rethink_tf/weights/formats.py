"""Recognizes a weight file's format by its content rather than its name; `read` returns its Contents."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from rethink_tf.downloads import cache
from rethink_tf.errors import UserError, excerpt, in_one_line
from rethink_tf.storage import files, manifests
from rethink_tf.weights import (
  detectron,
  detectron2,
  keras_checkpoints,
  keras_files,
  openmmlab,
  own,
  pickles,
  safetensors_files,
  state_dicts,
  tf_models,
  torch_files,
  torchvision,
  torchvision_vgg,
  transformers_resnet,
)
from rethink_tf.weights.contents import Array, Contents, temporary_folder
from rethink_tf.weights.placeholders import Opaque, printable

_TORCH_MAGIC = b'\x8a\x0a' + torch_files.MAGIC.to_bytes(10, 'little')
KNOWN = ('Detectron and Detectron2 .pkl, .pth of torch (torchvision, WSL, Detectron2), .safetensors, '
         '.h5, .weights.h5 and .keras of keras.applications, checkpoints of tf-models-official, run folders of this '
         'package')
_OF_ANOTHER_FILE = 'download it again', 'unknown format', 'web page'  # of files that are not what was asked for


class Choice(NamedTuple):
  """Selects one of several networks in a file: the dictionary that holds it, and the prefix of its names."""

  dictionary: str | None = None
  prefix: str | None = None

  def refuse(self, path: str, what: str) -> None:
    """Raise a UserError if a network is selected although `what` holds only one."""
    named = [f'PretrainedWeights.{name} = {value!r}' for name, value in self._asdict().items() if value is not None]
    if named:
      raise UserError(f'{path}: {what} holds one network, of which nothing is chosen: leave out {" and ".join(named)}')


def read(path: str, choice: Choice | None = None) -> Contents:
  """Return the contents of a weight file, a TensorFlow checkpoint (its prefix, or one of its files) or a run folder.

  Raises:
    UserError: missing, damaged, of an unknown format, or a pickle that could run code.
  """
  try:
    return _read(path, choice or Choice())
  except (tf.errors.OpError, OSError) as error:
    reason = printable(in_one_line(error))
    raise UserError(f'{path}: cannot be read ({reason}): give the path of a weight file') from error
  except UserError as error:  # it may quote control characters of the file
    text = printable(str(error))
    kept = cache.how_to_repeat(path) if any(phrase in text for phrase in _OF_ANOTHER_FILE) else ''
    raise UserError(f'{text}{kept}') from error


def _read(path: str, choice: Choice) -> Contents:
  if tf.io.gfile.isdir(path):
    return _read_folder(path, choice)
  prefix = checkpoint_prefix(path)
  if prefix is not None:
    return _read_checkpoint(prefix, path, choice)
  if not tf.io.gfile.exists(path):
    raise UserError(f'{path}: no such file: give the path of a weight file or a run folder')
  return _read_file(_local(path), path, choice)


def _read_folder(path: str, choice: Choice) -> Contents:
  """Read a run folder, a SavedModel, the newest checkpoint of another folder, or the file of a Hugging Face model."""
  def inside(name: str) -> str:
    return os.path.join(path, name)

  if manifests.newest_sound(path) is not None:
    choice.refuse(path, 'a run of this package')  # also one with averages of its weights
    return own.read(path)
  if tf.io.gfile.exists(inside('saved_model.pb')):
    prefix = inside('variables/variables')
    if not (checkpoint_prefix(prefix) and keras_checkpoints.recognizes(tf_models.open_checkpoint(prefix, path)[1])):
      raise UserError(f'{path}: a SavedModel, whose layers have no names: give the weights that it was exported from')
    return _read_checkpoint(prefix, path, choice)
  for name in ('model.safetensors', 'pytorch_model.bin'):
    if tf.io.gfile.exists(inside(name)):
      return _read(inside(name), choice)
  prefix = tf.train.latest_checkpoint(path)
  if prefix is None:
    prefixes = [name.removesuffix('.index') for name in tf.io.gfile.glob(inside('*.index'))]
    if len(prefixes) > 1:
      raise UserError(f'{path}: a folder of {len(prefixes)} checkpoints: give the path of one, such as {prefixes[0]}')
    prefix = prefixes[0] if prefixes else None
  return own.read(path) if prefix is None else _read_checkpoint(prefix, path, choice)


def _read_checkpoint(prefix: str, path: str, choice: Choice) -> Contents:
  choice.refuse(path, 'a TensorFlow checkpoint')
  _, shapes = tf_models.open_checkpoint(prefix, path)
  module = keras_checkpoints if keras_checkpoints.recognizes(shapes) else tf_models
  return module.read(prefix, path)._replace(checkpoint=prefix)


def checkpoint_prefix(path: str) -> str | None:
  """Return the prefix of the TensorFlow checkpoint that a path belongs to, None for other files."""
  prefix = path.removesuffix('.index')
  if '.data-0' in os.path.basename(path):
    prefix = path[:path.rindex('.data-0')]
  return prefix if tf.io.gfile.exists(f'{prefix}.index') else None


def _local(path: str) -> str:
  """Return a local path that can be mapped into memory; copies of remote files are deleted when the process ends."""
  if '://' not in path:
    return path
  local = os.path.join(temporary_folder(), os.path.basename(path))
  tf.io.gfile.copy(path, local)
  return local


def _read_file(local: str, path: str, choice: Choice) -> Contents:
  files.require_regular(local)
  with open(local, 'rb') as file:
    head = file.read(1024)
  if head[:4] == b'PK\x03\x04' and keras_files.recognizes_archive(local):
    choice.refuse(path, 'a file of Keras')
    return keras_files.read_archive(local, path)
  if head[:4] == b'PK\x03\x04':
    return _named(torch_files.load(local), path, '.pth (zip)', choice)
  if head[:1] == b'\x80' and head[2:14] == _TORCH_MAGIC:
    return _named(torch_files.load(local), path, '.pth (before torch 1.6)', choice)
  if head[:8] == b'\x89HDF\r\n\x1a\n':
    choice.refuse(path, 'a file of Keras')
    return keras_files.read(local, path)
  if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 1 << 32:
    return _named(safetensors_files.load(local), path, '.safetensors', choice)
  if head[257:262] == b'ustar':
    raise UserError(f'{path}: the tar container of the oldest torch is not read: load and save it again with torch')
  if head[:1] in (b'\x80', b'(', b'}', b'c') and len(head) > 1:
    return _named(pickles.load(local), path, '.pkl', choice)
  problem = 'is empty' if not head else \
    'is a web page, not weights' if head.lstrip()[:5].lower() in (b'<!doc', b'<html') else 'has an unknown format'
  raise UserError(f'{path}: {problem}: known are {KNOWN}')


def _named(content: Any, path: str, container: str, choice: Choice) -> Contents:
  """Return the contents of an unpacked container, recognized by the names of its arrays."""
  if detectron.recognizes(content):
    choice.refuse(path, 'a file of Detectron')
    return detectron.contents(content, path)
  if isinstance(content, Opaque):
    raise UserError(f'{path}: holds an object ({content.name}), not a dictionary of arrays: save the state_dict() of '
                    'the network')
  if not isinstance(content, Mapping) or not content:
    raise UserError(f'{path}: holds no dictionary of arrays: known are {KNOWN}')
  found = state_dicts.find(content, path, *choice)
  author = content.get('__author__')
  contents = _network(found.arrays, path, container, author if isinstance(author, str) else '')
  contents = torchvision.normalised(openmmlab.configured(contents, content), found.ignored)
  return contents._replace(ignored=contents.ignored + found.ignored, notes=contents.notes + found.notes)


def _network(arrays: Mapping[str, Array], path: str, container: str, author: str) -> Contents:
  if detectron2.recognizes(arrays):
    return detectron2.contents(arrays, path, container, author)
  if torchvision.recognizes(arrays):
    return torchvision.contents(arrays, path, container)
  if torchvision.recognizes_children(arrays):
    return torchvision.contents({torchvision.renamed(name): array for name, array in arrays.items()}, path, container)
  if transformers_resnet.recognizes(arrays):
    arrays = {transformers_resnet.renamed(name): array for name, array in arrays.items()}
    return torchvision.contents(arrays, path, container, 'transformers')
  if torchvision_vgg.recognizes(arrays):
    return torchvision_vgg.contents(arrays, path, container)
  if any(name.endswith('layer1.0.conv1.weight') for name in arrays):
    raise UserError(f'{path}: a ResNet with another stem than one 7x7 convolution (ResNet-C, D, T and similar), which '
                    'is not built here: use a plain ResNet')
  raise UserError(f'{path}: the names of its {len(arrays)} arrays ({", ".join(map(excerpt, list(arrays)[:3]))}, …) '
                  f'belong to no known network: known are {KNOWN}; of other wrappers set PretrainedWeights.dictionary '
                  'and PretrainedWeights.prefix')
