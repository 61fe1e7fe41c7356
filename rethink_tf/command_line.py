"""Shared code of the commands: flags -> gin -> one call, and errors in one line. Only it and __main__ read flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from rethink_tf.errors import EXIT_CODES, WorkerLost, as_command
from rethink_tf.redaction import RedactingFilter

FLAGS = flags.FLAGS


def run_command(task: str) -> None:
  """Parse flags and gin files, build the experiment and train or evaluate it."""
  define_flags()
  if task == 'evaluate':
    here = {'module_name': sys.argv[0]}
    flags.DEFINE_string('checkpoint', 'latest', 'latest, best (run.keep_best) or a step, as 12000', **here)
    flags.DEFINE_bool('follow', False, 'score every new checkpoint of a run that another job trains, until its '
                      'last step', **here)
    flags.DEFINE_float('follow_minutes', 120.0, 'with --follow: how long to wait for a new checkpoint', **here)
  start(_evaluate if task == 'evaluate' else _train)


def define_flags() -> None:
  """Define the flags of every command that takes a configuration."""
  here = {'module_name': sys.argv[0]}  # the flags of the command itself, which --help lists
  flags.DEFINE_multi_string('gin_file', [], 'gin file; give several, later ones override earlier ones', **here)
  flags.DEFINE_multi_string('gin_param', [], "binding that overrides the files, as 'SCHEDULE = 2'", **here)
  flags.DEFINE_string('model_dir', None, 'run folder; default: runs/<name of the first gin file>', **here)
  flags.DEFINE_string('data_dir', None, 'folder of the data set; default: the DATA_DIR of the gin files', **here)
  flags.DEFINE_string('tpu', None, "train on a TPU: 'local' on a TPU VM (gin_configs/runtime/tpu.gin)", **here)
  flags.DEFINE_string('weights', None, 'weight file or run folder to start from (gin_configs/init)', **here)


def start(main: Callable[..., None], takes_arguments: bool = False,
          interrupted: str = 'stopped; the same command resumes from the last checkpoint') -> None:
  """Parse the command line, call main, and turn errors into one line and an exit code (errors.as_command).

  takes_arguments: main is called with the positional arguments.
  After a signal or the loss of a worker the process exits at once: Python would wait for the scoring thread, and
  TensorFlow for the worker.
  """
  def command(argv: list[str]) -> None:
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
  """Read gin files, `params`, then the bindings of the command line."""
  from rethink_tf import experiment  # imports TensorFlow, which takes seconds: not needed for --help and misspelt flags

  experiment.configure(files, [*params, *FLAGS.gin_param], FLAGS.data_dir, FLAGS.weights, FLAGS.tpu)


def _train() -> None:
  from rethink_tf import experiment, gin_files
  from rethink_tf.training import loop

  configure(FLAGS.gin_file)
  loop.train(experiment.run('train', FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)))


def _evaluate() -> None:
  from rethink_tf import experiment, gin_files
  from rethink_tf.evaluation import follow, on_demand

  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  files = FLAGS.gin_file
  elsewhere = FLAGS.follow or not files
  if not files and model_dir:
    if FLAGS.follow:
      follow.wait_for(f'{model_dir}/config.gin', FLAGS.follow_minutes)
    files = [gin_files.saved_config(model_dir)]
  # A run is evaluated on the devices of this machine, whatever it was trained on.
  configure(files, ["strategy.kind = 'default'"] if elsewhere else ())
  if FLAGS.follow:
    follow.follow(experiment.run('follow', model_dir, follow_minutes=FLAGS.follow_minutes))
  else:
    on_demand.evaluate(experiment.run('evaluate', model_dir, checkpoint=FLAGS.checkpoint))
