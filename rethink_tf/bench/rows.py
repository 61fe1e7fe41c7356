"""Write the table of all shipped configurations: the published row and the size of the network.

  python -m rethink_tf.bench.rows --output=results/rows.md
  python -m rethink_tf.bench.rows --output=results/rows.md --gin_file=gin_configs/scratch_6x.gin

The second command counts this row again and keeps the others. Nothing is allocated, computed or read from a data set:
networks are counted in their graphs. From Python: rethink_tf.bench.row_table.write.
"""

from __future__ import annotations

import sys

from absl import flags

from rethink_tf.process import entry

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('output', 'results/rows.md', 'file to write', **here)
  flags.DEFINE_multi_string('gin_file', [], 'count only this configuration again; give several', **here)


def main() -> None:
  """Write the table."""
  from rethink_tf import console
  from rethink_tf.bench import row_table

  console.hide_library_info()
  row_table.write(FLAGS.output, FLAGS.gin_file)


if __name__ == '__main__':
  define_flags()
  entry.start(main, interrupted='stopped; finished rows are written')
