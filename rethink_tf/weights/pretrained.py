"""Initial weights of a run from a pre-trained file, loaded strictly into a model that must match the file."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union

import gin
import numpy as np
import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf import gin_files
from rethink_tf.errors import UserError
from rethink_tf.redaction import redact
from rethink_tf.storage.files import open_regular
from rethink_tf.weights import (
  catalog,
  class_layers,
  compared,
  costs,
  detectron2,
  formats,
  own,
  recipes,
  torchvision_vgg,
)
from rethink_tf.weights.contents import BACKBONE, LINEAR, Array, Contents
from rethink_tf.weights.detectron2 import Entry
from rethink_tf.weights.detectron2_settings import CONVENTIONS
from rethink_tf.weights.tf_models import EPSILONS

if TYPE_CHECKING:
  from rethink_tf.models.classifier import Classifier
  from rethink_tf.models.mask_rcnn import MaskRCNN

Model: TypeAlias = Union['MaskRCNN', 'Classifier']
Backbone: TypeAlias = tf_keras.layers.Layer
Tables: TypeAlias = tuple[dict[str, Entry], dict[str, Array]]  # of the model and of the file, by the same names

PARTS = ('backbone', 'detector', 'detector_backbone', 'classifier')
_NORMS = {  # norm of the file -> norms of the model that it fits, and the error otherwise
  'bn': (('sync_bn', 'frozen_bn'), 'holds BatchNorm: set NORM = @sync_batch_norm (gin_configs/norms/syncbn.gin), or '
         'freeze it with gin_configs/norms/frozen_bn.gin'),
  'folded': (('frozen_bn',), 'holds folded BatchNorm, which cannot train: set ResNet.norm = @frozen_batch_norm '
             '(gin_configs/norms/frozen_bn.gin), or for SyncBN give an unfolded file (torchvision, Detectron2)'),
  'gn': (('gn',), 'holds GroupNorm: set NORM = @group_norm (gin_configs/norms/gn.gin)'),
  'none': (('none',), 'holds no norms: set NORM = @no_norm (gin_configs/norms/none.gin)'),
  'own': (('own',), 'was trained with a norm that is not of this package'),
}


class Loaded(NamedTuple):
  """Initial weights of a run."""

  path: str
  format: str
  licence: str
  sha256: str
  names: list[str]
  variables: frozenset[int]  # ids of the variables that were loaded
  step: int = 0  # iteration at which the run starts its schedule, for weights that continue another run
  progress: dict[str, Any] | None = None  # images, instances and pixels that run had seen
  part: str = ''
  cost: costs.Cost | None = None  # of weights of a run of this package, all training that led to them
  recipe: Mapping[str, Any] | None = None  # of such weights: how they were trained (recipes.py)
  entry: catalog.Entry | None = None  # published weights of which they are known to be
  continues: Mapping[str, Any] | None = None  # of weights that continue a run: {'continues': what it started from}

  def record(self) -> dict[str, Any]:
    """Return what a run folder records, as JSON."""
    cost: dict[str, Any] = {}
    if self.cost is not None and (self.cost.seen or self.cost.source):
      cost = {'seen': self.cost.seen and self.cost.seen._asdict(), 'before': redact(self.cost.source) or None}
    if self.entry is not None:
      cost = {'name': self.entry.name, 'address': self.entry.remote.url, 'cost': self.entry.cost.record()}
    return {'path': redact(self.path), 'format': self.format, 'licence': self.licence, 'sha256': self.sha256,
            'arrays': len(self.names), **({'part': self.part} if self.part else {}),
            **(self.recipe or {}), **cost, **(self.continues or {})}


@gin.register
class PretrainedWeights:
  """weights(detector) loads a file into a built detector or classifier; the file's format is detected.

  path: a file, a TensorFlow checkpoint, a run folder, or the name of published weights (weights.catalog), which are
  downloaded when they are loaded. part: 'backbone'; 'detector' for a whole trained one;
  'detector_backbone' for the backbone of a detector; 'classifier' for a backbone with its fully connected layer.
  dictionary, prefix: of several networks in a checkpoint, the one that is read ('model_ema', 'module.encoder_k.').
  channels ('rgb', 'bgr'), stride_in_1x1, epsilon (of BatchNorm), norm ('gn', 'folded'): for files that do not record
  them; but for the norm, they override those of the file.
  convention ('detectron2', 'detectron'): of a detector that records no settings of its anchors and RoIAlign.
  new: patterns of the model's names that are not loaded, even if the file has them ('roi_heads.box_predictor.*':
  other classes). ignore: patterns of names in the file that are not loaded.
  match_classes: of a detector with other classes, take the outputs of classes of the same name; others are
  reinitialized, and so is a mask or keypoint head that it lacks; 'allow_none': even if no name is the same.
  file_classes: names of a detector's classes in the order of the file, or 'coco'; None: as recorded by a run, a
  configuration beside the file, or the catalog.
  A composite of several backbones (CBNet, section 3) loads the same file into each; its connectors are not loaded.
  """

  def __init__(self, path: str | None, part: str = 'backbone', channels: str | None = None,
               stride_in_1x1: bool | None = None, epsilon: float | None = None, norm: str | None = None,
               convention: str | None = None,
               dictionary: str | None = None, prefix: str | None = None, new: Sequence[str] = (),
               ignore: Sequence[str] = (), match_classes: bool | str = False,
               file_classes: str | Sequence[str] | None = None):
    if part not in PARTS:
      raise UserError(f'PretrainedWeights.part = {part!r}: use one of {", ".join(PARTS)}')
    if channels not in ('rgb', 'bgr', None):
      raise UserError(f"PretrainedWeights.channels = {channels!r}: use 'rgb' or 'bgr', or None if the file records it")
    if epsilon is not None and not 0 < epsilon < 1:
      raise UserError(f'PretrainedWeights.epsilon = {epsilon!r}: use that of the BatchNorm in the file, {EPSILONS}')
    if norm not in ('gn', 'folded', None):
      raise UserError(f"PretrainedWeights.norm = {norm!r}: use 'gn' or 'folded', or None if the file records it")
    if match_classes not in (False, True, class_layers.ALLOW_NONE):
      raise UserError(f'PretrainedWeights.match_classes = {match_classes!r}: use False, True or '
                      f'{class_layers.ALLOW_NONE!r}')
    for name, value in (('dictionary', dictionary), ('prefix', prefix)):
      if not isinstance(value, str | None):
        raise UserError(f'PretrainedWeights.{name} = {value!r}: use a text, as in the file')
    if convention not in (*CONVENTIONS, None):
      raise UserError(f'PretrainedWeights.convention = {convention!r}: use one of {", ".join(CONVENTIONS)}, or None if '
                      'the file records its settings')
    if not isinstance(path, str) or not path:
      raise UserError(f'PretrainedWeights.path = {path!r}: name a weight file with --weights=FILE')
    self.classes: list[str] | None = None
    self.match_classes, self.file_classes = match_classes, class_layers.named(file_classes)
    self.path, self.part, self.new, self.ignore = path, part, tuple(new), tuple(ignore)
    self.channels, self.stride_in_1x1, self.epsilon, self.norm = channels, stride_in_1x1, epsilon, norm
    self.convention = convention
    self.choice = formats.Choice(dictionary, prefix)

  def for_classes(self, names: Sequence[str]) -> PretrainedWeights:
    """Match the layers with an output per class by these names of the model's classes, if the file names its own."""
    self.classes = list(names)
    return self

  def __call__(self, detector: Model) -> Loaded:
    """Load the file; if anything does not match, nothing is loaded.

    Raises:
      UserError: file and model differ: it names the gin binding to set, or the names that differ.
    """
    contents = formats.read(catalog.local_path(self.path), self.choice)
    entry = catalog.find(self.path)
    if entry is not None:
      contents = entry.completed(contents)._replace(licence=entry.licence)
    self._check_kind(contents)
    if self.file_classes is not None:
      contents = contents._replace(classes=self.file_classes)
    loaded = self._load(self._overridden(contents), detector)
    return loaded._replace(entry=entry or catalog.of_file(self.path, loaded.sha256))

  def _load(self, contents: Contents, detector: Model) -> Loaded:
    check_model(contents, detector)
    if self.part == 'detector':
      compared.check(self._with_settings(contents), detector)
    entries, arrays = self._tables(contents, detector)
    if self.match_classes:
      entries, arrays = class_layers.match_heads(contents, entries, arrays)
    entries = class_layers.match(contents, entries, arrays, self.classes, self.part, self.new, self.match_classes)
    class_layers.check_shapes(self.path, entries, arrays, self.new)
    for pattern, names, parameter in [*((p, {*entries, *arrays}, 'new') for p in self.new),
                                      *((p, arrays, 'ignore') for p in self.ignore)]:
      if not fnmatch.filter(names, pattern):
        raise UserError(f'PretrainedWeights.{parameter}: {pattern!r} matches no name: python -m rethink_tf.weights '
                        f'{self.path} describes the file')
    new = (*self.new, *(name for name in entries if name.startswith('connectors/') and name not in arrays))
    names = detectron2.assign(entries, arrays, self.path, new, self.ignore)
    loaded = Loaded(self.path, contents.format, contents.licence, sha256(contents.checkpoint or contents.path), names,
                    frozenset(id(entries[name].variable) for name in names),
                    part=self.part, cost=costs.of_run(contents.checkpoint)[0] if contents.own else None,
                    recipe=recipes.of_run(contents.checkpoint) if contents.own else None)
    for note in contents.notes:
      logging.warning('%s: %s', self.path, note)
    logging.info('initial weights: %d arrays (%s) from %s, %s, sha256 %s; licence: %s', len(names), self.part,
                 self.path, contents.format, loaded.sha256[:16], contents.licence)
    return loaded

  def _overridden(self, contents: Contents) -> Contents:
    """Return the contents with the arguments' overrides; everything must be known then."""
    if self.norm is not None and contents.norm not in (self.norm, None):
      raise UserError(f'{self.path}: holds norms of the kind {contents.norm!r}: leave out PretrainedWeights.norm = '
                      f'{self.norm!r}')
    for name in ('channels', 'stride_in_1x1', 'epsilon', 'norm'):
      argument, recorded = getattr(self, name), getattr(contents, name)
      if argument is not None and recorded is not None and argument != recorded:
        logging.warning('%s: %s = %r overrides %r of the file', self.path, name, argument, recorded)
      if argument is not None:
        contents = contents._replace(**{name: argument})
    if contents.channels is None:
      raise UserError(f"{self.path}: does not record its channel order: set PretrainedWeights.channels = 'bgr' "
                      "(Detectron2's model zoo) or 'rgb' (converted from torchvision)")
    if contents.stride_in_1x1 is None and not contents.own:
      raise UserError(f'{self.path}: does not record where its strides are: set PretrainedWeights.stride_in_1x1 = True '
                      "(MSRA's ResNet-50 and 101, and detectors trained from them) or False (all others)")
    if contents.epsilon is None:
      raise UserError(f'{self.path}: does not record the epsilon of its BatchNorm: set PretrainedWeights.epsilon = '
                      f'{EPSILONS}')
    if contents.norm is None and contents.architecture is not None:
      raise UserError(f'{self.path}: does not record its norms, which are without statistics: set '
                      "PretrainedWeights.norm = 'gn' (GroupNorm) or 'folded' (BatchNorm as a fixed scale and shift)")
    return contents

  def _with_settings(self, contents: Contents) -> Contents:
    """Return the contents with the settings of anchors and RoIAlign, which must be known."""
    if contents.own or contents.settings:
      return contents
    if self.convention is None:
      raise UserError(f'{self.path}: does not record the grids of its anchors and RoIAlign: add '
                      'gin_configs/init/detector_detectron2.gin for a detector trained with Detectron2 '
                      "(PretrainedWeights.convention = 'detectron2'), or set it to 'detectron'")
    return contents._replace(settings=CONVENTIONS[self.convention])

  def _check_kind(self, contents: Contents) -> None:
    wants = 'detector' if self.part.startswith('detector') else 'backbone'
    if contents.kind == wants:
      return
    if wants == 'backbone':
      raise UserError(f"{self.path}: holds a whole detector: set PretrainedWeights.part = 'detector' "
                      "(gin_configs/init/detector.gin), or 'detector_backbone' for its backbone alone")
    raise UserError(f"{self.path}: holds a backbone and no detector: set PretrainedWeights.part = 'backbone' (another "
                    'file of gin_configs/init)')

  def _tables(self, contents: Contents, detector: Model) -> Tables:
    """Return the entries of the model and the arrays of the file, by the same names."""
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


