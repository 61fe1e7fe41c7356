"""Lists the commands: python -m rethink_tf."""

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


if __name__ == '__main__':
  print(text())
