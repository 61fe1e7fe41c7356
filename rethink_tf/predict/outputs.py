"""Files that predict writes: rendered images and videos, predictions.json, images.json."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import tensorflow as tf
from absl import logging
from pycocotools import mask as coco_mask

from rethink_tf import console
from rethink_tf.data.categories import Category, categories_to_json
from rethink_tf.errors import UserError, plain
from rethink_tf.evaluation.postprocessing import ImageDetections, submission
from rethink_tf.evaluation.scoring import nothing_shown
from rethink_tf.predict.detectors import TrainedDetector, applies_exif, detect_all
from rethink_tf.predict.image_files import ImageFiles, UnannotatedImages, Video, output_names, real_path, relative_names
from rethink_tf.storage import files
from rethink_tf.visualization import drawing

JPEG_QUALITY = 92
VIDEO = 'predictions.mp4'
MAX_VIDEO_SIDE = 8192  # pixels; encoders have limits


class OutputOptions(NamedTuple):
  """What to write besides predictions.json and images.json."""

  images: bool = True  # render the detections
  format: str = 'jpg'  # of rendered images: 'jpg' or 'png'
  video: bool = True  # of videos: predictions.mp4
  frames: bool = False  # of videos: each frame as an image


class Writer(Protocol):
  """Destination of the rendered images of a source."""

  unit: str  # plural, for the log

  def prepare(self, rendered: np.ndarray) -> Any:
    """Encode an image, on any thread."""

  written: set[str]  # paths

  def write(self, index: int, prepared: Any) -> None:
    """Write an encoded image."""

  def finish(self) -> None:
    """Complete what was written; raises UserError if the storage did not take all of it."""


class ImageWriter:
  """Writes images of image files, in the same folder structure."""

  unit = 'images'

  def __init__(self, folder: str, names: Sequence[str], options: OutputOptions):
    self._options = options
    self.paths = [os.path.join(folder, 'images', name) for name in output_names(names, f'.{options.format}')]
    self.written: set[str] = set()

  def prepare(self, rendered: np.ndarray) -> bytes:
    return encode(rendered, self._options.format)

  def write(self, index: int, prepared: bytes) -> None:
    files.write_output(self.paths[index], prepared)
    self.written.add(self.paths[index])

  def finish(self) -> None:
    pass


class VideoWriter:
  """Writes frames, in order, to a video (MPEG-4, which every OpenCV can encode), and as images if requested."""

  unit = 'frames'

  def __init__(self, folder: str, frames_per_second: float, options: OutputOptions):
    self._folder, self._rate, self._options = folder, frames_per_second, options
    self._video: cv2.VideoWriter | None = None
    self._partial = os.path.join(folder, f'.{os.getpid()}.partial.mp4')  # OpenCV tells the format by the suffix
    self.written: set[str] = set()

  def prepare(self, rendered: np.ndarray) -> tuple[np.ndarray, bytes | None]:
    return rendered, encode(rendered, self._options.format) if self._options.frames else None

  def write(self, index: int, prepared: tuple[np.ndarray, bytes | None]) -> None:
    rendered, data = prepared
    if data is not None:
      path = os.path.join(self._folder, 'frames', f'{index + 1:06d}.{self._options.format}')
      files.write_output(path, data)
      self.written.add(path)
    if self._options.video:
      self._append(rendered)

  def finish(self) -> None:
    if self._video is not None:
      path = os.path.join(self._folder, VIDEO)
      self._video.release()
      self._video = None
      if not is_complete(self._partial):  # OpenCV says nothing of a full disk
        raise UserError(f'{path}: cannot be written to its end, as on a full disk: free space, or choose another '
                        'place with --output')
      os.replace(self._partial, path)
      self.written.add(path)

  def close(self) -> None:
    """Remove files that are not complete."""
    if self._video is not None:
      self._video.release()
    with contextlib.suppress(OSError):
      os.remove(self._partial)

  def _append(self, frame: np.ndarray) -> None:
    scale = min(1.0, MAX_VIDEO_SIDE / max(frame.shape[:2]))
    height, width = (2 * max(1, round(side * scale / 2)) for side in frame.shape[:2])  # encoders need even sides
    if self._video is None:
      self._video = cv2.VideoWriter(self._partial, cv2.VideoWriter_fourcc(*'mp4v'), self._rate, (width, height))
      if not self._video.isOpened():
        raise UserError(f'{os.path.join(self._folder, VIDEO)}: OpenCV cannot write this video: use --novideo --frames, '
                        'or a local disk')
    frame = frame if frame.shape[:2] == (height, width) else cv2.resize(frame, (width, height))
    self._video.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


def write_predictions(detector: TrainedDetector, image_files: Sequence[str], videos: Sequence[str], output: str,
                      threshold: float = 0.5, upright: bool | None = None,
                      options: OutputOptions | None = None) -> None:
  """Detect objects in image files and videos, and write the results.

  Args:
    detector: of predict.detectors.
    image_files, videos: paths, as image_files.find_images returns them.
    output: folder of the results of all image files; each video has a subfolder.
    threshold: minimum score of a detection.
    upright: apply the EXIF orientation; None: as the detector's training did, if that is known, else not.
    options: what to write; None for the defaults.

  Raises:
    UserError: no image can be read, a video cannot, a result would replace an image or video, or the output cannot be
      written.
  """
  options = options or OutputOptions()
  skipped = total = 0
  inputs = {real_path(path) for path in (*image_files, *videos)}
  folders = [os.path.join(output, name) for name in output_names(relative_names(videos), '')]
  _keep_inputs(inputs, [os.path.join(folder, VIDEO) for folder in folders])
  sources = [Video(path, detector.categories) for path in videos]  # first: an unreadable one is known before any work
  if image_files:
    applied = applies_exif(detector, upright)
    source = ImageFiles(image_files, detector.categories, applied)
    if source.turned:
      logging.info('%d images have an EXIF orientation: %s', source.turned, _about_exif(detector, applied))
    total = len(image_files)
    if len(source.image_ids):
      writer = ImageWriter(output, source.file_names, options)
      _keep_inputs(inputs, writer.paths if options.images else [])
      _write_source(detector, source, output, threshold, options, writer)
    skipped = len(source.skipped)
  for source, folder in zip(sources, folders, strict=True):
    with contextlib.closing(VideoWriter(folder, source.frames_per_second, options)) as writer:
      _write_source(detector, source, folder, threshold, options, writer)
    total, skipped = total + len(source.image_ids), skipped + len(source.skipped)
  if skipped:
    print(f'{skipped} of {total} images could not be read and were skipped', flush=True)
  if skipped == total:
    raise UserError('none of the images could be read')


def _about_exif(detector: TrainedDetector, applied: bool) -> str:
  word = 'applied' if applied else 'ignored'
  if detector.upright is not None:
    return f'{word}, {"as" if detector.upright == applied else "unlike"} in training'
  return word if applied else (f'{word}; --upright applies it, as training does for annotations of upright images (of '
                               'LabelMe, Label Studio, VIA, YOLO)')


def _keep_inputs(inputs: Collection[str], written: Sequence[str]) -> None:
  """Check that no output file would replace an input, given by their real paths."""
  for path in written:
    if real_path(path) in inputs:
      raise UserError(f'{path}: is given to predict, which would replace it by its result: choose another --output')


def _write_source(detector: TrainedDetector, source: UnannotatedImages, folder: str, threshold: float,
                  options: OutputOptions, writer: Writer) -> None:
  """Write the results of one source: rendered images as soon as they are ready, JSON at the end."""
  _write_images_json(folder, source)  # first, so that an output that cannot be written is reported at once
  files.write_output(os.path.join(folder, 'predictions.json'), None)  # whose ids are those of other images
  detections: dict[int, ImageDetections] = {}
  progress = console.Progress(source.name, len(source.image_ids))

  def process(pixels: np.ndarray, found: ImageDetections) -> tuple[ImageDetections, Any]:
    noted = threshold if isinstance(writer, ImageWriter) else None  # in a video the note would flicker
    return found, writer.prepare(render(pixels, found, source.categories, noted)) if options.images else None

  for index, result in detect_all(detector, source, threshold, process):
    if result is not None:
      detections[index], prepared = result
      if options.images:
        writer.write(index, prepared)
    progress.count()
  progress.close()
  writer.finish()
  _write_images_json(folder, source)
  entries = results([detections[index] for index in sorted(detections)], source)
  lines = ',\n'.join(json.dumps(entry) for entry in entries)
  files.write_output(os.path.join(folder, 'predictions.json'), f'[\n{lines}\n]\n'.encode())
  best = max((found.best_score for found in detections.values() if found.best_score), default=None)
  cure = f': {nothing_shown(threshold, best)} (--threshold)' if best and not entries else f', score >= {threshold:g}'
  print(f'{folder}: {len(entries)} objects in {len(detections)} {writer.unit}{cure}', flush=True)
  older = sorted(set(_rendered(folder)) - writer.written)  # of an earlier call, or the user's
  if older:
    print(f'{folder}: {len(older)} other images or videos are in it, e.g. {plain(older[0])}: not of these results, '
          'whose images are in images.json', flush=True)


def _rendered(folder: str) -> Iterator[str]:
  """Yield the rendered images and the video in a folder."""
  if tf.io.gfile.exists(os.path.join(folder, VIDEO)):
    yield os.path.join(folder, VIDEO)
  for kind in ('images', 'frames'):
    for path, _, names in tf.io.gfile.walk(os.path.join(folder, kind)):
      yield from (os.path.join(path, name) for name in names if not name.startswith('.'))


def is_complete(path: str) -> bool:
  """Whether an MPEG-4 file has its index, which is written last, and ends with its last box."""
  try:
    with open(path, 'rb') as file:
      end, place, kinds = os.fstat(file.fileno()).st_size, 0, set()
      while place < end:
        file.seek(place)
        size, kind = struct.unpack('>I4s', file.read(8))
        size = struct.unpack('>Q', file.read(8))[0] if size == 1 else size
        if size < 8:
          return False
        place, kinds = place + size, kinds | {kind}
      return place == end and b'moov' in kinds
  except (OSError, struct.error):
    return False


def render(pixels: np.ndarray, detections: ImageDetections, categories: Sequence[Category],
           threshold: float | None = None) -> np.ndarray:
  """Draw detections on an image, uint8 [h, w, 3] RGB; with a threshold, an image without any has a note on it."""
  masks = None if detections.masks is None else [coco_mask.decode(rle) for rle in detections.masks]
  skeleton = next((category.skeleton for category in categories if category.keypoints), ())
  note = '' if len(detections.scores) or threshold is None else nothing_shown(threshold, detections.best_score)
  return drawing.draw(pixels, detections.boxes, detections.classes, [category.name for category in categories],
                      detections.scores, masks, detections.keypoints, skeleton, note)


def results(detections: list[ImageDetections], source: UnannotatedImages) -> list[dict[str, Any]]:
  """Convert to COCO's results format: box, mask and keypoints in one object, with the names of file and category."""
  names = dict(zip(source.image_ids.tolist(), source.file_names, strict=True))
  by_id = {category.id: category for category in source.categories}
  kinds = submission(detections, source.categories)
  keypoints = iter(kinds.get('keypoint', []))
  entries = []
  for i, entry in enumerate(kinds['box']):
    category = by_id[entry['category_id']]
    entry |= {'category_name': category.name, 'file_name': names[entry['image_id']]}
    if 'mask' in kinds:
      entry['segmentation'] = kinds['mask'][i]['segmentation']
    if category.keypoints and 'keypoint' in kinds:
      entry['keypoints'] = next(keypoints)['keypoints']
    entries.append(entry)
  return entries


def encode(image: np.ndarray, kind: str) -> bytes:
  """Encode uint8 [h, w, 3] RGB as 'jpg' or 'png'."""
  options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == 'jpg' else []
  return cv2.imencode(f'.{kind}', image[..., ::-1].copy(), options)[1].tobytes()


def _write_images_json(folder: str, source: UnannotatedImages) -> None:
  """Write the image of each id in predictions.json, and the images skipped so far."""
  images = [{'id': id_, 'file_name': name, 'height': height, 'width': width}
            for id_, name, (height, width) in zip(source.image_ids.tolist(), source.file_names, source.sizes.tolist(),
                                                  strict=True)]
  content = {'images': images, 'categories': categories_to_json(source.categories), 'skipped': source.skipped}
  files.write_output(os.path.join(folder, 'images.json'), json.dumps(content, indent=1).encode())
