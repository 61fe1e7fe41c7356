"""Contents of a weight file in any format: arrays by Detectron2's names, and how the network was trained.

Every reader in this folder returns a `Contents`. Backbones use the names stem.conv1.weight, stem.conv1.norm.{weight,
bias, running_mean, running_var}, res2.0.{conv1, conv2, conv3, shortcut}[.norm].* and linear.{weight, bias} for a
classifier; whole detectors use Detectron2's full names. Convolutions are (out, in / groups, h, w). Runs of this package
keep their own names.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from rethink_tf.errors import UserError, excerpt
from rethink_tf.weights.placeholders import Opaque

EPSILON = 1e-5  # of the norms of torch, Caffe2 and this package
DETECTRON_MEAN = (122.7717, 115.9465, 102.9801)
DETECTRON2_MEAN = (123.675, 116.28, 103.53)  # torchvision's, too
KERAS_MEAN = (123.68, 116.779, 103.939)  # of Caffe's VGG and ResNet, as converted for Keras
TORCH_STD = (58.395, 57.12, 57.375)
SWAV_STD = (58.14, 57.12, 57.375)
UNIT_STD = (1.0, 1.0, 1.0)
BACKBONE = 'backbone.bottom_up.'  # prefix of the backbone in a detector's names
LINEAR = ('linear.weight', 'linear.bias')  # the classifier
# The names of 80 classes in the order of their ids, which is that of Detectron's and Detectron2's outputs.
COCO_CLASSES = (
  'person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat', 'traffic light',
  'fire hydrant', 'stop sign', 'parking meter', 'bench', 'bird', 'cat', 'dog', 'horse', 'sheep', 'cow', 'elephant',
  'bear', 'zebra', 'giraffe', 'backpack', 'umbrella', 'handbag', 'tie', 'suitcase', 'frisbee', 'skis', 'snowboard',
  'sports ball', 'kite', 'baseball bat', 'baseball glove', 'skateboard', 'surfboard', 'tennis racket', 'bottle',
  'wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl', 'banana', 'apple', 'sandwich', 'orange', 'broccoli', 'carrot',
  'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch', 'potted plant', 'bed', 'dining table', 'toilet', 'tv',
  'laptop', 'mouse', 'remote', 'keyboard', 'cell phone', 'microwave', 'oven', 'toaster', 'sink', 'refrigerator',
  'book', 'clock', 'vase', 'scissors', 'teddy bear', 'hair drier', 'toothbrush')
_LONGEST_NAME = 500  # characters
MAX_ARRAYS = 20_000  # of a file; a detector's checkpoint with its optimizer and averages has 2,000


class Array(Protocol):
  """An array that `np.asarray` reads: a NumPy array, a variable's value, or `Lazy`."""

  shape: tuple[int, ...]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...


class Architecture(NamedTuple):
  """Shape of a ResNet, by the names of models.resnet.ResNet's arguments."""

  depth: int
  groups: int
  width_per_group: int
  stem_width: int
  res2_width: int

  def __str__(self) -> str:
    kind = f'ResNet-{self.depth}' if self.groups == 1 else f'ResNeXt-{self.depth} {self.groups}x{self.width_per_group}d'
    usual = (self.stem_width, self.res2_width) == (64, 256) and (self.groups > 1 or self.width_per_group == 64)
    inner = self.groups * self.width_per_group
    return kind if usual else f'{kind} (stem {self.stem_width}, inner {inner}, res2 {self.res2_width})'


class Lazy:
  """An array of known shape, read when NumPy converts it: a large file is never in memory as a whole."""

  def __init__(self, shape: Sequence[int], read: Callable[[], np.ndarray]):
    self.shape, self._read = tuple(int(side) for side in shape), read

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(self._read(), dtype)


class Contents(NamedTuple):
  """A weight file.

  kind: 'backbone' or 'detector'. own: names and layouts of this package's checkpoints ('stem/conv/kernel').
  norm: 'bn' (with statistics), 'folded' (BN as a fixed affine map), 'gn', 'none', 'own' (norm_part); None: unknown.
  channels 'rgb' | 'bgr', stride_in_1x1, pixel_mean and pixel_std (RGB, range 0-255): None if unknown from the file.
  epsilon: of the norm, None if unknown. padding: of stride-2 convolutions, 'symmetric' or 'same' (models/resnet.py).
  ignored: names in the file that are not weights of the network. notes: warnings, a line each.
  settings: gin bindings of a detector that its weights imply ('Anchors.offset'), as far as they are recorded; of a
    pre-training run, those that put a backbone of the user's own into a detector.
  checkpoint: of a run, the folder of the checkpoint that was read.
  classes: their names in the order of the outputs of a detector, None if the file does not name them.
  norm_groups: of GroupNorm; all published networks have 32. None: unknown.
  norm_part: of a run, its norm if that is not one of this package ('@layer_norm').
  imports: of a run, the modules of the user's own that its configuration imports ('my_parts').
  """

  path: str
  format: str
  kind: str
  arrays: Mapping[str, Array]
  norm: str | None
  architecture: Architecture | None
  channels: str | None = None
  stride_in_1x1: bool | None = None
  pixel_mean: tuple[float, ...] | None = None
  pixel_std: tuple[float, ...] | None = None
  epsilon: float | None = EPSILON
  padding: str = 'symmetric'
  licence: str = 'see the source of the file'
  ignored: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()
  own: bool = False
  settings: Mapping[str, Any] = MappingProxyType({})
  checkpoint: str | None = None
  classes: tuple[str, ...] | None = None
  norm_groups: int | None = 32
  norm_part: str | None = None
  imports: tuple[str, ...] = ()

  def backbone(self) -> dict[str, Array]:
    """Return the backbone's arrays by names without a prefix."""
    if self.own:
      return {name.removeprefix('backbone/'): a for name, a in self.arrays.items() if name.startswith('backbone/')}
    if self.kind == 'backbone':
      return {name: array for name, array in self.arrays.items() if name not in LINEAR}
    return {name.removeprefix(BACKBONE): a for name, a in self.arrays.items() if name.startswith(BACKBONE)}


