"""Summary of a run folder: settings, metrics against the training samples seen, final metrics.

Only files of the folder are read, without building the model: it may be copied from another machine.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rethink_tf.compare import data_sets, later_settings, pretraining_seeds
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import identity
from rethink_tf.storage.files import open_regular
from rethink_tf.storage.run_folder import RunFolder, total_steps
from rethink_tf.storage.settings import SCORED_OTHERWISE, parse
from rethink_tf.training.schedules import KTimesSchedule
from rethink_tf.visualization.curves import run_names
from rethink_tf.weights import costs
from rethink_tf.weights.costs import Seen, is_number

SCRATCH, PRETRAINED = 'scratch', 'pre-trained'
MAIN_METRICS = ('box/AP', 'mask/AP', 'keypoint/AP', 'voc/mAP', 'top-1')  # in order of preference
NOT_FINITE = ('training may have diverged, or the held-out data has no object: evaluate the run again, or leave it '
              'out')
_MAX_BYTES = 16 << 20  # of config.gin
WEIGHTS_PATHS = ('PretrainedWeights.path', 'PlainRun.path')

# Bindings that belong to the choice of initial weights (gin_configs/init): pre-trained weights determine the input
# normalisation and the position of the strides, those of a whole detector the grids of its anchors and RoIAlign.
_INIT = re.compile(r'run\.initial_weights$|PretrainedWeights\.|PlainRun\w*\.|\w+\.freeze_at$|'
                   r'\w+\.(stride_in_1x1|padding)$|MaskRCNN\.pixel_(mean|std)$|'
                   r'Anchors\.offset$|RoIPooler\.(aligned|sampling_ratio)$')
_SCHEDULE = re.compile(r'\w*Schedule\.(k|boundaries|total|stop_k|points_batch|epochs|drops)$|'
                       r'SteppedHalving\.images$')
# Bindings that do not affect training: logging, evaluation, devices, paths.
_SILENT = re.compile(r'run\.(log_every|checkpoint_every|keep_\w+|strategy|images_per_device|eval_images_per_device|'
                     r'steps_per_execution|deterministic|own_evaluation|follow_minutes|checkpoint)$|strategy\.|'
                     r'\w*Evaluator\.(every|at_end|num_pictures|save_results|backend|competition)$|'
                     r'\w+Input\.(workers|max_unreadable)$|.*\.(data_dir|name|recompute|xla|landscape|nms)$')
_SEED = re.compile(r'run\.seed$')


def metric_name(metric: str) -> str:
  """Return the name of a metric for readers: 'box AP' of 'box/AP'."""
  return metric.replace('voc/', 'VOC ').replace('/', ' ')


class Curve(NamedTuple):
  """Evaluations of a run in ascending steps; each array has one value per evaluation."""

  steps: np.ndarray
  images: np.ndarray  # seen in training so far, with repetitions
  instances: np.ndarray
  pixels: np.ndarray  # of the resized images, without padding
  seconds: np.ndarray  # inside training steps
  metrics: dict[str, np.ndarray]  # 'box/AP', ... in percent; NaN where an evaluation has none


class Run(NamedTuple):
  """Summary of a run."""

  name: str
  folder: RunFolder
  settings: dict[str, Any]  # binding -> value, macros resolved
  init: str  # SCRATCH or PRETRAINED
  schedule: str  # '6x', '220k' with explicit boundaries, '90 epochs', '44 % of 6x' before it is complete
  seed: int
  curve: Curve
  losses: tuple[np.ndarray, np.ndarray]  # steps, total loss
  rates: tuple[np.ndarray, np.ndarray]  # steps, learning rate
  pretraining: Seen | None  # None: from scratch, or unknown
  pretraining_source: str  # description; '' from scratch
  notes: tuple[str, ...] = ()  # on the last evaluation: images that it did not score, limits that bind
  date: str = ''  # day of the last evaluation, UTC
  evaluated: Any = None  # time of the last evaluation, as its line in metrics.jsonl has it
  planned: int | None = None  # steps of the whole schedule; None: an earlier version did not record it
  recipe: str = ''  # equal for initial weights of runs that differ in nothing but their seeds; '': not recorded
  weights_seeds: tuple[int, ...] = ()  # of the training of the initial weights
  seeds_of_weights: str = ''  # name of several initial weights that are one arm (pretraining_seeds.py)

  @property
  def complete(self) -> bool:
    """Whether the last evaluation is at the end of the schedule; also True if its length is unknown.

    Beyond the end, where a schedule was made shorter than what it had trained, the run is not one of that schedule.
    """
    return self.planned is None or self.curve.steps[-1] == self.planned

  @property
  def main_metric(self) -> str:
    """The default metric of a comparison: the first of MAIN_METRICS in the last evaluation.

    Raises:
      UserError: the last evaluation has none of them.
    """
    for metric in MAIN_METRICS:
      if np.isfinite(self.final(metric)):
        return metric
    own = [name for name in self.curve.metrics if np.isfinite(self.final(name))]
    if own and not self.curve.metrics.keys() & {*MAIN_METRICS}:  # those of an evaluator of the user's
      raise UserError(f'{self.folder.path}: its last evaluation has none of {", ".join(MAIN_METRICS)}: choose one of '
                      f'its own with --metric: {", ".join(own[:8])}')
    raise UserError(f'{self.folder.path}: its last evaluation, of step {self.curve.steps[-1]:,}, has no finite AP or '
                    f'accuracy ({", ".join(MAIN_METRICS)}): {NOT_FINITE}')

  def final(self, metric: str) -> float:
    """Return a metric of the last evaluation in percent, NaN if missing."""
    values = self.curve.metrics.get(metric)
    return float(values[-1]) if values is not None and len(values) else float('nan')

  @property
  def scored_otherwise(self) -> tuple[str, ...]:
    """The notes that the last evaluation had other settings than the run; () if it had the same."""
    return tuple(note for note in self.notes if note.startswith(SCORED_OTHERWISE))

  @property
  def seen(self) -> Seen:
    """Samples seen up to the last evaluation, without pre-training."""
    return Seen(*(float(values[-1]) for values in (self.curve.images, self.curve.instances, self.curve.pixels)))

  @property
  def drops(self) -> list[int]:
    """Steps so far at which the learning rate drops, from the schedule if known, else from the logged rates."""
    end = int(self.curve.steps[-1])
    if (points := _points(self.settings)) is not None:
      return [point for point in points[:-1] if point <= end]
    return self.logged_drops

  @property
  def planned_drops(self) -> tuple[float, ...]:
    """Steps at which the schedule lowers the learning rate; () if unknown."""
    drops = self.settings.get('EpochSchedule.drops')
    if isinstance(drops, list | tuple) and all(map(is_number, drops)):
      return tuple(drops)
    return tuple((_points(self.settings) or ())[:-1])

  @property
  def logged_drops(self) -> list[int]:
    """Steps at which the logged learning rate falls by more than a third."""
    steps, rates = self.rates
    return [int(steps[i]) for i in range(1, len(steps)) if rates[i] < rates[i - 1] * 2 / 3]

  @property
  def twin_key(self) -> tuple[tuple[str, str], ...]:
    """Key of the settings without initial weights, schedule and seed: equal for runs that may be compared."""
    return twin_key(self.settings)

  @property
  def data(self) -> str:
    """Name of the held-out data: its source, as '@eval/coco', with its folder."""
    source = str(self.settings.get('run.eval_source') or self.settings.get('run.train_source') or 'unknown data')
    name = source.rpartition('/')[2].lstrip('@').removesuffix('()')
    folders = (value for key, value in self.settings.items() if key.rpartition('/')[2] == f'{name}.data_dir')
    folder = next((str(value).rstrip('/') for value in folders if value), '')
    return f'{name} ({folder.rpartition("/")[2]})' if folder else name

  @property
  def init_key(self) -> tuple[tuple[str, str], ...]:
    """Key of the initial weights; a file counts by its name, whatever its folder, a checkpoint also by its run's."""
    one = {name: self.seeds_of_weights for name in WEIGHTS_PATHS if self.seeds_of_weights and name in self.settings}
    return init_key(self.settings | one)

  @property
  def weights_name(self) -> str:
    """Short name of the initial weights: the last component of their path; of a checkpoint, with that of its run."""
    if self.seeds_of_weights:
      return self.seeds_of_weights
    return _base(str(self.settings.get('PretrainedWeights.path') or self.pretraining_source or self.init))


