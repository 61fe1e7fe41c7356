"""Studies: a grid of training runs described by a gin file."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import gin

from rethink_tf import gin_files
from rethink_tf.errors import UserError
from rethink_tf.storage import settings
from rethink_tf.study import seeds
from rethink_tf.study.seeds import UntilSettled
from rethink_tf.training import sharing
from rethink_tf.training.schedules import PAPER_BATCH, PAPER_UNIT

BASE = '{base}'  # among the files and bindings of a pre-training
_NO_RUN = ('report', '.', '..')  # in the folder of a study
_BOUND = re.compile(r'^\s*([\w./]+)\s*=', flags=re.MULTILINE)
_SCORED_BY = {  # evaluator -> metric -> the part of the model that it needs, None: none
  'CocoEvaluator': {'box/AP': None, 'mask/AP': 'MaskRCNN.mask_head', 'keypoint/AP': 'MaskRCNN.keypoint_head'},
  'VocEvaluator': {'voc/mAP': None}}
_LENGTH = re.compile(r'(SCHEDULE|KTimesSchedule\.k) = ')


class Trial(NamedTuple):
  """One run of a study."""

  name: str  # name of the run folder: the values of the axes
  choice: dict[str, str]  # axis -> value
  files: tuple[str, ...]
  params: tuple[str, ...]


class TrialConfig(NamedTuple):
  """What a study reads from the configuration of a trial: schedule, evaluations, data, weights and graph."""

  steps: int
  batch_size: int
  first_drop: int | None  # up to here all longer schedules are the same; None: explicit boundaries
  unit: float  # number of iterations of 1x
  kind: str  # equal for trials that differ only in the length of their k x schedule
  quiet: tuple[str, ...]  # bindings that disable the evaluation at the end
  every: int = 0  # iterations between evaluations; 0: only at the end
  often: str = ''  # name of the parameter that sets `every`
  data_dir: str | None = None  # the folder of the data set, if it has one
  weights: str | None = None  # file, run folder or name of the initial weights
  graph: str = ''  # equal for runs whose steps have the same graph; '': shared with none
  process: str = ''  # settings that hold for a whole process
  one_device: bool = False  # on fewer devices than all of the machine it computes the same
  settings: Mapping[str, Any] = MappingProxyType({})  # bindings of parts in use, as in a run's config.gin
  metrics: tuple[str, ...] = ()  # by which a verdict may be, as 'box/AP'; (): not known

  @property
  def images(self) -> int:
    return self.steps * self.batch_size


@gin.register
class Study:
  """A grid of runs, one for each combination of one value per axis."""

  def __init__(self, base: Sequence[str], axes: Mapping[str, Mapping[str, Sequence[str]]],
               pretraining: Mapping[str, Sequence[str]] | None = None,
               leave_out: Sequence[Mapping[str, str]] = (), share_prefixes: bool = True,
               until_settled: UntilSettled | None = None) -> None:
    """Check the axes.

    Args:
      base: gin files and bindings that come first in all runs.
      axes: axis -> value -> gin files and bindings of this value, in the order in which they are applied. A string that
        ends in .gin is a file, any other a binding. '{name}' in a binding is replaced by the run folder of that
        pre-training.
      pretraining: name -> gin files and bindings of a run that is trained first: of a classifier (python -m
        rethink_tf.pretrain), or of a detector, whose data is that of the study unless it binds DATA_DIR. '{base}' among
        them stands for those of `base`, with what the command adds to every run.
      leave_out: combinations to leave out, each as axis -> value for some of the axes.
      share_prefixes: share the iterations before the shorter schedule's first drop, which schedules of different length
        have in common (section 4).
      until_settled: train one seed after the other and stop once the question is settled; the axis that binds run.seed
        gets the seeds that it lacks, or the study such an axis. None: exactly the runs of the axes.

    Raises:
      UserError: until_settled is not an UntilSettled; an axis has no values or a value that cannot name a folder, or
        leave_out names an unknown value.
    """
    self.base, self.axes = tuple(base), {axis: dict(values) for axis, values in axes.items()}
    self.pretraining, self.share_prefixes = dict(pretraining or {}), share_prefixes
    if until_settled is not None and not isinstance(until_settled, UntilSettled):
      raise UserError(f'Study.until_settled = {until_settled!r}: use @UntilSettled(), or --until_settled')
    self.until_settled, self.seed_axis = until_settled, ''
    if until_settled is not None:
      self.axes, self.seed_axis = seeds.with_seeds(self.axes, until_settled.max_seeds)
    for axis, values in self.axes.items():
      if not values:
        raise UserError(f'Study.axes: {axis} has no values')
      for value in values:
        if not re.fullmatch(r'[\w.+-]+', value):
          raise UserError(f'Study.axes: {axis} = {value!r}: use letters, digits, _ . + - (it names a folder)')
    for combination in leave_out:
      for axis, value in combination.items():
        if value not in self.axes.get(axis, {}):
          raise UserError(f'Study.leave_out: there is no {axis} = {value!r} among the axes')
    self.leave_out = tuple(dict(combination) for combination in leave_out)

  def trials(self, pretrained: Mapping[str, str]) -> list[Trial]:
    """Return all runs in the order of the axes.

    pretrained: run folder of each pre-training, by name.

    Raises:
      UserError: a binding names an unknown pre-training, a run has the name of the folder of the report or of another
        run, or all combinations are left out.
    """
    trials, names = [], set()
    for values in itertools.product(*self.axes.values()):
      choice = dict(zip(self.axes, values, strict=True))
      if any(combination.items() <= choice.items() for combination in self.leave_out):
        continue
      entries = [*self.base, *(entry for axis, value in choice.items() for entry in self.axes[axis][value])]
      name = '_'.join(values)
      if name in _NO_RUN:
        raise UserError(f'Study.axes: a run would be called {name!r}, which is another folder of the study: rename the '
                        'value')
      if name.casefold() in names:  # which macOS and Windows take for the same folder
        raise UserError(f'Study.axes: two runs would be called {name!r}, the values of their axes joined by _: rename '
                        'a value')
      names.add(name.casefold())
      files, params = files_and_bindings(entries, pretrained)
      trials.append(Trial(name, choice, files, params))
    if not trials:
      raise UserError('Study: all runs are left out: see Study.axes and Study.leave_out')
    return trials


def check_params(study: Study, params: Sequence[str]) -> None:
  """Check that bindings of every run leave alone what the values of an axis tell apart.

  Raises:
    UserError: one would overwrite an axis, whose values name the runs.
  """
  for axis, values in study.axes.items():
    bound: dict[str, dict[str, str]] = {}  # name -> value of the axis -> its last binding of that name
    for value, entries in values.items():
      for entry in entries:
        for name in bound_names(entry):
          bound.setdefault(name, {})[value] = entry
    for param in params:
      for name in bound_names(param):
        # Some values alone may bind what belongs to them, all alike, as the size of images of an augmentation.
        if name in bound and (len(bound[name]) == len(values) or len(set(bound[name].values())) > 1):
          raise UserError(f"--gin_param='{param}': the axis {axis!r} of the study binds {name}, and its values name "
                          "the runs: choose them with --study_param='Study.axes = ...' or 'Study.leave_out = ...'")


def check_different(trials: Sequence[Trial], configs: Sequence[TrialConfig]) -> None:
  """Check that no two runs have the same settings.

  Raises:
    UserError: two have the same settings.
  """
  for (one, its), (other, others) in itertools.combinations(zip(trials, configs, strict=True), 2):
    if its.settings == others.settings:
      raise UserError(f'Study.axes: {one.name} and {other.name} have the same settings: leave out the --gin_param or '
                      '--gin_file that overwrites what tells them apart, or one of them with Study.leave_out; a '
                      'binding of a part that is not in use tells nothing apart')


def of_pretraining(study: Study, name: str, files: Sequence[str] = (), params: Sequence[str] = ()) -> list[str]:
  """Return the gin files and bindings of a pre-training. files, params: of every run, which belong to '{base}'."""
  return [one for entry in study.pretraining[name]
          for one in ((*study.base, *files, *params) if entry == BASE else (entry,))]


def read_study(gin_file: str, params: Sequence[str] = ()) -> Study:
  """Read the study of a gin file; gin's configuration is empty afterwards.

  Raises:
    UserError: the file is not valid or does not bind Study.
  """
  import rethink_tf.experiment  # noqa: F401  registers what gin files name: a file of a run is parsed, and told from one

  gin_files.parse([gin_file], params)
  try:
    if gin_files.bound('Study.axes') is None or gin_files.bound('Study.base') is None:
      run = gin_files.bound('run.model') is not None
      raise UserError(f'{gin_file} is not a study: it must bind Study.base and Study.axes (gin_configs/studies)'
                      + '; it configures one run, which python -m rethink_tf.train (or pretrain) trains' * run)
    return gin.get_configurable('Study')()
  finally:
    gin.clear_config()


def bound_names(entry: str) -> list[str]:
  """Return the names that a binding sets, none for a gin file."""
  return [] if entry.endswith('.gin') else _BOUND.findall(entry)


def files_and_bindings(entries: Sequence[str], pretrained: Mapping[str, str]
                       ) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Separate gin files and bindings, and replace '{name}' by the run folder of that pre-training.

  Raises:
    UserError: there is no pre-training of that name.
  """
  def fill(match: re.Match[str]) -> str:
    if match.group(1) not in pretrained:
      raise UserError(f'Study: {{{match.group(1)}}} is not in Study.pretraining ({", ".join(pretrained) or "empty"})')
    return repr(pretrained[match.group(1)])

  entries = [re.sub(r'\{(\w+)\}', fill, entry) for entry in entries]
  return (tuple(entry for entry in entries if entry.endswith('.gin')),
          tuple(entry for entry in entries if not entry.endswith('.gin')))


