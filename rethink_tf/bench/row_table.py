"""The table of all shipped configurations, written by bench.rows: the published row and the size of the network.

Nothing is allocated, computed or read from a data set:
networks are counted in their graphs.
"""

from __future__ import annotations

import pathlib
import re
import sys
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import gin
import tensorflow as tf
import tf_keras

import rethink_tf.experiment  # noqa: F401  registers what gin files name
from rethink_tf import gin_files
from rethink_tf.bench import activations, costs
from rethink_tf.bench.capacity import PADDED_SHAPE, batch_specs
from rethink_tf.compare.published import reproduces
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage.files import write_output
from rethink_tf.structures import LabelledImages

CLASSES = {'voc': 20, 'data/clothing': 10}  # by source or by folder; others: COCO's 80 or ImageNet's 1000

HEAD = f'''# All configurations

Written by `python -m rethink_tf.bench.rows --output=results/rows.md`, which counts networks in their graphs.

## Configurations

- **reproduces**: the first sentence of the file's run sheet; **published**: the first result in it. Results measured
  here are in README.md.
- **parameters**: trainable ones; **classes**: those of the data set: COCO 80 (people 1, with 17 keypoints), VOC 20,
  ImageNet 1000, also used for hashtags, synthetic shapes 6.
- **multiply-adds**: one image at inference; convolutions, transposed convolutions and fully connected layers, one
  multiply-add being two FLOPs. A detector's image has 800 x 1333 pixels, padded to {'{} x {}'.format(*PADDED_SHAPE)},
  whatever sizes the configuration trains on; as an upper bound, its box head runs on all proposals, its mask head on
  all detections. A classifier's image is a crop of its training size.
- **fixed memory**: all variables, with a gradient and a velocity for each trainable one. **per image**: the tensors of
  the forward pass in training that the backward pass reads, for the same image, with all RoI slots in use. Both in
  float32, in 10^9 bytes, counted by this rule and not measured. The peak of a step is higher because of short-lived
  tensors and the framework: 4.7 GB were measured for R50-FPN with GroupNorm (gin_configs/runtime/recompute.gin), where
  the rule gives 0.55 + 3.10.

| gin file | reproduces | published | classes | parameters | G multiply-adds | fixed GB | GB per image |
|---|---|---|---|---|---|---|---|
'''

