"""Layouts that training reads as they are, where --data_dir holds another one than the gin files name."""

from __future__ import annotations

import os
from collections.abc import Sequence

import tensorflow as tf

from rethink_tf import gin_files
from rethink_tf.errors import UserError, in_one_line

_SETS = ('train', 'val')
_LIMITS = ('fraction', 'num_images', 'subset_seed', 'filter_empty', 'max_pixels')


def parse(files: Sequence[str], params: Sequence[str], data_dir: str | None = None,
          elsewhere: bool = False) -> tuple[bool, Sequence[str]]:
  """Read gin files and bindings as gin_files.parse, for the layout of their data.

  Returns whether it is another one, and remarks about files and bindings that have no effect.

  PASCAL VOC's folders are read in place of COCO json by a configuration of data/own.gin. data_dir: value of DATA_DIR.
  elsewhere: for another machine, which finds the layout: the data is not looked at.

  Raises:
    UserError: the configuration is not valid, or the storage of its data does not answer.
  """
  params = [*params, *([f'DATA_DIR = {data_dir!r}'] if data_dir else [])]
  remarks = gin_files.parse(files, params).remarks
  more = [] if elsewhere else _voc_bindings()
  if more:
    gin_files.parse(files, [*params, *more])
  return bool(more), remarks


def _voc_bindings() -> list[str]:
  """Return bindings that read PASCAL VOC's folders; limits on the number of images apply as before.

  [] unless the configuration reads instances_train.json and instances_val.json, these do not exist, and
  ImageSets/Main/train.txt and val.txt do.
  """
  folder = gin_files.effective(['train/coco.data_dir']).get('train/coco.data_dir')
  if not isinstance(folder, str) or not all(_reads_own(split, side) for split, side in (('train', 'train'),
                                                                                        ('val', 'eval'))):
    return []
  folder = os.path.expanduser(folder)
  own = [os.path.join(folder, 'annotations', f'instances_{split}.json') for split in _SETS]
  lists = [os.path.join(folder, 'ImageSets', 'Main', f'{split}.txt') for split in _SETS]
  try:
    if any(map(tf.io.gfile.exists, own)) or not all(map(tf.io.gfile.exists, lists)):
      return []
  except tf.errors.OpError as error:
    raise UserError(f'{folder}: cannot be read: {in_one_line(error)}') from error
  lines = ['voc.data_dir = %DATA_DIR', 'voc.classes = None']
  for side, split in zip(('train', 'eval'), _SETS, strict=True):
    lines += [f'run.{side}_source = @{side}/voc', f'{side}/voc.sets = ({split!r},)']
  limits = gin_files.effective([f'{side}/coco.{name}' for side in ('train', 'eval') for name in _LIMITS])
  return lines + [f'{name.replace("/coco.", "/voc.")} = {value!r}' for name, value in limits.items()]


def _reads_own(split: str, side: str) -> bool:
  """Whether a side of the run reads the file of a split of data/own.gin."""
  if repr(gin_files.bound(f'run.{side}_source')) != f'@{side}/coco':
    return False
  named = gin_files.effective([f'{side}/coco.{name}' for name in ('split', 'annotation_file', 'image_dir')])
  return named == {f'{side}/coco.split': split, f'{side}/coco.annotation_file': None, f'{side}/coco.image_dir': None}