def single_backbones(contents: Contents, backbone: Backbone) -> list[Backbone]:
  """Return the backbones to load a file into: all of a composite, unless the file itself holds a composite."""
  if contents.own and any(name.startswith('backbones/') for name in contents.backbone()):
    return [backbone]
  return list(getattr(backbone, 'backbones', [backbone]))


def _in_each(contents: Contents, backbone: Backbone, tables: Callable[[Backbone], Tables]) -> Tables:
  """Return tables(backbone); of a composite, those of all backbones, by unique names, and of the connectors."""
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


def match_norms(contents: Contents, entries: Mapping[str, Entry], arrays: Mapping[str, Array], prefix: str,
                norm: tf_keras.layers.Layer) -> Tables:
  """Return entries and arrays with which the backbone's norms compute what the file's did.

  An affine map becomes a frozen BatchNorm of mean 0 and variance 1 - epsilon; variances compensate for another epsilon.
  """
  entries, arrays = dict(entries), dict(arrays)
  epsilon = getattr(norm, 'epsilon', contents.epsilon)
  for name, entry in entries.items():
    if not name.startswith((f'{prefix}stem.', f'{prefix}res')):
      continue
    if name.endswith('.norm.running_mean') and name not in arrays and contents.norm == 'folded':
      arrays[name] = np.zeros(entry.variable.shape, np.float32)
    elif name.endswith('.norm.running_var') and name not in arrays and contents.norm == 'folded':
      arrays[name] = np.full(entry.variable.shape, 1.0 - epsilon, np.float32)
    elif name.endswith('.norm.running_var') and epsilon != contents.epsilon:
      difference = np.float32(contents.epsilon - epsilon)
      entries[name] = Entry(entry.variable, lambda w, difference=difference: w + difference)
  return entries, arrays


