"""Compares runs: python -m rethink_tf.compare runs/scratch_6x runs/pretrain_2x [--output=runs/comparison]."""

from __future__ import annotations

import sys

from absl import app, flags

from rethink_tf.errors import as_command

FLAGS = flags.FLAGS


def _main(paths: list[str]) -> None:
  from rethink_tf import console  # TensorFlow takes seconds: --help and misspelt flags do not wait

  console.hide_library_info()
  from rethink_tf.compare.report import compare

  found = compare(paths, FLAGS.output, FLAGS.figure, FLAGS.margin, FLAGS.draws, FLAGS.confidence)
  print(found.text)
  print(f'\nreport: {found.page}\ntensorboard --logdir={FLAGS.output}/tensorboard')


def define_flags() -> None:
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('output', 'runs/comparison', 'folder for report, pictures and TensorBoard log', **here)
  flags.DEFINE_string('figure', None, 'what to compare by, as box/AP or mask/AP50; default: box/AP where there', **here)
  flags.DEFINE_float('margin', 0.5, 'AP points within which two runs count as equal', **here)
  flags.DEFINE_integer('draws', 1000, 'draws of the bootstrap over images', **here)
  flags.DEFINE_float('confidence', 0.95, 'of the intervals', **here)


if __name__ == '__main__':
  define_flags()
  app.run(lambda argv: as_command(lambda: _main(argv[1:]), argv[:1], 'stopped'))
