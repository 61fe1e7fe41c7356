"""Corrupted data sets: annotations, images, TFRecords, hashtags."""

from __future__ import annotations

import io
import json
import shutil
import struct

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image

from rethink_tf.data import hashtags_conversion, tfrecord
from rethink_tf.data.augment import Resize
from rethink_tf.data.categories import Category
from rethink_tf.data.classification import vocabulary as hashtags
from rethink_tf.data.classification.hashtag_shards import HashtagSource
from rethink_tf.data.classification.image_folder import ImageFolder
from rethink_tf.data.classification.records import ImageRecords
from rethink_tf.data.conversion import convert
from rethink_tf.data.detection import segmentation, voc_xml
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.data.detection.record_format import Record, validate
from rethink_tf.data.detection.records import RecordSource
from rethink_tf.data.detection.voc import VocSource
from rethink_tf.data.images import ImageError, decode
from tests import small_coco, small_voc, tag_files
from tools import mutations
from tools.fuzz_kinds import ACCEPTED, SKIPPED, Target, fresh, load_all, one_line, pick
from tools.mutations import corrupt_bytes, corrupt_json, corrupt_text, corrupt_tree

HEIGHT, WIDTH = 60, 80


# COCO json.


def coco_json():
  rle = {'size': [HEIGHT, WIDTH], 'counts': [30, 12, 48, 12, HEIGHT * WIDTH - 102]}
  compressed = segmentation.to_rle(rle, HEIGHT, WIDTH)['counts'].decode()
  points = [11, 12, 2, 20.5, 30, 1, 0, 0, 0]
  return {
    'info': {'year': 2026}, 'images': [small_coco.image(i) for i in (1, 2, 3)],
    'annotations': [small_coco.annotation(1, keypoints=points, num_keypoints=2), small_coco.crowd(2, 2),
                    small_coco.annotation(3, 2, segmentation=rle),
                    small_coco.annotation(4, 3, segmentation=rle | {'counts': compressed}),
                    small_coco.annotation(5, 3, category_id=7)],
    'categories': [{'id': 1, 'name': 'cat', 'keypoints': ['nose', 'left_ear', 'right_ear'], 'skeleton': [[1, 2]]},
                   {'id': 7, 'name': 'dog', 'supercategory': 'animal'}]}


def _build_coco(folder):
  content = coco_json()
  small_coco.write(folder, content['images'], content['annotations'], content['categories'])


def _run_coco(rng, seeds, work):
  if not work.exists():
    shutil.copytree(seeds, work)
  file = work / 'annotations/instances_train2017.json'
  file.write_bytes(corrupt_json(rng, coco_json()))
  source = CocoSource(str(work), training=bool(rng.random() < 0.5), keypoints=bool(rng.random() < 0.3))
  content = source.annotations()
  for entry in content['annotations']:
    size = next((image['height'], image['width']) for image in content['images'] if image['id'] == entry['image_id'])
    segmentation.to_rle(entry['segmentation'], *size)
  json.dumps(content, allow_nan=False)
  source.digest()
  if rng.random() < 0.3:
    inputs = EvalInput(source, 2, Resize((32,), 64), workers=1, max_unreadable=1.0)
    for step in range(min(inputs.num_batches, 3)):
      inputs.batch(step)
  return load_all(source, bool(source.skipped))


def _run_segmentations(rng, work, seeds):
  entry = small_coco.annotation(1, segmentation=pick(rng, seeds), bbox=(5, 5, 40, 30))
  corrupted = corrupt_tree(rng, entry if rng.random() < 0.2 else entry['segmentation'])
  if rng.random() < 0.8 or not isinstance(corrupted, dict):
    corrupted = entry | {'segmentation': corrupted}
  table = validate(Record('1', 'x.jpg', HEIGHT, WIDTH, b'', [corrupted]), 1, (Category(1, 'thing'),), 1)
  table.example(0, np.zeros([HEIGHT, WIDTH, 3], np.uint8))
  for kept in json.loads(json.dumps(table.to_json(0), allow_nan=False)):
    segmentation.to_rle(kept['segmentation'], HEIGHT, WIDTH)
  return SKIPPED if table.problems.counts else ACCEPTED


def _rles():
  rng = np.random.default_rng(0)
  found = []
  for shape in ((HEIGHT, WIDTH), (HEIGHT, WIDTH), (HEIGHT // 2, WIDTH)):
    mask = cv2.blur(rng.random(shape), (9, 9)) > 0.5
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel(), [2]])))).tolist()
    runs = [0, *runs] if mask[0, 0] else runs
    found += [{'size': list(shape), 'counts': runs},
              {'size': list(shape), 'counts': segmentation.to_rle({'size': list(shape), 'counts': runs},
                                                                  *shape)['counts'].decode()}]
  return found


