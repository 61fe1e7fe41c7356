"""A run folder as the comparison sees it: its settings, its curve against what it has seen, its end point.

Nothing of TensorFlow's graph or of gin is needed: a folder copied from elsewhere can be read.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.training.schedules import KTimesSchedule

SCRATCH, PRETRAINED = 'scratch', 'pre-trained'
MAIN_FIGURES = ('mask/AP', 'box/AP', 'keypoint/AP', 'voc/mAP', 'top-1')
IMAGENET_IMAGES = 1_281_167 * 100  # section 3: models in use are trained for about 100 epochs
IMAGENET_SIDE = 224

# Bindings that belong to the choice of initial weights (gin_configs/init); a pre-trained network brings its input's
# normalisation and the place of its strides along.
_INIT = re.compile(r'run\.initial_weights$|PretrainedWeights\.|PlainRun\w*\.|WEIGHTS$|\w+\.freeze_at$|'
                   r'\w+\.stride_in_1x1$|MaskRCNN\.pixel_(mean|std)$')
_SCHEDULE = re.compile(r'SCHEDULE$|\w*Schedule\.(k|boundaries|total|stop_k|points_batch)$')
# Bindings that change nothing in what is computed, or only where and how often it is looked at.
_SILENT = re.compile(r'run\.(log_every|checkpoint_every|keep_\w+|strategy|images_per_device|eval_images_per_device|'
                     r'steps_per_execution|deterministic|evaluator)$|strategy\.|\w*Evaluator\.|ResNet\.recompute$|'
                     r'\w+Input\.workers$|DATA_DIR$|.*\.(data_dir|name)$')
_SEED = re.compile(r'run\.seed$')


class Curve(NamedTuple):
  """Evaluations of a run, ascending in steps; each array has one number an evaluation."""

  steps: np.ndarray
  images: np.ndarray  # seen in training up to there, with repetitions
  instances: np.ndarray
  pixels: np.ndarray  # of the resized images, without padding
  seconds: np.ndarray  # inside training steps
  figures: dict[str, np.ndarray]  # 'box/AP', ... in percent; NaN where an evaluation does not have it


class Seen(NamedTuple):
  """Samples (Fig. 2)."""

  images: float
  instances: float
  pixels: float

  def plus(self, other: Seen) -> Seen:
    return Seen(*(a + b for a, b in zip(self, other, strict=True)))


class Run(NamedTuple):
  """What there is to know of a run."""

  name: str
  folder: RunFolder
  settings: dict[str, Any]  # binding -> value, macros resolved
  init: str  # SCRATCH or PRETRAINED
  schedule: str  # '6x', or '220k' for free points
  seed: int
  curve: Curve
  losses: tuple[np.ndarray, np.ndarray]  # steps, total loss
  rates: tuple[np.ndarray, np.ndarray]  # steps, learning rate
  pretraining: Seen | None  # None: from scratch, or unknown
  pretraining_source: str  # in words; '' from scratch

  @property
  def main_figure(self) -> str:
    """The figure by which runs are compared: mask AP is there only with masks, so box AP comes before it."""
    for figure in ('box/AP', *MAIN_FIGURES):
      if figure in self.curve.figures and np.isfinite(self.curve.figures[figure][-1]):
        return figure
    raise UserError(f'{self.folder.path}: no evaluation in metrics.jsonl yet: train or evaluate it first')

  def final(self, figure: str) -> float:
    """The last evaluation's figure in percent; NaN without it."""
    values = self.curve.figures.get(figure)
    return float(values[-1]) if values is not None and len(values) else float('nan')

  @property
  def seen(self) -> Seen:
    """By the last evaluation, pre-training not included."""
    return Seen(*(float(values[-1]) for values in (self.curve.images, self.curve.instances, self.curve.pixels)))

  @property
  def drops(self) -> list[int]:
    """Steps at which the learning rate falls, as far as the run has come: by its schedule, else as it was logged."""
    end = int(self.curve.steps[-1])
    named = {name.split('.')[1]: value for name, value in self.settings.items()
             if name.startswith('KTimesSchedule.') and name != 'KTimesSchedule.stop_k'}
    if named and isinstance(self.settings.get('run.batch_size'), int):
      points = KTimesSchedule(**{'batch_size': self.settings['run.batch_size'], **named}).points
      return [int(point) for point in points[:-1] if point <= end]
    steps, rates = self.rates
    return [int(steps[i]) for i in range(1, len(steps)) if rates[i] < rates[i - 1] * 2 / 3]

  @property
  def twin_key(self) -> tuple:
    """Equal for runs that differ in initial weights, schedule and seed alone."""
    return tuple(sorted((name, str(value)) for name, value in self.settings.items()
                        if not any(pattern.match(name.split('/')[-1]) or pattern.match(name)
                                   for pattern in (_INIT, _SCHEDULE, _SILENT, _SEED))))


def read_runs(paths: Sequence[str]) -> list[Run]:
  """Reads run folders; names are the shortest ends of their paths that tell them apart.

  Raises:
    UserError: no folder, a folder without configuration or evaluations, the same folder twice.
  """
  if not paths:
    raise UserError('no run given: name run folders, as in: python -m rethink_tf.compare runs/scratch runs/pretrained')
  folders = [RunFolder(path, create=False) for path in paths]
  doubles = {folder.path for folder in folders if sum(other.path == folder.path for other in folders) > 1}
  if doubles:
    raise UserError(f'{min(doubles)} is named twice')
  return [read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]


