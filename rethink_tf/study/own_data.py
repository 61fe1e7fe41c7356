"""A study of the user's own data without a gin file: chooses the study, its limits and its length by data and time.

The choice is printed as a command line with a gin file, and kept in choice.json of the output folder, so that the same
command resumes the same study.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from rethink_tf import gin_files
from rethink_tf.console import counted, duration
from rethink_tf.errors import UserError
from rethink_tf.evaluation.scoring import source_without_masks
from rethink_tf.storage import files
from rethink_tf.study import estimate as estimating
from rethink_tf.study import forecast, grid
from rethink_tf.study.run import Pretraining, StudyPlan, get_weights, plan_study, runner_of
from rethink_tf.weights import catalog

_OWN = ('gin_configs/demo.gin', 'gin_configs/data/own.gin')
_BOXES_ONLY, _MANY = 'gin_configs/models/faster_rcnn.gin', 'gin_configs/models/many_objects.gin'
_CHOICE = 'choice.json'
_LIMIT = 50  # objects of an image that the studies are set up for
_SHORTEST = 5  # unit of schedules, in steps of 16 images, that is worth a run
_EPOCHS = 300  # of the longest run at most
_TO_FIT = 0.9  # of the time: the speed is that of a few steps
_FIXED_LIMIT = 0.5  # of the time, for what does not become shorter with the schedules
_WITHOUT_SHAPES = "Study.leave_out = ({'init': 'shapes'},)"


class _Grid(NamedTuple):
  """A study of gin_configs/studies, with the lengths of its schedules in multiples of KTimesSchedule.unit."""

  file: str
  unit: int  # that it has without a choice
  lengths: tuple[float, ...]


_NARROW = _Grid('gin_configs/studies/own_data_narrow.gin', 400, (0.25, 0.5, 1))
_PAPER = _Grid('gin_configs/studies/own_data.gin', 75, (1, 2, 4))
IMAGENET = 'detectron_r50_gn'  # the paper's network and norm


class Facts(NamedTuple):
  """Facts about a data set on which the choice of a study depends."""

  images: int  # to train on
  held_out: int
  objects: int
  classes: int
  most_objects: int  # in one image
  masks: bool


class Choice(NamedTuple):
  """The arguments of a study, and the reasons for them."""

  study: str  # gin file
  run_files: tuple[str, ...]
  params: tuple[str, ...]
  weights: str | None
  reasons: tuple[str, ...]
  study_params: tuple[str, ...] = ()

  def command(self, data_dir: str, output: str) -> str:
    """Return the command line that runs the same study."""
    words = ['python', '-m', 'rethink_tf.study', *(f'--gin_file={name}' for name in (self.study, *self.run_files)),
             *(f'--gin_param={one}' for one in self.params), *(f'--study_param={one}' for one in self.study_params),
             *([f'--weights={self.weights}'] if self.weights else []),
             f'--data_dir={data_dir}', f'--output={output}']
    return shlex.join(words)


def read_facts(data_dir: str) -> Facts:
  """Read the annotations of a data set.

  Raises:
    UserError: they are in no layout that is read, or no object is held out.
  """
  from rethink_tf import experiment  # registers what gin files name

  experiment.configure(_OWN, (), data_dir)
  try:
    train, held_out = (gin_files.argument(experiment.run, f'{side}_source')(training=side == 'train')
                       for side in ('train', 'eval'))
  finally:
    gin_files.clear()
  forecast.check_objects(held_out)
  return Facts(len(train.image_ids), len(held_out.image_ids), int(train.num_instances.sum()), train.num_classes,
               int(max(train.num_instances.max(initial=0), held_out.num_instances.max(initial=0))),
               not source_without_masks(train))


def choose(facts: Facts, weights: str | None, why: str) -> Choice:
  """Return the study, with its arguments and schedule lengths, that suits the data.

  weights: of the paper's network; None: the narrow network, with pre-training that needs no download. why: the reason.
  """
  files, params = [], ['KTimesSchedule.warmup_limit = 0.5']
  reasons = [f'{counted(facts.images, "image")} with {counted(facts.objects, "object")} of '
             f'{counted(facts.classes, "class", "classes")} to train on, {counted(facts.held_out, "image")} held out',
             why]
  if not facts.masks:
    files.append(_BOXES_ONLY)
    reasons.append(f'no object has a mask: without a mask head ({_BOXES_ONLY})')
  if facts.most_objects > _LIMIT:
    limit = math.ceil(facts.most_objects / _LIMIT) * _LIMIT
    files.append(_MANY)
    params += [f'MAX_OBJECTS = {limit}', f'MAX_PROPOSALS = {max(5 * limit, 300)}']
    reasons.append(f'up to {facts.most_objects} objects in an image: limits of {limit} ({_MANY})')
  return Choice((_PAPER if weights else _NARROW).file, tuple(files), tuple(params), weights, tuple(reasons))


def choose_weights(given: str | None, dry_run: bool) -> tuple[str | None, str]:
  """Return the weights of the pre-trained runs, and the reason for them.

  Weights by name are downloaded where there is a GPU, which the paper's network needs for a study in an hour.
  """
  narrow = ('the narrow network of the demo, from random weights, after pre-training on synthetic shapes, and after '
            'training on the same images at half the resolution (gin_configs/studies/arms.gin compares more)')
  if given:
    return given, f"the paper's network, from random weights and from {given}"
  if not tf.config.list_physical_devices('GPU'):
    return None, f"{narrow}: no GPU for the paper's network (--weights={IMAGENET} takes it nevertheless)"
  try:
    if not dry_run:
      catalog.local_path(IMAGENET)
  except UserError as error:
    return None, f'{narrow}: ImageNet weights are out of reach ({error.line()})'
  return IMAGENET, f"the paper's network, from random weights and from ImageNet's ({IMAGENET})"


def alternatives(choice: Choice) -> list[Choice]:
  """Return a choice, and a variant without its longest part of fixed cost (which shorter schedules do not shorten)."""
  return [choice] if choice.weights else [choice, choice._replace(study_params=(_WITHOUT_SHAPES,))]


def choose_alternative(choices: Sequence[Choice], times: Sequence[tuple[float, float]], seconds: float
                       ) -> tuple[Choice, tuple[float, float]]:
  """Return one of `alternatives` with its times: the first, unless most of the time goes into parts of fixed cost.

  times: as for `fit`, of each.
  """
  fixed = [short - (long - short) for short, long in times]
  if len(choices) == 1 or fixed[0] <= seconds * _FIXED_LIMIT:
    return choices[0], times[0]
  why = (f'without pre-training on synthetic shapes: of {duration(seconds)}, what no shorter schedule saves would take '
         f'{duration(fixed[0])} with it, and takes {duration(fixed[1])} without')
  return choices[1]._replace(reasons=(*choices[1].reasons, why)), times[1]


def fit(choice: Choice, facts: Facts, seconds: float, times: tuple[float, float], spent: float = 0.0) -> Choice:
  """Return the choice with schedules as long as the time allows; the time is linear in the unit of the schedules.

  times: seconds of the whole study at the present unit, and at twice that. spent: seconds of the time that are over:
  timing takes minutes.
  """
  study = _PAPER if choice.weights else _NARROW
  longest, (short, long) = max(study.lengths), times
  most = max(_SHORTEST, round(facts.images * _EPOCHS / 16 / longest))
  each = max((long - short) / study.unit, 1e-9)
  unit = math.floor(((seconds - spent) * _TO_FIT - (short - study.unit * each)) / each)
  chosen = min(max(unit, _SHORTEST), most)
  over = f', of which {duration(spent)} are over' if round(spent) else ''
  takes = f'about {duration(short + (chosen - study.unit) * each)} of {duration(seconds)}{over}'
  reason = (f'the shortest schedules, which take {takes}: give more --minutes' if unit < _SHORTEST else
            f'at most {_EPOCHS} epochs, which take {takes}' if chosen < unit else f'schedules that take {takes}')
  steps = ', '.join(f'{k:g}x = {round(chosen * 4 * k)}' for k in study.lengths)
  return choice._replace(params=(*choice.params, f'KTimesSchedule.unit = {chosen}'),
                         reasons=(*choice.reasons, f'{reason} ({steps} steps of 4 images, two seeds of each)'))


def check_minutes(minutes: float) -> None:
  """Raise UserError unless `minutes` is positive."""
  if not 0 < minutes < math.inf:
    raise UserError(f'--minutes = {minutes:g}: use a number above 0')


def plan(data_dir: str, minutes: float, output: str | None = None, params: Sequence[str] = (),
         weights: str | None = None, calibrate: bool = True, dry_run: bool = False,
         parallel: int | None = None, study_params: Sequence[str] = ()) -> StudyPlan:
  """Choose a study for a data set, print what was chosen and why, and plan it.

  A choice that is in the output folder already is used again.

  Args:
    minutes: that the study may take, with pre-training and the timing of a few steps.
    output: None: runs/studies/<name of data_dir>.
    params: further bindings of every run.
    weights: of the pre-trained runs; None: ImageNet's by name, where there is a GPU and they can be had.
    calibrate: time a few steps; False: schedules of the usual length.
    dry_run: neither keep the choice nor download weights.
    parallel: as for run_study.
    study_params: bindings of the study itself, as 'Study.until_settled = @UntilSettled()'; the time is that of the
      study without them.

  Raises:
    UserError: the data cannot be read, or the output folder holds the choice for another data set or other weights.
  """
  begin = time.monotonic()
  check_minutes(minutes)
  output = (output or '').rstrip('/') or f'runs/studies/{os.path.basename(os.path.abspath(data_dir))}'
  path, asked = os.path.join(output, _CHOICE), os.path.abspath(os.path.expanduser(data_dir))
  choice = _read(path, asked)
  if choice is not None and weights not in (None, choice.weights):
    was = f'for --weights={choice.weights}' if choice.weights else 'without --weights'
    raise UserError(f'{path}: was chosen {was}, not for --weights={weights}: give another --output, or delete it to '
                    'choose anew')

  def planned(of: Choice, *more: str, of_study: Sequence[str] = ()) -> StudyPlan:
    return plan_study(of.study, output, (*of.params, *params, *more), (*of.study_params, *of_study), data_dir,
                      run_files=of.run_files, weights=of.weights)

  if choice is None:
    facts = read_facts(data_dir)
    choice = choose(facts, *choose_weights(weights, dry_run))
    if calibrate:
      choices = alternatives(choice)
      choice, times = choose_alternative(choices, _time(choices, planned, parallel), 60 * minutes)
      choice = fit(choice, facts, 60 * minutes, times, time.monotonic() - begin)
    else:
      choice = choice._replace(reasons=(*choice.reasons, 'schedules of the usual length: nothing was timed'))
    if not dry_run:
      files.write_output(path, json.dumps({'data_dir': asked, 'minutes': minutes, **choice._asdict()}, indent=1) + '\n')
  else:
    print(f'{path}: the choice that was made before is used again, whatever --minutes: delete it to choose anew')
  print('\n'.join([*(f'- {reason}' for reason in choice.reasons), 'the same as', choice.command(data_dir, output), '']))
  return planned(choice, of_study=study_params)


def _time(choices: Sequence[Choice], planned: Callable[..., StudyPlan], parallel: int | None
          ) -> list[tuple[float, float]]:
  """Time a few steps; return the seconds of each study at its present unit of schedules, and at twice that.

  choices: the first has all runs of the others.
  """
  unit = (_PAPER if choices[0].weights else _NARROW).unit
  plans = [[planned(each, f'KTimesSchedule.unit = {one}') for one in (unit, 2 * unit)] for each in choices]
  first = plans[0][0]
  get_weights(first)
  with runner_of(first, parallel) as runner:
    missing = {path: one.configuration for path, one in first.pretraining.items() if not runner.pretrained(path)}
    before = estimating.estimate(runner, first.stages, missing).pretraining

    def seconds(short: StudyPlan, plan: StudyPlan) -> float:
      return runner.remaining(plan.stages) + sum(
        before.get(path, 0.0) * _times_longer(short.pretraining[path], other)
        for path, other in zip(short.pretraining, plan.pretraining.values(), strict=True))

    return [(seconds(short, short), seconds(short, long)) for short, long in plans]


def _times_longer(short: Pretraining, long: Pretraining) -> float:
  """Return how many times as many steps a pre-training has in the second of two studies."""
  if short == long:
    return 1.0
  steps = [grid.read_config(grid.Trial('pre-training', {}, one.files, one.params)).steps for one in (short, long)]
  return steps[1] / steps[0]


def _read(path: str, data_dir: str) -> Choice | None:
  """Return an earlier choice, None if there is none."""
  if not tf.io.gfile.exists(path):
    return None
  try:
    with files.open_regular(path) as file:
      content = json.loads(file.read(1 << 20))
    content = {'study_params': (), **content}  # choices of earlier versions have none
    found = Choice(*(content[name] for name in Choice._fields))
    others = content['data_dir'] != data_dir
    lists = (found.run_files, found.params, found.reasons, found.study_params)
    if not all(isinstance(one, str) for one in (found.study, found.weights or '', *itertools.chain(*lists))):
      raise TypeError
  except (ValueError, KeyError, TypeError, RecursionError, tf.errors.OpError) as error:
    raise UserError(f'{path}: was not written by this command: delete it') from error
  if others:
    raise UserError(f'{path}: was chosen for {content["data_dir"]}: give another --output')
  return found._replace(run_files=tuple(found.run_files), params=tuple(found.params), reasons=tuple(found.reasons),
                        study_params=tuple(found.study_params))