def _polygons():
  turns = np.linspace(0, 2 * np.pi, 40)
  blob = np.stack([40 + 30 * np.cos(turns), 30 + 20 * np.sin(turns)], axis=1).round(2)
  return [[blob.ravel().tolist()], [[1, 1, 20, 1, 20, 20, 1, 20], [30, 30, 50, 30.5, 40, 55.25]],
          [[-20, -20, 200, -20, 200, 200]]]


# PASCAL VOC, lists and labels.


def _build_voc(folder):
  annotation = small_voc.xml(small_voc.item(), small_voc.item('cat', (1, 1, 80, 60), 1, '<part><name>a</name></part>'))
  small_voc.write(folder, {'VOC2007/train': {'000001': annotation, '000002': annotation, '000003': small_voc.xml()}})


_EVIL_XML = (
  '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>', '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
  '<?xml version="1.0" encoding="utf-7"?>', '<?xml version="1.0" encoding="x"?>', '&a;', '&#x1b;', '&#xd800;',
  '<![CDATA[',
  '<a>' * 5000, '<xi:include href="/etc/passwd"/>', '<object/>',
  '<size><width>65535</width><height>65535</height></size>')


def _run_xml(rng, seeds, work):
  if not work.exists():
    shutil.copytree(seeds, work)
  text = (seeds / 'VOC2007/Annotations/000001.xml').read_text()
  for _ in range(int(rng.choice([0, 0, 1, 2]))):
    place = pick(rng, [0, text.find('<object>'), text.find('</name>'), int(rng.integers(len(text) + 1))])
    text = text[:place] + pick(rng, _EVIL_XML) + text[place:]
  data = corrupt_text(rng, text.replace('><', '>\n<')).encode(errors='surrogatepass')
  data = corrupt_bytes(rng, data) if rng.random() < 0.3 else data
  (work / 'VOC2007/Annotations/000001.xml').write_bytes(data)
  source = VocSource(str(work), ['VOC2007/train'], pick(rng, [None, ('dog', 'cat')]), training=bool(rng.random() < 0.7))
  source.annotations()
  try:
    voc_xml.parse(data, '000001.xml')
  except voc_xml.XmlError as error:
    one_line(error)
    return SKIPPED
  return load_all(source, bool(source.skipped))


def _build_lists(folder):
  _build_voc(folder / 'voc')
  for i in range(4):
    for place in (f'classes/train/{"ab"[i % 2]}', 'classes/val'):
      (folder / place).mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(folder / place / f'{i}.jpg'), np.full([20, 20, 3], 50 * i, np.uint8))


def _run_lists(rng, seeds, work):
  if not work.exists():
    shutil.copytree(seeds, work)
  if rng.random() < 0.5:
    text = pick(rng, ['000001\n000002\n000003\n', '000001  1\n000002 -1\n000003  0\n'])
    data = corrupt_text(rng, text).encode(errors='surrogatepass')
    data = corrupt_bytes(rng, data) if rng.random() < 0.2 else data
    (work / 'voc/VOC2007/ImageSets/Main/train.txt').write_bytes(data)
    source = VocSource(str(work / 'voc'), ['VOC2007/train'], None, training=bool(rng.random() < 0.5))
  else:
    text = pick(rng, ['0.jpg a\n1.jpg b\n2.jpg 0\n3.jpg 1\n', 'ImageId,PredictionString\n0,a 1 2 3 4\n1,b 1 2\n',
                      'a\nb\na\nb\n'])
    data = corrupt_text(rng, text).encode(errors='surrogatepass')
    (work / 'classes/val.txt').write_bytes(corrupt_bytes(rng, data) if rng.random() < 0.2 else data)
    source = ImageFolder(str(work / 'classes'), 'val', training=bool(rng.random() < 0.5))
  return load_all(source)


# Images.


