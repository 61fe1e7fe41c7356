"""Weight files of real libraries, loaded by the options that the package prints, against the libraries' own features.

    python -m tools.weights_table --python=/path/to/python --output=results/weights.md

--python names a Python with torch, torchvision, timm, Keras 3 or Detectron2; what it does not have is listed as
skipped. tools/weights_files.py writes the files there; those of tf-models-official are written by this Python.
--only=TEXT takes the cases whose names contain it, and keeps the other rows of the output.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import gin
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILDER = ROOT / 'tools' / 'weights_files.py'
BASE = 'gin_configs/pretrain_2x.gin'
OFFICIAL = {'resnet_imagenet': 1e-5, 'maskrcnn_resnetfpn_coco': 1e-4}  # experiment: epsilon
MAPS = ('C2', 'C3', 'C4', 'C5', 'P2', 'P3', 'P4', 'P5', 'P6', 'RPN logits', 'RPN deltas')
# Stages after the first selection by score, compared by the boxes of the rows.
SELECTED = {'proposals': ('proposals', 'box logits', 'box deltas'), 'boxes': ('boxes', 'scores', 'masks')}

Stages = list[dict[str, np.ndarray]]  # of each image


class Row(NamedTuple):
  """Outcome of a case: errors by stage, the largest over both images, or a line."""

  name: str
  errors: dict[str, float]
  line: str = ''


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--python', default=sys.executable)
  parser.add_argument('--output')
  parser.add_argument('--only', default='')
  arguments = parser.parse_args()
  listed, versions = (subprocess.run([arguments.python, str(BUILDER), option], check=True, capture_output=True,
                                     text=True).stdout.strip() for option in ('--list', '--versions'))
  cases = [tuple(case.split('\t')) if '\t' in case else (case, '') for case in listed.splitlines()]
  cases += [(f'tf-models-official ResNet-50, {experiment}', '') for experiment in OFFICIAL]
  cases += [(name, '') for name in EXPORTS]
  before = {}
  if arguments.output and os.path.exists(arguments.output):
    before = {line.split(' | ')[0].removeprefix('| '): line
              for line in pathlib.Path(arguments.output).read_text().splitlines() if line.startswith('| ')}
  for name, missing in cases:
    if arguments.only in name:
      row = Row(name, {}, f'skipped: no {missing}') if missing else run(name, arguments.python)
      before[name] = line(row)
      print(before[name], flush=True)
      if arguments.output:
        text = '\n'.join([HEADER.format(versions), '', *TABLE, *(before[each] for each, _ in cases if each in before)])
        pathlib.Path(arguments.output).write_text(f'{text}\n')


HEADER = """# Weight files of other libraries

Files written by the libraries themselves, with random weights and statistics of their own activations ({}), loaded by
nothing but the options that `python -m rethink_tf.weights FILE` prints behind `--gin_file=gin_configs/pretrain_2x.gin`,
and the features of both programs on two images, 203 × 317 and 224 × 224:

```
python -m tools.weights_table --python=/path/to/python --output=results/weights.md
```

