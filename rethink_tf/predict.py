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

FLAGS = flags.FLAGS
THREADS = 2  # that paste masks, draw and write beside prediction
WAITING = 4  # batches at most that wait for them
JPEG_QUALITY = 92
MAX_FILM_SIDE = 8192  # pixels; encoders have limits

# A way to work for a detector: source -> for each picture its index, and a function that makes what was found (Found).
Predict = Callable[[Any], Iterator[tuple[int, Callable[[], Any]]]]


def main(paths: list[str]) -> None:
  """Reads the arguments, and lets a run or a SavedModel look at every picture."""
  if not paths:
    raise UserError('no pictures: name files and folders, as in: predict photographs/ --model_dir=runs/scratch_6x')
  if not 0 <= FLAGS.threshold <= 1 or FLAGS.batch < 1:
    raise UserError(f'--threshold = {FLAGS.threshold:g} and --batch = {FLAGS.batch}: use 0 to 1, and 1 or more')
  from rethink_tf import gin_files, noise
  from rethink_tf.data import files

  noise.hide_library_info()
  model_dir = FLAGS.model_dir or gin_files.default_run_folder(FLAGS.gin_file)
  if not (model_dir or FLAGS.saved_model):
    raise UserError('no detector: name a run with --model_dir, or an exported one with --saved_model')
  output = os.path.expanduser(FLAGS.output or os.path.join('' if FLAGS.saved_model else model_dir, 'predictions'))
  pictures, films = files.find(paths, output)
  if FLAGS.saved_model:
    _with_saved_model(pictures, films, output)
  else:
    _with_run(model_dir, pictures, films, output)


def _with_run(model_dir, pictures, films, output):
  import tensorflow as tf

  from rethink_tf import ema, experiment, gin_files
  from rethink_tf.data import stand_in  # noqa: F401  so that the binding below finds it

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
    f'run.eval_images_per_device = {FLAGS.batch}', 'run.eval_source = @stand_in',
    f'stand_in.categories_file = {categories!r}'])
  experiment.run(task, model_dir)


def _with_saved_model(pictures, films, output):
  import tensorflow as tf

  from rethink_tf import serving
  from rethink_tf.data.categories import Category

  if FLAGS.gin_file or FLAGS.checkpoint != 'latest' or FLAGS.averages:
    raise UserError('a SavedModel is taken as it is: leave out --gin_file, --checkpoint and --averages, or predict '
                    'from the run folder with --model_dir')
  if not tf.saved_model.contains_saved_model(FLAGS.saved_model):
    raise UserError(f'{FLAGS.saved_model}: no SavedModel there: name the folder that export has written')
  model = serving.load(FLAGS.saved_model)
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


def by_run(parts: Any, source: Any, mask_paste: str) -> Iterator[tuple[int, Callable[[], Any]]]:
  """Detections of a run's detector, as its evaluation makes them. Pictures come canvas by canvas."""
  import numpy as np
  import tensorflow as tf

  from rethink_tf.evaluator import restore

  scoring = parts.scoring
  feed = type(scoring)(source, scoring.batch_size, scoring.resize, max_instances=1, max_unreadable=1.0)
  predict = parts.trainer.predict_batch
  if parts.test_augmentation is not None:
    predict = parts.test_augmentation.predictor(parts.trainer, source)
    feed = parts.test_augmentation.views_of(feed)
  index_of = {int(id_): i for i, id_ in enumerate(source.image_ids)}
  try:
    for batch in feed.dataset():
      detections = predict(batch)
      labels = [np.asarray(field) for field in (batch.image_ids, batch.scales, batch.original_sizes)]
      detections = [None if field is None else np.asarray(field) for field in detections]
      for row, image_id in enumerate(labels[0].tolist()):
        if image_id in index_of:  # rows that fill the last batch are not
          one = [None if field is None else field[row:row + 1] for field in [*labels, *detections]]
          yield index_of[image_id], lambda one=one: restore(mask_paste, *one)[0]
  except tf.errors.OpError as error:
    if feed.failure is not None:
      raise feed.failure from error
    raise


def by_saved_model(model: Any, source: Any, threshold: float, batch: int) -> Iterator[tuple[int, Callable[[], Any]]]:
  """The same from an exported detector; with a batch of several, as files for its signature of many pictures."""
  import numpy as np
  import tensorflow as tf
  from pycocotools import mask as coco_mask

  from rethink_tf import pictures
  from rethink_tf.scoring import Found

  def found(image_id, fields):
    masks = None
    if 'masks' in fields:
      rles = (coco_mask.encode(np.asfortranarray(mask)) for mask in fields['masks'])
      masks = [{'size': rle['size'], 'counts': rle['counts'].decode('ascii')} for rle in rles]
    points = fields['keypoints'].astype(np.float64) if 'keypoints' in fields else None
    return Found(image_id, fields['boxes'].astype(np.float64), fields['scores'].astype(np.float64),
                 fields['classes'].astype(np.int64), masks, points)

  def detect(images):
    if batch == 1:
      yield {name: value.numpy() for name, value in model.detect(images[0], np.float32(threshold)).items()}
      return
    files = tf.constant([pictures.png(image) for image in images])  # of pixels: turned ones, frames, other formats
    rows = {name: value.numpy() for name, value in model.detect_files(files, np.float32(threshold)).items()}
    for row, (number, (height, width)) in enumerate(zip(rows['num_detections'], rows['image_sizes'], strict=True)):
      fields = {name: rows[name][row, :number] for name in ('boxes', 'scores', 'classes', 'masks', 'keypoints')
                if name in rows}
      yield fields | ({'masks': fields['masks'][:, :height, :width]} if 'masks' in fields else {})

  ids = source.image_ids.tolist()
  for start in range(0, len(ids), batch):
    indices = range(start, min(start + batch, len(ids)))
    for i, fields in zip(indices, detect([source.load(i).image for i in indices]), strict=True):
      yield i, lambda i=i, fields=fields: found(ids[i], fields)