def norm_kind(norm: tf_keras.layers.Layer) -> str:
  """Return 'none', 'gn', 'sync_bn' or 'frozen_bn' for a built norm layer; 'own' for others without statistics."""
  if getattr(norm, 'gamma', None) is None:
    return 'none'
  if not hasattr(norm, 'moving_mean'):
    return 'gn' if hasattr(norm, 'groups') else 'own'
  return 'sync_bn' if getattr(norm, 'over_batch', False) else 'frozen_bn'


def check_model(contents: Contents, detector: Model) -> None:
  """Compare architecture, norm, strides and pixel normalisation of a file with a built detector or classifier.

  Raises:
    UserError: they differ; it names the binding to set.
  """
  for backbone in single_backbones(contents, detector.backbone):
    _check_backbone(contents, backbone)
  # A red channel of 0.228 (SwAV) or 0.229 x 255 (torchvision) is the same for a network that trains.
  for name, tolerance in (('pixel_mean', 1e-3), ('pixel_std', 5e-3)):
    recorded, configured = getattr(contents, name), getattr(detector, name, None)
    if recorded is None or configured is None:
      continue
    if not np.allclose(recorded, configured, rtol=tolerance, atol=1e-3):
      values = tuple(round(float(value), 4) for value in recorded)
      raise UserError(f'{contents.path}: was trained with another normalisation of pixels: set '
                      f'{type(detector).__name__}.{name} = {values}')