The largest difference over the largest value of each stage, the larger of both images. C, P: the worst of C2..C5 and
P2..P6. Proposals and detections are matched by their boxes, of which differences are relative to the image; in
parentheses the number of those that have no match within a thousandth of it."""


COLUMNS = ('C', 'P', 'RPN', 'proposals', 'box head', 'detections', 'masks')
TABLE = (f'| file | {" | ".join(COLUMNS)} |', f'|---|{"---|" * len(COLUMNS)}')


def line(row: Row) -> str:
  cells = [row.line] + [''] * (len(COLUMNS) - 1) if row.line else [shown(row.errors, column) for column in COLUMNS]
  return f'| {row.name} | {" | ".join(cells)} |'


def shown(errors: dict[str, float], column: str) -> str:
  stages = {'C': MAPS[:4], 'P': MAPS[4:9], 'RPN': MAPS[9:], 'proposals': ('proposals',),
            'box head': ('box logits', 'box deltas'), 'detections': ('boxes', 'scores'), 'masks': ('masks',)}[column]
  found = [errors[stage] for stage in stages if stage in errors]
  without = int(errors.get(f'{stages[0]}, without match', 0))
  return (f'{max(found):.1e}' + (f' ({without})' if without else '')) if found else ''


def run(name: str, python: str) -> Row:
  """Make the files of a case, load them and compare."""
  with tempfile.TemporaryDirectory() as folder:
    environment = os.environ | {'PYTHONWARNINGS': 'ignore', 'TF_CPP_MIN_LOG_LEVEL': '3'}
    try:
      if name in EXPORTS:
        return exported(name, folder, python)
      if name.startswith('tf-models-official'):
        write_official(folder, OFFICIAL[name.rsplit(', ', 1)[1]])
      else:
        subprocess.run([python, str(BUILDER), name, folder], check=True, capture_output=True, text=True,
                       env=environment)
    except subprocess.CalledProcessError as error:
      return Row(name, {}, f'not made: {error.stderr.strip().splitlines()[-1][:200]}')
    return loaded(name, folder)


def loaded(name: str, folder: str) -> Row:
  """Load the weight file of a folder by the options that are printed for it; compare all stages."""
  from rethink_tf.errors import UserError
  others = ('images.', 'features.', 'config.', 'params.')
  names = [one for one in sorted(os.listdir(folder)) if not one.startswith(others)]
  path = os.path.join(folder, names[0].removesuffix('.data-00000-of-00001'))
  try:
    return Row(name, compare(read_stages(folder), compute(path, read_images(folder))))
  except UserError as error:
    return Row(name, {}, f'refused: {error.line().replace(folder + "/", "")}')
  finally:
    gin.clear_config()


def read_images(folder: str) -> list[np.ndarray]:
  with np.load(os.path.join(folder, 'images.npz'), allow_pickle=False) as arrays:
    return [arrays[name] for name in arrays]


def read_stages(folder: str) -> Stages:
  with np.load(os.path.join(folder, 'features.npz'), allow_pickle=False) as arrays:
    stages: Stages = [{}, {}]
    for name in arrays:
      image, stage = name.split('/')
      stages[int(image)][stage] = arrays[name]
  return stages


def compute(path: str, images: list[np.ndarray]) -> Stages:
  """The stages of the model that the printed options describe, in Detectron2's layout."""
  from rethink_tf import experiment
  from rethink_tf.weights import __main__ as command
  from rethink_tf.weights import formats
  contents = formats.read(path)
  labels = ('use it with', 'if GroupNorm')  # of a file that does not record its norms, which here is GroupNorm
  printed = next(line for line in command.describe(contents).splitlines() if line.startswith(labels))
  options = [option.split('=', 1) for option in shlex.split(printed) if option.startswith('--')]
  weights = next(value for name, value in options if name == '--weights')
  experiment.configure([BASE, *(value for name, value in options if name == '--gin_file')],
                       [value for name, value in options if name == '--gin_param'], weights=weights)
  predictor = contents.arrays.get('roi_heads.box_predictor.cls_score.weight',
                                  contents.arrays.get('roi_heads.box_predictor.0.cls_score.weight'))
  model = gin.get_configurable('MaskRCNN')(num_classes=80 if predictor is None else predictor.shape[0] - 1)
  stages = detector_stages if contents.kind == 'detector' else backbone_stages
  makes_all = detector_stages if 'conv1_1.weight' in contents.arrays else stages  # VGG's box head is loaded with it
  makes_all(model, images[0])  # the variables
  gin.get_configurable('PretrainedWeights')()(model)
  return [stages(model, image) for image in images]


def backbone_stages(model: Any, image: np.ndarray) -> dict[str, np.ndarray]:
  import tensorflow as tf
  sizes = tf.constant([image.shape[:2]], tf.float32)
  return {level: x[0].numpy() for level, x in model.backbone(model.normalise(image[None], sizes)).items()}


def detector_stages(model: Any, image: np.ndarray) -> dict[str, np.ndarray]:
  """All stages of a detector in Detectron2's layout; the image is padded to a multiple of 32, as there."""
  import tensorflow as tf
  sizes = tf.constant([image.shape[:2]], tf.float32)
  pixels = np.pad(image, [(0, -side % 32) for side in image.shape[:2]] + [(0, 0)])[None]
  backbone = model.backbone(model.normalise(pixels, sizes))
  outputs = model(pixels, sizes, training=False)
  found = {name: x[0].numpy() for name, x in (backbone | outputs.features).items()}
  found |= {'RPN logits': outputs.rpn.logits[0].numpy(), 'RPN deltas': xy(outputs.rpn.deltas[0].numpy())}
  used = outputs.proposals.valid[0].numpy()
  boxes = outputs.boxes[-1]
  found |= {'proposals': xy(outputs.proposals.boxes[0].numpy()[used]),
            'box logits': np.roll(boxes.class_logits[0].numpy()[used], -1, axis=1),
            'box deltas': xy(boxes.box_deltas[0].numpy()[used]).reshape(used.sum(), -1)}
  kept = outputs.detections.classes[0].numpy() > 0
  found |= {'boxes': xy(outputs.detections.boxes[0].numpy()[kept]),
            'scores': outputs.detections.scores[0].numpy()[kept],
            'classes': outputs.detections.classes[0].numpy()[kept] - 1}
  if outputs.detections.masks is not None:
    found['masks'] = outputs.detections.masks[0].numpy()[kept]
  return found


def xy(boxes: np.ndarray) -> np.ndarray:
  """[..., y x y x] -> [..., x y x y]."""
  return boxes[..., [1, 0, 3, 2]]