def twin_key(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
  """Return the key of Run.twin_key. None is not a setting: an earlier version may lack its parameter."""
  return tuple(sorted((name, str(value)) for name, value in settings.items() if value not in (None, 'None')
                      and not any(pattern.match(name.split('/')[-1]) or pattern.match(name)
                                  for pattern in (_INIT, _SCHEDULE, _SILENT, _SEED))))


def init_key(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
  """Return the key of Run.init_key."""
  return tuple(sorted((name, _base(str(value)) if name.endswith('.path') else str(value))
                      for name, value in settings.items() if value not in (None, 'None')
                      and (_INIT.match(name) or _INIT.match(name.split('/')[-1]))))


def _base(path: str) -> str:
  """Return the last component of a path, after that of its run for a checkpoint: all runs have a step-00001000."""
  folder, _, name = path.rstrip('/').rpartition('/')
  run, _, parent = folder.rpartition('/')
  return f'{run.rpartition("/")[2]}/{name}' if parent == 'checkpoints' and run else name


def read_runs(paths: Sequence[str]) -> list[Run]:
  """Read run folders; names are the shortest ends of their paths that differ.

  Raises:
    UserError: no folder, a folder without configuration or evaluations, or the same folder twice.
  """
  if not paths:
    raise UserError('no run given: name run folders, as in: python -m rethink_tf.compare runs/scratch runs/pretrained')
  folders = [RunFolder(path, create=False) for path in paths]
  duplicates = {folder.path for folder in folders if sum(other.path == folder.path for other in folders) > 1}
  if duplicates:
    raise UserError(f'{min(duplicates)} is named twice')
  runs = [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]
  whole = later_settings.added([run.settings for run in runs])
  runs = data_sets.told_apart([run._replace(settings=own) for run, own in zip(runs, whole, strict=True)])
  return pretraining_seeds.joined(runs)


def read_run(folder: RunFolder, name: str) -> Run:
  """Read one run folder.

  Raises:
    UserError: it has no configuration or no evaluation.
  """
  settings = read_settings(folder)
  lines = folder.read_metrics()
  train = _by_step(lines, 'train')
  evaluations = _by_step(lines, 'eval')
  if not evaluations:
    raise UserError(f'{folder.path}: no evaluation in metrics.jsonl yet: train or evaluate it first')
  init, cost = _start(settings, folder)
  run = Run(name, folder, settings, init, _schedule(settings, evaluations), _seed(settings),
            _curve(train, evaluations, settings), _series(train, 'loss/total'), _series(train, 'learning_rate'),
            cost.seen if init == PRETRAINED else None, cost.source, _notes(evaluations[-1]), _day(evaluations[-1]),
            evaluations[-1].get('time'), _planned(settings, folder), *_weights(folder))
  if run.complete:
    return run
  return run._replace(schedule=f'{100 * int(run.curve.steps[-1]) // run.planned} % of {run.schedule}')


def read_settings(folder: RunFolder) -> dict[str, Any]:
  """Return the bindings of a run's config.gin with macros resolved; references stay strings ('@group_norm').

  Raises:
    UserError: the folder has no config.gin, or part of it: without its binding a pre-trained run would be from scratch.
  """
  path = folder.join('config.gin')
  if not tf.io.gfile.exists(path):
    raise UserError(f'{folder.path} is not a run folder: it has no config.gin')
  try:
    with open_regular(path) as file:
      settings = parse(file.read(_MAX_BYTES).decode('utf-8', 'replace'))
  except tf.errors.OpError as error:
    raise UserError(f'{path}: cannot be read: {in_one_line(error)}') from error
  recorded = identity.read(folder)
  if missing := sorted((recorded.settings if recorded is not None else {}).keys() - settings.keys()):
    raise UserError(f'{path}: lacks {len(missing)} settings that identity.json has (the first: {missing[0]}): restore '
                    'it, or start the training again, which writes it')
  if not any(name.startswith('run.') for name in settings):
    raise UserError(f'{path}: holds no settings of a run: restore it, or start the training again, which writes it')
  return settings


def _by_step(lines: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
  """Return the lines of a kind by step; the later one counts if a step was written twice."""
  by_step = {line['step']: line for line in lines
             if line.get('kind') == kind and isinstance(line.get('step'), int) and 0 <= line['step'] < 1 << 62}
  return [by_step[step] for step in sorted(by_step)]


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
  points = [(line['step'], line[key]) for line in lines if is_number(line.get(key))]
  return np.array([p[0] for p in points], np.int64), np.array([p[1] for p in points], np.float64)


def _curve(train: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]],
           settings: Mapping[str, Any]) -> Curve:
  steps = np.array([line['step'] for line in evaluations], np.int64)
  seen = {}
  for key in ('images', 'instances', 'pixels', 'seconds'):
    at, values = _series(train, key)
    seen[key] = np.interp(steps, np.r_[0, at], np.r_[0.0, values]) if len(at) else np.full(len(steps), np.nan)
  if np.isnan(seen['images']).all() and isinstance(batch := settings.get('run.batch_size'), int):
    seen['images'] = steps * float(batch)  # the schedules of a side are ordered by it
  names = sorted({name for line in evaluations for name, value in line.items()
                  if ('/' in name or name.startswith('top-')) and is_number(value)})

  def metric(name: str) -> np.ndarray:
    values = [line.get(name) for line in evaluations]
    return np.array([v if is_number(v) and v >= 0 else np.nan for v in values], np.float64)

  return Curve(steps, *(seen[key] for key in ('images', 'instances', 'pixels', 'seconds')),
               {name: metric(name) for name in names})


def _day(evaluation: Mapping[str, Any]) -> str:
  seconds = evaluation.get('time')
  if not isinstance(seconds, int | float) or not 0 < seconds < 2 ** 33:
    return ''
  return time.strftime('%Y-%m-%d', time.gmtime(seconds))


def _notes(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
  """Return what readers of an evaluation's metrics must know."""
  counts = [evaluation.get(f'images_{what}') for what in ('scored', 'missing', 'unreadable')]
  notes = [str(note) for note in evaluation.get('notes') or () if isinstance(evaluation['notes'], list)]
  if all(type(count) is int for count in counts) and counts[0] < sum(counts):
    notes.insert(0, f'its last evaluation scored {counts[0]} of {sum(counts)} images')
  return tuple(notes)


def _schedule(settings: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
  total, k = settings.get('KTimesSchedule.total'), settings.get('KTimesSchedule.k')
  if is_number(total):
    return f'{total / 1000:g}k'
  if is_number(k):
    return f'{k:g}x'
  if is_number(epochs := settings.get('EpochSchedule.epochs')):
    return f'{epochs:g} {"epoch" if epochs == 1 else "epochs"}'
  if is_number(images := settings.get('SteppedHalving.images')):
    return f'{images:,.0f} images'
  return f'{evaluations[-1]["step"]} steps'


def _points(settings: Mapping[str, Any]) -> list[int] | None:
  """Return the steps at which a k x schedule lowers the rate, and its end; None if the settings do not tell."""
  named = {name.split('.')[1]: value for name, value in settings.items()
           if name.startswith('KTimesSchedule.') and name != 'KTimesSchedule.stop_k'}
  if named and isinstance(settings.get('run.batch_size'), int):
    with contextlib.suppress(TypeError, ValueError, OverflowError, UserError):  # config.gin may be damaged
      return list(map(int, KTimesSchedule(**{'batch_size': settings['run.batch_size'], **named}).points))
  return None


def _planned(settings: Mapping[str, Any], folder: RunFolder) -> int | None:
  """Return the number of steps of the whole schedule, also of a run that stops before its end (stop_k)."""
  points = _points(settings) if settings.get('KTimesSchedule.stop_k') not in (None, 'None') else None
  return points[-1] if points else total_steps(folder) or None


def _start(settings: Mapping[str, Any], folder: RunFolder) -> tuple[str, costs.Cost]:
  """Return whether a run started from random or trained weights, and their cost.

  A run that continues another one (weights.plain_run) started where that one did.
  """
  if settings.get('run.initial_weights') in (None, 'None'):
    return SCRATCH, costs.NOTHING
  record = costs.read_record(folder.join(costs.RECORD))
  if record is None:
    return PRETRAINED, costs.Cost(None, 'weights of unknown origin')
  init = SCRATCH if record.get('continues', record) is None else PRETRAINED
  return init, costs.of_record(record)


def _weights(folder: RunFolder) -> tuple[str, tuple[int, ...]]:
  """Return the recipe of the initial weights and the seeds of their training, if recorded (weights/recipes.py)."""
  record = costs.read_record(folder.join(costs.RECORD)) or {}
  recipe, seeds = record.get('recipe'), record.get('seeds')
  if not isinstance(recipe, str) or not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
    return '', ()
  return recipe, tuple(seeds)


def _seed(settings: Mapping[str, Any]) -> int:
  seed = settings.get('run.seed')
  return seed if isinstance(seed, int) else 0
