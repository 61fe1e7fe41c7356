"""Planning, running and submitting a study."""

from __future__ import annotations

import functools
import os
import pathlib
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from rethink_tf.compare import looks, tensorboard_log
from rethink_tf.compare.report import Comparison, check_output, compare
from rethink_tf.compare.tables import as_text
from rethink_tf.errors import UserError
from rethink_tf.process import entry
from rethink_tf.study import estimate as estimating
from rethink_tf.study import execution, forecast, grid, processes, reuse, sequential, worker
from rethink_tf.study import stages as staging
from rethink_tf.study.estimate import Estimate
from rethink_tf.study.grid import Study, Trial, TrialConfig
from rethink_tf.study.seeds import UntilSettled
from rethink_tf.study.stages import Stage
from rethink_tf.weights import catalog


class Pretraining(NamedTuple):
  """A run that is trained before those of a study."""

  files: tuple[str, ...]
  params: tuple[str, ...]
  data_dir: str | None
  command: str = 'pretrain'  # or 'train', of a detector

  @property
  def configuration(self) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
    """Gin files, bindings and data folder."""
    return self.files, self.params, self.data_dir


class StudyPlan(NamedTuple):
  """A study with its trials, stages and pre-trainings, ready to run."""

  output: str  # folder of the run folders and the report
  trials: tuple[Trial, ...]
  configs: tuple[TrialConfig, ...]  # of the trials
  stages: tuple[Stage, ...]
  pretraining: Mapping[str, Pretraining]  # by run folder
  data_dir: str | None = None  # of every run
  pretraining_data_dir: str | None = None
  pretraining_folders: tuple[str | None, ...] = ()  # of the data sets of the pre-trainings
  share_prefixes: bool = True
  until_settled: UntilSettled | None = None  # not None: the stages are the most there can be, seed by seed
  seed_axis: str = ''
  metric: str | None = None  # of the comparison, as the next two; None: the main one of the runs
  margin: float = 0.5  # AP points within which two sides count as equal
  seed_spread: float | None = None  # known standard deviation between seeds

  def __str__(self) -> str:
    alone, shared = sum(config.images for config in self.configs), staging.images(self.stages)
    saved = f', {1 - shared / alone:.0%} less than the runs one by one ({alone})' if shared < alone else ''
    before = ''.join(f'pre-training {path}\n' for path in self.pretraining)
    most = '' if self.until_settled is None else 'at most '
    return (f'{before}{as_text(staging.table(self.stages))}\n'
            f'{most}{len(self.trials)} runs, {shared} images to train on{saved}')


def plan_study(gin_file: str, output: str | None = None, gin_params: Sequence[str] = (),
               study_params: Sequence[str] = (), data_dir: str | None = None, pretraining_data_dir: str | None = None,
               share_prefixes: bool = True, run_files: Sequence[str] = (), weights: str | None = None) -> StudyPlan:
  """Read a study and the configuration of each of its runs.

  Args:
    gin_file: file that binds Study (gin_configs/studies).
    output: folder for runs and report; None: runs/studies/<name of gin_file>. Pre-training goes to the folder
      pretraining/ next to it, which studies share: <name>, or <name>-<digest> if that is of another configuration.
    gin_params: bindings of every run.
    study_params: bindings of the study itself, as 'Study.share_prefixes = False'.
    data_dir, pretraining_data_dir: folders of the data sets; None: those of the gin files.
    share_prefixes: False disables shared iterations, for runs on different machines.
    run_files: gin files of every run, read after those of the study; a pre-training is without them and without
      gin_params, unless it has those of the runs ('{base}').
    weights: file or name of the initial weights of all pre-trained runs for which the study names none.

  Raises:
    UserError: a configuration is not valid, gin_params overwrite an axis, two runs have the same settings, or
      Study.until_settled has nothing to settle.
  """
  study = grid.read_study(gin_file, study_params)
  grid.check_params(study, gin_params)
  output = (output or '').rstrip('/') or f'runs/studies/{pathlib.PurePosixPath(gin_file).stem}'
  pretraining = _pretrainings(study, os.path.join(os.path.dirname(output), 'pretraining'), data_dir,
                              pretraining_data_dir, run_files, gin_params)
  pretrained = dict(zip(study.pretraining, pretraining, strict=True))
  trials = [trial._replace(files=(*trial.files, *run_files), params=(*trial.params, *gin_params))
            for trial in study.trials(pretrained)]
  trials, configs = _configured(trials, data_dir, weights)
  pretraining = _used(pretraining, trials)
  if study.until_settled is not None and not forecast.design(configs).verdicts:
    raise UserError('Study.until_settled: no scratch run of the study has a pre-trained counterpart that is otherwise '
                    'the same, so that there is nothing to settle: leave it out')
  share = study.share_prefixes and share_prefixes
  rounds = sequential.by_seed(trials, study.seed_axis) if study.until_settled else [trials]
  of = {trial.name: config for trial, config in zip(trials, configs, strict=True)}
  stages = [stage for each in rounds for stage in staging.plan(each, [of[trial.name] for trial in each], share)]
  if weights and weights not in [config.weights for config in configs]:
    raise UserError(f'--weights={weights} is given, but no run of {gin_file} starts from it: the study names the '
                    'weights of each arm itself, or all start from random ones')
  grid.check_different(trials, configs)
  return StudyPlan(output, tuple(trials), tuple(configs), tuple(stages), pretraining, data_dir, pretraining_data_dir,
                   tuple(grid.data_folder(*one.configuration) for one in pretraining.values()),
                   share_prefixes=share, until_settled=study.until_settled, seed_axis=study.seed_axis)


