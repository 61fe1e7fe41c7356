"""Makes a grid of runs and its report: python -m rethink_tf.study --gin_file=gin_configs/studies/figure1.gin."""

from __future__ import annotations

import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

from absl import app, flags

from rethink_tf.errors import UserError, as_command

FLAGS = flags.FLAGS


def define_flags() -> None:
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('gin_file', None, 'the study, a file of gin_configs/studies', **here)
  flags.DEFINE_multi_string('gin_param', [], 'binding for every run of the study', **here)
  flags.DEFINE_multi_string('study_param', [], 'binding of the study itself, as Study.share_prefixes = False', **here)
  flags.DEFINE_string('output', None, 'folder of runs and report; default: runs/studies/<name of the file>', **here)
  flags.DEFINE_string('data_dir', None, 'folder of the data set, for every detection run', **here)
  flags.DEFINE_string('pretraining_data_dir', None, 'folder of the data set of the pre-training', **here)
  flags.DEFINE_bool('dry_run', False, 'only list the runs and what they cost', **here)
  flags.DEFINE_bool('calibrate', True, 'time a few steps first, for the estimate of the whole', **here)
  flags.DEFINE_string('command', None, 'hand each run to this command instead of making it here, as '
                      '"python launch/vertex.py --accelerator=a100"; the report is then for you to ask for', **here)


def _main() -> None:
  if not FLAGS.gin_file:
    raise UserError('no study: give --gin_file=gin_configs/studies/figure1.gin or another file of that folder')
  from rethink_tf import console  # TensorFlow takes seconds: --help and misspelt flags do not wait

  console.hide_library_info()
  from rethink_tf.study import execution, grid
  from rethink_tf.study import stages as staging

  study = grid.read_study(FLAGS.gin_file, FLAGS.study_param)
  output = (FLAGS.output or '').rstrip('/') or f'runs/studies/{pathlib.PurePosixPath(FLAGS.gin_file).stem}'
  # Beside the studies: those that name the same pre-training share it.
  pretrained = {name: os.path.join(os.path.dirname(output), 'pretraining', name) for name in study.pretraining}
  trials = [trial._replace(params=(*trial.params, *FLAGS.gin_param)) for trial in study.trials(pretrained)]
  data = [f'DATA_DIR = {FLAGS.data_dir!r}'] if FLAGS.data_dir else []
  lengths = [grid.length(trial, data) for trial in trials]
  share = study.share_prefixes and FLAGS.command is None
  stages = staging.plan(trials, lengths, share)
  _print_plan(stages, lengths, len(trials))
  more = [f'--data_dir={FLAGS.data_dir}'] if FLAGS.data_dir else []
  where = [f'--data_dir={FLAGS.pretraining_data_dir}'] if FLAGS.pretraining_data_dir else []
  first = {path: grid.split_words(study.pretraining[name], pretrained) for name, path in pretrained.items()}
  if FLAGS.command:
    _refuse_without({path: execution.arguments(*words, path, where) for path, words in first.items()})
    _hand_over(trials, output, more)
    return
  if FLAGS.dry_run:
    return
  runner = execution.Runner(output, more, lambda line: print(line, flush=True))
  for path, words in first.items():
    print(f'pre-training {path}', flush=True)
    runner.pretrain(path, *words, where)
  left = [stage for stage in stages if not runner.done(stage)]
  if left and FLAGS.calibrate:
    speed = runner.calibrate(left[0])
    seconds = staging.images(left) / speed
    print(f'{left[0].trial.name}: {speed:.3g} images/s here, so about {console.duration(seconds)} for what is left, '
          'evaluations not counted', flush=True)
  failures = runner.run(stages)
  _report(runner, trials, output)
  if failures:
    raise UserError(f'{len(failures)} of {len(stages)} stages failed, the same command tries them again: '
                    + '; '.join(failures))


def _print_plan(stages, lengths: Sequence, runs: int) -> None:
  from rethink_tf.compare.tables import aligned
  from rethink_tf.study import stages as staging

  alone, shared = sum(length.images for length in lengths), staging.images(stages)
  print(aligned(staging.table(stages)))
  saved = f', {1 - shared / alone:.0%} less than the runs one by one ({alone})' if shared < alone else ''
  print(f'{runs} runs, {shared} images to train on{saved}', flush=True)


def _refuse_without(pretraining: Mapping[str, Sequence[str]]) -> None:
  """Runs that other machines make at the same time cannot wait for the pre-training that they begin with."""
  import tensorflow as tf

  for path, words in pretraining.items():
    if not FLAGS.dry_run and not tf.io.gfile.glob(f'{path}/checkpoints/step-*'):
      raise UserError(f'{path} is to be made first: python -m rethink_tf.pretrain {shlex.join(words)}; then give the '
                      'same command again')


def _hand_over(trials, output: str, more: Sequence[str]) -> None:
  from rethink_tf.study.execution import arguments

  for trial in trials:
    command = [*shlex.split(FLAGS.command), *arguments(trial.files, trial.params, f'{output}/{trial.name}', more)]
    print(shlex.join(command), flush=True)
    if not FLAGS.dry_run and subprocess.run(command).returncode:
      raise UserError(f'{trial.name}: the command above failed')
  print(f'when they are done: python -m rethink_tf.compare {" ".join(f"{output}/{trial.name}" for trial in trials)}')


def _report(runner, trials, output: str) -> None:
  from rethink_tf.compare.report import compare

  ready = [runner.folder(trial.name) for trial in trials if runner.evaluated(trial.name)]
  if ready:
    found = compare(ready, f'{output}/report')
    print(f'\n{found.text}\n\nreport: {found.page}\ntensorboard --logdir={output}/report/tensorboard')


if __name__ == '__main__':
  define_flags()
  app.run(lambda argv: as_command(_main, argv, 'stopped; the same command goes on where it was'))
