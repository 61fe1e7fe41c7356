"""A study of one's own data without a gin file: the study, limits and lengths that fit the data and the time.

The choice is a command line with a gin file, which is printed, and kept in choice.json of the output folder, so that
the same command resumes the same study.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from rethink_tf import gin_files
from rethink_tf.console import duration
from rethink_tf.errors import UserError
from rethink_tf.evaluation.scoring import without_masks
from rethink_tf.storage import files
from rethink_tf.study import estimate as estimating
from rethink_tf.study.execution import Calibration, Runner
from rethink_tf.study.run import StudyPlan, plan_study
from rethink_tf.study.stages import Stage

NARROW = 'gin_configs/studies/own_data_narrow.gin'
_OWN = ('gin_configs/demo.gin', 'gin_configs/data/own.gin')
_BOXES_ONLY, _MANY = 'gin_configs/models/faster_rcnn.gin', 'gin_configs/models/many_objects.gin'
_CHOICE = 'choice.json'
_LIMIT = 50  # objects of an image that the narrow study is set up for
_LOOKED_AT = 10_000  # annotations, until one with a mask is found
_UNIT, _SHORTEST = 400, 20  # of the study's 1x, in steps of 16 images; the shortest one that is worth a run
_EPOCHS = 300  # of the longest run at most
_TO_FIT = 0.9  # of the time: the speed is that of a few steps


class Facts(NamedTuple):
  """What a study has to know about a data set."""

  images: int  # to train on
  held_out: int
  objects: int
  classes: int
  most_objects: int  # in one image
  masks: bool


class Choice(NamedTuple):
  """Arguments of a study, and why they are these."""

  run_files: tuple[str, ...]
  params: tuple[str, ...]
  reasons: tuple[str, ...]

  def command(self, data_dir: str, output: str) -> str:
    """Return the command line that runs the same study."""
    words = ['python', '-m', 'rethink_tf.study', *(f'--gin_file={name}' for name in (NARROW, *self.run_files)),
             *(f'--gin_param={one}' for one in self.params), f'--data_dir={data_dir}', f'--output={output}']
    return shlex.join(words)


def look_at(data_dir: str) -> Facts:
  """Read the annotations of a data set; raises UserError if they are in no layout that is read."""
  from rethink_tf import experiment  # registers what gin files name

  experiment.configure(_OWN, (), data_dir)
  try:
    train, held_out = (gin_files.argument(experiment.run, f'{side}_source')(training=side == 'train')
                       for side in ('train', 'eval'))
  finally:
    gin_files.clear()
  annotations = itertools.chain.from_iterable(map(train.image_annotations, range(len(train.image_ids))))
  return Facts(len(train.image_ids), len(held_out.image_ids), int(train.num_instances.sum()), train.num_classes,
               int(max(train.num_instances.max(initial=0), held_out.num_instances.max(initial=0))),
               not without_masks(itertools.islice(annotations, _LOOKED_AT)))


def choose(facts: Facts) -> Choice:
  """Return the arguments that the data asks for, with the lengths of the study."""
  files, params = [], ['KTimesSchedule.warmup_limit = 0.5']
  reasons = [f'{facts.images} images with {facts.objects} objects of {facts.classes} classes to train on, '
             f'{facts.held_out} images held out',
             'the narrow network of the demo, from random weights and after pre-training on synthetic shapes: it needs '
             'no download']
  if not facts.masks:
    files.append(_BOXES_ONLY)
    reasons.append(f'no object has a mask: without a mask head ({_BOXES_ONLY})')
  if facts.most_objects > _LIMIT:
    limit = math.ceil(facts.most_objects / _LIMIT) * _LIMIT
    files.append(_MANY)
    params += [f'MAX_OBJECTS = {limit}', f'MAX_PROPOSALS = {max(5 * limit, 300)}']
    reasons.append(f'up to {facts.most_objects} objects in an image: limits of {limit} ({_MANY})')
  return Choice(tuple(files), tuple(params), tuple(reasons))


def fit(choice: Choice, facts: Facts, seconds: float, total: Callable[[int], float]) -> Choice:
  """Return a choice whose study fits the time. total: unit of the schedules -> seconds of the whole study.

  The time is linear in the unit: it is asked for two of them.
  """
  most = max(_SHORTEST, facts.images * _EPOCHS // 16)
  short, long = total(_UNIT), total(2 * _UNIT)
  each = max((long - short) / _UNIT, 1e-9)
  unit = math.floor((seconds * _TO_FIT - (short - _UNIT * each)) / each)
  chosen = min(max(unit, _SHORTEST), most)
  takes = f'about {duration(short + (chosen - _UNIT) * each)} of {duration(seconds)}'
  reason = (f'the shortest schedules, which take {takes}: give more --minutes' if unit < _SHORTEST else
            f'at most {_EPOCHS} epochs, which take {takes}' if chosen < unit else f'schedules that take {takes}')
  steps = ', '.join(f'{k:g}x = {round(chosen * 4 * k)}' for k in (0.25, 0.5, 1))
  return choice._replace(params=(*choice.params, f'KTimesSchedule.unit = {chosen}'),
                         reasons=(*choice.reasons, f'{reason} ({steps} steps of 4 images, two seeds of each)'))


def plan(data_dir: str, minutes: float, output: str | None = None, params: Sequence[str] = (),
         calibrate: bool = True, dry_run: bool = False) -> StudyPlan:
  """Choose a study for a data set, print what was chosen and why, and plan it.

  A choice that is in the output folder already is used again.

  Args:
    minutes: that the study may take, with pre-training.
    output: None: runs/studies/<name of data_dir>.
    params: further bindings of every run.
    calibrate: time a few steps; False: schedules of the usual length.
    dry_run: do not keep the choice.

  Raises:
    UserError: the data cannot be read, or the output folder holds the choice for another data set.
  """
  if not minutes > 0:
    raise UserError(f'--minutes = {minutes:g}: use a number above 0')
  output = (output or '').rstrip('/') or f'runs/studies/{os.path.basename(os.path.abspath(data_dir))}'
  path, asked = os.path.join(output, _CHOICE), {'data_dir': os.path.abspath(os.path.expanduser(data_dir))}
  choice = _read(path, asked)

  def planned(of: Choice) -> StudyPlan:
    return plan_study(NARROW, output, (*of.params, *params), data_dir=data_dir, run_files=of.run_files)

  if choice is None:
    facts = look_at(data_dir)
    choice = choose(facts)
    if not calibrate:
      choice = choice._replace(reasons=(*choice.reasons, 'schedules of the usual length: nothing was timed'))
    else:
      runner = _Remembering(output, planned(choice).arguments, lambda line: print(line, flush=True))
      choice = fit(choice, facts, 60 * minutes, lambda unit: runner.total(planned(choice._replace(
        params=(*choice.params, f'KTimesSchedule.unit = {unit}')))))
    if not dry_run:
      files.write_output(path, json.dumps({**asked, 'minutes': minutes, **choice._asdict()}, indent=1) + '\n')
  else:
    print(f'{path}: the choice that was made before is used again, whatever --minutes: delete it to choose anew')
  print('\n'.join([*(f'- {reason}' for reason in choice.reasons), 'the same as', choice.command(data_dir, output), '']))
  return planned(choice)


class _Remembering(Runner):
  """A Runner that times each kind of run once, whatever its length."""

  def __init__(self, *args: Any) -> None:
    super().__init__(*args)
    self._timed: dict[str, Calibration] = {}

  def calibrate(self, stage: Stage) -> Calibration:
    """Train a few steps of a stage, or return what was measured before."""
    key = stage.trial.choice.get('init', '')
    if key not in self._timed:
      self._timed[key] = super().calibrate(stage)
    return self._timed[key]

  def calibrate_pretraining(self, path: str, files: Sequence[str], params: Sequence[str],
                            more: Sequence[str]) -> Calibration:
    """Train a few steps of a pre-training, or return what was measured before."""
    if path not in self._timed:
      self._timed[path] = super().calibrate_pretraining(path, files, params, more)
    return self._timed[path]

  def total(self, of: StudyPlan) -> float:
    """Return the seconds of what remains of a study."""
    missing = {path: words for path, words in of.pretraining.items() if not self.pretrained(path)}
    found = estimating.estimate(self, of.stages, missing, of.pretraining_arguments)
    return sum(found.pretraining.values()) + found.stages


def _read(path: str, asked: dict[str, Any]) -> Choice | None:
  """Return an earlier choice; None if there is none."""
  if not tf.io.gfile.exists(path):
    return None
  try:
    with files.open_regular(path) as file:
      content = json.loads(file.read(1 << 20))
    found = Choice(*(tuple(map(str, content[name])) for name in Choice._fields))
    others = content['data_dir'] != asked['data_dir']
  except (ValueError, KeyError, TypeError, RecursionError, tf.errors.OpError) as error:
    raise UserError(f'{path}: is not a choice of this command: delete it') from error
  if others:
    raise UserError(f'{path}: is the choice for {content["data_dir"]}: give another --output')
  return found
