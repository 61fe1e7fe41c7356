"""Export a trained detector: python -m rethink_tf.export --model_dir=runs/scratch_6x --format=saved_model."""

from __future__ import annotations

import os
import sys

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError
from rethink_tf.process import entry

FLAGS = flags.FLAGS
OUT = {'saved_model': 'saved_model', 'detectron2': 'detectron2.pkl', 'onnx': 'detector.onnx',
       'tflite': 'detector.tflite'}  # default name by format
ONE_FILE = ('onnx', 'tflite')


def main() -> None:
  """Restore a checkpoint of a run, or its averages, and write it in another format."""
  from absl import logging

  from rethink_tf import gin_files

  command_line.refuse_weights()
  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not model_dir:
    raise UserError('no run to export: name its folder with --model_dir')
  size = image_size(FLAGS.image_size, FLAGS.format)
  refuse_ignored(FLAGS.format, FLAGS.score_threshold, FLAGS.channels)
  out = os.path.expanduser(FLAGS.out or os.path.join(model_dir, OUT[FLAGS.format]))
  files = FLAGS.gin_file or [gin_files.saved_config(model_dir)]
  gin_files.find(files)
  if FLAGS.format == 'onnx':
    from rethink_tf.export import onnx_format
    onnx_format.require()
  command_line.configure(files, bindings(model_dir, FLAGS.data_dir, FLAGS.format))
  from rethink_tf import experiment
  from rethink_tf.data import digest
  from rethink_tf.export import description, detectron2, portable_files, saved_model, tflite_format
  from rethink_tf.training import ema

  built = experiment.run('evaluate', model_dir, allow_changes=FLAGS.allow_changes)
  detector, inputs = built.trainer.detector, built.eval_input
  if not hasattr(detector, 'score_boxes'):
    raise UserError(f'{model_dir} is the run of a classifier: export needs a detector')
  ema.restore(built, FLAGS.averages, built.checkpoints.choose(FLAGS.checkpoint, experiment.main_metric()))
  if built.test_augmentation is not None:
    logging.warning('run.test_augmentation is not exported: the file detects in one view of each image, as an '
                    'evaluation with --gin_param="run.test_augmentation = None" scores it')
  step, categories = built.checkpoints.restored_step, inputs.source.categories
  detector.xla = False  # the configuration of a TPU; the faster operations work here
  common = (detector, built.trainer.predict_step, inputs, FLAGS.score_threshold)
  recorded = built.recorded.data.get('train', {}) if built.recorded is not None else {}
  about = {'step': step, 'averages': FLAGS.averages, 'upright': digest.reads_upright(recorded)}
  if FLAGS.format == 'detectron2':
    about = description.of_detector(detector, inputs.resize, categories, detector.detection_generator.score_threshold,
                                    **about)
    names = detectron2.save(detector, out, channels=FLAGS.channels or 'bgr', resize=inputs.resize, about=about)
    logging.info('%s: %d arrays; configuration of the Detectron2 model: %s%s', out, len(names),
                 detectron2.settings_path(out), '' if detectron2.builds(detector.backbone) else
                 f'; import {detectron2.backbone_path(out)} before it is built')
  elif FLAGS.format == 'saved_model':
    saved_model.export(out, *common, **about)
  elif FLAGS.format == 'onnx':
    portable_files.export(out, onnx_format, *common, size, **about)
  else:
    size = size or portable_files.usual_size(inputs.resize)
    logging.info('TensorFlow Lite: for images of %d x %d pixels (--image_size)', *size)
    portable_files.export(out, tflite_format, *common, size, **about)
  weights = ', averages of the weights' if FLAGS.averages else ''
  print(f'{out}: step {step}{weights}, {len(categories)} categories')


def bindings(model_dir: str, data_dir: str | None, form: str) -> list[str]:
  """Return gin bindings of one device and one image at a time; without data_dir, of synthetic images."""
  import tensorflow as tf

  from rethink_tf.experiment import ONE_DEVICE

  params = [*ONE_DEVICE, 'run.eval_images_per_device = 1']
  if form in ONE_FILE:
    params.append("run.precision = 'float32'")  # the runtimes have few operations in 16 bits
  categories = os.path.join(model_dir, 'categories.json')
  if not data_dir and tf.io.gfile.exists(categories):
    params += ['run.eval_source = @placeholder', f'placeholder.categories_file = {categories!r}']
  return params


def image_size(values: list[str] | None, form: str) -> tuple[int, int] | None:
  """Return height and width of --image_size; None: any.

  Raises:
    UserError: it is not a size, or the format takes images of any size.
  """
  if not values:
    return None
  if form not in ONE_FILE:
    raise UserError(f'--image_size is for --format={" and ".join(ONE_FILE)}: leave it out for {form}')
  if len(values) != 2 or not all(value.strip().isdecimal() and int(value) for value in values):
    raise UserError(f'--image_size={",".join(values)}: give height and width in pixels, as in --image_size=480,640')
  height, width = map(int, values)
  return height, width


def refuse_ignored(form: str, score_threshold: float | None, channels: str | None) -> None:
  """Raise UserError for a flag that the format does not use."""
  if form == 'detectron2' and score_threshold is not None:
    raise UserError('--score_threshold is not for --format=detectron2, which is written with that of the run: leave it '
                    'out, and change SCORE_THRESH_TEST in the configuration of the Detectron2 model')
  if form != 'detectron2' and channels is not None:
    raise UserError(f'--channels is for --format=detectron2: leave it out for {form}, which takes RGB')


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_enum('format', 'saved_model', list(OUT), 'format of the output; onnx needs the extra: pip install '
                    "'rethink_tf[onnx]'", **_here)
  flags.DEFINE_string('out', None, 'path of the output; default: saved_model/, detector.onnx, detector.tflite or '
                      'detectron2.pkl in the run folder', **_here)
  flags.DEFINE_alias('output', 'out', **_here)  # as in other commands
  flags.DEFINE_string('checkpoint', 'latest', 'checkpoint to export: latest, best (run.keep_best) or a step, as 12000',
                      **_here)
  flags.DEFINE_bool('averages', False, 'use the moving averages of the weights, of a run with run.ema', **_here)
  flags.DEFINE_float('score_threshold', None, 'saved_model, onnx: minimum score of a detection; tflite: '
                     'only noted in detector.json, since each call gives its own; default: that of the run', **_here)
  flags.DEFINE_list('image_size', None, 'onnx, tflite: height and width of all images, as 480,640; default: any; '
                    'tflite: of a 4:3 image at the sizes of evaluation', **_here)
  flags.DEFINE_enum('channels', None, ['bgr', 'rgb'], 'detectron2: colour order of its input; default: bgr', **_here)
  entry.start(main, interrupted='stopped; nothing was written')
