"""Shared code of the commands: flags -> gin -> one call, and errors in one line. Only it and __main__ read flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from rethink_tf.downloads import settings
from rethink_tf.errors import UserError
from rethink_tf.process import entry
from rethink_tf.process.signals import RESUMES
from rethink_tf.weights import catalog

FLAGS = flags.FLAGS


def run_command(task: str) -> None:
  """Parse flags and gin files, build the experiment and train or evaluate it."""
  define_flags()
  if task == 'evaluate':
    here = {'module_name': sys.argv[0]}
    flags.DEFINE_string('checkpoint', 'latest', 'checkpoint to evaluate: latest, best (run.keep_best) or a step, '
                        'as 12000', **here)
    flags.DEFINE_bool('follow', False, 'score every new checkpoint of a run that another job trains, until its '
                      'last step', **here)
    flags.DEFINE_float('follow_minutes', 120.0, 'with --follow: minutes to wait for a new checkpoint', **here)
    entry.start(_evaluate, interrupted='stopped; the same command evaluates again')
  else:
    entry.start(_pretrain if task == 'pretrain' else _train, interrupted=RESUMES)


def define_flags() -> None:
  """Define the flags of every command that takes a configuration."""
  here = {'module_name': sys.argv[0]}  # the flags of the command itself, which --help lists
  flags.DEFINE_multi_string('gin_file', [], 'gin file; give several, later ones override earlier ones', **here)
  flags.DEFINE_multi_string('gin_param', [], "binding that overrides the files, as 'SCHEDULE = 2'", **here)
  flags.DEFINE_string('model_dir', None, 'run folder; default: runs/<name of the first gin file>', **here)
  flags.DEFINE_string('data_dir', None, 'folder of the data set; default: the DATA_DIR of the gin files', **here)
  flags.DEFINE_string('tpu', None, "run on a TPU: 'local' on a TPU VM, or the name of a slice "
                      '(gin_configs/runtime/tpu.gin)', **here)
  flags.DEFINE_string('weights', None, 'weight file or run folder that training starts from, or a name of '
                      'python -m rethink_tf.weights --list (with a file of gin_configs/init)', **here)
  flags.DEFINE_string('cache_dir', None, settings.CACHE_HELP, **here)
  flags.DEFINE_bool('offline', False, settings.OFFLINE_HELP, **here)
  flags.DEFINE_bool('allow_changes', False, 'continue or evaluate a run with settings that are not its own', **here)


def refuse_weights() -> None:
  """Raise UserError for --weights where weights are those of a run; with gin files it completes a configuration."""
  if FLAGS.weights and not FLAGS.gin_file:
    raise UserError(f'--weights={FLAGS.weights} is what training starts from; here weights are those of the run: leave '
                    'it out, or name another run with --model_dir, another step with --checkpoint')


def configure(files: Sequence[str], params: Sequence[str] = (), elsewhere: bool = False) -> None:
  """Read gin files, `params`, then the bindings of the command line.

  elsewhere: for another machine; data and weights are not looked at.
  """
  from rethink_tf import gin_files

  gin_files.find(files, required=True)
  if not elsewhere:
    entry.check_path(FLAGS.data_dir, 'no such folder: check --data_dir')
  settings.apply(FLAGS.cache_dir, FLAGS.offline)
  if FLAGS.weights and not elsewhere:
    catalog.check(FLAGS.weights)
  from rethink_tf import experiment  # imports TensorFlow, which takes seconds: not needed for --help and such errors

  experiment.configure(files, [*params, *FLAGS.gin_param], FLAGS.data_dir, FLAGS.weights, FLAGS.tpu, elsewhere)


def _pretrain() -> None:
  if not FLAGS.gin_file:
    raise UserError('no configuration: give --gin_file=gin_configs/pretraining/imagenet_r50_gn.gin or another file of '
                    'gin_configs/pretraining/')
  _train()


def _train() -> None:
  from rethink_tf import gin_files

  configure(FLAGS.gin_file)
  from rethink_tf import experiment
  from rethink_tf.training import loop

  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  loop.train(experiment.run('train', model_dir, allow_changes=FLAGS.allow_changes))


def _evaluate() -> None:
  from rethink_tf import gin_files

  refuse_weights()
  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  files = FLAGS.gin_file
  if not model_dir:
    raise UserError('no run to evaluate: name its folder with --model_dir')
  elsewhere = FLAGS.follow or not files
  if not files:
    if FLAGS.follow:
      from rethink_tf.evaluation import follow
      follow.wait_for(f'{model_dir}/config.gin', FLAGS.follow_minutes)
    files = [gin_files.saved_config(model_dir)]
  # A run is evaluated on the devices of this machine, whatever it was trained on.
  configure(files, ["strategy.kind = 'default'"] if elsewhere else ())
  from rethink_tf import experiment
  from rethink_tf.evaluation import follow, on_demand

  if FLAGS.follow:
    follow.follow(experiment.run('follow', model_dir, follow_minutes=FLAGS.follow_minutes,
                                 allow_changes=FLAGS.allow_changes))
  else:
    on_demand.evaluate(experiment.run('evaluate', model_dir, checkpoint=FLAGS.checkpoint,
                                      allow_changes=FLAGS.allow_changes))