def norm_of(names: Sequence[str]) -> str:
  """Return 'bn', 'gn' or 'none' from a backbone's names; scale and shift without statistics count as GN."""
  if 'stem.conv1.norm.running_mean' in names:
    return 'bn'
  return 'gn' if 'stem.conv1.norm.weight' in names else 'none'


def coco_classes(arrays: Mapping[str, Array]) -> tuple[str, ...] | None:
  """Return COCO's classes if a detector of Detectron2's names has as many outputs, None if it has others."""
  for name in ('roi_heads.box_predictor.cls_score.weight', 'roi_heads.box_predictor.0.cls_score.weight'):
    if name in arrays:
      return COCO_CLASSES if tuple(arrays[name].shape[:1]) == (len(COCO_CLASSES) + 1,) else None
  return None


OF_RESNET = ('stem.conv1.weight', *(f'res{stage}.0.conv1.weight' for stage in (2, 3, 4, 5)))  # every ResNet has them


def architecture_of(arrays: Mapping[str, Array], path: str) -> Architecture:
  """Return the architecture of a ResNet whose backbone arrays have Detectron2's names.

  Raises:
    UserError: not a ResNet of bottleneck blocks.
  """
  blocks = {(int(match[1]), int(match[2])) for name in arrays if (match := re.match(r'res([2-5])\.(\d+)\.', name))}
  missing = [name for name in OF_RESNET if name not in arrays]
  if missing:
    raise UserError(f'{path}: holds no ResNet backbone ({missing[0]} is not in it): give a file of a ResNet or ResNeXt')
  if 'res2.0.conv2.weight' not in arrays and 'res2.0.conv3.weight' in arrays:
    raise UserError(f'{path}: a ResNet with other blocks (Res2Net, ResNeSt, SKNet), which are not built here: use a '
                    'plain ResNet or ResNeXt')
  if 'res2.0.conv3.weight' not in arrays or 'res2.0.conv2.weight' not in arrays:
    raise UserError(f'{path}: a ResNet of basic blocks (18 or 34 layers): only bottleneck ResNets (50 and more) are '
                    'built here')
  shapes = {name: tuple(array.shape) for name, array in arrays.items()}
  inner, conv3, stem = (shapes[name] for name in ('res2.0.conv2.weight', 'res2.0.conv3.weight', 'stem.conv1.weight'))
  if not all(len(shape) == 4 and min(shape) > 0 for shape in (inner, conv3, stem)):
    raise UserError(f'{path}: res2.0.conv2.weight has the shape {inner}, stem.conv1.weight {stem}: these are not '
                    'convolutions of a ResNet')
  groups = max(inner[0] // inner[1], 1)
  return Architecture(3 * len(blocks) + 2, groups, inner[0] // groups, stem[0], conv3[0])


def check_arrays(arrays: Mapping[Any, Any], path: str) -> None:
  """Raise a UserError unless all keys are names and all values arrays of numbers."""
  check_names(arrays, path)
  for name, array in arrays.items():
    if not is_array(array):
      found = f'({array.name}) ' if isinstance(array, Opaque) else ''
      raise UserError(f'{path}: {excerpt(name)} {found}is not an array of numbers: this is not a weight file')


def is_array(value: Any) -> bool:
  """Return whether an object of a file is an array of numbers."""
  return isinstance(value, Lazy) or isinstance(value, np.ndarray | np.generic) and value.dtype.kind in 'fiu'


def check_names(names: Collection[Any], path: str) -> None:
  """Raise a UserError unless all names are short printable strings, and not too many: they are logged and parsed."""
  if len(names) > MAX_ARRAYS:
    raise UserError(f'{path}: {len(names):,} arrays are too many for a network: use another file')
  for name in names:
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or not name.isprintable():
      raise UserError(f'{path}: {excerpt(name)} is not the name of an array: this is not a weight file')


def temporary_folder() -> str:
  """Return a folder for copies of arrays that are read on demand; it is deleted when the process ends."""
  folder = tempfile.mkdtemp(prefix='rethink_tf_weights_')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder
