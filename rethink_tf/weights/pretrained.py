"""Pre-trained weights as the start of a run: strict, and only into a model that fits what the file brings."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.redaction import redact
from rethink_tf.weights import detectron2, formats, own, torchvision_vgg
from rethink_tf.weights.contents import BACKBONE, LINEAR, Contents

PARTS = ('backbone', 'detector', 'detector_backbone', 'classifier')
_MODEL_OF = {  # norm of the file -> norms of the model that take it, and what to do otherwise
  'bn': (('sync_bn', 'frozen_bn'), 'holds BatchNorm: set NORM = @sync_batch_norm (gin_configs/norms/syncbn.gin), or '
         'freeze it with gin_configs/norms/frozen_bn.gin'),
  'folded': (('frozen_bn',), 'holds folded BatchNorm, which cannot train: set ResNet.norm = @frozen_batch_norm '
             '(gin_configs/norms/frozen_bn.gin), or for SyncBN give an unfolded file (torchvision, Detectron2)'),
  'gn': (('gn',), 'holds GroupNorm: set NORM = @group_norm (gin_configs/norms/gn.gin)'),
  'none': (('none',), 'holds no norms: set NORM = @no_norm (gin_configs/norms/none.gin)'),
  None: (('gn', 'frozen_bn'), 'holds norms without statistics (GroupNorm or folded BatchNorm): set NORM = @group_norm, '
         'or ResNet.norm = @frozen_batch_norm (gin_configs/norms/frozen_bn.gin)'),
}


class Loaded(NamedTuple):
  """What a run started from."""

  path: str
  format: str
  licence: str
  sha256: str
  names: list[str]
  variables: frozenset[int]  # the id of each variable that was loaded
  step: int = 0  # iteration of its schedule at which the run goes on, for weights that continue another run
  progress: dict[str, Any] | None = None  # images, instances and pixels that run had seen

  def record(self) -> dict[str, Any]:
    """What is worth keeping beside a run, for JSON."""
    return {'path': redact(self.path), 'format': self.format, 'licence': self.licence, 'sha256': self.sha256,
            'arrays': len(self.names)}


@gin.register
class PretrainedWeights:
  """weights(detector) loads a file into a built detector or classifier; the file's format is recognised.

  path: a file, a TensorFlow checkpoint or a run folder. part: 'backbone'; 'detector' for a whole trained one;
  'detector_backbone' for the backbone out of a detector; 'classifier' for a backbone with its fully connected layer.
  channels ('rgb', 'bgr'), stride_in_1x1: for files that do not tell; they go before what a file tells.
  new: patterns of the model's names that stay as they are, also where the file has them ('roi_heads.box_predictor.*':
  other classes). ignore: patterns of names in the file that are left aside.
  A composite of several backbones (CBNet, section 3) starts each from the same file; its connectors stay new.
  """

  def __init__(self, path: str, part: str = 'backbone', channels: str | None = None, stride_in_1x1: bool | None = None,
               new: Sequence[str] = (), ignore: Sequence[str] = ()):
    if part not in PARTS:
      raise UserError(f'PretrainedWeights.part = {part!r}: use one of {", ".join(PARTS)}')
    if channels not in ('rgb', 'bgr', None):
      raise UserError(f"PretrainedWeights.channels = {channels!r}: say 'rgb' or 'bgr', or None where the file tells")
    if not isinstance(path, str) or not path:
      raise UserError(f'PretrainedWeights.path = {path!r}: name a weight file with --weights=FILE')
    self.path, self.part, self.new, self.ignore = path, part, tuple(new), tuple(ignore)
    self.channels, self.stride_in_1x1 = channels, stride_in_1x1

  def __call__(self, detector: Any) -> Loaded:
    """Loads all or nothing.

    Raises:
      UserError: one line that names the gin binding which makes model and file agree, or the names that differ.
    """
    contents = self._told(formats.read(self.path))
    self._check_kind(contents)
    check_model(contents, detector)
    entries, arrays = self._tables(contents, detector)
    for pattern, names, where in [*((p, {*entries, *arrays}, 'new') for p in self.new),
                                  *((p, arrays, 'ignore') for p in self.ignore)]:
      if not fnmatch.filter(names, pattern):
        raise UserError(f'PretrainedWeights.{where}: {pattern!r} matches no name: python -m rethink_tf.weights '
                        f'{self.path} lists those of the file')
    new = (*self.new, *(name for name in entries if name.startswith('connectors/') and name not in arrays))
    names = detectron2.assign(entries, arrays, self.path, new, self.ignore)
    loaded = Loaded(self.path, contents.format, contents.licence, sha256(self.path), names,
                    frozenset(id(entries[name].variable) for name in names))
    for note in contents.notes:
      logging.warning('%s: %s', self.path, note)
    logging.info('initial weights: %d arrays (%s) from %s, %s, sha256 %s; licence: %s', len(names), self.part,
                 self.path, contents.format, loaded.sha256[:16], contents.licence)
    return loaded

  def _told(self, contents):
    """The contents with what the user says about them."""
    for name in ('channels', 'stride_in_1x1'):
      said, told = getattr(self, name), getattr(contents, name)
      if said is not None and told is not None and said != told:
        logging.warning('%s: taken as %s = %r, against %r by the file', self.path, name, said, told)
      if said is not None:
        contents = contents._replace(**{name: said})
    if contents.channels is None:
      raise UserError(f"{self.path}: does not tell its colour order: set PretrainedWeights.channels = 'bgr' "
                      "(Detectron2's model zoo) or 'rgb' (converted from torchvision)")
    if contents.stride_in_1x1 is None and not contents.own:
      raise UserError(f'{self.path}: does not tell where its strides are: set PretrainedWeights.stride_in_1x1 = True '
                      "(MSRA's ResNet-50 and 101, and detectors trained from them) or False (all others)")
    return contents

  def _check_kind(self, contents):
    wants = 'detector' if self.part.startswith('detector') else 'backbone'
    if contents.kind == wants:
      return
    if wants == 'backbone':
      raise UserError(f"{self.path}: holds a whole detector: set PretrainedWeights.part = 'detector' "
                      "(gin_configs/init/detector.gin), or 'detector_backbone' for its backbone alone")
    raise UserError(f"{self.path}: holds a backbone and no detector: set PretrainedWeights.part = 'backbone' (another "
                    'file of gin_configs/init)')

  def _tables(self, contents, detector):
    """Entries of the model and arrays of the file, by the same names."""
    if contents.own:
      if self.part == 'detector' or self.part == 'classifier':
        return own.table(detector), dict(contents.arrays)
      return _in_each(contents, detector.backbone, lambda backbone: (own.table(backbone), contents.backbone()))
    if torchvision_vgg.is_of(contents):
      entries, arrays = _in_each(contents, detector.backbone, lambda backbone: (
        torchvision_vgg.backbone_table(backbone, contents.channels), torchvision_vgg.convolutions(contents)))
      return entries | torchvision_vgg.head_table(detector), arrays | torchvision_vgg.fully_connected(contents)
    if self.part == 'detector':
      entries, arrays = detectron2.table(detector, contents.channels), dict(contents.arrays)
      return match_norms(contents, entries, arrays, BACKBONE, detector.backbone.stem.norm)
    entries, arrays = _in_each(contents, detector.backbone, lambda backbone: match_norms(
      contents, detectron2.backbone_table(backbone, '', contents.channels), contents.backbone(), '',
      backbone.stem.norm))
    if self.part == 'classifier':
      if not hasattr(detector, 'linear'):
        raise UserError(f'{self.path}: the model has no classifier (it is a detector): set PretrainedWeights.part = '
                        "'backbone'")
      entries |= detectron2.linear_table(detector.linear)
      arrays |= {name: contents.arrays[name] for name in LINEAR if name in contents.arrays}
    return entries, arrays


def single_backbones(contents: Contents, backbone: Any) -> list[Any]:
  """The backbones that a file's one goes into: all of a composite, unless the file holds a composite itself."""
  if contents.own and any(name.startswith('backbones/') for name in contents.backbone()):
    return [backbone]
  return list(getattr(backbone, 'backbones', [backbone]))