def _configured(trials: Sequence[Trial], data_dir: str | None,
                weights: str | None) -> tuple[list[Trial], list[TrialConfig]]:
  """Return trials with their configurations, those that are pre-trained with `weights` unless they name others."""
  given = (f'WEIGHTS = {weights!r}',) if weights else ()  # first, so that those of an arm win
  with_weights = [trial._replace(params=(*given, *trial.params)) for trial in trials]
  configs = [grid.read_config(trial, [f'DATA_DIR = {data_dir!r}'] if data_dir else []) for trial in with_weights]
  return [trial if config.weights is None else with_given
          for trial, with_given, config in zip(trials, with_weights, configs, strict=True)], configs


def check_data(plan: StudyPlan) -> None:
  """Check that the data folders of a study exist on this machine.

  Raises:
    UserError: one does not.
  """
  for folder in (*(config.data_dir for config in plan.configs), *plan.pretraining_folders):
    entry.check_path(folder, 'no such data folder: set --data_dir, or --pretraining_data_dir')


def check(plan: StudyPlan) -> None:
  """Check what a study finds on this machine, before anything is trained or downloaded.

  Raises:
    UserError: no run is scored by the metric; a data folder does not exist; the folder of the report holds something
      else; a run that is complete had other settings; or the folder has looks that are not of this study.
  """
  check_metric(plan)
  check_data(plan)
  check_output(f'{plan.output}/report')
  sequential.check_record(plan)
  runner = execution.Runner(plan.output, plan.data_dir)
  for stage in plan.stages:
    if runner.done(stage):
      trial = stage.trial
      reuse.check_done(runner.folder(trial.name), trial.name, trial.files, trial.params, plan.data_dir,
                       not stage.partial)


def check_metric(plan: StudyPlan) -> None:
  """Check that the runs of a study are scored by the metric of its verdict.

  Raises:
    UserError: one is not, as far as its configuration tells: all would be trained, and none compared.
  """
  for trial, config in zip(plan.trials, plan.configs, strict=True):
    if plan.metric and config.metrics and plan.metric not in config.metrics:
      raise UserError(f'--metric={plan.metric}: {trial.name} is scored by {", ".join(config.metrics)} alone: choose '
                      f'{"it" if len(config.metrics) == 1 else "one of these"}, or a model and an evaluator that have '
                      f'{plan.metric}')