OTHERS_HEAD = '''
## Published by others, for comparison

The code bases differ in augmentation and losses: compare within one. Box and mask AP on val2017 unless stated. If a
gin file follows one of them, the table above says so.

| system | schedule | box AP | mask AP | source |
|---|---|---|---|---|
'''
_SCRATCH_3X = 'Mask R-CNN R50-FPN GN scratch'
OTHERS = (  # system, schedule, box, mask, source
  ('DSOD300 from scratch', '100k steps of 128', '29.3 (test-dev)', '-', 'szq0214/DSOD; quoted by the paper'),
  ('DSOD300 from scratch on VOC', '100k steps of 128', '77.7 mAP (VOC07 test)', '-', 'szq0214/DSOD'),
  ('CornerNet from scratch, multi-scale augmentation', '-', '42.1', '-', 'quoted by the paper'),
  ('ScratchDet (SSD with BatchNorm) from scratch', '-', '32.7, not verified', '-',
   'KimSoybean/ScratchDet, which does not state it'),
  (_SCRATCH_3X, '3x', '39.5', '35.2', 'Detectron, projects/GN/README.md'),
  ('Mask R-CNN R101-FPN GN scratch', '3x', '41.0', '36.4', 'Detectron, projects/GN/README.md'),
  (_SCRATCH_3X + ', stem and res2 accidentally untrained', '3x', '36.2', '32.5', 'Detectron, projects/GN/README.md'),
  (_SCRATCH_3X + ', 640-800', '3x', '39.9', '36.6', 'Detectron2, MODEL_ZOO.md'),
  (_SCRATCH_3X + ', 640-800', '9x, batch 64', '43.7', '39.6', 'Detectron2, MODEL_ZOO.md'),
  ('Mask R-CNN R50-FPN SyncBN scratch, 640-800', '9x, batch 64', '43.6', '39.3', 'Detectron2, MODEL_ZOO.md'),
  ('Mask R-CNN R50-FPN SyncBN scratch, large-scale jitter', '100 / 200 / 400 epochs', '44.6 / 46.3 / 47.4',
   '40.3 / 41.7 / 42.5', 'Detectron2, MODEL_ZOO.md'),
  ('Mask R-CNN R101-FPN SyncBN scratch, large-scale jitter', '100 / 200 / 400 epochs', '46.4 / 48.0 / 48.9',
   '41.6 / 43.1 / 43.7', 'Detectron2, MODEL_ZOO.md'),
  ('Mask R-CNN R50-FPN SyncBN scratch, standard jitter', '90k / 270k iterations, batch 64', '43.3 / 43.5',
   '39.2 / 39.1', 'mmdetection, configs/simple_copy_paste'),
  ('the same with copy-paste', '90k / 270k iterations, batch 64', '43.9 / 45.1', '39.2 / 40.3',
   'mmdetection, configs/simple_copy_paste'),
  ('Mask R-CNN R50-FPN / R101-FPN SyncBN scratch, 1024, large-scale jitter and copy-paste',
   '270k iterations, batch 256', '48.3 / 49.8', '42.4 / 43.5',
   'tensorflow/tpu, models/official/detection/projects/copy_paste'),
  ('Cascade R101-FPN GN scratch, 640-800', '9x', '47.7', '41.7', 'tensorpack, examples/FasterRCNN/README.md'),
  ('Faster R-CNN R50-FPN GN scratch', '6x', '40.7', '-', 'mmdetection, configs/scratch'),
  (_SCRATCH_3X, '6x', '41.2', '37.4', 'mmdetection, configs/scratch'),
  (_SCRATCH_3X, '3x', '38.9', '35.1', 'maskrcnn-benchmark, configs/gn_baselines/README.md'),
  ('Mask R-CNN R50-FPN pre-trained on COCO alone, 448 x 448 in batches of 64', '1x', '40.0', '35.8',
   'wxzs5/direct-pretraining (2106.03112)'),
  ('Mask R-CNN R50-FPN GN pre-trained', '2x / 3x', '40.3 / 40.8', '35.7 / 36.1', 'Detectron, projects/GN/README.md'),
  ('Mask R-CNN R101-FPN GN pre-trained', '2x / 3x', '41.8 / 42.3', '36.8 / 37.2', 'Detectron, projects/GN/README.md'),
  ('Cascade X152-32x8d + test augmentation', '1.44x', '50.2', '42.3', 'zhaoweicai/Detectron-Cascade-RCNN, README'),
  ('Cascade X152 + test augmentation', '-', '51.9', '45.9', 'Detectron2, MODEL_ZOO.md'),
  ('CBNet Dual-X152 cascade', '1.44x', '50.0', '42.0', 'CBNet_caffe, README'),
  ('CBNet Triple-X152 cascade', '-', '50.7', '-', 'arXiv 1909.03625v1, table 1'),
  ('CBNet Triple-X152 cascade, multi-scale test', '-', '53.3', '43.3', "paperswithcode.com, the paper's page"),
)

# Bindings that do not affect a network's cost. Unknown names are assumed to affect it.
_COSTLESS = re.compile(
  r'(SCHEDULE|BATCH_SIZE|WEIGHTS|DATA_DIR|IMAGES|SHORT_SIDE|macro)\b'
  r'|(\w+/)?(\w*Schedule|SteppedHalving|SGD|PretrainedWeights|\w*Evaluator|\w*Input|PreciseStatistics|Resize|strategy'
  r'|coco|records|image_records|voc|synthetic|synthetic_classes|image_folder|hashtags)\.|run\.(?!model|losses)')



class Cost(NamedTuple):
  """Size and work of a configuration's network."""

  classes: int
  parameters: int
  multiply_adds: int
  fixed: int  # bytes
  activations: int  # bytes


def shipped() -> list[str]:
  """Return the names of all complete configurations, in the order of the table."""
  root = gin_files.shipped_root()
  found = [*sorted((root / 'gin_configs').glob('*.gin')), *sorted((root / 'gin_configs/pretraining').glob('*.gin'))]
  # A file without includes follows that of a detector (pretraining/target_low_resolution.gin).
  return [path.relative_to(root).as_posix() for path in found if not path.stem.endswith('base')
          and re.search(r"^include '", path.read_text(), re.MULTILINE)]


def cost(name: str, known: dict[Hashable, Cost]) -> Cost:
  """Return the cost of a configuration's network. known: cache by the bindings that affect it."""
  gin_files.parse([name], ["WEIGHTS = 'weights'"])
  try:
    classifies = gin.query_parameter('run.model').configurable.name == 'Classifier'
    counts = _counts(classifies)
    side = gin_files.bound('CROP_SIZE/macro.value') if classifies else None
    lines = (line for line in gin.config_str(max_line_length=10_000).splitlines() if ' = ' in line)
    key = (frozenset(line for line in lines if not _COSTLESS.match(line)), *sorted(counts.items()), side)
    if key not in known:
      known[key] = _count(counts, side or 224, classifies)
    return known[key]
  finally:
    gin.clear_config()


