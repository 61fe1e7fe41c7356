"""Export a trained detector: python -m rethink_tf.export --model_dir=runs/scratch_6x --format=saved_model."""

from __future__ import annotations

import os
import sys

from absl import flags

from rethink_tf import command_line, process
from rethink_tf.errors import UserError

FLAGS = flags.FLAGS
OUT = {'saved_model': 'saved_model', 'detectron2': 'detectron2.pkl'}  # default name by format


def main() -> None:
  """Restore the newest checkpoint of a run, or its averages, and write it in another format."""
  from absl import logging

  from rethink_tf import gin_files

  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not model_dir:
    raise UserError('no run to export: name its folder with --model_dir')
  out = os.path.expanduser(FLAGS.out or os.path.join(model_dir, OUT[FLAGS.format]))
  files = FLAGS.gin_file or [gin_files.saved_config(model_dir)]
  gin_files.find(files)
  command_line.configure(files, bindings(model_dir, FLAGS.data_dir))
  from rethink_tf import experiment
  from rethink_tf.export import detectron2, saved_model
  from rethink_tf.training import ema

  built = experiment.run('evaluate', model_dir, allow_changes=FLAGS.allow_changes)
  detector, inputs = built.trainer.detector, built.eval_input
  ema.restore(built, FLAGS.averages)
  if FLAGS.format == 'detectron2':
    names = detectron2.save(detector, out, channels=FLAGS.channels, resize=inputs.resize)
    logging.info('%s: %d arrays; configuration of the Detectron2 model: %s', out, len(names),
                 detectron2.settings_path(out))
  else:
    detector.xla = False  # the configuration of a TPU; the faster operations work here
    saved_model.export(out, detector, built.trainer.predict_step, inputs, FLAGS.score_threshold)
  weights = ', averages of the weights' if FLAGS.averages else ''
  print(f'{out}: step {built.checkpoints.latest()}{weights}, {len(inputs.source.categories)} categories')


def bindings(model_dir: str, data_dir: str | None) -> list[str]:
  """Return gin bindings of one device and one image at a time; without data_dir, of synthetic images."""
  import tensorflow as tf

  from rethink_tf.experiment import ONE_DEVICE

  params = [*ONE_DEVICE, 'run.eval_images_per_device = 1']
  categories = os.path.join(model_dir, 'categories.json')
  if not data_dir and tf.io.gfile.exists(categories):
    params += ['run.eval_source = @placeholder', f'placeholder.categories_file = {categories!r}']
  return params


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_enum('format', 'saved_model', list(OUT), 'format of the output', **_here)
  flags.DEFINE_string('out', None, 'path of the output; default: saved_model/ or detectron2.pkl in the run folder',
                      **_here)
  flags.DEFINE_bool('averages', False, 'use the moving averages of the weights, of a run with run.ema', **_here)
  flags.DEFINE_float('score_threshold', None, 'saved_model: minimum score of a detection; default: that of the run',
                     **_here)
  flags.DEFINE_enum('channels', 'bgr', ['bgr', 'rgb'], 'detectron2: colour order of its input', **_here)
  process.start(main)
