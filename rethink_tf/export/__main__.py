"""Hands a trained detector on: python -m rethink_tf.export --model_dir=runs/scratch_6x --format=saved_model."""

from __future__ import annotations

import os
import sys

from absl import flags

from rethink_tf import command_line

FLAGS = flags.FLAGS
OUT = {'saved_model': 'saved_model', 'detectron2': 'detectron2.pkl'}


def main() -> None:
  """Restores the newest checkpoint of a run, or the averages in it, and writes it in another format."""
  from absl import logging

  from rethink_tf import experiment, gin_files
  from rethink_tf.data.detection import placeholder  # noqa: F401  so that the binding below finds it
  from rethink_tf.errors import UserError
  from rethink_tf.export import detectron2, saved_model
  from rethink_tf.training import ema

  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not model_dir:
    raise UserError('no run to export: name its folder with --model_dir')
  out = os.path.expanduser(FLAGS.out or os.path.join(model_dir, OUT[FLAGS.format]))

  def write(parts):
    detector, scoring = parts.trainer.detector, parts.scoring
    with ema.restored(parts, model_dir, FLAGS.averages):
      if FLAGS.format == 'detectron2':
        names = detectron2.save(detector, out, channels=FLAGS.channels)
        logging.info('%s: %d arrays; the configuration of the model that reads them: %s', out, len(names),
                     detectron2.settings_path(out))
      else:
        detector.xla = False  # a TPU's configuration: here the faster operations will do
        saved_model.export(out, detector, parts.trainer.predict_step, scoring, FLAGS.score_threshold)
    weights = ', averages of the weights' if FLAGS.averages else ''
    print(f'{out}: step {parts.checkpoints.latest()}{weights}, {len(scoring.source.categories)} categories')

  command_line.configure(FLAGS.gin_file or [gin_files.saved_config(model_dir)], _bindings(model_dir))
  experiment.run(write, model_dir)


def _bindings(model_dir):
  """One device, one picture at a time; without --data_dir, drawn pictures in place of the data set."""
  import tensorflow as tf

  bindings = ["strategy.kind = 'one_device'", 'strategy.num_devices = None', 'strategy.logical_cpus = None',
              'run.eval_images_per_device = 1']
  categories = os.path.join(model_dir, 'categories.json')
  if not FLAGS.data_dir and tf.io.gfile.exists(categories):
    bindings += ['run.eval_source = @placeholder', f'placeholder.categories_file = {categories!r}']
  return bindings


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_enum('format', 'saved_model', list(OUT), 'what to write', **_here)
  flags.DEFINE_string('out', None, 'where to; default: saved_model/ or detectron2.pkl in the run folder', **_here)
  flags.DEFINE_bool('averages', False, 'take the moving averages of the weights, of a run with run.ema', **_here)
  flags.DEFINE_float('score_threshold', None, 'saved_model: least score of a detection; default: that of the run',
                     **_here)
  flags.DEFINE_enum('channels', 'bgr', ['bgr', 'rgb'], 'detectron2: order of colours its model is given', **_here)
  command_line.start(main)