def get_weights(plan: StudyPlan) -> None:
  """Check the initial weights of the runs that are not done, and download those that have a name, before any trains.

  Raises:
    UserError: a file does not exist, or a download fails.
  """
  begun, needed = set(), set()
  for trial, config in zip(plan.trials, plan.configs, strict=True):
    loaded = os.path.exists(os.path.join(plan.output, trial.name, 'initial_weights.json'))
    (begun if loaded else needed).add(config.weights)
  for weights in sorted(needed - begun - {None, *plan.pretraining}):
    catalog.local_path(weights)


def progress(plan: StudyPlan) -> str:
  """Return a line that says what is done and what is left, '' if nothing has been done."""
  runner = execution.Runner(plan.output, plan.data_dir)
  whole, left = staging.images(plan.stages), runner.images_left(plan.stages)
  if left == whole:
    return ''
  done = sum(runner.done(stage) for stage in plan.stages if not stage.partial)
  return f'of these {done} are complete in {plan.output}, {left} images are left'


def estimate_study(plan: StudyPlan, parallel: int | None = None) -> Estimate | None:
  """Time a few steps of what remains to be trained; return the estimated time.

  None, with the reason printed, if it is unknown. Takes a minute or more: there are as many short runs as kinds of
  runs.
  """
  with runner_of(plan, parallel) as runner:
    return _estimate(runner, plan)


def run_study(plan: StudyPlan, calibrate: bool = True, parallel: int | None = None) -> Comparison | None:
  """Run all stages that are not done, and compare the runs in <output>/report.

  Runs of the same graph (norm, model, size of batches, ...) share a process and its traced trainer; an error in one
  does not affect the others.

  With Study.until_settled those of the first seed, then of the second, ..., until the question is settled.

  calibrate: time a few steps first, to estimate the total time.
  parallel: number of runs side by side, each with its share of the GPUs or of the CPU's cores; None: one for each GPU,
    unless a run depends on the number of its devices.

  Returns:
    The comparison, None if no run has been evaluated.

  Raises:
    UserError: as for `check`; the held-out data cannot be read, or has no object; or pre-training or a stage failed,
      and the other stages have been run and compared: with Study.until_settled those of the same seed have been run,
      and the runs of the latest look are compared.
  """
  check(plan)
  get_weights(plan)
  planned = forecast.describe(plan)
  print(planned, flush=True)

  with runner_of(plan, parallel) as runner:
    _prepare(plan, runner, calibrate)
    if plan.until_settled is not None:
      rounds = sequential.Rounds(plan, runner, functools.partial(compare_runs, plan, planned=planned),
                                 lambda line: print(line, flush=True))
      failures, comparison = rounds.run()
    else:
      failures, comparison = runner.run(plan.stages), None
  evaluated = [runner.folder(trial.name) for trial in plan.trials if runner.evaluated(trial.name)]
  if plan.until_settled is None and evaluated:
    comparison = compare_runs(plan, evaluated, planned)
  if comparison is not None:
    print(f'\n{comparison.text}\n\nreport: {comparison.page}\n'
          f'{tensorboard_log.command(f"{plan.output}/report")}')
    for line in forecast.next_commands(plan, comparison.verdicts):
      print(line, flush=True)
  if failures:
    raise UserError(f'{len(failures)} of {len(plan.stages)} stages failed; the same command retries them: '
                    + '; '.join(failures))
  return comparison


def compare_runs(plan: StudyPlan, folders: Sequence[str], planned: str = '') -> Comparison:
  """Compare runs of a study in <output>/report. planned: what it was expected to be able to tell.

  Raises:
    UserError: as for compare.report.compare. Another folder is no cure for a full disk: all would be trained again.
  """
  return compare(folders, f'{plan.output}/report', plan.metric, plan.margin, seed_spread=plan.seed_spread,
                 planned=planned, cure=looks.AGAIN)


def _prepare(plan: StudyPlan, runner: execution.Runner, calibrate: bool) -> None:
  """Estimate the time, and pre-train."""
  found = _estimate(runner, plan) if calibrate else None
  if found is not None:
    print(found, flush=True)
    if plan.until_settled is not None:
      print(f'with all {plan.until_settled.max_seeds} seeds: it stops once its question is settled', flush=True)
  for path, one in plan.pretraining.items():
    print(f'pre-training {path}', flush=True)
    runner.pretrain(path, *one)