def _in_each(contents, backbone, tables):
  """tables(backbone) of the only one, or of all together, by names that tell them apart, and of what connects them."""
  singles = single_backbones(contents, backbone)
  if singles == [backbone]:
    return tables(backbone)
  entries = {name: entry for name, entry in own.table(backbone).items() if name.startswith('connectors/')}
  arrays = {}
  for number, single in enumerate(singles):
    its_entries, its_arrays = tables(single)
    entries |= {f'backbones.{number}.{name}': entry for name, entry in its_entries.items()}
    arrays |= {f'backbones.{number}.{name}': array for name, array in its_arrays.items()}
  return entries, arrays


def match_norms(contents: Contents, entries: Mapping[str, Any], arrays: Mapping[str, Any], prefix: str, norm: Any):
  """(entries, arrays) such that the backbone's norms compute what the file's did.

  An affine map becomes a frozen BatchNorm of mean 0 and variance 1 - epsilon; variances make up for another epsilon.
  """
  entries, arrays = dict(entries), dict(arrays)
  epsilon = getattr(norm, 'epsilon', contents.epsilon)
  for name, entry in entries.items():
    if not name.startswith((f'{prefix}stem.', f'{prefix}res')):
      continue
    if name.endswith('.norm.running_mean') and name not in arrays and contents.norm in ('folded', None):
      arrays[name] = np.zeros(entry.variable.shape, np.float32)
    elif name.endswith('.norm.running_var') and name not in arrays and contents.norm in ('folded', None):
      arrays[name] = np.full(entry.variable.shape, 1.0 - epsilon, np.float32)
    elif name.endswith('.norm.running_var') and epsilon != contents.epsilon:
      difference = np.float32(contents.epsilon - epsilon)
      entries[name] = detectron2.Entry(entry.variable, lambda w, difference=difference: w + difference)
  return entries, arrays