def _build_images(folder):
  rng = np.random.default_rng(0)
  pixels = cv2.blur(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8), (5, 5))
  exif = Image.Exif()
  exif[0x0112] = 6
  whole = Image.fromarray(pixels)
  for name, image, kind, options in (
      ('plain', whole, 'JPEG', {}), ('progressive', whole, 'JPEG', {'progressive': True}), ('turned', whole, 'JPEG',
      {'exif': exif}), ('grey', whole.convert('L'), 'JPEG', {}), ('cmyk', whole.convert('CMYK'), 'JPEG', {}),
      ('colour', whole, 'PNG', {}), ('deep', Image.fromarray(pixels[..., 0].astype(np.uint16) * 200), 'PNG', {}),
      ('alpha', whole.convert('RGBA'), 'PNG', {}), ('palette', whole.convert('P'), 'PNG', {}), ('a', whole, 'BMP', {}),
      ('a', whole, 'GIF', {}), ('a', whole, 'WEBP', {}), ('a', whole, 'TIFF', {}),
      ('packed', whole, 'TIFF', {'compression': 'tiff_lzw'}), ('a', whole, 'PPM', {})):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    (folder / f'{name}.{kind.lower()}').write_bytes(stream.getvalue())


def _run_images(rng, seeds, _):
  paths = sorted(seeds.iterdir())
  jpegs = [path for path in paths if path.suffix == '.jpeg']
  data = pick(rng, jpegs if rng.random() < 0.5 else paths).read_bytes()
  data = corrupt_bytes(rng, data, [path.read_bytes() for path in paths])
  try:
    image = decode(data, 'x', pick(rng, [None, (48, 64), (64, 48)]))
  except ImageError as error:
    one_line(error)
    return SKIPPED
  assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
  return ACCEPTED


# TFRecords, with the files beside them.


def _build_records(folder):
  content = coco_json()
  source = CocoSource(small_coco.write(folder / 'raw', content['images'], content['annotations'],
                                       content['categories']), keypoints=True)
  convert(source, str(folder / 'coco'), 'train', 2, num_workers=1)
  (folder / 'classes').mkdir()
  with tf.io.TFRecordWriter(str(folder / 'classes/train-00000-of-00001.tfrecord')) as writer:
    for i in range(4):
      image = cv2.imencode('.jpg', np.full([20, 20, 3], 50 * i, np.uint8))[1].tobytes()
      writer.write(_example({'image/encoded': [image], 'image/class/label': [1 + i % 2],
                             'image/class/text': [b'cat'], 'image/filename': [b'%d.jpg' % i]}))
  tag_files.write_shards(folder / 'tags', 12, 2)
  shutil.rmtree(folder / 'tags/images')
  list(map(RecordSource, [str(folder / 'coco')], ['train']))
  ImageRecords(str(folder / 'classes'))


def _example(values):
  def feature(items):
    if items and isinstance(items[0], bytes):
      return tf.train.Feature(bytes_list=tf.train.BytesList(value=items))
    if items and isinstance(items[0], float):
      return tf.train.Feature(float_list=tf.train.FloatList(value=items))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=items))
  features = {name: feature(items) for name, items in values.items()}
  return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _corrupt_example(rng, payload):
  """Change value, number of values or type of one or two fields of a tf.train.Example."""
  features = tf.train.Example.FromString(payload).features.feature
  values = {name: list(getattr(one, one.WhichOneof('kind')).value) if one.WhichOneof('kind') else []
            for name, one in sorted(features.items())}
  for _ in range(int(rng.choice([1, 2]))):
    name = pick(rng, list(values))
    numbers = [value for value in mutations.NUMBERS if isinstance(value, float) or abs(value) < 2 ** 63]
    match int(rng.integers(5)):
      case 0:
        del values[name]
        if not values:
          break
      case 1:
        values[name] = [int(value) for value in (pick(rng, numbers) for _ in range(3))
                        if np.isfinite(value) and abs(value) < 2 ** 63]
      case 2:
        values[name] = [float(pick(rng, numbers))] * int(rng.choice([1, 2, 3]))
      case 3:
        values[name] = [mutations.word(rng).encode(errors='surrogatepass')] * int(rng.choice([1, 2, 3]))
      case _ if values[name] and isinstance(values[name][0], bytes):
        values[name] = [corrupt_bytes(rng, value) for value in values[name]]
      case _:
        values[name] = values[name] * 2
  return _example(values)


def _corrupt_shard(rng, data_path):
  """Corrupt a TFRecord file: any bytes, or the contents of a record with valid framing."""
  data = data_path.read_bytes()
  if rng.random() < 0.4:
    return corrupt_bytes(rng, data)
  payloads = [payload for _, payload in tfrecord.scan(str(data_path))]
  i = int(rng.integers(len(payloads)))
  payloads[i] = corrupt_bytes(rng, payloads[i]) if rng.random() < 0.3 else _corrupt_example(rng, payloads[i])
  lengths = [len(payload) for payload in payloads]
  if rng.random() < 0.1:
    lengths[i] = pick(rng, [2 ** 24, 2 ** 31, 2 ** 40, 2 ** 62, 2 ** 64 - 1, 2 ** 64 - 5])
  framed = b''
  for length, payload in zip(lengths, payloads, strict=True):
    head = struct.pack('<Q', length)
    framed += head + struct.pack('<I', tfrecord.masked_crc(head)) + payload
    framed += struct.pack('<I', tfrecord.masked_crc(payload))
  return framed


