"""Predictions of several runs on the same images, from the predictions.png of their last evaluations."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image

from rethink_tf.compare.run_summary import Run
from rethink_tf.data import images
from rethink_tf.evaluation.scoring import CELLS, SHOWN_SCORE

SHOWN_IMAGES = 4
_JPEG_QUALITY = 85
_MAX_BYTES = 64 << 20  # of a predictions.png

Cells = dict[int, tuple[str, np.ndarray, np.ndarray]]  # image id -> name, ground truth, predictions


class SameImage(NamedTuple):
  """An image with its ground truth and the predictions of each side."""

  name: str
  sides: dict[str, bytes]  # JPEG files: 'ground truth', then each side


def on_same_images(runs: Mapping[str, Run]) -> list[SameImage]:
  """Return up to SHOWN_IMAGES images that the last evaluations of all runs have drawn; [] without any.

  Images of the same id and another name are of another data set.

  runs: run by the name of its side.
  """
  cells = {side: _cells(run) for side, run in runs.items()}
  named = [{(image_id, name) for image_id, (name, *_) in one.items()} for one in cells.values()]
  common = set.intersection(*named) if named else set()
  result = []
  for image_id, name in sorted(common)[:SHOWN_IMAGES]:
    _, truth, _ = next(iter(cells.values()))[image_id]
    drawn = {f'{side}, score >= {SHOWN_SCORE}': one[image_id][2] for side, one in cells.items()}
    result.append(SameImage(name, {side: _jpeg(image) for side, image in ({'ground truth': truth} | drawn).items()}))
  return result


def _cells(run: Run) -> Cells:
  """Return the images in a run's predictions.png; {} if it is missing or damaged, or does not list its images."""
  path = run.folder.join('eval', f'step-{int(run.curve.steps[-1]):08d}', 'predictions.png')
  if not tf.io.gfile.exists(path):
    return {}
  try:
    data = images.read_file(path, max_bytes=_MAX_BYTES)
    grid = images.decode(data, path)
    with Image.open(io.BytesIO(data), formats=['PNG']) as file:
      content = json.loads(file.text.get(CELLS, '[]'))
    return {int(image_id): (str(name), _cut(grid, truth), _cut(grid, predicted))
            for image_id, name, truth, predicted in content}
  except (images.ImageError, OSError, ValueError, TypeError, RecursionError, SyntaxError):
    return {}  # the page is of use without them


def _cut(grid: np.ndarray, place: tuple[int, int, int, int]) -> np.ndarray:
  y0, x0, y1, x1 = place
  cell = grid[y0:y1, x0:x1]
  if not cell.size or min(place) < 0:
    raise ValueError('no such place')
  return cell


def _jpeg(image: np.ndarray) -> bytes:
  return cv2.imencode('.jpg', np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
                      )[1].tobytes()