def _check_backbone(contents: Contents, backbone: Backbone) -> None:
  path = contents.path
  if torchvision_vgg.is_of(contents):
    if not torchvision_vgg.is_vgg(backbone):
      raise UserError(f'{path}: holds a VGG, the model has a {type(backbone).__name__}: set MaskRCNN.backbone = @VGG() '
                      '(gin_configs/models/vgg16.gin)')
    for name in ('depth', 'width'):
      value = torchvision_vgg.settings(contents)[f'VGG.{name}']
      if getattr(backbone, name) != value:
        raise UserError(f'{path}: is a VGG of {name} {value}: set VGG.{name} = {value} (the model has '
                        f'{getattr(backbone, name)})')
    return
  if detectron2.is_resnet(backbone) and contents.architecture is not None:
    _check_architecture(contents, backbone)
    fitting, message = _NORMS[contents.norm]
    kind = norm_kind(backbone.stem.norm)
    if contents.norm_part is not None:
      message += f': set NORM = {contents.norm_part}, and import its module (docs/extend.md)'
      if gin_files.effective(['ResNet.norm']).get('ResNet.norm', contents.norm_part) != contents.norm_part:
        fitting = ()  # another one of the user's own
    if kind not in fitting and not (contents.own and kind.endswith('bn') and contents.norm == 'bn'):
      raise UserError(f'{path}: {message}')
    groups = getattr(backbone.stem.norm, 'groups', None)
    if contents.norm == 'gn' and None not in (groups, contents.norm_groups) and groups != contents.norm_groups:
      raise UserError(f'{path}: was trained with GroupNorm of {contents.norm_groups} groups: set group_norm.groups = '
                      f'{contents.norm_groups} (the model has {groups})')
    if contents.stride_in_1x1 is not None and contents.stride_in_1x1 != backbone.stride_in_1x1:
      raise UserError(f'{path}: was trained with strides on the {"1x1" if contents.stride_in_1x1 else "3x3"}: set '
                      f'ResNet.stride_in_1x1 = {contents.stride_in_1x1}')
    if contents.padding != backbone.padding:
      raise UserError(f'{path}: was trained with padding {contents.padding!r} of its stride-2 convolutions: set '
                      f'ResNet.padding = {contents.padding!r}')
  elif not contents.own:
    raise UserError(f'{path}: holds a ResNet, the model has a {type(backbone).__name__}: set MaskRCNN.backbone = '
                    '@ResNet()')


def _check_architecture(contents: Contents, backbone: Backbone) -> None:
  for name, value in contents.architecture._asdict().items():
    if getattr(backbone, name) != value:
      raise UserError(f'{contents.path}: is a {contents.architecture}: set ResNet.{name} = {value} (the model has '
                      f'{getattr(backbone, name)})')


def sha256(path: str) -> str:
  """Return the digest of a file, or of the concatenated files of a checkpoint (folder or prefix), sorted by name."""
  if tf.io.gfile.isdir(path):
    files = [os.path.join(path, name) for name in tf.io.gfile.listdir(path)]
  else:
    prefix = formats.checkpoint_prefix(path)
    files = [path] if prefix is None else tf.io.gfile.glob(f'{prefix}.index') + tf.io.gfile.glob(f'{prefix}.data-*')
  digest = hashlib.sha256()
  for name in sorted(files):
    with open_regular(name) as file:
      while block := file.read(1 << 22):
        digest.update(block)
  return digest.hexdigest()
