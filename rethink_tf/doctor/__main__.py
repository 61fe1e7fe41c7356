"""Check that this machine computes what it should: python -m rethink_tf.doctor.

Checks versions, devices and memory; every kernel on every device against float64; a train step of a small detector on
each device, in three precisions, in both forms of its operations, and over two replicas; the speed of the input; and
the folders of --data_dir and --model_dir. Prints a table and a verdict; the exit code is 1 if a check failed. A check
that crashes its process is reported as a row of the table.
"""

from __future__ import annotations

import sys

from absl import flags

from rethink_tf.errors import UserError
from rethink_tf.process import entry

FLAGS = flags.FLAGS


def main() -> None:
  """Run the checks and print the table, or JSON."""
  from rethink_tf.doctor import examination, rows

  if FLAGS.timeout_minutes <= 0:
    raise UserError(f'--timeout_minutes = {FLAGS.timeout_minutes:g}: use a time above 0')
  options = {'quick': FLAGS.quick, 'data_dir': FLAGS.data_dir, 'model_dir': FLAGS.model_dir}
  found = examination.examine(examination.COMMAND, options, 60 * FLAGS.timeout_minutes)
  text, code = rows.verdict(found.rows)
  if FLAGS.json:
    print(rows.report(found.rows, found.facts))
  else:
    print(rows.facts_table(found.facts), rows.table(found.rows), f'{text}; {found.seconds:.0f} s', sep='\n\n')
  sys.stdout.flush()
  if code:
    sys.exit(code)


if __name__ == '__main__':
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_bool('quick', False, 'check devices and kernels only, no train steps', **_here)
  flags.DEFINE_bool('json', False, 'print JSON', **_here)
  flags.DEFINE_string('data_dir', None, 'folder of a data set to read from', **_here)
  flags.DEFINE_string('model_dir', None, 'run folder to write to; it is not created', **_here)
  flags.DEFINE_float('timeout_minutes', 10.0, 'time limit of each check in minutes; a GPU may compile its kernels for '
                     'half an hour, once', **_here)
  entry.start(main, result_is_printed=True)
