"""A tiny trained run with its held-out images, shared by the tests of prediction and of the Python API."""

import fcntl
import os
import pathlib

import gin
import pytest
from PIL import Image

from rethink_tf import api
from rethink_tf.data.detection.synthetic import SyntheticSource
from tests import tiny

TRAINING = (
  *tiny.PARAMS, 'synthetic.image_size = (60, 90)', 'KTimesSchedule.unit = 0.25', 'CocoEvaluator.every = 0',
  'run.eval_images_per_device = 2', 'run.ema = @ExponentialMovingAverage',
  'DetectionGenerator.score_threshold = 0.01')  # random weights are hardly ever confident


def make(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Return a folder with run/, two steps with averages and an evaluation, and images/, its held-out images as PNG.

  It is made once for all workers of pytest-xdist: do not write into it.
  """
  base = tmp_path_factory.getbasetemp()
  folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'tiny_run'
  folder.mkdir(exist_ok=True)
  with open(folder / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / 'images').exists():
      api.train('gin_configs/demo.gin', TRAINING, folder / 'run')
      gin.clear_config()
      source = SyntheticSource(3, split='val', image_size=(60, 90), object_size=(16, 40))
      (folder / 'images').mkdir()
      for i, image_id in enumerate(source.image_ids.tolist()):
        Image.fromarray(source.load(i).image).save(folder / 'images' / f'{image_id:06d}.png')
  return folder
