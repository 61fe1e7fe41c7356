"""A run folder with the detections of an evaluation."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests import small_coco
from tests.small_coco import annotation, image


@pytest.fixture
def run(tmp_path):
  """A run folder of a detector with one classification error and one missed object."""
  annotations = [annotation(1), annotation(2, image_id=2)]
  data = small_coco.write(tmp_path / 'data', [image(1), image(2)], annotations,
                          [{'id': 1, 'name': 'thing'}, {'id': 4, 'name': 'other'}], 'val2017')
  folder = tmp_path / 'run'
  for step in (2, 4):
    (folder / 'eval' / f'step-{step:08d}').mkdir(parents=True)
  (folder / 'config.gin').write_text(
    f"include 'gin_configs/scratch_6x.gin'\nDATA_DIR = '{data}'\n")
  entry = {'image_id': 1, 'category_id': 4, 'score': 0.9}
  newest = folder / 'eval' / 'step-00000002'  # the later one has saved none
  (newest / 'bbox.json').write_text(json.dumps([entry | {'bbox': [10, 10, 20, 30]}]))
  mask = np.zeros((60, 80), np.uint8, order='F')
  mask[10:40, 10:30] = 1
  rle = coco_mask.encode(mask)
  rle = {'size': rle['size'], 'counts': rle['counts'].decode()}
  (newest / 'segm.json').write_text(json.dumps([entry | {'segmentation': rle}]))
  return folder