def data_folder(files: Sequence[str], params: Sequence[str], data_dir: str | None) -> str | None:
  """Return the folder of the data set of a configuration; None if it has none."""
  import rethink_tf.experiment  # noqa: F401  registers what gin files name

  gin_files.parse(files, [*params, *([f'DATA_DIR = {data_dir!r}'] if data_dir else [])])
  try:
    return _data_folder()
  finally:
    gin.clear_config()


def is_of_detector(files: Sequence[str], params: Sequence[str]) -> bool:
  """Whether a configuration trains a detector rather than a classifier."""
  import rethink_tf.experiment  # noqa: F401  registers what gin files name

  gin_files.parse(files, params)
  try:
    model = gin_files.bound('run.model')
    return model is None or model.configurable.name != 'Classifier'
  finally:
    gin.clear_config()


def keys(files: Sequence[str], params: Sequence[str], data_dir: str | None) -> tuple[str, str]:
  """Return the keys `graph` and `process` of a configuration (TrialConfig)."""
  import rethink_tf.experiment  # noqa: F401  registers what gin files name

  gin_files.parse(files, [*params, *([f'DATA_DIR = {data_dir!r}'] if data_dir else [])])
  try:
    return _keys(gin_files.text())
  finally:
    gin_files.clear()


def _keys(text: str) -> tuple[str, str]:
  return '' if sharing.obstacle(text) else sharing.graph_key(text), sharing.process_key(text)


