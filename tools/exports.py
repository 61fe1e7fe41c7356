"""Exports of full-size detectors: differences from `predict`, size, time of an image in each runtime.

  python -m tools.exports mask_rcnn --folder=/tmp/exports          # also cascade, keypoints: writes and compares files
  python -m tools.exports --folder=/tmp/exports                    # times them in turns, prints the table

R50-FPN with GroupNorm and random weights; the predictors' weights are drawn larger, so that scores and boxes differ and
there are detections. Needs the extra onnx.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

SIDE, ROUNDS = 512, 5
THRESHOLDS = {'mask_rcnn': 0.5, 'cascade': 0.3, 'keypoints': 0.5}  # the stages of a random cascade do not agree
FORMATS = {'SavedModel': ('saved_model', None), 'ONNX': ('detector.onnx', None),
           'TFLite': ('detector.tflite', (SIDE, SIDE))}
PERSON = dict(num_classes=1, num_keypoints=17)


def build(kind: str) -> Any:
  """Return a detector with random weights that finds something."""
  import tf_keras

  from rethink_tf.models.cascade import Cascade
  from rethink_tf.models.heads import MaskHead
  from rethink_tf.models.keypoints import KeypointHead
  from rethink_tf.models.mask_rcnn import MaskRCNN

  tf_keras.utils.set_random_seed(0)
  parts = {'mask_rcnn': lambda: dict(num_classes=80, mask_head=MaskHead()),
           'cascade': lambda: dict(num_classes=80, mask_head=MaskHead(), cascade=Cascade),
           'keypoints': lambda: PERSON | dict(keypoint_head=KeypointHead())}[kind]()
  detector = MaskRCNN(**parts)
  detector(np.zeros([1, 64, 64, 3], np.uint8), np.array([[64, 64]], np.float32))
  rng = np.random.default_rng(0)
  predictors = [detector.rpn_head.objectness, detector.box_predictor.classes, detector.box_predictor.deltas,
                detector.mask_predictor, detector.keypoint_predictor]
  if detector.cascade is not None:
    predictors += [layer for one in detector.cascade.predictors for layer in (one.classes, one.deltas)]
  for layer in filter(None, predictors):
    for variable in layer.variables:
      if variable.shape.rank > 1:
        fan_in = np.prod(variable.shape[:-1])
        scale = 0.5 if layer.name == 'deltas' else 4.0
        variable.assign(rng.normal(scale=scale / np.sqrt(fan_in), size=variable.shape))
  return detector


def source_of() -> Any:
  from rethink_tf.data.detection.synthetic import SyntheticSource

  return SyntheticSource(2, image_size=(SIDE, SIDE), object_size=(60, 300))


def inputs() -> Any:
  from rethink_tf.data.augment import Resize
  from rethink_tf.data.detection.input import EvalInput

  return EvalInput(source_of(), 1, Resize((SIDE,), SIDE))


def write(kind: str, folder: pathlib.Path) -> None:
  """Export a detector in every format; each export compares itself with predict."""
  import tensorflow as tf
  from absl import logging

  from rethink_tf.export import comparison, onnx_format, portable_files, saved_model, tflite_format

  logging.set_verbosity(logging.INFO)
  folder.mkdir(parents=True, exist_ok=True)
  detector, found = build(kind), {}
  images = inputs()
  verify = comparison.verify

  def recorded(*arguments: Any, **settings: Any) -> Any:
    found[name] = verify(*arguments, **settings)
    return found[name]

  comparison.verify = recorded

  @functools.cache  # traced once for all formats; the comparison sets the threshold
  def predict_at(threshold: float) -> Any:
    del threshold
    return tf.function(lambda batch: detector(batch.images, batch.image_sizes, training=False).detections,
                       autograph=False)

  def predict(batch: Any) -> Any:
    return predict_at(detector.detection_generator.score_threshold)(batch)

  for name, (file, size) in FORMATS.items():
    out = str(folder / file)
    if os.path.exists(out):
      continue
    print(f'{kind}: {name}', flush=True)
    if file == 'saved_model':
      saved_model.export(out, detector, predict, images, THRESHOLDS[kind])
    else:
      form = onnx_format if file.endswith('onnx') else tflite_format
      portable_files.export(out, form, detector, predict, images, THRESHOLDS[kind], size)
    worst = {field: float(max(getattr(one, field) for one in found[name]))
             for field in ('boxes', 'scores', 'masks', 'keypoints')}
    worst |= {'matched': min(one.matched for one in found[name]), 'detections': sum(
      one.detections for one in found[name]) // 2}
    (folder / f'{file}.json').write_text(json.dumps(worst))


def runners(folder: pathlib.Path) -> dict[str, Callable[[], Any]]:
  """Return a function of no arguments for each file there is, which runs it on the same image."""
  from rethink_tf.export import onnx_format, saved_model, tflite_format

  image, functions = source_of().load(0).image, {}
  for name, (file, _) in FORMATS.items():
    path = folder / file
    if not path.with_name(f'{file}.json').exists():
      continue
    if file == 'saved_model':
      model = saved_model.load(str(path))  # which must outlive its function
      run = lambda *inputs, model=model: model.detect(*inputs)  # noqa: E731
    else:
      run = (onnx_format if file.endswith('onnx') else tflite_format).runner(path.read_bytes())
    functions[name] = functools.partial(run, image, np.float32(THRESHOLDS[folder.name]))
  return functions


def size_of(path: pathlib.Path) -> int:
  return sum(one.stat().st_size for one in path.rglob('*')) if path.is_dir() else path.stat().st_size


def table(folder: pathlib.Path) -> str:
  """Time the files of every detector in turns, and return the table."""
  from rethink_tf.bench.measure import in_turns

  lines = ['| detector | format | MB | detections | agree | boxes, px | scores | masks | keypoints | ms |',
           '|---|---|---|---|---|---|---|---|---|---|']
  for kind in ('mask_rcnn', 'cascade', 'keypoints'):
    if not (folder / kind).exists():
      continue
    timings = in_turns(runners(folder / kind), ROUNDS)
    for name in timings:
      file = FORMATS[name][0]
      path = folder / kind / file
      row = json.loads(path.with_name(f'{file}.json').read_text())
      shares = (f'{100 * row["masks"]:.2g} %' if kind != 'keypoints' else '',
                f'{100 * row["keypoints"]:.2g} %' if kind == 'keypoints' else '')
      cells = (kind, name, f'{size_of(path) / 1e6:.0f}', row['detections'], f'{100 * row["matched"]:.1f} %',
               f'{row["boxes"]:.1g}', f'{row["scores"]:.1g}', *shares, f'{1000 * timings[name].median:.0f}')
      lines.append(f'| {" | ".join(map(str, cells))} |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('detector', nargs='?', choices=['mask_rcnn', 'cascade', 'keypoints'])
  parser.add_argument('--folder', required=True, type=pathlib.Path)
  options = parser.parse_args()
  if options.detector:
    write(options.detector, options.folder / options.detector)
  else:
    print(table(options.folder), end='')


if __name__ == '__main__':
  main()