def _look_at_all(predict: Predict, categories, pictures, films, output):
  """All photographs together, and each film by itself, into folders of their own below the output."""
  from absl import logging

  from rethink_tf.data import files

  skipped = total = 0
  if pictures:
    source = files.Photographs(pictures, categories, FLAGS.upright)
    if source.turned:
      logging.info('%d photographs say by EXIF that they lie on their side: %s', source.turned,
                   'turned' if FLAGS.upright else 'taken as stored, as in training; --upright turns them')
    total, writer = len(pictures), _Pictures(output, files.output_names(source.file_names, f'.{FLAGS.format}'))
    if len(source.image_ids):
      _look_at(predict, source, output, writer)
    skipped = len(source.skipped)
  for path, name in zip(films, files.output_names(files.relative_names(films), ''), strict=True):
    source = files.Film(path, categories)
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
  from rethink_tf import reporting

  _write_images(folder, source)  # already now: a place that cannot be written is told at once
  found, waiting, progress = {}, collections.deque(), reporting.Progress(source.name, len(source.image_ids))

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
  reporting.write(os.path.join(folder, 'predictions.json'), f'[\n{lines}\n]\n'.encode())
  print(f'{folder}: {sum(len(one.scores) for one in found.values())} objects in {len(found)} '
        f'{"frames" if writer.film else "pictures"}, score >= {FLAGS.threshold:g}', flush=True)


def above(found: Any, threshold: float) -> Any:
  """The detections of one picture with at least this score; they are in order of it."""
  count = int((found.scores >= threshold).sum())
  return found._replace(**{name: getattr(found, name)[:count] for name in found._fields[1:]
                           if getattr(found, name) is not None})


def drawn(image: Any, found: Any, source: Any) -> Any:
  """A picture with what was found in it."""
  from pycocotools import mask as coco_mask

  from rethink_tf import pictures

  masks = None if found.masks is None else [coco_mask.decode(rle) for rle in found.masks]
  skeleton = next((category.skeleton for category in source.categories if category.keypoints), ())
  return pictures.draw(image, found.boxes, found.classes, [category.name for category in source.categories],
                       found.scores, masks, found.keypoints, skeleton)


def results(found: list[Any], source: Any) -> list[dict[str, Any]]:
  """COCO's results format, box, mask and keypoints of a detection in one object, with names for people."""
  from rethink_tf.scoring import submission

  names = dict(zip(source.image_ids.tolist(), source.file_names, strict=True))
  of_category = {category.id: category for category in source.categories}
  kinds = submission(found, source.categories)
  points = iter(kinds.get('keypoint', []))
  entries = []
  for i, entry in enumerate(kinds['box']):
    category = of_category[entry['category_id']]
    entry |= {'category_name': category.name, 'file_name': names[entry['image_id']]}
    if 'mask' in kinds:
      entry['segmentation'] = kinds['mask'][i]['segmentation']
    if category.keypoints and 'keypoint' in kinds:
      entry['keypoints'] = next(points)['keypoints']
    entries.append(entry)
  return entries


def _write_images(folder, source):
  """What the ids in predictions.json stand for, and what was skipped so far."""
  from rethink_tf import reporting
  from rethink_tf.data.categories import categories_to_json

  images = [{'id': id_, 'file_name': name, 'height': height, 'width': width}
            for id_, name, (height, width) in zip(source.image_ids.tolist(), source.file_names, source.sizes.tolist(),
                                                  strict=True)]
  about = {'images': images, 'categories': categories_to_json(source.categories), 'skipped': source.skipped}
  reporting.write(os.path.join(folder, 'images.json'), json.dumps(about, indent=1).encode())


class _Pictures:
  """Pictures of photographs, in folders like theirs."""

  film = False

  def __init__(self, folder, names):
    self._paths = [os.path.join(folder, 'pictures', name) for name in names]

  def prepare(self, picture):
    return _encode(picture)

  def write(self, index, data):
    from rethink_tf import reporting
    reporting.write(self._paths[index], data)


class _FilmFile:
  """Frames as a film (MPEG-4, what every OpenCV can write) and, if wanted, as pictures. Frames come in order."""

  film = True

  def __init__(self, folder, frames_per_second):
    self._folder, self._rate, self._film = folder, frames_per_second, None

  def prepare(self, picture):
    return picture, _encode(picture) if FLAGS.frames else None

  def write(self, index, prepared):
    from rethink_tf import reporting
    picture, data = prepared
    if data is not None:
      reporting.write(os.path.join(self._folder, 'frames', f'{index + 1:06d}.{FLAGS.format}'), data)
    if FLAGS.film:
      self._add(picture)

  def _add(self, picture):
    import cv2
    scale = min(1.0, MAX_FILM_SIDE / max(picture.shape[:2]))
    height, width = (2 * max(1, round(side * scale / 2)) for side in picture.shape[:2])  # encoders want even sides
    if self._film is None:
      path = os.path.join(self._folder, 'predictions.mp4')
      self._film = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'mp4v'), self._rate, (width, height))
      if not self._film.isOpened():
        raise UserError(f'{path}: OpenCV cannot write this film: use --nofilm --frames, or a local disk')
    frame = picture if picture.shape[:2] == (height, width) else cv2.resize(picture, (width, height))
    self._film.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

  def close(self):
    if self._film is not None:
      self._film.release()


def _encode(picture):
  import cv2
  options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if FLAGS.format == 'jpg' else []
  return cv2.imencode(f'.{FLAGS.format}', picture[..., ::-1].copy(), options)[1].tobytes()


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