def runner_of(plan: StudyPlan, parallel: int | None = None) -> execution.Runner:
  """Return the runner of a study, a context; parallel: as for run_study.

  Raises:
    UserError: more runs side by side than GPUs.
  """
  environments = processes.environments(parallel, all(config.one_device for config in plan.configs))
  if len(environments) > 1:
    print(f'{len(environments)} runs side by side (--parallel=1: one after another)', flush=True)
  return execution.Runner(plan.output, plan.data_dir, lambda line: print(line, flush=True), environments)


def _estimate(runner: execution.Runner, plan: StudyPlan) -> Estimate | None:
  remaining = [stage for stage in plan.stages if not runner.done(stage)]
  missing = {path: one.configuration for path, one in plan.pretraining.items() if not runner.pretrained(path)}
  try:
    return estimating.estimate(runner, remaining, missing) if remaining else None
  except UserError as error:
    print(f'the time is not known: {error.line()}', flush=True)
    return None


def submit_study(plan: StudyPlan, command: str, dry_run: bool = False) -> None:
  """Call a command with the arguments of each run, for training on other machines.

  Args:
    plan: made with share_prefixes=False.
    command: as 'python launch/vertex.py --accelerator=NVIDIA_TESLA_A100'.
    dry_run: only print the calls.

  Raises:
    UserError: no run is scored by the metric, a pre-training has no checkpoint yet, or a call failed.
  """
  if plan.until_settled is not None:
    raise UserError('--command submits all runs at once: leave out --until_settled (Study.until_settled)')
  check_metric(plan)
  for path, one in plan.pretraining.items():
    if not dry_run and not tf.io.gfile.glob(f'{path}/checkpoints/step-*'):
      words = worker.arguments(one.files, one.params, path, one.data_dir)
      raise UserError(f'{path} must be trained first: python -m rethink_tf.{one.command} {shlex.join(words)}; then '
                      'repeat this command')
  run_folders = [f'{plan.output}/{trial.name}' for trial in plan.trials]
  for trial, path in zip(plan.trials, run_folders, strict=True):
    words = [*shlex.split(command), *worker.arguments(trial.files, trial.params, path, plan.data_dir)]
    print(shlex.join(words), flush=True)
    if not dry_run and subprocess.run(words).returncode:
      raise UserError(f'{trial.name}: the command above failed')
  margin = None if plan.margin == StudyPlan._field_defaults['margin'] else f'{plan.margin:g}'
  options = [f'--{name}={value}' for name, value in (
    ('metric', plan.metric), ('margin', margin), ('seed_spread', plan.seed_spread)) if value is not None]
  print(f'when they are done: python -m rethink_tf.compare {shlex.join([*run_folders, *options])}')


def _pretrainings(study: Study, folder: str, data_dir: str | None, pretraining_data_dir: str | None,
                  run_files: Sequence[str], gin_params: Sequence[str]) -> dict[str, Pretraining]:
  """Return the pre-trainings by run folder, in the order of the study; one may start from those before it."""
  folders = {name: os.path.join(folder, name) for name in study.pretraining}
  found = {}
  for name, own in study.pretraining.items():
    configuration = grid.files_and_bindings(grid.of_pretraining(study, name, run_files, gin_params), folders)
    of_detector = grid.is_of_detector(*configuration)
    data = pretraining_data_dir
    if of_detector:  # its own data wins, as that of every gin file does without --data_dir
      data = None if any('DATA_DIR' in grid.bound_names(entry) for entry in own) else data_dir
    folders[name] = reuse.pretraining_folder(folders[name], *configuration, data)
    found[folders[name]] = Pretraining(*configuration, data, 'train' if of_detector else 'pretrain')
  return found


def _used(pretraining: Mapping[str, Pretraining], trials: Sequence[Trial]) -> dict[str, Pretraining]:
  """Return the pre-trainings that a run starts from, directly or through another one; the rest need not be trained."""
  params, used = [param for trial in trials for param in trial.params], {}
  for path, one in reversed(pretraining.items()):
    if any(repr(path) in param for param in params):
      used[path] = one
      params += one.params
  return dict(reversed(used.items()))
