"""Inspect the data of a configuration: python -m rethink_tf.inspect_data --gin_file=gin_configs/scratch_6x.gin.

Writes statistics of the training and held-out images and the suspicious annotations to report.txt (also printed) and
report.json; batches with padding and ground truth as the network receives them to training.png; distributions to
statistics.png; suspicious annotations to suspicious.png. The default folder is data/ in the run folder; with --gin_file
and --data_dir, but without --model_dir, it is runs/data/<name of --data_dir>.

From Python: rethink_tf.inspect_data.inspection.inspect.
"""

from __future__ import annotations

import os
import sys

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError
from rethink_tf.process import entry

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  command_line.define_flags()
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('output', None, 'folder for reports and images; default: data/ in the run folder, or '
                      'runs/data/<name of --data_dir> with --gin_file and --data_dir alone', **here)
  flags.DEFINE_integer('images', 16, 'training images to draw', **here)
  flags.DEFINE_alias('pictures', 'images', **here)  # an earlier name
  flags.DEFINE_enum('files', 'read', ['none', 'read', 'decode'], 'read every file to find duplicates; decode: also '
                    'find damaged files and near-duplicates', **here)


def default_output(model_dir: str | None, data_dir: str | None, run_folder: str) -> str:
  """Return data/ in the run folder; with data_dir but without model_dir, runs/data/<name of data_dir>.

  Args:
    model_dir, data_dir: values of the flags.
    run_folder: model_dir, or the default run folder of the configuration.
  """
  if model_dir or not data_dir:
    return f'{run_folder.rstrip("/")}/data'
  return f'runs/data/{os.path.basename(data_dir.rstrip("/"))}'


def main() -> None:
  """Inspect the data of the configuration on the command line."""
  from rethink_tf import gin_files

  if FLAGS.images < 0:
    raise UserError(f'--images = {FLAGS.images}: use 0 or more')
  run_folder = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not run_folder:
    raise UserError('nothing to inspect: name a configuration with --gin_file, or a run with --model_dir')
  command_line.configure(FLAGS.gin_file or [gin_files.saved_config(run_folder)])
  from rethink_tf.inspect_data import inspection

  output = os.path.expanduser(FLAGS.output or default_output(FLAGS.model_dir, FLAGS.data_dir, run_folder))
  inspection.inspect_configured(output, FLAGS.images, FLAGS.files)


if __name__ == '__main__':
  define_flags()
  entry.start(main)
