"""The input pipeline, padding, and the scoring of detections."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import tensorflow as tf

from rethink_tf import console
from rethink_tf.bench.kernels import blobs, random_boxes
from rethink_tf.bench.measure import Row, Timing, in_turns
from rethink_tf.data.augment import resize_image
from rethink_tf.data.buckets import padding_waste
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.data.images import decode
from rethink_tf.data.mixing import CopyPaste
from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics
from rethink_tf.ops.masks import paste
from rethink_tf.structures import Batch, Experiment

CATEGORIES = 80


def input_speed(experiment: Experiment, rounds: int, images: int = 200, chosen: Sequence[str] = ()) -> list[Row]:
  """Measure the input of training alone: images read, flipped and resized, with boxes and masks.

  Where the data has masks, and the configuration joins no images, the same input with copy-paste too; of records, that
  of TPU slices, a graph without Python; of image files, what no input can do without: decoding and resizing alone.
  """
  inputs = experiment.train_input
  variants = {'rethink_tf': inputs}
  if inputs.mix is None and getattr(inputs.source, 'has_masks', True):
    variants['with copy-paste'] = TrainInput(inputs.source, inputs.batch_size, inputs.seed, inputs.resize,
                                             inputs.max_instances, inputs.flip, inputs.max_unreadable, inputs.workers,
                                             inputs.colours, CopyPaste())
  batches = max(images // inputs.batch_size, 1)
  takes = {name: functools.partial(_take, iter(each.dataset()), batches, each)
           for name, each in variants.items()}
  if hasattr(inputs.source, 'locations') and inputs.colours is None and inputs.mix is None:
    # A graph of its own for each turn: it does not tell what it reads ahead.
    graphs = iter([iter(inputs.graph_dataset(turn * batches, batches)) for turn in range(rounds + 1)])
    takes['as on TPU slices'] = lambda: _take(next(graphs), batches)
  sizes = inputs.resize.largest_sizes(inputs.source.sizes)
  if hasattr(inputs.source, 'read'):
    read = np.arange(batches * inputs.batch_size) % len(inputs.source.image_ids)
    files = [inputs.source.read(i) for i in read.tolist()]
    takes['decoding and resizing alone'] = functools.partial(_decode_and_resize, files, sizes[read])
  unknown = [name for name in chosen if name not in takes]
  if unknown:
    raise UserError(f'--row={unknown[0]}: this input has the rows {", ".join(map(repr, takes))}')
  takes = {name: take for name, take in takes.items() if not chosen or name in chosen}
  timings = in_turns(takes, rounds)
  waste = 100 * padding_waste(sizes, inputs.padded_shapes, inputs.buckets)
  note = f'{inputs.source.name}, batches of {inputs.batch_size}, {waste:.1f} % of the pixels are padding'
  return [Row('input', name, timing, batches * inputs.batch_size, note=note) for name, timing in timings.items()]


def _take(iterator: Iterator[Batch], number: int, endless: TrainInput | None = None) -> None:
  """Take batches; those that an endless input reads ahead belong to this turn, and would slow the next one."""
  for _ in range(number):
    next(iterator)
  if endless is not None:
    endless.wait_for_step(sys.maxsize // 64, 60.0)


def _decode_and_resize(files: Sequence[bytes], sizes: np.ndarray) -> None:
  """Decode image files and resize them to sizes [N, 2], on a thread a core, into memory that is used again."""
  threads = os.cpu_count()

  def every_nth(first: int) -> None:
    out = np.empty([*sizes.max(axis=0), 3], np.uint8)
    for data, (height, width) in zip(files[first::threads], sizes[first::threads].tolist(), strict=True):
      resize_image(decode(data, 'image'), out[:height, :width])

  with ThreadPoolExecutor(threads) as pool:
    list(pool.map(every_nth, range(threads)))


def padding(experiment: Experiment, rounds: int) -> list[Row]:
  """Measure train steps with each padded shape and with one square, and their mean weighted by the data."""
  inputs = experiment.train_input
  largest = int(inputs.padded_shapes.max())
  sizes = inputs.resize.largest_sizes(inputs.source.sizes)
  shares = np.bincount(inputs.buckets, minlength=len(inputs.padded_shapes)) / len(inputs.buckets)
  used = [(tuple(padded_shape), share)
          for padded_shape, share in zip(inputs.padded_shapes.tolist(), shares, strict=True) if share]
  square = (largest, largest)
  steps = {padded_shape: functools.partial(_step(experiment), _padded_batch(inputs, list(padded_shape)))
           for padded_shape, _ in [*used, (square, 0.0)]}
  timings = in_turns(steps, rounds)
  rows = [Row('padding', f'{padded_shape[0]} x {padded_shape[1]}', timings[padded_shape], inputs.batch_size,
              note=f'{100 * share:.1f} % of the images') for padded_shape, share in [*used, (square, 0.0)]]
  mixed = sum(share * timings[padded_shape].median for padded_shape, share in used)
  wasted = 100 * padding_waste(sizes, np.array([square]), np.zeros(len(sizes), int))
  waste = 100 * padding_waste(sizes, inputs.padded_shapes, inputs.buckets)
  gain = timings[square].median / mixed
  note = f'{gain:.2f} times faster than the square; padding {waste:.1f} % instead of {wasted:.1f} %'
  return [*rows, Row('padding', 'mixed stream', Timing(mixed, mixed, mixed, rounds), inputs.batch_size, note=note)]


def _step(experiment: Experiment) -> Callable[[Batch], dict[str, tf.Tensor]]:
  """Return a new tf.function: TensorFlow warns about retracing if one is used for several shapes."""
  return tf.function(experiment.trainer.train_step, autograph=False)


def _padded_batch(inputs: TrainInput, padded_shape: list[int]) -> Batch:
  """Return the first batch whose images fit into a padded shape, padded to it."""
  for step in range(1000):
    batch = inputs.batch(step)
    height, width = batch.images.shape[1:3]
    own = padded_shape in inputs.padded_shapes.tolist()
    if [height, width] == padded_shape or (not own and height <= padded_shape[0] and width <= padded_shape[1]):
      images = np.zeros([len(batch.images), *padded_shape, 3], np.uint8)
      images[:, :height, :width] = batch.images
      return tf.nest.map_structure(tf.constant, batch._replace(images=images))
  raise AssertionError(f'the first 1000 batches do not fit into {padded_shape}')


def scoring(rounds: int, images: int) -> list[Row]:
  """Measure COCO's box and mask metrics of `images` images with 100 detections each, with both libraries."""
  truth, found = synthetic_results(images)
  rows = []
  for kind in ('bbox', 'segm'):
    results = found[kind]
    scores = {}

    def run(backend: str, results: Any = results, kind: str = kind, scores: dict[str, Any] = scores) -> None:
      scores[backend] = coco_metrics.evaluate(truth, results, kind, backend)

    timings = in_turns({name: functools.partial(run, name) for name in ('hotcoco', 'pycocotools')}, rounds, warm_up=0)
    ours, theirs = scores['hotcoco'].metrics, scores['pycocotools'].metrics
    difference = max(abs(ours[name] - theirs[name]) for name in theirs)
    note = f'{images} images x 100 detections; largest difference of the {len(theirs)} metrics {difference:.0e}'
    names = {'hotcoco': 'rethink_tf (hotcoco)', 'pycocotools': 'pycocotools'}
    rows += [Row(f'COCO {kind}', names[name], timing, images, note=note) for name, timing in timings.items()]
  return rows


