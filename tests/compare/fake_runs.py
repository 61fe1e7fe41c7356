"""Run folders with detections of known AP."""

from __future__ import annotations

import json
import pathlib
import zlib

import numpy as np

CONFIG = '''# Macros:
# ==============================================================================
SCHEDULE = {k}

# Parameters for KTimesSchedule:
# ==============================================================================
KTimesSchedule.base_rate = {rate}
KTimesSchedule.k = %SCHEDULE
KTimesSchedule.unit = 300
KTimesSchedule.warmup_steps = 10

# Parameters for run:
# ==============================================================================
run.batch_size = 4
run.initial_weights = {init}
{weights}
run.model = \\
    @MaskRCNN
run.seed = {seed}
ResNet.norm = @group_norm
'''


def truth(images: int = 200) -> dict:
  """Ground truth with an object of each of two categories per image."""
  return {
    'images': [{'id': 10 + i, 'height': 100, 'width': 100} for i in range(images)],
    'categories': [{'id': 3, 'name': 'a'}, {'id': 7, 'name': 'b'}],
    'annotations': [{'id': 2 * i + k, 'image_id': 10 + i, 'category_id': (3, 7)[k], 'bbox': [10, 10, 40, 40],
                     'area': 1600, 'iscrowd': 0} for i in range(images) for k in range(2)]}


def detections(gt: dict, detected: np.ndarray, score: float = 0.9) -> list[dict]:
  """Correct boxes in each image of `detected`, wrong ones of lower score in the others."""
  return [{'image_id': a['image_id'], 'category_id': a['category_id'], 'score': score if right else 0.1,
           'bbox': a['bbox'] if right else [60, 60, 20, 20]}
          for a, right in zip(gt['annotations'], np.repeat(detected, 2), strict=True)]


def write(folder: pathlib.Path, detected: np.ndarray, k: float = 1, init: str | None = None, seed: int = 0,
          rate: float = 0.02, images: int = 400, save: bool = True) -> str:
  """Write a run trained on `images` images that detects the objects of the images in `detected`; AP is their share."""
  gt = truth(len(detected))
  folder.mkdir(parents=True)
  (folder / 'config.gin').write_text(CONFIG.format(k=k, init='@PretrainedWeights()' if init else 'None', seed=seed,
                                                   rate=rate, weights=f'PretrainedWeights.path = {init!r}' if init else
                                                   ''))
  if init:
    (folder / 'initial_weights.json').write_text(json.dumps({'path': init, 'format': 'torchvision'}))
  steps = images // 4
  loss = 3.0 + zlib.crc32(f'{init} {seed}'.encode()) / 2 ** 40  # as of other initial weights and another order
  lines = [{'kind': 'resume', 'step': 0}]
  for step in (1, steps // 2, steps):
    lines.append({'kind': 'train', 'step': step, 'images': 4 * step, 'instances': 12 * step, 'pixels': 40_000 * step,
                  'seconds': float(step), 'loss/total': loss / step, 'learning_rate': rate})
  ap = 100 * float(np.mean(detected))
  lines += [{'kind': 'eval', 'step': steps // 2, 'box/AP': ap / 2}, {'kind': 'eval', 'step': steps, 'box/AP': ap,
                                                                    'box/APs': -1, 'box/APm': ap, 'box/APl': -1}]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  if save:
    (folder / f'eval/step-{steps:08d}').mkdir(parents=True)
    (folder / f'eval/step-{steps:08d}/ground_truth.json').write_text(json.dumps(gt))
    (folder / f'eval/step-{steps:08d}/bbox.json').write_text(json.dumps(detections(gt, detected)))
  return str(folder)


def share(of: int, images: int = 200, seed: int = 0) -> np.ndarray:
  """Return a mask with `of` of the images, drawn at random."""
  detected = np.zeros(images, bool)
  detected[np.random.default_rng(seed).permutation(images)[:of]] = True
  return detected


HALF = share(100)


def worse(by: int) -> np.ndarray:
  """Return HALF without `by` of its images."""
  detected = HALF.copy()
  detected[np.flatnonzero(detected)[:by]] = False
  return detected


def better(by: int) -> np.ndarray:
  """Return HALF with `by` more images."""
  detected = HALF.copy()
  detected[np.flatnonzero(~detected)[:by]] = True
  return detected
