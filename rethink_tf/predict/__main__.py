"""Detect objects in images and videos: python -m rethink_tf.predict images/ --model_dir=runs/scratch_6x.

Images are decoded, resized and padded, and detections restored and masks pasted, as in evaluation. Writes images with
the detections, predictions.json in COCO's results format, and images.json, which lists the image of each id.
From Python: rethink_tf.api.Detector.
"""

from __future__ import annotations

import os
import sys

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError
from rethink_tf.process import entry

FLAGS = flags.FLAGS


def main(paths: list[str]) -> None:
  """Detect objects in the images and videos on the command line."""
  if not paths:
    raise UserError('no images: name files and folders, as in: predict images/ --model_dir=runs/scratch_6x')
  if not 0 <= FLAGS.threshold <= 1 or FLAGS.batch < 1:
    raise UserError(f'--threshold = {FLAGS.threshold:g} and --batch = {FLAGS.batch}: use 0 to 1, and 1 or more')
  command_line.refuse_weights()
  from rethink_tf import gin_files

  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not (model_dir or FLAGS.saved_model):
    raise UserError('no detector: name a run with --model_dir, or an exported one with --saved_model')
  gin_files.find(FLAGS.gin_file)
  if FLAGS.model_dir:
    gin_files.saved_config(FLAGS.model_dir)
  entry.check_path(FLAGS.saved_model, 'no such folder: check --saved_model')
  for path in paths:
    entry.check_path(path, 'no such file or folder')
  # These import TensorFlow, which takes seconds: not needed for --help and such errors.
  from rethink_tf import console, experiment
  from rethink_tf.distributed import devices
  from rethink_tf.predict import detectors, image_files, outputs

  console.hide_library_info()
  output = os.path.expanduser(FLAGS.output or os.path.join('' if FLAGS.saved_model else model_dir, 'predictions'))
  images, videos = image_files.find_images(paths, output)
  if FLAGS.saved_model:
    if FLAGS.gin_file or FLAGS.checkpoint != 'latest' or FLAGS.averages:
      raise UserError('a SavedModel is used as it is: leave out --gin_file, --checkpoint and --averages, or predict '
                      'from the run folder with --model_dir')
    devices.report()
    detector = detectors.SavedModelDetector(FLAGS.saved_model, FLAGS.batch)
  else:
    files = detectors.run_files(model_dir, FLAGS.gin_file) if FLAGS.model_dir else FLAGS.gin_file
    command_line.configure(files, detectors.run_bindings(model_dir, FLAGS.batch))
    built = experiment.run('evaluate', model_dir, allow_changes=FLAGS.allow_changes)
    detector = detectors.RunDetector(built, FLAGS.checkpoint, FLAGS.averages)
    print(f'{model_dir}: step {detector.step}{", averages of the weights" if FLAGS.averages else ""}', flush=True)
  options = outputs.OutputOptions(FLAGS.images, FLAGS.format, FLAGS.video, FLAGS.frames)
  outputs.write_predictions(detector, images, videos, output, FLAGS.threshold, FLAGS.upright, options)


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('saved_model', None, 'folder of an exported detector, instead of a run', **_here)
  flags.DEFINE_string('output', None, 'folder for the results; default: predictions/ in the run folder', **_here)
  flags.DEFINE_string('checkpoint', 'latest', 'checkpoint to use: latest, best (run.keep_best) or a step, as 12000',
                      **_here)
  flags.DEFINE_bool('averages', False, 'use the moving averages of the weights, of a run with run.ema', **_here)
  flags.DEFINE_float('threshold', 0.5, 'minimum score of a detection', **_here)
  flags.DEFINE_integer('batch', 1, 'images that the detector processes at a time', **_here)
  flags.DEFINE_bool('images', True, 'write images with the detections', **_here)
  flags.DEFINE_enum('format', 'jpg', ['jpg', 'png'], 'format of the images with detections', **_here)
  flags.DEFINE_bool('video', True, 'for a video, write predictions.mp4', **_here)
  flags.DEFINE_bool('frames', False, 'for a video, write each frame as an image', **_here)
  flags.DEFINE_bool('upright', None, 'apply the EXIF orientation of the images; default: as the training of the '
                    'detector did, if that is known, else not', **_here)
  flags.DEFINE_alias('pictures', 'images', **_here)  # earlier names
  flags.DEFINE_alias('film', 'video', **_here)
  entry.start(main, takes_arguments=True, interrupted='stopped; the images so far are written')
