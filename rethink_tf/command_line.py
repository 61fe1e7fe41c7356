"""What the doors share: flags -> gin -> one call, and errors as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from rethink_tf.distributed import cluster
from rethink_tf.errors import EXIT_CODES, UserError, WorkerLost, as_command
from rethink_tf.redaction import RedactingFilter

FLAGS = flags.FLAGS


def run_command(task: str) -> None:
  """Parses flags and gin and calls experiment.run(task)."""
  define_flags()
  if task == 'evaluate':
    flags.DEFINE_string('checkpoint', 'latest', 'which one: latest, best (run.keep_best) or a step, as 12000',
                        module_name=sys.argv[0])
    flags.DEFINE_bool('follow', False, 'score every new checkpoint of a run that another job trains, up to its last '
                      'step', module_name=sys.argv[0])
    flags.DEFINE_float('follow_minutes', 120.0, 'with --follow: how long to wait for a new checkpoint',
                       module_name=sys.argv[0])
  start(lambda: _run(task))


def define_flags() -> None:
  """The flags of every door that takes a configuration."""
  here = {'module_name': sys.argv[0]}  # the door's own flags, which --help lists
  flags.DEFINE_multi_string('gin_file', [], 'gin file; give several, later ones override earlier ones', **here)
  flags.DEFINE_multi_string('gin_param', [], "binding that overrides the files, as 'SCHEDULE = 2'", **here)
  flags.DEFINE_string('model_dir', None, 'run folder; default: runs/<name of the first gin file>', **here)
  flags.DEFINE_string('data_dir', None, 'folder of the data set; default: the DATA_DIR of the gin files', **here)
  flags.DEFINE_string('tpu', None, "train on a TPU: 'local' on a TPU VM (gin_configs/runtime/tpu.gin)", **here)
  flags.DEFINE_string('weights', None, 'weight file or run folder to start from (gin_configs/init)', **here)


def start(main: Callable[..., None], takes_arguments: bool = False,
          interrupted: str = 'stopped; the same command continues from the last checkpoint') -> None:
  """Parses the command line, calls main, and turns what it raises into one line and an exit code (errors.as_command).

  takes_arguments: main is called with what stands on the command line beside the flags.
  After a signal, or the loss of a worker, the process ends there and then: Python would first wait for the scoring
  thread, and TensorFlow for the worker.
  """
  def command(argv):
    try:
      call, others = (lambda: main(argv[1:]), argv[:1]) if takes_arguments else (main, argv)
      as_command(call, others, interrupted)
    except SystemExit as end:
      if end.code in (*EXIT_CODES.values(), WorkerLost.exit_code):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)
      raise

  logging.get_absl_handler().addFilter(RedactingFilter())
  app.run(command)


def configure(files: Sequence[str], params: Sequence[str] = ()) -> None:
  """Reads gin files, the given bindings, then those of the command line."""
  cluster.adopt()
  from rethink_tf import console, gin_files  # TensorFlow takes seconds: --help and misspelt flags do not wait

  console.hide_library_info()
  if not files:
    raise UserError('no configuration: give --gin_file=gin_configs/demo.gin or another file of gin_configs/')
  params = [*params, *FLAGS.gin_param]
  if FLAGS.data_dir:
    params.append(f'DATA_DIR = {FLAGS.data_dir!r}')
  if FLAGS.tpu is not None:
    params += ["strategy.kind = 'tpu'", f'strategy.tpu = {FLAGS.tpu!r}']
  if FLAGS.weights:
    params.append(f'WEIGHTS = {FLAGS.weights!r}')
  gin_files.parse(files, params)
  if FLAGS.weights and gin_files.bound('run.initial_weights') is None:
    raise UserError('--weights is given, but the configuration starts from random weights: add '
                    '--gin_file=gin_configs/init/imagenet.gin or another file of gin_configs/init')


def _run(task):
  from rethink_tf import experiment, gin_files
  from rethink_tf.evaluation import follow

  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  files = FLAGS.gin_file
  if task != 'evaluate':
    configure(files)
    experiment.run(task, model_dir)
    return
  elsewhere = FLAGS.follow or not files
  if not files and model_dir:
    if FLAGS.follow:
      follow.wait_for(f'{model_dir}/config.gin', FLAGS.follow_minutes)
    files = [gin_files.saved_config(model_dir)]
  # A run is evaluated on whatever devices there are here.
  configure(files, ["strategy.kind = 'default'"] if elsewhere else ())
  if FLAGS.follow:
    experiment.run('follow', model_dir, follow_minutes=FLAGS.follow_minutes)
  else:
    experiment.run(task, model_dir, checkpoint=FLAGS.checkpoint)
