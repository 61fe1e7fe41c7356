"""Data layouts that training reads without conversion, if --data_dir holds another one than the gin files expect."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from rethink_tf import gin_files
from rethink_tf.data.folders import list_names
from rethink_tf.data.prepare.coco_json import ROBOFLOW
from rethink_tf.errors import UserError, in_one_line

_SIDES = ('train', 'eval')
_LIMITS = ('fraction', 'num_images', 'subset_seed', 'filter_empty', 'max_pixels')
_COCO_YEARS = ('2017', '2014')
# Sets of PASCAL VOC's development kit, to train on and held out: both years as in section 5.2, then each alone.
_KIT = ((('VOC2007/trainval', 'VOC2012/train'), ('VOC2012/val',)), (('VOC2007/trainval',), ('VOC2007/test',)),
        (('VOC2007/train',), ('VOC2007/val',)), (('VOC2012/train',), ('VOC2012/val',)))
_RECORD_SPLITS = (('train', 'val'), *((f'train{year}', f'val{year}') for year in _COCO_YEARS))


class _Layout(NamedTuple):
  """Another layout, and the bindings of its sources for both sides, which are called @train/NAME and @eval/NAME."""

  description: str  # for messages
  source: str  # name in gin
  arguments: tuple[Sequence[str], Sequence[str]]  # of the source, for each side
  common: tuple[str, ...] = ()


def parse(files: Sequence[str], params: Sequence[str], data_dir: str | None = None,
          elsewhere: bool = False) -> tuple[str, Sequence[str]]:
  """Read gin files and bindings as gin_files.parse, for the layout of their data.

  Returns the description of the layout if it is another one, else '', and remarks about files and bindings that have no
  effect.

  In place of the files that data/own.gin names, a configuration of it reads COCO's own, PASCAL VOC's folders or its
  development kit, and TFRecords. data_dir: value of DATA_DIR. elsewhere: for another machine, which finds the layout:
  the data is not looked at.

  Raises:
    UserError: the configuration is not valid, or the storage of its data does not answer.
  """
  params = [*params, *([f'DATA_DIR = {data_dir!r}'] if data_dir else [])]
  remarks = gin_files.parse(files, params).remarks
  layout = None if elsewhere else _other_layout()
  if layout is None:
    return '', remarks
  gin_files.parse(files, [*params, *_bindings(layout)])
  return layout.description, remarks


def _other_layout() -> _Layout | None:
  """Return the layout that is found in place of instances_train.json and instances_val.json, None if there is none.

  Only for configurations that read these two files of a folder.
  """
  folder = gin_files.effective(['train/coco.data_dir']).get('train/coco.data_dir')
  if not isinstance(folder, str) or not all(_reads_own(split, side) for split, side in zip(('train', 'val'), _SIDES,
                                                                                        strict=True)):
    return None
  folder = os.path.expanduser(folder)

  def exists(*names: str) -> bool:
    return tf.io.gfile.exists(os.path.join(folder, *names))

  try:
    if any(exists('annotations', f'instances_{split}.json') for split in ('train', 'val')) or exists('train', ROBOFLOW):
      return None
    return _coco(exists) or _voc(exists) or _records(folder)
  except tf.errors.OpError as error:
    raise UserError(f'{folder}: cannot be read: {in_one_line(error)}') from error


def is_readable(folder: str) -> bool:
  """Return whether a configuration of data/own.gin reads a local folder, with both of its splits, as it is."""
  def exists(*names: str) -> bool:
    return os.path.exists(os.path.join(folder, *names))

  own = all(exists('annotations', f'instances_{split}.json') for split in ('train', 'val'))
  return own or all(exists(split, ROBOFLOW) for split in ('train', 'valid')) or bool(
    _coco(exists) or _voc(exists) or _records(folder))


def _coco(exists: Callable[..., bool]) -> _Layout | None:
  # People alone have keypoints, in files of their own, as data/coco_keypoints.gin reads them.
  name = 'train/coco.keypoints'  # unknown where no source is imported
  kind = 'person_keypoints' if gin_files.effective([name]).get(name) else 'instances'
  for year in _COCO_YEARS:
    splits = f'train{year}', f'val{year}'
    files = [f'annotations/{kind}_{split}.json' for split in splits]
    if all(map(exists, files)):
      return _Layout(f'COCO {year}', 'coco', tuple((f'split = {split!r}', f'annotation_file = {file!r}')
                                                   for split, file in zip(splits, files, strict=True)))
  return None


def _voc(exists: Callable[..., bool]) -> _Layout | None:
  if exists('ImageSets', 'Main', 'train.txt') and exists('ImageSets', 'Main', 'val.txt'):
    return _Layout("PASCAL VOC's folders", 'voc', (["sets = ('train',)"], ["sets = ('val',)"]), ('classes = None',))
  for sets in _KIT:
    years = [one.split('/') for side in sets for one in side]
    if all(exists(year, 'ImageSets', 'Main', f'{name}.txt') for year, name in years):
      description = f"PASCAL VOC's development kit ({', '.join(sets[0])}; held out: {', '.join(sets[1])})"
      return _Layout(description, 'voc', tuple([f'sets = {side!r}'] for side in sets))
  return None


def _records(folder: str) -> _Layout | None:
  names = list_names(folder) if tf.io.gfile.isdir(folder) else []
  for splits in _RECORD_SPLITS:
    if all(any(name.startswith(f'{split}-00000-of-') for name in names) for split in splits):
      return _Layout('TFRecords', 'records', tuple([f'split = {split!r}'] for split in splits))
  return None


def use_of_records(data_dir: str, split: str) -> str:
  """Return how to train on TFRecords: gin_configs/data/own.gin finds splits of the usual names."""
  for splits in _RECORD_SPLITS:
    if split in splits:
      return (f'with {splits[0]} and {splits[1]} there, train with --gin_file=gin_configs/data/own.gin '
              f'--data_dir={shlex.quote(data_dir)}')
  return f'read them with @records(), records.data_dir and records.split = {split!r}'


def _bindings(layout: _Layout) -> list[str]:
  """Return bindings that read a layout; limits on the number of images apply as before."""
  lines = [f'{layout.source}.{each}' for each in ('data_dir = %DATA_DIR', *layout.common)]
  for side, arguments in zip(_SIDES, layout.arguments, strict=True):
    lines.append(f'run.{side}_source = @{side}/{layout.source}')
    lines += [f'{side}/{layout.source}.{argument}' for argument in arguments]
  if layout.source == 'coco':
    return lines
  names = [*_LIMITS, *(('keypoints', 'keypoint_pairs') if layout.source == 'records' else ())]
  limits = gin_files.effective([f'{side}/coco.{name}' for side in _SIDES for name in names])
  return lines + [f'{name.replace("/coco.", f"/{layout.source}.")} = {value!r}' for name, value in limits.items()]


def _reads_own(split: str, side: str) -> bool:
  """Whether one side of the run reads the file of data/own.gin for a split."""
  if repr(gin_files.bound(f'run.{side}_source')) != f'@{side}/coco':
    return False
  named = gin_files.effective([f'{side}/coco.{name}' for name in ('split', 'annotation_file', 'image_dir')])
  return named == {f'{side}/coco.split': split, f'{side}/coco.annotation_file': None, f'{side}/coco.image_dir': None}
