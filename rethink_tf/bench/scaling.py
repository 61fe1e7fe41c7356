"""Write a page of estimated step times, schedules and memory on GPUs and TPUs.

  python -m rethink_tf.bench.scaling --output=results/scaling.md

Nothing is measured on such devices. From Python: rethink_tf.bench.scaling_page.document.
"""

from __future__ import annotations

import sys
import time

from absl import flags

from rethink_tf.process import entry

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  flags.DEFINE_string('output', 'results/scaling.md', 'file to write', module_name=sys.argv[0])


def main() -> None:
  """Count the networks and write the page."""
  from rethink_tf import console
  from rethink_tf.bench import capacity, scaling_page
  from rethink_tf.storage import files

  console.hide_library_info()
  networks = {}
  for name, settings in scaling_page.NETWORKS.items():
    start = time.monotonic()
    networks[name] = capacity.count(settings)
    print(f'{time.monotonic() - start:6.1f} s  {name}', file=sys.stderr, flush=True)
  files.write_output(FLAGS.output, scaling_page.document(networks))


if __name__ == '__main__':
  define_flags()
  entry.start(main, interrupted='stopped; nothing was written')