def read_run(folder: RunFolder, name: str) -> Run:
  """One run folder."""
  settings = read_settings(folder)
  lines = folder.read_metrics()
  train = _by_step(lines, 'train')
  evaluations = _by_step(lines, 'eval')
  if not evaluations:
    raise UserError(f'{folder.path}: no evaluation in metrics.jsonl yet: train or evaluate it first')
  init = SCRATCH if settings.get('run.initial_weights') in (None, 'None') else PRETRAINED
  source, pretraining = '', None
  if init == PRETRAINED:
    source, pretraining = _pretraining(folder)
  steps, losses = _series(train, 'loss/total')
  rates = _series(train, 'learning_rate')
  return Run(name, folder, settings, init, _schedule(settings, evaluations), int(settings.get('run.seed') or 0),
             _curve(train, evaluations), (steps, losses), rates, pretraining, source)


def short_names(folders: Sequence[RunFolder]) -> list[str]:
  """The last part of each run's path, or as many parts as tell the runs apart."""
  parts = [folder.path.rstrip('/').split('/') for folder in folders]
  for count in range(1, max((len(p) for p in parts), default=1) + 1):
    names = ['/'.join(p[-count:]) for p in parts]
    if len(set(names)) == len(names):
      break
  return names if parts else []


def read_settings(folder: RunFolder) -> dict[str, Any]:
  """The bindings of a run's config.gin, macros resolved; references stay text ('@group_norm').

  Raises:
    UserError: the folder has no config.gin.
  """
  path = folder.join('config.gin')
  if not tf.io.gfile.exists(path):
    raise UserError(f'{folder.path} is no run folder: there is no config.gin in it')
  with tf.io.gfile.GFile(path) as file:
    text = file.read()
  text = re.sub(r'^\s*#.*$', '', text.replace('\\\n', ' '), flags=re.MULTILINE)
  raw: dict[str, str] = {}
  name = None
  for line in text.splitlines():
    begins = re.match(r'([\w./]+) = ?(.*)$', line)
    if begins:
      name = begins.group(1)
      raw[name] = begins.group(2).strip()
    elif name and line.strip():  # a long value goes on
      raw[name] += ' ' + line.strip()
  return {name: _value(value, raw) for name, value in raw.items() if '.' in name}


def _value(text: str, raw: Mapping[str, str]) -> Any:
  for _ in range(10):  # a macro may name another
    if not text.startswith('%'):
      break
    text = raw.get(text[1:], 'None')
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _by_step(lines: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
  """Lines of a kind by step; of a step that was written twice, the later line."""
  found = {line['step']: line for line in lines if line.get('kind') == kind and isinstance(line.get('step'), int)}
  return [found[step] for step in sorted(found)]


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
  points = [(line['step'], line[key]) for line in lines if isinstance(line.get(key), int | float)]
  return np.array([p[0] for p in points], np.int64), np.array([p[1] for p in points], np.float64)


def _curve(train: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> Curve:
  steps = np.array([line['step'] for line in evaluations], np.int64)
  seen = {}
  for key in ('images', 'instances', 'pixels', 'seconds'):
    at, values = _series(train, key)
    seen[key] = np.interp(steps, np.r_[0, at], np.r_[0.0, values]) if len(at) else np.full(len(steps), np.nan)
  names = sorted({name for line in evaluations for name, value in line.items()
                  if ('/' in name or name.startswith('top-')) and isinstance(value, int | float)})

  def figure(name):
    values = [line.get(name) for line in evaluations]
    return np.array([v if isinstance(v, int | float) and v >= 0 else np.nan for v in values], np.float64)

  return Curve(steps, *(seen[key] for key in ('images', 'instances', 'pixels', 'seconds')),
               {name: figure(name) for name in names})


def _schedule(settings: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
  total, k = settings.get('KTimesSchedule.total'), settings.get('KTimesSchedule.k')
  if isinstance(total, int | float):
    return f'{total / 1000:g}k'
  if isinstance(k, int | float):
    return f'{k:g}x'
  return f'{evaluations[-1]["step"]} steps'


def _pretraining(folder: RunFolder) -> tuple[str, Seen | None]:
  """Where the initial weights come from, in words, and what making them has looked at."""
  path = folder.join('initial_weights.json')
  if not tf.io.gfile.exists(path):
    return 'weights of unknown origin', None
  with tf.io.gfile.GFile(path) as file:
    record = json.load(file)
  origin = str(record.get('path', ''))
  if tf.io.gfile.exists(f'{origin.rstrip("/")}/metrics.jsonl'):
    lines = _by_step(RunFolder(origin, create=False).read_metrics(), 'train')
    if lines:
      last = lines[-1]
      # A classification image is one instance (caption of Fig. 2).
      seen = Seen(*(float(last.get(key) or last.get('images', 0)) for key in Seen._fields))
      return f'run {origin}', seen
  if 'run of this package' in str(record.get('format', '')):
    return f'run {origin}, which is not there any more', None
  seen = Seen(IMAGENET_IMAGES, IMAGENET_IMAGES, IMAGENET_IMAGES * float(IMAGENET_SIDE ** 2))
  return f'{origin}, taken for 100 epochs of ImageNet at 224 x 224 (section 3)', seen