def synthetic_results(images: int, height: int = 480, width: int = 640
                      ) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[dict[str, Any]]]]:
  """Return ground truth and detections in COCO's format.

  Each image has 7 objects, some of them crowds, and 100 detections, some of them near the objects.
  """
  rng = np.random.default_rng(0)
  truth = {'images': [{'id': i, 'height': height, 'width': width} for i in range(1, images + 1)], 'annotations': [],
           'categories': [{'id': k, 'name': str(k)} for k in range(1, CATEGORIES + 1)]}
  found: dict[str, list[dict]] = {'bbox': [], 'segm': []}
  shapes = blobs(500, rng)
  progress = console.Progress('synthetic detections', images, sys.stderr)
  for i in range(1, images + 1):
    own = random_boxes(7, height, width, seed=2 * i)
    near = own[rng.integers(0, 7, 30)] + rng.normal(0, 6, [30, 4])
    others = random_boxes(70, height, width, seed=2 * i + 1)
    boxes = np.concatenate([own, near, others])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 2)
    pasted = paste(shapes[rng.integers(0, len(shapes), len(boxes))], boxes, height, width)
    classes = rng.integers(1, CATEGORIES + 1, 7)
    predicted = np.concatenate([classes[rng.integers(0, 7, 30)], rng.integers(1, CATEGORIES + 1, 70)])
    xywh = np.concatenate([boxes[:, 1::-1], boxes[:, 3:1:-1] - boxes[:, 1::-1]], axis=1)
    for k in range(7):
      truth['annotations'].append({
        'id': len(truth['annotations']) + 1, 'image_id': i, 'category_id': int(classes[k]), 'bbox': xywh[k].tolist(),
        'area': float(xywh[k, 2] * xywh[k, 3] * 0.7), 'segmentation': _text(pasted[k]),
        'iscrowd': int(rng.uniform() < 0.013)})
    for k, score in enumerate(rng.uniform(0, 1, 100).round(4).tolist()):
      common = {'image_id': i, 'category_id': int(predicted[k]), 'score': score}
      found['bbox'].append({**common, 'bbox': xywh[7 + k].tolist()})
      found['segm'].append({**common, 'segmentation': _text(pasted[7 + k])})
    progress.count()
  progress.close()
  return truth, found


def _text(rle: Mapping[str, Any]) -> dict[str, Any]:
  """Return an RLE mask as in result files, with text counts."""
  return {'size': rle['size'], 'counts': rle['counts'].decode() if isinstance(rle['counts'], bytes) else rle['counts']}


def write_images(folder: str, number: int = 120) -> str:
  """Write synthetic images of 480 to 640 pixels as JPEG, with annotations, in COCO's layout; return `folder`."""
  for split in ('train', 'val'):
    os.makedirs(os.path.join(folder, f'{split}2017'), exist_ok=True)
    source = SyntheticSource(num_images=number, split=split, image_size=(480, 640), object_size=(60, 300))
    document = source.annotations()
    for i, image in enumerate(document['images']):
      image['file_name'] = f'{image["id"]:012d}.jpg'
      pixels = cv2.cvtColor(source.load(i).image, cv2.COLOR_RGB2BGR)
      cv2.imwrite(os.path.join(folder, f'{split}2017', image['file_name']), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
    os.makedirs(os.path.join(folder, 'annotations'), exist_ok=True)
    with open(os.path.join(folder, 'annotations', f'instances_{split}2017.json'), 'w') as file:
      json.dump(document, file)
  return folder
