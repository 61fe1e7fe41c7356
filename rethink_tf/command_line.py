"""What the doors share: flags -> gin -> one call, and errors as one line."""

from __future__ import annotations

import sys

from absl import app, flags

from rethink_tf.errors import UserError

FLAGS = flags.FLAGS


def open_door(task: str) -> None:
  """Parses flags and gin, calls experiment.run, and turns a UserError into one line and exit code 1."""
  here = {'module_name': sys.argv[0]}  # the door's own flags, which --help lists
  flags.DEFINE_multi_string('gin_file', [], 'gin file; give several, later ones override earlier ones', **here)
  flags.DEFINE_multi_string('gin_param', [], "binding that overrides the files, as 'SCHEDULE = 2'", **here)
  flags.DEFINE_string('model_dir', None, 'run folder; default: runs/<name of the first gin file>', **here)
  flags.DEFINE_string('data_dir', None, 'folder of the data set; default: the DATA_DIR of the gin files', **here)
  app.run(lambda argv: _main(task, argv))


def _main(task, argv):
  try:
    if argv[1:]:
      raise UserError(f'unexpected argument {argv[1]!r}: options are written --name=value; see --help')
    _run(task)
  except UserError as error:
    print(f'error: {error.line()}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print('stopped; the same command continues from the last checkpoint', file=sys.stderr)
    sys.exit(130)


def _run(task):
  from rethink_tf import experiment, gin_files, noise  # TensorFlow takes seconds: --help and misspelt flags do not wait

  noise.hide_library_info()
  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  files = FLAGS.gin_file
  if not files and task == 'evaluate' and model_dir:
    files = [gin_files.saved_config(model_dir)]
  if not files:
    raise UserError('no configuration: give --gin_file=gin_configs/demo.gin or another file of gin_configs/')
  params = list(FLAGS.gin_param)
  if FLAGS.data_dir:
    params.append(f'DATA_DIR = {FLAGS.data_dir!r}')
  gin_files.parse(files, params)
  experiment.run(task, model_dir)
