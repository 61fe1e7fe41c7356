"""Run a grid of trainings and compare them.

  python -m rethink_tf.study --gin_file=gin_configs/studies/miniature_figure1.gin

Without a gin file, python -m rethink_tf.study --data_dir=my_images chooses a study of the data that takes --minutes.

From Python: rethink_tf.study.run.
"""

from __future__ import annotations

import sys

from absl import flags

from rethink_tf.downloads import settings
from rethink_tf.errors import UserError
from rethink_tf.process import entry
from rethink_tf.weights import catalog

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_multi_string('gin_file', [], 'the study, a file of gin_configs/studies; further ones override the '
                            'configuration of every run, as gin_configs/models/faster_rcnn.gin', **here)
  flags.DEFINE_multi_string('gin_param', [], 'binding for every run of the study', **here)
  flags.DEFINE_multi_string('study_param', [], 'binding of the study itself, as Study.share_prefixes = False', **here)
  flags.DEFINE_string('output', None, 'folder of runs and report; default: runs/studies/<name of the file>', **here)
  flags.DEFINE_string('data_dir', None, 'folder of the data set, for every detection run', **here)
  flags.DEFINE_string('weights', None, 'weight file of the pre-trained runs, or a name of python -m rethink_tf.weights '
                      '--list', **here)
  flags.DEFINE_string('cache_dir', None, settings.CACHE_HELP, **here)
  flags.DEFINE_bool('offline', False, settings.OFFLINE_HELP, **here)
  flags.DEFINE_string('pretraining_data_dir', None, 'folder of the data set of the pre-training', **here)
  flags.DEFINE_float('minutes', 60.0, 'minutes that a study without --gin_file may take', **here)
  flags.DEFINE_bool('dry_run', False, 'only list the runs and their cost, and with --calibrate the time', **here)
  flags.DEFINE_bool('calibrate', True, 'time a few steps first, to estimate the total time', **here)
  flags.DEFINE_integer('parallel', None, 'number of runs side by side, each with its share of the GPUs or CPU cores; '
                       'default: one for each GPU, unless a run depends on the number of its devices', lower_bound=1,
                       **here)
  flags.DEFINE_bool('until_settled', False, 'train one seed after the other and stop once the question is settled '
                    '(Study.until_settled = @UntilSettled()); --minutes then means the time of two seeds', **here)
  flags.DEFINE_integer('max_seeds', None, 'with --until_settled: maximum number of seeds of each run; default: 5 '
                       '(UntilSettled.max_seeds)', **here)
  flags.DEFINE_enum('metric', None, ['box/AP', 'mask/AP', 'keypoint/AP', 'voc/mAP'], 'metric of the verdict; default: '
                    'the first of these that the runs have', **here)
  flags.DEFINE_float('margin', 0.5, 'AP points within which two sides count as equal', **here)
  flags.DEFINE_float('seed_spread', None, 'known standard deviation of the metric between seeds, in points; default: '
                     'taken from the runs', **here)
  flags.DEFINE_string('command', None, 'submit each run with this command instead of training here, as '
                      '"python launch/vertex.py --accelerator=NVIDIA_TESLA_A100"; compare the runs when they are done',
                      **here)


def main() -> None:
  """Plan and run the study on the command line, or list or submit its runs."""
  _check_flags()
  from rethink_tf import gin_files

  gin_files.find(FLAGS.gin_file)
  settings.apply(FLAGS.cache_dir, FLAGS.offline)
  if FLAGS.weights:
    catalog.check(FLAGS.weights)
  from rethink_tf import console  # imports TensorFlow, which takes seconds: not needed for --help and such errors
  from rethink_tf.compare.report import check_options
  from rethink_tf.distributed import devices
  from rethink_tf.study import forecast, own_data
  from rethink_tf.study.run import check, estimate_study, plan_study, progress, run_study, submit_study

  console.hide_library_info()
  check_options(FLAGS.margin, FLAGS.seed_spread)
  own_data.check_minutes(FLAGS.minutes)
  if not FLAGS.command:  # which trains elsewhere; the runs here write to their own logs, where nobody looks at first
    devices.check()
    devices.report()
  if FLAGS.gin_file:
    study, *run_files = FLAGS.gin_file
    plan = plan_study(study, FLAGS.output, FLAGS.gin_param, _study_params(), FLAGS.data_dir, FLAGS.pretraining_data_dir,
                      share_prefixes=FLAGS.command is None, run_files=run_files, weights=FLAGS.weights)
  else:
    plan = own_data.plan(FLAGS.data_dir, FLAGS.minutes, FLAGS.output, FLAGS.gin_param, FLAGS.weights, FLAGS.calibrate,
                         FLAGS.dry_run, FLAGS.parallel, _study_params())
  if FLAGS.max_seeds is not None and plan.until_settled is None:
    raise UserError(f'--max_seeds={FLAGS.max_seeds} has no effect without --until_settled: add it')
  plan = plan._replace(metric=FLAGS.metric, margin=FLAGS.margin, seed_spread=FLAGS.seed_spread)
  print(plan, flush=True)
  calibrate = FLAGS.calibrate and bool(FLAGS.gin_file)  # own_data has timed it
  if not FLAGS.command and (done := progress(plan)):
    print(done, flush=True)
  if FLAGS.command:
    submit_study(plan, FLAGS.command, FLAGS.dry_run)
  elif FLAGS.dry_run:
    check(plan)
    print(forecast.describe(plan, without_data=True), flush=True)
    if calibrate and (found := estimate_study(plan, FLAGS.parallel)) is not None:
      print(found)
  else:
    run_study(plan, calibrate, FLAGS.parallel)


def _check_flags() -> None:
  """Raise UserError unless the flags name a study or data, and none of them contradict each other."""
  if not FLAGS.gin_file and not FLAGS.data_dir:
    raise UserError('no study: give --gin_file=gin_configs/studies/figure1.gin or another file of that folder, or your '
                    'own images with --data_dir')
  if FLAGS.gin_file and FLAGS['minutes'].present:
    raise UserError('--minutes is for a study without --gin_file: the file sets the length of its schedules')
  if not FLAGS.gin_file and (FLAGS.study_param or FLAGS.pretraining_data_dir or FLAGS.command):
    raise UserError('--study_param, --pretraining_data_dir and --command need a study: name it with --gin_file')
  if not FLAGS.gin_file:
    entry.check_path(FLAGS.data_dir, 'no such data folder: set --data_dir')


def _study_params() -> list[str]:
  """Return the bindings of the study itself, those of --until_settled and --max_seeds included."""
  params = list(FLAGS.study_param)
  if FLAGS.until_settled:
    params.append('Study.until_settled = @UntilSettled()')
  if FLAGS.max_seeds is not None:
    params.append(f'UntilSettled.max_seeds = {FLAGS.max_seeds}')
  return params


if __name__ == '__main__':
  define_flags()
  entry.start(main, interrupted='stopped; the same command continues', cleanup_seconds=None)
