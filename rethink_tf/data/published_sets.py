"""Published data sets by name: their archives, the layout that gin_configs/data expects, and what a whole one has.

Sizes and checksums: COCO's as TensorFlow Datasets records them (tensorflow_datasets/url_checksums/coco.txt), VOC's as
TensorFlow Datasets (url_checksums/voc.txt) and torchvision (torchvision/datasets/voc.py) do; the publishers give none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rethink_tf.downloads.remote_file import RemoteFile


class Archive(NamedTuple):
  """An archive of a data set, and what it has once it is unpacked.

  below: the folder of the archive whose content is unpacked. files: that it has. counts: (folder, suffix) -> how many
  such files at least; users keep others beside them.
  lists: text file of names, one a line -> how many. listed: files that each name of a list has, as 'images/{}.jpg'.
  """

  remote: RemoteFile
  below: str = ''
  files: tuple[str, ...] = ()
  counts: Mapping[tuple[str, str], int] = MappingProxyType({})
  lists: Mapping[str, int] = MappingProxyType({})
  listed: tuple[str, ...] = ()

  def missing(self, folder: str) -> str:
    """Return which of the archive's files a folder lacks, in words; '' if none."""
    for name in self.files:
      if not os.path.isfile(os.path.join(folder, name)):
        return f'{name} is missing'
    for (name, suffix), wanted in self.counts.items():
      found = sum(file.endswith(suffix) for file in _files(os.path.join(folder, name)))
      if found < wanted:
        return f'{name}/ has {found:,} files *{suffix} instead of {wanted:,}'
    for name, wanted in self.lists.items():
      try:
        with open(os.path.join(folder, name), errors='replace') as file:
          names = file.read(1 << 24).split()
      except OSError:
        return f'{name} is missing'
      if len(names) != wanted:
        return f'{name} has {len(names):,} names instead of {wanted:,}'
      for pattern in self.listed:
        there = _files(os.path.join(folder, os.path.dirname(pattern)))
        absent = [each for each in names if os.path.basename(pattern).format(each) not in there]
        if absent:
          return f'{pattern.format(absent[0])} and {len(absent) - 1:,} others of {name} are missing'
    return ''


def _files(folder: str) -> set[str]:
  try:
    return {entry.name for entry in os.scandir(folder)}
  except OSError:
    return set()


class PublishedSet(NamedTuple):
  """A data set.

  folder: the default of --output_dir, the DATA_DIR of its gin file. options: those of a command that reads it.
  source: where the addresses stand. class_name: of a set in VIA's JSON, which names none: it is converted
  (rethink_tf.data.prepare). tried: when somebody has downloaded it with this package; '' while nobody has.
  """

  folder: str
  options: str
  archives: tuple[Archive, ...]
  terms: str
  source: str
  class_name: str = ''
  tried: str = ''


def _coco(file: str, size: int, sha256: str, **contents: Any) -> Archive:
  return Archive(RemoteFile(f'http://images.cocodataset.org/{file}', size, sha256=sha256), **contents)


def _voc(file: str, size: int, sha256: str, md5: str, lists: Mapping[str, int]) -> Archive:
  return Archive(RemoteFile(f'http://host.robots.ox.ac.uk/pascal/VOC/voc2007/{file}', size, sha256=sha256, md5=md5),
                 'VOCdevkit/', lists={f'VOC2007/ImageSets/Main/{name}.txt': count for name, count in lists.items()},
                 listed=('VOC2007/JPEGImages/{}.jpg', 'VOC2007/Annotations/{}.xml'))


SETS: Mapping[str, PublishedSet] = MappingProxyType({
  'coco2017': PublishedSet(
    'data/coco', '--gin_file=gin_configs/data/coco.gin',
    (_coco('annotations/annotations_trainval2017.zip', 252_907_541,
           '113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268',
           files=tuple(f'annotations/{task}_{split}2017.json' for task in ('instances', 'person_keypoints', 'captions')
                       for split in ('train', 'val'))),
     _coco('zips/val2017.zip', 815_585_330, '4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05',
           counts={('val2017', '.jpg'): 5_000}),
     _coco('zips/train2017.zip', 19_336_861_798, '69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929',
           counts={('train2017', '.jpg'): 118_287})),
    'annotations CC BY 4.0, images under the terms of Flickr',
    'tensorflow/datasets tensorflow_datasets/url_checksums/coco.txt'),
  'voc2007': PublishedSet(
    'data/VOCdevkit', '--gin_file=gin_configs/data/voc.gin --gin_param="train/voc.sets = (\'VOC2007/trainval\',)" '
    '--gin_param="eval/voc.sets = (\'VOC2007/test\',)"',
    (_voc('VOCtrainval_06-Nov-2007.tar', 460_032_000,
          '7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508', 'c52e279531787c972589f7e41ab4ae64',
          {'train': 2_501, 'val': 2_510, 'trainval': 5_011}),
     _voc('VOCtest_06-Nov-2007.tar', 451_020_800,
          '6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892', 'b6e924de25625d8de591ea690078ad9f',
          {'test': 4_952})),
    'images under the terms of Flickr', 'pytorch/vision torchvision/datasets/voc.py'),
  'balloon': PublishedSet(
    'data/balloon', '--gin_file=gin_configs/data/balloon.gin',
    (Archive(RemoteFile('https://github.com/matterport/Mask_RCNN/releases/download/v2.1/balloon_dataset.zip'),
             'balloon/', counts={('train', '.jpg'): 61, ('val', '.jpg'): 13}),),
    'images under the terms of Flickr, annotations MIT',
    "releases of matterport/Mask_RCNN, as in detectron2's tutorial", 'balloon'),
})