def _data_folder() -> str | None:
  source = gin_files.bound('run.train_source')
  folder = None if source is None else gin_files.bound(f'{source.configurable.name}.data_dir')
  return folder if folder is None or isinstance(folder, str) else gin_files.bound('DATA_DIR/macro.value')


def _weights() -> str | None:
  if gin_files.bound('run.initial_weights') is None:
    return None
  path = gin_files.bound('PretrainedWeights.path')
  path = path if path is None or isinstance(path, str) else gin_files.bound('WEIGHTS/macro.value')
  return path if isinstance(path, str) else None


def read_config(trial: Trial, more: Sequence[str] = ()) -> TrialConfig:
  """Parse a trial's configuration, with `more` bindings, and return what a study reads from it.

  Raises:
    UserError: the configuration is not valid, or its schedule is not a KTimesSchedule.
  """
  import rethink_tf.experiment  # noqa: F401  registers what gin files name

  parts = gin_files.parse(trial.files, [*trial.params, *more]).parts
  try:
    schedule, evaluator = gin_files.bound('run.schedule'), gin_files.bound('run.evaluator')
    if schedule is not None and schedule.configurable.name != 'KTimesSchedule':
      raise UserError(f'{trial.name}: a study needs KTimesSchedule, not {schedule.configurable.name}')
    batch = gin_files.bound('run.batch_size')
    if not isinstance(batch, int):
      batch = PAPER_BATCH if batch is None else gin_files.bound('BATCH_SIZE/macro.value')
    k_times = gin.get_configurable('KTimesSchedule')(batch_size=batch)
    explicit = gin_files.bound('KTimesSchedule.boundaries') is not None
    unit = (gin_files.bound('KTimesSchedule.unit') or PAPER_UNIT) * PAPER_BATCH / batch
    text = gin_files.text()
    kind = '\n'.join(line for line in text.splitlines() if not _LENGTH.match(line))
    quiet = (f'{evaluator.configurable.name}.at_end = False',) if evaluator is not None else ()
    evaluator = evaluator.configurable if evaluator is not None else gin.get_configurable('CocoEvaluator')
    name = getattr(evaluator, 'name', 'CocoEvaluator')
    every = gin_files.bound(f'{name}.every')
    if every is None:
      every = inspect.signature(getattr(evaluator, 'wrapped', evaluator)).parameters['every'].default
    one_device = not re.search(r'^\s*strategy\.|@sync_batch_norm', text, flags=re.MULTILINE)
    in_use = {name: value for name, value in settings.parse(text).items()
              if not parts or name.split('/')[-1].split('.')[-2] in parts}
    return TrialConfig(k_times.total_steps, batch, None if explicit else k_times.points[0], unit, kind, quiet, every,
                       f'{name}.every', _data_folder(), _weights(), *_keys(text), one_device, in_use, _metrics(name))
  finally:
    gin.clear_config()


def _metrics(evaluator: str) -> tuple[str, ...]:
  """Return the metrics by which the parsed configuration is scored; () with a model or an evaluator of the user's."""
  found = gin_files.effective(['run.model', 'MaskRCNN.mask_head', 'MaskRCNN.keypoint_head'])
  if found.get('run.model') != '@MaskRCNN' or evaluator not in _SCORED_BY:
    return ()
  return tuple(metric for metric, head in _SCORED_BY[evaluator].items() if head is None or found.get(head) is not None)
