"""Lists the commands: python -m rethink_tf."""

import difflib
import sys
from collections.abc import Sequence

from rethink_tf.process.output import protect_output
from rethink_tf.redaction import redact

COMMANDS = {
  'train': 'train a detector, or continue a run',
  'evaluate': 'score a checkpoint of a run on held-out images',
  'pretrain': 'train a classifier, whose weights a detector starts from',
  'predict': 'find objects in image files and videos',
  'compare': 'compare runs: is pre-training needed?',
  'study': 'train a grid of initial weights, schedules, data and norms, and compare it',
  'inspect_data': 'show the batches of training, and annotations that look wrong',
  'inspect_run': 'show where a run loses average precision',
  'export': 'write a detector as a SavedModel, an ONNX or TFLite file, or a Detectron2 checkpoint',
  'weights': 'list published weights, or describe a weight file and the gin lines that load it',
  'bench': 'measure speed and memory',
  'doctor': 'check that this machine computes what it should',
  'data.prepare': 'write the export of an annotation tool as COCO data with held-out images',
  'data.convert': 'write COCO data as TFRecords',
  'data.download': 'download a published data set',
}


def text() -> str:
  """One line for each command."""
  lines = [f'  python -m rethink_tf.{name:13} {line}' for name, line in COMMANDS.items()]
  return '\n'.join(['usage: python -m rethink_tf.COMMAND --help', '', *lines, '',
                    'From Python: rethink_tf.api. Documentation: README.md and docs/.'])


def main(arguments: Sequence[str]) -> int:
  """Print the commands; with any other argument than --help an error, with the command that is meant. The exit code."""
  if not arguments or arguments[0] in ('-h', '--help', 'help'):
    print(text())
    return 0
  close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
  meant = f'write python -m rethink_tf.{close[0]} ...' if close else 'python -m rethink_tf lists the commands'
  print(f'error: unexpected argument {redact(arguments[0])!r}: {meant}', file=sys.stderr)
  return 1


if __name__ == '__main__':
  protect_output(report=False)  # python -m rethink_tf | head
  sys.exit(main(sys.argv[1:]))
