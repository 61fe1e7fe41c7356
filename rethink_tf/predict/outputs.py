"""Files that predict writes: annotated images and videos, predictions.json, images.json."""

from __future__ import annotations

import json
import os
from typing import Any

from absl import flags

from rethink_tf.errors import UserError

FLAGS = flags.FLAGS

THREADS = 2  # that paste masks, draw and write beside prediction
WAITING = 4  # batches at most that wait for them
JPEG_QUALITY = 92
MAX_FILM_SIDE = 8192  # pixels; encoders have limits


def above(found: Any, threshold: float) -> Any:
  """The detections of one picture with at least this score; they are in order of it."""
  count = int((found.scores >= threshold).sum())
  return found._replace(**{name: getattr(found, name)[:count] for name in found._fields[1:]
                           if getattr(found, name) is not None})


def drawn(image: Any, found: Any, source: Any) -> Any:
  """A picture with what was found in it."""
  from pycocotools import mask as coco_mask

  from rethink_tf.visualization import pictures

  masks = None if found.masks is None else [coco_mask.decode(rle) for rle in found.masks]
  skeleton = next((category.skeleton for category in source.categories if category.keypoints), ())
  return pictures.draw(image, found.boxes, found.classes, [category.name for category in source.categories],
                       found.scores, masks, found.keypoints, skeleton)


def results(found: list[Any], source: Any) -> list[dict[str, Any]]:
  """COCO's results format, box, mask and keypoints of a detection in one object, with names for people."""
  from rethink_tf.evaluation.postprocessing import submission

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
  from rethink_tf.data.categories import categories_to_json
  from rethink_tf.storage import files

  images = [{'id': id_, 'file_name': name, 'height': height, 'width': width}
            for id_, name, (height, width) in zip(source.image_ids.tolist(), source.file_names, source.sizes.tolist(),
                                                  strict=True)]
  about = {'images': images, 'categories': categories_to_json(source.categories), 'skipped': source.skipped}
  files.write_output(os.path.join(folder, 'images.json'), json.dumps(about, indent=1).encode())


class _Pictures:
  """Pictures of photographs, in folders like theirs."""

  film = False

  def __init__(self, folder, names):
    self._paths = [os.path.join(folder, 'pictures', name) for name in names]

  def prepare(self, picture):
    return _encode(picture)

  def write(self, index, data):
    from rethink_tf.storage import files
    files.write_output(self._paths[index], data)


class _FilmFile:
  """Frames as a film (MPEG-4, what every OpenCV can write) and, if wanted, as pictures. Frames come in order."""

  film = True

  def __init__(self, folder, frames_per_second):
    self._folder, self._rate, self._film = folder, frames_per_second, None

  def prepare(self, picture):
    return picture, _encode(picture) if FLAGS.frames else None

  def write(self, index, prepared):
    from rethink_tf.storage import files
    picture, data = prepared
    if data is not None:
      files.write_output(os.path.join(self._folder, 'frames', f'{index + 1:06d}.{FLAGS.format}'), data)
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
