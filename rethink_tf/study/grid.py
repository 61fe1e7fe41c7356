"""A study as its gin file describes it, and the runs it expands to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import gin

from rethink_tf import gin_files
from rethink_tf.errors import UserError
from rethink_tf.training.schedules import PAPER_BATCH, PAPER_UNIT

_LENGTH = re.compile(r'(SCHEDULE|KTimesSchedule\.k) = ')


class Trial(NamedTuple):
  """One run of a study."""

  name: str  # of its run folder: the values of the axes
  choice: dict[str, str]  # axis -> value
  files: tuple[str, ...]
  params: tuple[str, ...]


class Length(NamedTuple):
  """What a trial's configuration says about its schedule."""

  steps: int
  batch_size: int
  first_drop: int | None  # iterations until which every longer schedule is the same; None: its points are free
  unit: float  # iterations of 1x
  kind: str  # equal for trials that differ in the length of a k x schedule alone
  quiet: tuple[str, ...]  # bindings that leave out the evaluation at the end

  @property
  def images(self) -> int:
    return self.steps * self.batch_size


@gin.register
class Study:
  """A grid: every combination of one value from each axis is a run.

  base: gin files and bindings that all runs begin with.
  axes: axis -> value -> gin files and bindings that choose it, in the order in which they are applied. A string that
    ends in .gin is a file, any other a binding. '{name}' in a binding stands for the run folder of that pre-training.
  pretraining: name -> gin files and bindings of a run of python -m rethink_tf.pretrain that is made first.
  leave_out: combinations that are not run, each as axis -> value for some of the axes.
  share_prefixes: whether schedules of different length share the iterations before the shorter one's first drop,
    which are the same (section 4: the rule moves nothing but the end).

  Raises:
    UserError: an axis without values, or a combination named that does not exist.
  """

  def __init__(self, base: Sequence[str], axes: Mapping[str, Mapping[str, Sequence[str]]],
               pretraining: Mapping[str, Sequence[str]] | None = None,
               leave_out: Sequence[Mapping[str, str]] = (), share_prefixes: bool = True):
    self.base, self.axes = tuple(base), {axis: dict(values) for axis, values in axes.items()}
    self.pretraining, self.share_prefixes = dict(pretraining or {}), share_prefixes
    for axis, values in self.axes.items():
      if not values:
        raise UserError(f'Study.axes: {axis} has no values')
      for value in values:
        if not re.fullmatch(r'[\w.+-]+', value):
          raise UserError(f'Study.axes: {axis} = {value!r}: use letters, digits, _ . + -, it becomes a folder\'s name')
    for combination in leave_out:
      for axis, value in combination.items():
        if value not in self.axes.get(axis, {}):
          raise UserError(f'Study.leave_out: there is no {axis} = {value!r} among the axes')
    self.leave_out = tuple(dict(combination) for combination in leave_out)

  def trials(self, pretrained: Mapping[str, str]) -> list[Trial]:
    """All runs, in the order of the axes.

    pretrained: run folder of each pre-training, by name.

    Raises:
      UserError: a placeholder names no pre-training, or nothing is left to run.
    """
    found = []
    for values in itertools.product(*self.axes.values()):
      choice = dict(zip(self.axes, values, strict=True))
      if any(combination.items() <= choice.items() for combination in self.leave_out):
        continue
      words = [*self.base, *(word for axis, value in choice.items() for word in self.axes[axis][value])]
      files, params = split_words(words, pretrained)
      found.append(Trial('_'.join(values), choice, files, params))
    if not found:
      raise UserError('Study: nothing is left to run: see Study.axes and Study.leave_out')
    return found


def read_study(gin_file: str, params: Sequence[str] = ()) -> Study:
  """The study of a gin file; gin's configuration is empty again afterwards.

  Raises:
    UserError: it binds no Study, or something else.
  """
  gin_files.parse([gin_file], params)
  try:
    if gin_files.bound('Study.axes') is None or gin_files.bound('Study.base') is None:
      raise UserError(f'{gin_file} is no study: it must bind Study.base and Study.axes (gin_configs/studies)')
    return gin.get_configurable('Study')()
  finally:
    gin.clear_config()


def split_words(words: Sequence[str], pretrained: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Gin files and bindings, apart, each in its order; placeholders replaced."""
  def fill(match):
    if match.group(1) not in pretrained:
      raise UserError(f'Study: {{{match.group(1)}}} names no pre-training of Study.pretraining '
                      f'({", ".join(pretrained) or "there is none"})')
    return repr(pretrained[match.group(1)])

  words = [re.sub(r'\{(\w+)\}', fill, word) for word in words]
  return tuple(w for w in words if w.endswith('.gin')), tuple(w for w in words if not w.endswith('.gin'))


def length(trial: Trial, more: Sequence[str] = ()) -> Length:
  """Parses a trial's configuration and asks its schedule; `more` are bindings of the command line.

  Raises:
    UserError: the configuration has a mistake.
  """
  import rethink_tf.experiment  # noqa: F401  registers what gin files name

  gin_files.parse(trial.files, [*trial.params, *more])
  try:
    schedule, evaluator = gin_files.bound('run.schedule'), gin_files.bound('run.evaluator')
    if schedule is not None and schedule.configurable.name != 'KTimesSchedule':
      raise UserError(f'{trial.name}: a study needs runs by KTimesSchedule, not {schedule.configurable.name}')
    batch = gin_files.bound('run.batch_size')
    if not isinstance(batch, int):
      batch = PAPER_BATCH if batch is None else gin_files.bound('BATCH_SIZE/macro.value')
    made = gin.get_configurable('KTimesSchedule')(batch_size=batch)
    free = gin_files.bound('KTimesSchedule.boundaries') is not None
    unit = (gin_files.bound('KTimesSchedule.unit') or PAPER_UNIT) * PAPER_BATCH / batch
    kind = '\n'.join(line for line in gin.config_str().splitlines() if not _LENGTH.match(line))
    quiet = (f'{evaluator.configurable.name}.at_end = False',) if evaluator is not None else ()
    return Length(made.total_steps, batch, None if free else made.points[0], unit, kind, quiet)
  finally:
    gin.clear_config()