def norm_kind(norm: Any) -> str:
  """'none', 'gn', 'sync_bn' or 'frozen_bn' of a built norm layer."""
  if getattr(norm, 'gamma', None) is None:
    return 'none'
  if not hasattr(norm, 'moving_mean'):
    return 'gn'
  return 'sync_bn' if getattr(norm, 'over_batch', False) else 'frozen_bn'


def check_model(contents: Contents, detector: Any) -> None:
  """Compares what a file brings along with a built detector or classifier.

  Raises:
    UserError: they differ; the line names the bindings to set.
  """
  for backbone in single_backbones(contents, detector.backbone):
    _check_backbone(contents, backbone)
  for name in ('pixel_mean', 'pixel_std'):
    told, has = getattr(contents, name), getattr(detector, name, None)
    if told is None or has is None:
      continue
    if not np.allclose(told, has, rtol=1e-3, atol=1e-3):
      values = tuple(round(float(value), 4) for value in told)
      raise UserError(f'{contents.path}: was trained with another normalisation of pixels: set '
                      f'{type(detector).__name__}.{name} = {values}')


def _check_backbone(contents, backbone):
  path = contents.path
  if torchvision_vgg.is_of(contents):
    if not torchvision_vgg.is_vgg(backbone):
      raise UserError(f'{path}: holds a VGG, the model has a {type(backbone).__name__}: set MaskRCNN.backbone = @VGG() '
                      '(gin_configs/models/vgg16.gin)')
    return
  if detectron2.is_resnet(backbone) and contents.architecture is not None:
    _check_architecture(contents, backbone)
    takers, advice = _MODEL_OF[contents.norm]
    kind = norm_kind(backbone.stem.norm)
    if kind not in takers and not (contents.own and kind.endswith('bn') and contents.norm == 'bn'):
      raise UserError(f'{path}: {advice}')
    if contents.stride_in_1x1 is not None and contents.stride_in_1x1 != backbone.stride_in_1x1:
      raise UserError(f'{path}: was trained with strides on the {"1x1" if contents.stride_in_1x1 else "3x3"}: set '
                      f'ResNet.stride_in_1x1 = {contents.stride_in_1x1}')
  elif not contents.own:
    raise UserError(f'{path}: holds a ResNet, the model has a {type(backbone).__name__}: set MaskRCNN.backbone = '
                    '@ResNet()')


def _check_architecture(contents, backbone):
  for name, value in contents.architecture._asdict().items():
    if getattr(backbone, name) != value:
      raise UserError(f'{contents.path}: is a {contents.architecture}: set ResNet.{name} = {value} (the model has '
                      f'{getattr(backbone, name)})')


def sha256(path: str) -> str:
  """Of a file, or of the files of a checkpoint one after the other, in the order of their names."""
  if tf.io.gfile.isdir(path):
    folder = own.newest_step(path)
    files = [os.path.join(folder, name) for name in tf.io.gfile.listdir(folder)]
  else:
    prefix = formats.checkpoint_prefix(path)
    files = [path] if prefix is None else tf.io.gfile.glob(f'{prefix}.index') + tf.io.gfile.glob(f'{prefix}.data-*')
  digest = hashlib.sha256()
  for name in sorted(files):
    with tf.io.gfile.GFile(name, 'rb') as file:
      while block := file.read(1 << 22):
        digest.update(block)
  return digest.hexdigest()
