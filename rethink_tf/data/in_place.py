"""Layouts that training reads as they are, where --data_dir holds another one than the gin files name."""

from __future__ import annotations

import os

import tensorflow as tf

from rethink_tf import gin_files

_SETS = ('train', 'val')


def bindings(data_dir: str) -> list[str]:
  """Return bindings that read PASCAL VOC's folders in place of COCO json, for a configuration of data/own.gin.

  [] unless the gin configuration reads instances_train.json and instances_val.json, these do not exist, and
  ImageSets/Main/train.txt and val.txt do. Limits on the number of images apply as before.
  """
  if not all(_reads_own(split, side) for split, side in (('train', 'train'), ('val', 'eval'))):
    return []
  found = [os.path.join(data_dir, 'annotations', f'instances_{split}.json') for split in _SETS]
  lists = [os.path.join(data_dir, 'ImageSets', 'Main', f'{split}.txt') for split in _SETS]
  if any(map(tf.io.gfile.exists, found)) or not all(map(tf.io.gfile.exists, lists)):
    return []
  lines = ['voc.data_dir = %DATA_DIR', 'voc.classes = None']
  for side, split in zip(('train', 'eval'), _SETS, strict=True):
    lines += [f'run.{side}_source = @{side}/voc', f'{side}/voc.sets = ({split!r},)']
  limits = {name: gin_files.effective([f'train/coco.{name}', f'eval/coco.{name}'])
            for name in ('fraction', 'num_images', 'subset_seed', 'filter_empty')}
  return lines + [f'{key.replace("coco", "voc")} = {value!r}' for values in limits.values()
                  for key, value in values.items()]


def _reads_own(split: str, side: str) -> bool:
  """Whether a side of the run reads the file of a split of data/own.gin."""
  if repr(gin_files.bound(f'run.{side}_source')) != f'@{side}/coco':
    return False
  named = gin_files.effective([f'{side}/coco.{name}' for name in ('split', 'annotation_file', 'image_dir')])
  return named == {f'{side}/coco.split': split, f'{side}/coco.annotation_file': None, f'{side}/coco.image_dir': None}