def _counts(classifies: bool) -> dict[str, int]:
  """Return num_classes, and num_keypoints if any, of the training data of the parsed configuration."""
  source = gin.query_parameter('run.train_source').configurable.name
  if gin_files.bound('coco.keypoints') and source == 'coco':
    return {'num_classes': 1, 'num_keypoints': 17}
  if source in ('synthetic', 'synthetic_classes'):
    return {'num_classes': SyntheticSource(1).num_classes}
  folder = gin_files.bound('DATA_DIR/macro.value')
  return {'num_classes': CLASSES.get(folder, CLASSES.get(source, 1000 if classifies else 80))}


def _count(counts: Mapping[str, int], side: int, classifies: bool) -> Cost:
  """Trace the network of the parsed configuration, at inference and in training, on one image.

  side: of a classifier's image.
  """
  def make() -> tf_keras.layers.Layer:
    model = gin.query_parameter('run.model').scoped_configurable_fn(**counts)
    model.xla = True  # static shapes, with every slot of RoIs and detections
    return model

  batch = LabelledImages(
    tf.TensorSpec([1, side, side, 3], tf.uint8), tf.TensorSpec([1, 2]), tf.TensorSpec([1], tf.int64),
    tf.TensorSpec([1, 1], tf.int32)) if classifies else batch_specs(counts.get('num_keypoints', 0))
  _, graph = activations.traced(make, lambda model, batch: model(batch.images, batch.image_sizes).predictions, batch)
  memory = activations.of_training(make, gin.query_parameter('run.losses').scoped_configurable_fn(), batch)
  multiply_adds = costs.multiply_adds_of(graph)
  return Cost(counts['num_classes'], memory.parameters, multiply_adds, memory.fixed, memory.activations)


def line(name: str, known: dict[Hashable, Cost]) -> str:
  """Return the row of a configuration. known: as for `cost`.

  Raises:
    UserError: the configuration cannot be read or counted.
  """
  try:
    sentence, published = reproduces((gin_files.shipped_root() / name).read_text())
    found = cost(name, known)
  except (UserError, ValueError, TypeError, AttributeError) as error:
    raise UserError(f'{name}: {in_one_line(error)}') from error
  sentence = sentence.replace('|', r'\|')
  return (f'| `{name}` | {sentence} | {published} | {found.classes} | {found.parameters:,} | '
          f'{found.multiply_adds / 1e9:,.1f} | {found.fixed / 1e9:.2f} | {found.activations / 1e9:.2f} |')


def rows_in(text: str) -> dict[str, str]:
  """Return {gin file: row} of a table."""
  return {found.group(1): found.group() for found in re.finditer(r'^\| `(gin_configs/\S+)` \|.*$', text, re.MULTILINE)}


def document(rows: Mapping[str, str]) -> str:
  """Return both tables, in Markdown."""
  others = (f'| {" | ".join(row)} |' for row in OTHERS)
  return HEAD + '\n'.join(rows.values()) + '\n' + OTHERS_HEAD + '\n'.join(others) + '\n'


def write(output: str, again: Sequence[str] = ()) -> None:
  """Write the table. again: the only rows that are counted; the other rows of the file are kept.

  Raises:
    UserError: a name is not a shipped configuration, a row cannot be counted (the others are written first), or the
      file cannot be read or written.
  """
  names, path = shipped(), pathlib.Path(output)
  unknown = sorted(set(again) - set(names))
  if unknown:
    raise UserError(f'{unknown[0]} is not a complete configuration of this package: give one of gin_configs/*.gin')
  try:
    old = rows_in(path.read_text()) if again and path.exists() else {}
  except OSError as error:
    raise UserError(f'{output}: cannot be read: {in_one_line(error)}') from error
  rows, failures, known = {name: old[name] for name in names if name in old}, [], {}
  for name in names:
    if name in rows and name not in again:
      continue
    start = time.monotonic()
    try:
      rows[name] = line(name, known)
      print(f'{time.monotonic() - start:6.1f} s  {rows[name]}', file=sys.stderr, flush=True)
    except UserError as error:
      failures.append(error.line())
    rows = {one: rows[one] for one in names if one in rows}
    write_output(output, document(rows))  # after each row, so that an interruption loses none
  if failures:
    raise UserError('; '.join(failures))
