"""Print the parameters and multiply-adds of networks, counted in their graphs: nothing is allocated or computed.

  python -m rethink_tf.bench.complexity --output=results/complexity.md

prints (and writes) the table of the classification networks at 224 x 224 and of the detectors at 800 x 1344.
From Python: rethink_tf.bench.costs.
"""

from __future__ import annotations

import sys

from absl import flags

from rethink_tf.process import entry

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  flags.DEFINE_string('output', None, 'file to write the tables to, too', module_name=sys.argv[0])


def main() -> None:
  """Print the tables, and write them to --output."""
  from rethink_tf.bench import costs
  from rethink_tf.storage import files

  text = costs.tables()
  print(text, end='')
  if FLAGS.output:
    files.write_output(FLAGS.output, text)


if __name__ == '__main__':
  define_flags()
  entry.start(main, interrupted='stopped; nothing was written', result_is_printed=True)