def _run_records(rng, seeds, work):
  which = pick(rng, ['coco', 'coco', 'classes', 'tags'])
  fresh(seeds / which / 'shards' if which == 'tags' else seeds / which, work)
  path = pick(rng, sorted(work.iterdir()))
  if path.suffix == '.tfrecord':
    path.write_bytes(_corrupt_shard(rng, path))
    for index in work.glob('*-index.json') if rng.random() < 0.8 and which != 'tags' else ():
      index.unlink()
  elif path.suffix == '.json':
    path.write_bytes(corrupt_json(rng, json.loads(path.read_text())))
  else:
    path.write_bytes(_corrupt_columns(rng, path))
  if which == 'coco':
    source = RecordSource(str(work), 'train', keypoints=bool(rng.random() < 0.5), training=bool(rng.random() < 0.5))
    json.dumps(source.annotations(), allow_nan=False)
  elif which == 'classes':
    source = ImageRecords(str(work), first_label=pick(rng, [0, 1]))
  else:
    source = HashtagSource(str(work), training=bool(rng.random() < 0.5))
    assert source.classes.shape[0] == len(source.image_ids)
  return load_all(source, bool(getattr(source, 'skipped', {})))


def _corrupt_columns(rng, path):
  data = path.read_bytes()
  if rng.random() < 0.5:
    return corrupt_bytes(rng, data)
  arrays = dict(np.load(io.BytesIO(data)))
  name = pick(rng, list(arrays))
  arrays[name] = pick(rng, [np.array(2 ** 40), np.arange(5), np.zeros([3, 3]), np.array('x'), arrays[name][..., None],
                             -np.ones(4, np.int64), np.full(np.shape(arrays[name]), 10 ** 6), np.zeros(0, np.int32)])
  stream = io.BytesIO()
  pick(rng, [np.savez, np.savez_compressed])(stream, **arrays)
  return stream.getvalue()


# JSON lines of hashtags.


def _build_tags(folder):
  rows = tag_files.tagged(tag_files.render_images(folder / 'images', 6, side=8))
  tag_files.write_json_lines(folder / 'images/images.jsonl', rows)
  tag_files.write_synonyms(folder / 'synonyms.tsv')
  hashtags.build_vocabulary(str(folder / 'images/images.jsonl')).save(str(folder / 'vocabulary.json'))


def _run_tags(rng, seeds, work):
  fresh(seeds, work)
  path = pick(rng, [work / 'images/images.jsonl', work / 'images/images.jsonl', work / 'synonyms.tsv',
                     work / 'vocabulary.json'])
  text = path.read_text()
  if path.suffix == '.jsonl':
    lines = text.splitlines()
    i = int(rng.integers(len(lines)))
    lines[i] = corrupt_json(rng, json.loads(lines[i])).decode(errors='replace')
    text = '\n'.join(lines) + '\n'
  path.write_bytes(corrupt_json(rng, json.loads(text)) if path.suffix == '.json' else corrupt_bytes(rng, text.encode())
                   if rng.random() < 0.3 else corrupt_text(rng, text).encode(errors='surrogatepass'))
  rows = str(work / 'images/images.jsonl')
  synonyms = hashtags.load_synonyms(str(work / 'synonyms.tsv'))
  vocabulary = hashtags.build_vocabulary(rows, synonyms)
  vocabulary.save(str(work / 'again.json'))
  vocabulary = hashtags.Vocabulary.load(str(work / pick(rng, ['again.json', 'vocabulary.json'])))
  index = hashtags_conversion.convert_hashtags(rows, vocabulary, str(work / 'out'), num_shards=2, num_workers=1)
  return load_all(HashtagSource(str(work / 'out')), index.left_out > 0)


def _nothing(folder):
  del folder


TARGETS = (
  Target('COCO json', _build_coco, _run_coco),
  Target('run lengths', _nothing, lambda rng, _, work: _run_segmentations(rng, work, _rles())),
  Target('polygons', _nothing, lambda rng, _, work: _run_segmentations(rng, work, _polygons())),
  Target('VOC xml', _build_voc, _run_xml),
  Target('image lists', _build_lists, _run_lists),
  Target('images', _build_images, _run_images),
  Target('TFRecords', _build_records, _run_records),
  Target('hashtags', _build_tags, _run_tags),
)
