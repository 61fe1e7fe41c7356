"""Conversion between an annotated image and a tf.train.Example in the schema of tf-models-official.

Besides the keys that `official.vision.dataloaders.tf_example_decoder` reads, `rethink_tf/annotation` contains the COCO
json object of every annotation, so that the conversion is lossless.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from pycocotools import mask as mask_api

from rethink_tf.data.categories import Category, as_text
from rethink_tf.data.detection import graph_record
from rethink_tf.data.detection.annotation_reader import AnnotationReader, FieldError
from rethink_tf.data.detection.annotations import Annotations
from rethink_tf.data.detection.segmentation import to_rle
from rethink_tf.data.images import MAX_PIXELS, ImageError, check_pixels, header_size, measure
from rethink_tf.errors import in_one_line, needs_models
from rethink_tf.structures import Example

_ANNOTATION, _CONVERSION = 'rethink_tf/annotation', 'rethink_tf/conversion'
_FORMATS = {b'\xff\xd8': 'jpg', b'\x89P': 'png', b'BM': 'bmp', b'GI': 'gif'}  # by the first two bytes


class Record(NamedTuple):
  """One image with its annotations, as stored in a record."""

  source_id: str
  file_name: str
  height: int
  width: int
  encoded: bytes  # contents of the image file
  annotations: list[dict[str, Any]]  # COCO json objects; without ids if the record was written by another converter


class Identified(NamedTuple):
  """What tells whose record it is."""

  source_id: str
  names: dict[int, str]  # label -> text of its objects: the label itself if it has no text
  conversion: str  # as given to `encode`; '' in records of earlier versions and of other converters


def encode(record: Record, categories: Sequence[Category], png_masks: bool,
           example: Example | None = None, conversion: str = '') -> bytes:
  """Serialise a record as a tf.train.Example.

  The keys of tf-models-official describe the annotations that have area inside the image; labels are category ids, as
  its own converter writes them. `png_masks`: write its masks too, PNG files of the size of the image. `example`: the
  image and its instances, for inputs without Python (graph_record.py). `conversion`: names the conversion; '': none.
  """
  with needs_models('writing TFRecords'):
    from official.vision.data import tfrecord_lib
  names = {category.id: category.name for category in categories}
  columns: dict[str, list[Any]] = {name: [] for name in (
      'bbox/xmin', 'bbox/xmax', 'bbox/ymin', 'bbox/ymax', 'class/label', 'class/text', 'is_crowd', 'area', 'mask')}
  for entry in record.annotations:
    x0, y0, w, h = entry['bbox']
    x1, y1 = min(x0 + w, record.width), min(y0 + h, record.height)
    x0, y0 = max(x0, 0.0), max(y0, 0.0)
    if x1 <= x0 or y1 <= y0:
      continue
    for name, value in (('bbox/xmin', x0 / record.width), ('bbox/xmax', x1 / record.width),
                        ('bbox/ymin', y0 / record.height), ('bbox/ymax', y1 / record.height),
                        ('class/label', entry['category_id']), ('class/text', names[entry['category_id']].encode()),
                        ('is_crowd', entry['iscrowd']), ('area', entry['area'])):
      columns[name].append(value)
    if png_masks:
      mask = mask_api.decode(to_rle(entry['segmentation'], record.height, record.width))
      columns['mask'].append(_encode_mask(mask))
  kinds = {'class/label': 'int64_list', 'is_crowd': 'int64_list', 'class/text': 'bytes_list', 'mask': 'bytes_list'}
  features = tfrecord_lib.image_info_to_feature_dict(
      record.height, record.width, record.file_name, record.source_id, record.encoded,
      _FORMATS.get(record.encoded[:2], 'other'))
  for name, values in columns.items():
    features[f'image/object/{name}'] = tfrecord_lib.convert_to_feature(values, kinds.get(name, 'float_list'))
  features[_ANNOTATION] = tfrecord_lib.convert_to_feature(
      [json.dumps(entry).encode() for entry in record.annotations], 'bytes_list')
  if conversion:
    features[_CONVERSION] = tfrecord_lib.convert_to_feature(conversion.encode(), 'bytes')
  if example is not None:
    features |= graph_record.features(example, record.encoded, categories)
  message = tf.train.Example(features=tf.train.Features(feature=features))
  return message.SerializeToString(deterministic=True)  # the same bytes in every process


def decode(payload: bytes, max_pixels: int = MAX_PIXELS) -> Record:
  """Parse a serialised tf.train.Example; inverse of `encode`, and of the converter of tf-models-official.

  Raises:
    ImageError: not an example of this schema, or an image of more than max_pixels.
  """
  features = _features(payload)
  record = _without_annotations(features, max_pixels)
  return record._replace(annotations=_annotations(features, record.height, record.width))


def decode_instances(payload: bytes, categories: Sequence[Category], num_keypoints: int, max_pixels: int
                     ) -> tuple[Record, tuple[np.ndarray, ...] | None]:
  """Parse a record for training: its instances as `graph_record.read` returns them, or its annotations.

  The record has no annotations if it holds the instances: to parse and rasterise them takes as long as the image.

  Raises:
    ImageError: as `decode`.
  """
  features = _features(payload)
  record = _without_annotations(features, max_pixels)
  try:
    instances = graph_record.read(features, (record.height, record.width), categories, num_keypoints)
  except ValueError as error:
    raise ImageError(f'{record.file_name}: {error}') from error
  if instances is None:
    record = record._replace(annotations=_annotations(features, record.height, record.width))
  return record, instances


@contextlib.contextmanager
def _of_the_schema() -> Iterator[None]:
  """Raise ImageError for what is not an example of the schema."""
  try:
    yield
  except (ValueError, IndexError, TypeError, KeyError, OSError, OverflowError, RecursionError) as error:
    raise ImageError('not an example in the schema of tf-models-official: '
                     + as_text(in_one_line(error, 200))) from error


def _without_annotations(features: Any, max_pixels: int) -> Record:
  with _of_the_schema():
    encoded = _values(features, 'image/encoded')[0]
    if not isinstance(encoded, bytes):
      raise ValueError('image/encoded is not a string of bytes')
    source_id = _text(_values(features, 'image/source_id', b''))
    file_name = _text(_values(features, 'image/filename', b'')) or source_id
    height, width = (int(_values(features, key, -1)[0]) for key in ('image/height', 'image/width'))
    if height <= 0 or width <= 0:
      height, width = measure(encoded)
    check_pixels((height, width), file_name, max_pixels)
  return Record(source_id, file_name, height, width, encoded, [])


def _annotations(features: Any, height: int, width: int) -> list[dict[str, Any]]:
  with _of_the_schema():
    if _ANNOTATION not in features:
      return _parse_official_annotations(features, height, width)
    annotations = [json.loads(text) for text in _values(features, _ANNOTATION)]
    if not all(isinstance(entry, dict) for entry in annotations):
      raise ValueError('an annotation is not an object')
    return annotations


def identify(payload: bytes) -> Identified:
  """Return what tells whose record a serialised tf.train.Example is.

  Raises:
    ImageError: not an example of this schema.
  """
  features = _features(payload)
  labels, texts = _values(features, 'image/object/class/label'), _values(features, 'image/object/class/text')
  texts = [_text([text]) for text in texts] if len(texts) == len(labels) else map(str, labels)
  with _of_the_schema():
    source_id, conversion = (_text(_values(features, key, b'')) for key in ('image/source_id', _CONVERSION))
  return Identified(source_id, {label: text for label, text in zip(labels, texts, strict=True)
                                if isinstance(label, int) and label >= 0}, conversion)


def validate(record: Record, image_id: int, categories: tuple[Category, ...], first_id: int) -> Annotations:
  """Validate the annotations of one record; those without an id are numbered first_id, first_id + 1, ...

  Raises:
    ImageError: an annotation lacks a required field.
  """
  reader = AnnotationReader(with_keypoints=any(category.keypoints for category in categories))
  try:
    for k, entry in enumerate(record.annotations):
      reader.add({'id': first_id + k} | entry | {'image_id': image_id})
  except FieldError as error:
    raise ImageError(f'{record.file_name}: {error}') from error
  return Annotations(reader, np.array([image_id]), np.array([[record.height, record.width]], np.int32), categories,
                     [record.file_name])


def _encode_mask(mask: np.ndarray) -> bytes:
  # 8 bits a pixel with the values 0 and 1, like tf-models-official's encode_mask_as_png, but smaller and three times as
  # fast.
  options = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
             cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
  return cv2.imencode('.png', mask, options)[1].tobytes()


def _parse_official_annotations(features: Any, height: int, width: int) -> list[dict[str, Any]]:
  """Build COCO json objects from boxes, labels and PNG masks."""
  x0, x1, y0, y1 = (np.array(_values(features, f'image/object/bbox/{side}')) * extent for side, extent in (
      ('xmin', width), ('xmax', width), ('ymin', height), ('ymax', height)))
  columns = {'category_id': _values(features, 'image/object/class/label'),
             'bbox': np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).tolist(),
             'iscrowd': _values(features, 'image/object/is_crowd'),
             'area': _values(features, 'image/object/area'),
             'segmentation': [_decode_mask(png, height, width) for png in _values(features, 'image/object/mask')]}
  columns = {field: values for field, values in columns.items() if values or field in ('category_id', 'bbox')}
  return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _decode_mask(png: bytes, height: int, width: int) -> dict[str, Any]:
  if not isinstance(png, bytes) or header_size(png) is None:
    raise ValueError('a mask is not a PNG')
  if header_size(png) != (height, width):
    return {'size': list(header_size(png)), 'counts': None}  # malformed; not decoded: any size is possible
  mask = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
  if mask is None:
    raise ValueError('a mask is not a PNG')
  rle = mask_api.encode(np.asfortranarray(mask > 0, np.uint8))
  return {'size': [int(side) for side in rle['size']], 'counts': rle['counts'].decode()}


def _features(payload: bytes) -> Any:
  try:
    return tf.train.Example.FromString(payload).features.feature
  except DecodeError as error:
    raise ImageError(f'not a tf.train.Example: {in_one_line(error)}') from error


def _values(features: Any, key: str, *default: Any) -> list[Any]:
  feature = features[key] if key in features else None
  kind = feature.WhichOneof('kind') if feature is not None else None
  return list(getattr(feature, kind).value) if kind else list(default)


def _text(values: list[Any]) -> str:
  return as_text(values[0].decode(errors='replace') if isinstance(values[0], bytes) else str(values[0]))
