"""Corrupted results: detections and ground truth that evaluations have saved, and the files of studies."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from rethink_tf.compare import bootstrap, looks, matching
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.study import own_data
from tests.compare import fake_runs
from tools.fuzz_kinds import ACCEPTED, SKIPPED, Target, fresh, pick
from tools.mutations import corrupt_bytes, corrupt_json

_STEP = 'eval/step-00000100'


def _build_evaluation(folder: pathlib.Path) -> None:
  """An evaluation of boxes, masks and keypoints, by the rules of COCO and of VOC."""
  detected = np.arange(8) % 2 == 0
  fake_runs.write(folder / 'run', detected)
  gt = fake_runs.truth(len(detected))
  gt['categories'][0]['keypoints'] = ['nose', 'tail']
  for entry in gt['annotations']:
    entry |= {'segmentation': [[10, 10, 50, 10, 50, 50]], 'keypoints': [12, 12, 2, 40, 40, 1], 'num_keypoints': 2}
  boxes = fake_runs.detections(gt, detected)
  rle = {'size': [100, 100], 'counts': 'PPn12'}
  for name, content in (('ground_truth', gt | {'voc_rule': 'area', 'keypoint_sigmas': [0.1, 0.2]}), ('bbox', boxes),
                        ('segm', [{**one, 'segmentation': rle} for one in boxes]),
                        ('keypoints', [{**one, 'keypoints': [12, 12, 1, 40, 40, 1]} for one in boxes])):
    (folder / 'run' / _STEP / f'{name}.json').write_text(json.dumps(content))
  for category in ('a', 'b'):
    (folder / 'run' / _STEP / f'comp4_det_test_{category}.txt').write_text('10 0.9 11 11 50 50\n12 0.3 61 61 80 80\n')


def _run_evaluation(rng: np.random.Generator, seeds: pathlib.Path, work: pathlib.Path) -> str:
  fresh(seeds / 'run', work)
  metric = pick(rng, [*matching.FILES, 'voc/mAP'])
  own = sorted((work / _STEP).glob('comp4*')) if metric == 'voc/mAP' else [
    work / _STEP / matching.FILES[metric][0]]
  path = pick(rng, [*own, work / _STEP / 'ground_truth.json'])
  data = path.read_bytes()
  path.write_bytes(corrupt_json(rng, json.loads(data)) if path.suffix == '.json' and rng.random() < 0.8
                   else corrupt_bytes(rng, data))
  folder = RunFolder(str(work), create=False)
  matching.object_sizes(folder, metric, 100)
  scored = matching.read_matches(folder, metric, 100)
  if scored is None:
    return SKIPPED
  draws = bootstrap.resampled([scored.matches], draws=3)
  assert ((draws >= 0) & (draws <= 100 + 1e-9) | np.isnan(draws)).all(), draws
  return ACCEPTED


def _build_study(folder: pathlib.Path) -> None:
  looks.write(str(folder), looks.Record(5, (looks.Taken(2, {'seed0_scratch': 40.5}, ('seed2_scratch',)),
                                            looks.Taken(3, {'seed0_scratch': 40.5, 'x': 3.0}, None)), 0))
  choice = own_data.Choice('gin_configs/studies/own_data.gin', ('a.gin',), ('x = 1',), None, ('because',))
  (folder / 'choice.json').write_text(json.dumps({'data_dir': '/data', 'minutes': 60.0, **choice._asdict()}))


def _run_study(rng: np.random.Generator, seeds: pathlib.Path, work: pathlib.Path) -> str:
  fresh(seeds, work)
  path = pick(rng, [work / looks.FILE, work / 'choice.json'])
  data = path.read_bytes()
  path.write_bytes(corrupt_json(rng, json.loads(data)) if rng.random() < 0.8 else corrupt_bytes(rng, data))
  record = looks.read(str(work))
  if record.taken:
    assert record.look.tail(0.95) > 0 and looks.described(record)
  looks.check_scores(str(work), record, {'seed0_scratch': 40.5})
  found = own_data._read(str(work / 'choice.json'), '/data')
  found.command('/data', str(work))
  return ACCEPTED


TARGETS = (
  Target('saved evaluations', _build_evaluation, _run_evaluation),
  Target('files of studies', _build_study, _run_study),
)
