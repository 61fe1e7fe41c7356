"""Compare runs: python -m rethink_tf.compare runs/scratch_6x runs/pretrain_2x [--output=runs/comparison].

From Python: rethink_tf.compare.report.compare.
"""

from __future__ import annotations

import sys

from absl import flags

from rethink_tf.process import entry

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('output', 'runs/comparison', 'folder for report, plots and TensorBoard log', **here)
  flags.DEFINE_string('metric', None, 'metric to compare by, as box/AP or mask/AP50; default: box/AP if available',
                      **here)
  flags.DEFINE_alias('figure', 'metric', **here)  # an earlier name
  flags.DEFINE_float('margin', 0.5, 'AP points within which two runs count as equal', **here)
  flags.DEFINE_integer('draws', 1000, 'number of bootstrap draws over the images', **here)
  flags.DEFINE_float('confidence', 0.95, 'coverage of the intervals', **here)
  flags.DEFINE_float('seed_spread', None, 'known standard deviation of the metric between seeds, in points; default: '
                     'taken from the runs', **here)


def main(run_folders: list[str]) -> None:
  """Compare the runs on the command line."""
  for path in run_folders:
    entry.check_path(path, 'no such run folder')
  from rethink_tf import console  # imports TensorFlow, which takes seconds: not needed for --help and such errors
  from rethink_tf.compare import tensorboard_log
  from rethink_tf.compare.report import compare

  console.hide_library_info()
  comparison = compare(run_folders, FLAGS.output, FLAGS.metric, FLAGS.margin, FLAGS.draws, FLAGS.confidence,
                       FLAGS.seed_spread)
  print(comparison.text)
  print(f'\nreport: {comparison.page}\n{tensorboard_log.command(FLAGS.output)}')


if __name__ == '__main__':
  define_flags()
  entry.start(main, takes_arguments=True, interrupted='stopped')