def compare(expected: Stages, found: Stages) -> dict[str, float]:
  """Return the largest relative error of each stage over the images."""
  errors: dict[str, float] = {}
  for ours, theirs in zip(found, expected, strict=True):
    for stage, error in of_image(theirs, ours):
      errors[stage] = max(errors.get(stage, 0.0), error)
  return errors


def of_image(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
  for stage in MAPS:
    if stage in theirs:
      yield stage, relative(theirs[stage], ours[stage])
  for boxes, stages in SELECTED.items():
    if boxes not in theirs:
      continue
    side, pairs = np.abs(theirs[boxes]).max(initial=1.0), list(matches(theirs, ours, boxes))
    yield f'{boxes}, without match', len(theirs[boxes]) + len(ours[boxes]) - 2 * len(pairs)
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    for stage in stages:
      if stage in theirs and len(pairs):
        scale = side if stage == boxes else np.abs(theirs[stage]).max()
        yield stage, float(np.abs(theirs[stage][rows] - ours[stage][columns]).max() / scale)


def matches(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray], boxes: str) -> Iterator[tuple[int, int]]:
  """Pairs of rows with the same class and the nearest box, no further than a thousandth of the image."""
  free = np.ones(len(ours[boxes]), bool)
  for row, box in enumerate(theirs[boxes]):
    distance = np.abs(ours[boxes] - box).max(-1) + 1e9 * ~free
    if boxes == 'boxes':
      distance += 1e9 * (ours['classes'] != theirs['classes'][row])
    column = int(distance.argmin())
    if distance[column] <= 1e-3 * np.abs(theirs[boxes]).max():
      free[column] = False
      yield row, column


def relative(expected: np.ndarray, found: np.ndarray) -> float:
  if expected.shape != found.shape:
    return float('inf')
  return float(np.abs(expected - found).max() / np.abs(expected).max())


def write_official(folder: str, epsilon: float) -> None:
  """A ResNet-50 of tf-models-official with its params.yaml, images and features."""
  import tensorflow as tf
  import tf_keras
  from official.vision.modeling.backbones import resnet
  rng = np.random.default_rng(0)
  network = resnet.ResNet(50, tf_keras.layers.InputSpec(shape=[None, None, None, 3]), norm_epsilon=epsilon)
  for variable in network.variables:
    if 'kernel' not in variable.name:
      low, high = (0.6, 1.4) if any(word in variable.name for word in ('variance', 'gamma')) else (-0.2, 0.2)
      variable.assign(rng.uniform(low, high, variable.shape) * (1e-3 if 'variance' in variable.name else 1.0))
  tf.train.Checkpoint(backbone=network).write(os.path.join(folder, 'ckpt-1'))
  pathlib.Path(folder, 'params.yaml').write_text(
    f'task: {{model: {{norm_activation: {{norm_epsilon: {epsilon:.6f}}}}}}}\n')
  sys.path.insert(0, str(BUILDER.parent))
  import weights_files
  save = [{f'C{level}': x[0].numpy() for level, x in network(
    ((image[None] - weights_files.RGB_MEAN) / weights_files.RGB_STD).astype(np.float32), training=False).items()}
    for image in weights_files.images()]
  weights_files.save(folder, save)


EXPORTS = {
  'exported to Detectron2: R14-FPN GN, two RPN convolutions': ('ResNet.depth = 14', 'RPNHead.num_convs = 2'),
  'exported to Detectron2: R50-FPN GN': (),
}


def exported(name: str, folder: str, python: str) -> Row:
  """Export a detector of random weights, and compare with what Detectron2 computes by the exported files."""
  import tensorflow as tf
  import tf_keras

  from rethink_tf import experiment
  from rethink_tf.data.augment import Resize
  from rethink_tf.export import detectron2
  sys.path.insert(0, str(BUILDER.parent))
  import weights_files
  try:
    experiment.configure(['gin_configs/scratch_1x.gin'], EXPORTS[name])
    tf_keras.utils.set_random_seed(0)
    model, images = gin.get_configurable('MaskRCNN')(num_classes=80), weights_files.images()
    detector_stages(model, images[0])
    for layer, spread in ((model.rpn_head.objectness, 10.0), (model.box_predictor.classes, 30.0),
                          (model.box_predictor.deltas, 30.0), (model.mask_predictor.conv, 100.0)):
      layer.kernel.assign(tf.cast(spread, tf.float32) * layer.kernel)  # random weights are hardly ever confident
    path = os.path.join(folder, 'model.pkl')
    detectron2.save(model, path, resize=Resize())
    subprocess.run([python, str(BUILDER), '--detect', folder, detectron2.settings_path(path), path], check=True,
                   capture_output=True, text=True)
    return Row(name, compare(read_stages(folder), [detector_stages(model, image) for image in images]))
  finally:
    gin.clear_config()


if __name__ == '__main__':
  main()
