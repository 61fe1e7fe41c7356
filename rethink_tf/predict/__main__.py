"""Finds objects in photographs and films: python -m rethink_tf.predict photographs/ --model_dir=runs/scratch_6x.

The path of evaluation: its decoder, resizing, canvases, detector, restored boxes and pasted masks. Writes pictures with
what was found, predictions.json in COCO's results format, and images.json, which says what the ids stand for.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError
from rethink_tf.predict.detectors import by_run, by_saved_model
from rethink_tf.predict.outputs import THREADS, WAITING, _FilmFile, _Pictures, _write_images, above, drawn, results

FLAGS = flags.FLAGS

# A way to work for a detector: source -> for each picture its index, and a function that makes what was found (Found).
Predict = Callable[[Any], Iterator[tuple[int, Callable[[], Any]]]]


def main(paths: list[str]) -> None:
  """Reads the arguments, and lets a run or a SavedModel look at every picture."""
  if not paths:
    raise UserError('no pictures: name files and folders, as in: predict photographs/ --model_dir=runs/scratch_6x')
  if not 0 <= FLAGS.threshold <= 1 or FLAGS.batch < 1:
    raise UserError(f'--threshold = {FLAGS.threshold:g} and --batch = {FLAGS.batch}: use 0 to 1, and 1 or more')
  from rethink_tf import console, gin_files
  from rethink_tf.predict import photographs

  console.hide_library_info()
  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not (model_dir or FLAGS.saved_model):
    raise UserError('no detector: name a run with --model_dir, or an exported one with --saved_model')
  output = os.path.expanduser(FLAGS.output or os.path.join('' if FLAGS.saved_model else model_dir, 'predictions'))
  pictures, films = photographs.find(paths, output)
  if FLAGS.saved_model:
    _with_saved_model(pictures, films, output)
  else:
    _with_run(model_dir, pictures, films, output)


def _with_run(model_dir, pictures, films, output):
  import tensorflow as tf

  from rethink_tf import experiment, gin_files
  from rethink_tf.data.detection import placeholder  # noqa: F401  so that the binding below finds it
  from rethink_tf.training import ema

  def task(parts):
    if not hasattr(parts.trainer.detector, 'score_boxes'):
      raise UserError(f'{model_dir} is the run of a classifier: predict draws what a detector finds')
    metric = gin_files.argument(experiment.run, 'keep_best')
    if not isinstance(metric, str):
      metric = getattr(gin_files.argument(experiment.run, 'evaluator'), 'main_metric', 'box/AP')
    mode = gin_files.bound('CocoEvaluator.mask_paste') or 'accurate'
    with ema.restored(parts, model_dir, FLAGS.averages, parts.checkpoints.choose(FLAGS.checkpoint, metric)):
      _look_at_all(lambda source: by_run(parts, source, mode), parts.scoring.source.categories, pictures, films, output)

  configuration = FLAGS.gin_file
  if FLAGS.model_dir:  # files that are given say what is to be different
    saved = gin_files.saved_config(model_dir)
    configuration = [saved, *(file for file in configuration if file != saved)]
  categories = f'{model_dir.rstrip("/")}/categories.json'
  if not tf.io.gfile.exists(categories):
    raise UserError(f'no categories.json in {model_dir}: check --model_dir')
  command_line.configure(configuration, [
    "strategy.kind = 'one_device'", 'strategy.num_devices = None', 'strategy.logical_cpus = None',
    f'run.eval_images_per_device = {FLAGS.batch}', 'run.eval_source = @placeholder',
    f'placeholder.categories_file = {categories!r}'])
  experiment.run(task, model_dir)


def _with_saved_model(pictures, films, output):
  import tensorflow as tf

  from rethink_tf.data.categories import Category
  from rethink_tf.export import saved_model

  if FLAGS.gin_file or FLAGS.checkpoint != 'latest' or FLAGS.averages:
    raise UserError('a SavedModel is taken as it is: leave out --gin_file, --checkpoint and --averages, or predict '
                    'from the run folder with --model_dir')
  if not tf.saved_model.contains_saved_model(FLAGS.saved_model):
    raise UserError(f'{FLAGS.saved_model}: no SavedModel there: name the folder that export has written')
  model = saved_model.load(FLAGS.saved_model)
  if not hasattr(model, 'detect') or 'categories' not in getattr(model, 'signatures', {}):
    raise UserError(f'{FLAGS.saved_model}: is no SavedModel of this package: write one with rethink_tf.export')
  if FLAGS.batch > 1 and not hasattr(model, 'detect_files'):
    raise UserError(f'{FLAGS.saved_model}: takes pictures one by one, as older versions exported: leave out --batch, '
                    'or export it again')
  told = {name: value.numpy().tolist() for name, value in model.signatures['categories']().items()}
  points = tuple(name.decode() for name in told.get('keypoint_names', []))
  categories = [Category(id_, name.decode(), points) for id_, name in zip(told['ids'], told['names'], strict=True)]
  _look_at_all(lambda source: by_saved_model(model, source, FLAGS.threshold, FLAGS.batch), categories, pictures, films,
               output)


def _look_at_all(predict: Predict, categories, pictures, films, output):
  """All photographs together, and each film by itself, into folders of their own below the output."""
  from absl import logging

  from rethink_tf.predict import photographs

  skipped = total = 0
  if pictures:
    source = photographs.Photographs(pictures, categories, FLAGS.upright)
    if source.turned:
      logging.info('%d photographs say by EXIF that they lie on their side: %s', source.turned,
                   'turned' if FLAGS.upright else 'taken as stored, as in training; --upright turns them')
    total, writer = len(pictures), _Pictures(output, photographs.output_names(source.file_names, f'.{FLAGS.format}'))
    if len(source.image_ids):
      _look_at(predict, source, output, writer)
    skipped = len(source.skipped)
  for path, name in zip(films, photographs.output_names(photographs.relative_names(films), ''), strict=True):
    source = photographs.Film(path, categories)
    folder = os.path.join(output, name)
    with contextlib.closing(_FilmFile(folder, source.frames_per_second)) as writer:
      _look_at(predict, source, folder, writer)
    total, skipped = total + len(source.image_ids), skipped + len(source.skipped)
  if skipped:
    print(f'{skipped} of {total} pictures could not be read and were skipped', flush=True)
  if skipped == total:
    raise UserError('none of the pictures could be read')


def _look_at(predict: Predict, source, folder, writer):
  """One source: pictures as soon as they are ready, json at the end."""
  from rethink_tf import console
  from rethink_tf.storage import files

  _write_images(folder, source)  # already now: a place that cannot be written is told at once
  found, waiting, progress = {}, collections.deque(), console.Progress(source.name, len(source.image_ids))

  def finish(index, make):
    one, image = above(make(), FLAGS.threshold), source.take(index)
    if image is None:
      return None, None
    return one, writer.prepare(drawn(image, one, source)) if FLAGS.pictures else None

  def take_one():
    index, job = waiting.popleft()
    one, picture = job.result()
    if one is not None:
      found[index] = one
    if picture is not None:
      writer.write(index, picture)
    progress.count()

  with concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix='results') as pool:
    for index, make in predict(source):
      waiting.append((index, pool.submit(finish, index, make)))
      while len(waiting) > WAITING * FLAGS.batch:
        take_one()
    while waiting:
      take_one()
  _write_images(folder, source)
  lines = ',\n'.join(json.dumps(entry) for entry in results([found[index] for index in sorted(found)], source))
  files.write_output(os.path.join(folder, 'predictions.json'), f'[\n{lines}\n]\n'.encode())
  print(f'{folder}: {sum(len(one.scores) for one in found.values())} objects in {len(found)} '
        f'{"frames" if writer.film else "pictures"}, score >= {FLAGS.threshold:g}', flush=True)


if __name__ == '__main__':
  command_line.define_flags()
  _here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('saved_model', None, 'folder of an exported detector, in place of a run', **_here)
  flags.DEFINE_string('output', None, 'where results go; default: predictions/ in the run folder', **_here)
  flags.DEFINE_string('checkpoint', 'latest', 'which one: latest, best or a step, as 12000', **_here)
  flags.DEFINE_bool('averages', False, 'take the moving averages of the weights, of a run with run.ema', **_here)
  flags.DEFINE_float('threshold', 0.5, 'least score of what is drawn and written', **_here)
  flags.DEFINE_integer('batch', 1, 'pictures that the detector sees at a time', **_here)
  flags.DEFINE_bool('pictures', True, 'draw what was found', **_here)
  flags.DEFINE_enum('format', 'jpg', ['jpg', 'png'], 'of the pictures', **_here)
  flags.DEFINE_bool('film', True, 'films: write predictions.mp4', **_here)
  flags.DEFINE_bool('frames', False, 'films: also write each frame as a picture', **_here)
  flags.DEFINE_bool('upright', False, 'turn photographs as their EXIF orientation says', **_here)
  command_line.start(main, takes_arguments=True, interrupted='stopped; the pictures so far are written')
