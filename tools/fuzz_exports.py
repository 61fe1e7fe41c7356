"""Corrupted exports of annotation tools, read by data.prepare: one kind for each layout."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np

from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.prepare.preparation import prepare
from rethink_tf.errors import UserError
from tests import exports, exports_json
from tools.fuzz_kinds import ACCEPTED, SKIPPED, Target, fresh, pick
from tools.mutations import corrupt_bytes, corrupt_json, corrupt_text

_IMAGES = ('.jpg', '.png')


def _build(write: Callable, folder: pathlib.Path) -> None:
  items, names = exports.draw(folder / 'drawn')
  write(items, names, folder / 'export')
  shutil.rmtree(folder / 'drawn')


def _pose(items, names, folder):
  """YOLO's pose labels: one keypoint in the middle of each box."""
  exports.ultralytics([item._replace(objects=[(label, bbox, []) for label, bbox, _ in item.objects]) for item in items],
                      names, folder)
  for file in folder.rglob('labels/*/*.txt'):
    file.write_text('\n'.join(f'{line} {" ".join(line.split()[1:3])} 2' for line in file.read_text().splitlines()))
  with open(folder / 'data.yaml', 'a') as file:
    file.write('kpt_shape: [1, 3]\nflip_idx: [0]\nkpt_names:\n  0: [middle]\n  1: [middle]\n')


def _numbered(items, names, folder):
  """An imagefolder whose classes are numbers, with their names in a card of the Hub."""
  exports_json.imagefolder(items, names, folder, named=False)
  labels = ''.join(f"          '{i}': {name}\n" for i, name in enumerate(sorted(set(names.values()))))
  (folder / 'README.md').write_text('---\ndataset_info:\n  features:\n  - name: objects\n    sequence:\n    - name: '
                                    f'categories\n      class_label:\n        names:\n{labels}---\n# A card\n')


def _corrupt(rng: np.random.Generator, file: pathlib.Path) -> None:
  """Corrupt the contents of one file."""
  data = file.read_bytes()
  if file.suffix.lower() in _IMAGES or rng.random() < 0.2:
    data = corrupt_bytes(rng, data)
  elif file.suffix == '.json':
    data = corrupt_json(rng, json.loads(data))
  else:
    data = corrupt_text(rng, data.decode().replace('><', '>\n<')).encode(errors='surrogatepass')
  file.write_bytes(data)


def _run(rng: np.random.Generator, seeds: pathlib.Path, work: pathlib.Path) -> str:
  fresh(seeds, work)
  files = sorted(path for path in (work / 'export').rglob('*') if path.is_file())
  annotations = [path for path in files if path.suffix.lower() not in _IMAGES or 'masks' in path.parts]
  for _ in range(int(rng.choice([1, 1, 2]))):
    file = pick(rng, annotations if annotations and rng.random() < 0.9 else files)
    files, annotations = ([path for path in paths if path != file] for paths in (files, annotations))
    match int(rng.integers(12)):
      case 0:
        file.unlink()
      case 1:
        file.rename(file.with_name(pick(rng, ['a b.jpg', 'x.json', 'ä.txt', 'data.yaml', 'é\udcff.png', 'train.txt'])))
      case _:
        _corrupt(rng, file)
  before = _state(work / 'export')
  try:
    prepared = prepare(str(work / 'export'), str(work / 'out'), copy=bool(rng.random() < 0.5))
  except UserError:
    assert not (work / 'out').exists(), 'an output folder that is not complete'
    raise
  finally:
    assert _state(work / 'export') == before, 'the source has changed'
  for split, (images, _) in prepared.splits.items():
    assert len(CocoSource(str(work / 'out'), split).image_ids) == images
  return SKIPPED if any(problems.counts for _, problems in prepared.problems) or prepared.notes else ACCEPTED


def _state(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


TARGETS = tuple(Target(f'exports: {name}', functools.partial(_build, write), _run) for name, write in (
  ('Roboflow', exports.roboflow), ('CVAT, COCO', exports.cvat_coco), ('CVAT, YOLO', exports.cvat_yolo),
  ('Ultralytics', exports.ultralytics), ('YOLO pose', _pose), ('LabelMe', exports.labelme), ('VIA', exports.via),
  ('Label Studio', exports.label_studio), ('VOC', exports.voc),
  ('CVAT xml', exports.cvat), ('tables', exports.csv), ('masks', exports.numbered_masks),
  ('Create ML', exports_json.createml), ('VoTT', exports_json.vott), ('Supervisely', exports_json.supervisely),
  ('SageMaker', exports_json.sagemaker), ('Datumaro', exports_json.datumaro),
  ('CVAT video', exports.cvat_video), ('Darwin', exports_json.darwin),
  ('imagefolder', exports_json.imagefolder), ('imagefolder, numbers', _numbered),
  ('Labelbox', exports_json.labelbox), ('Open Images', exports.open_images),
  ('Global Wheat', exports.wheat), ('BDD100K', exports_json.bdd100k),
  ('Cityscapes', exports_json.cityscapes)))
