"""What a configuration really trains on: python -m rethink_tf.inspect_data --gin_file=gin_configs/scratch_6x.gin.

Writes, by default into data/ of the run folder, or with --data_dir alone into runs/data/<its name>: report.txt (also
printed) and report.json with the statistics of the training and held-out images and whatever looks wrong in them;
training.png, batches as the network gets them, with the ground truth that travels along and the canvases' padding;
statistics.png; doubts.png, what looks wrong.
"""

from __future__ import annotations

import json
import os
import sys

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError
from rethink_tf.inspect_data.figures import plots, suspicious_sheet, training_sheet
from rethink_tf.inspect_data.report import as_json, both, look_at, padding, report

FLAGS = flags.FLAGS


def default_output(model_dir: str) -> str:
  """data/ in the run folder; of a folder of data that no run has been named for, runs/data/<its name>."""
  if FLAGS.model_dir or not FLAGS.data_dir:
    return f'{model_dir.rstrip("/")}/data'
  return f'runs/data/{os.path.basename(FLAGS.data_dir.rstrip("/"))}'


def main() -> None:
  """Reads the sources of a configuration, and reports."""
  from rethink_tf import experiment, gin_files
  from rethink_tf.storage import files

  if FLAGS.pictures < 0:
    raise UserError(f'--pictures = {FLAGS.pictures}: use 0 or more')
  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not model_dir:
    raise UserError('nothing to inspect: name a configuration with --gin_file, or a run with --model_dir')
  command_line.configure(FLAGS.gin_file or [gin_files.saved_config(model_dir)])
  output = os.path.expanduser(FLAGS.output or default_output(model_dir))

  def argument(name):
    return gin_files.argument(experiment.run, name)

  trained_on = argument('train_source')(training=True)
  if not hasattr(trained_on, 'num_instances'):
    raise UserError('this configuration trains a classifier: inspect_data looks at detection data')
  inputs = argument('train_input')(trained_on, argument('batch_size'), argument('seed'))
  parts = [look_at('training', argument('train_source'), trained_on),
           look_at('held out', argument('eval_source'), None)]
  crossing = both(*parts)
  waste = padding(inputs)
  text = report(parts, inputs, waste, crossing)
  print(text, flush=True)
  files.write_output(f'{output}/report.txt', text.encode())
  files.write_output(f'{output}/report.json', json.dumps(as_json(parts, waste, crossing), indent=1).encode())
  files.write_output(f'{output}/statistics.png', plots(parts, inputs, waste))
  if FLAGS.pictures:
    files.write_output(f'{output}/training.png', training_sheet(inputs, FLAGS.pictures))
  sheet = suspicious_sheet(parts)
  if sheet is not None:
    files.write_output(f'{output}/doubts.png', sheet)
  print(f'pictures and tables: {output}')


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('output', None, 'where report and pictures go; default: data/ in the run folder, '
                      'or runs/data/<name of --data_dir>', **_here)
  flags.DEFINE_integer('pictures', 16, 'training pictures that are drawn', **_here)
  flags.DEFINE_enum('files', 'read', ['none', 'read', 'decode'], 'read every file, to find the same ones twice; or '
                    'also decode it, to find damaged ones', **_here)
  command_line.start(main)
