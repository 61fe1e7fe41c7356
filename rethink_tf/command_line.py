"""What the doors share: flags -> gin -> one call, and errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from rethink_tf.errors import UserError, as_command

FLAGS = flags.FLAGS


def open_door(task: str) -> None:
  """Parses flags and gin and calls experiment.run(task)."""
  define_flags()
  start(lambda: _run(task))


def define_flags() -> None:
  """The flags of every door that takes a configuration."""
  here = {'module_name': sys.argv[0]}  # the door's own flags, which --help lists
  flags.DEFINE_multi_string('gin_file', [], 'gin file; give several, later ones override earlier ones', **here)
  flags.DEFINE_multi_string('gin_param', [], "binding that overrides the files, as 'SCHEDULE = 2'", **here)
  flags.DEFINE_string('model_dir', None, 'run folder; default: runs/<name of the first gin file>', **here)
  flags.DEFINE_string('data_dir', None, 'folder of the data set; default: the DATA_DIR of the gin files', **here)
  flags.DEFINE_string('weights', None, 'weight file or run folder to start from (gin_configs/init)', **here)


def start(main: Callable[[], None]) -> None:
  """Parses the command line, calls main, and turns a UserError into one line and exit code 1."""
  app.run(lambda argv: as_command(main, argv, 'stopped; the same command continues from the last checkpoint'))


def configure(files: Sequence[str], params: Sequence[str] = ()) -> None:
  """Reads gin files, the given bindings, then those of the command line."""
  from rethink_tf import gin_files, noise  # TensorFlow takes seconds: --help and misspelt flags do not wait

  noise.hide_library_info()
  if not files:
    raise UserError('no configuration: give --gin_file=gin_configs/demo.gin or another file of gin_configs/')
  params = [*params, *FLAGS.gin_param]
  if FLAGS.data_dir:
    params.append(f'DATA_DIR = {FLAGS.data_dir!r}')
  if FLAGS.weights:
    params.append(f'WEIGHTS = {FLAGS.weights!r}')
  gin_files.parse(files, params)
  if FLAGS.weights and gin_files.bound('run.initial_weights') is None:
    raise UserError('--weights is given, but the configuration starts from random weights: add '
                    '--gin_file=gin_configs/init/imagenet.gin or another file of gin_configs/init')


def _run(task):
  from rethink_tf import experiment, gin_files

  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  files = FLAGS.gin_file
  if not files and task == 'evaluate' and model_dir:
    files = [gin_files.saved_config(model_dir)]
  configure(files)
  experiment.run(task, model_dir)
