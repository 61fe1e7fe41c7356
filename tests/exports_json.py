"""Data sets as further annotation tools export them: writers of JSON and JSON Lines, as those of tests.exports."""

import base64
import io
import json
import zlib
from urllib.parse import quote

import numpy as np
from PIL import Image

from tests.exports import copy, flat, rasterise, write_json


def createml(items, names, folder, of_apple=False, units=1.0):
  """Roboflow's Create ML export: centres in pixels, beside the images of each split; or as Apple's framework has it."""
  name, objects = ('imagefilename', 'annotation') if of_apple else ('image', 'annotations')
  for split in dict.fromkeys(item.split for item in items):
    entries = []
    for item in (item for item in items if item.split == split):
      copy(item, folder / split / flat(item))
      across, down = (side if units is None else units for side in item.size[::-1])
      entries.append({name: flat(item), objects: [
        {'label': label, 'coordinates': {'x': (x + w / 2) / across, 'y': (y + h / 2) / down, 'width': w / across,
                                         'height': h / down}} for label, (x, y, w, h), _ in item.objects]})
    write_json(folder / split / '_annotations.createml.json', entries)


def vott(items, names, folder):
  """VoTT's JSON export with images: one file of all assets, regions with corners and outlines."""
  assets = {}
  for i, item in enumerate(items):
    copy(item, folder / 'vott-json-export' / flat(item))
    regions = [{'id': f'r{k}', 'type': 'POLYGON' if segmentation else 'RECTANGLE', 'tags': [label],
                'boundingBox': {'left': x, 'top': y, 'width': w, 'height': h},
                'points': [{'x': a, 'y': b} for a, b in (np.reshape(segmentation[0], [-1, 2]).tolist() if segmentation
                                                         else ((x, y), (x + w, y), (x + w, y + h), (x, y + h)))]}
               for k, (label, (x, y, w, h), segmentation) in enumerate(item.objects)]
    assets[f'{i:032x}'] = {'asset': {
      'format': 'jpg', 'id': f'{i:032x}', 'name': quote(flat(item)), 'path': f'file:C:/data/{quote(flat(item))}',
      'size': {'width': item.size[1], 'height': item.size[0]}, 'state': 2 if regions else 1, 'type': 1},
      'regions': regions, 'version': '2.2.0'}
  write_json(folder / 'vott-json-export/things-export.json', {
    'name': 'things', 'securityToken': 'things Token', 'tags': [{'name': name, 'color': '#5db300'}
                                                                for name in names.values()],
    'version': '2.2.0', 'activeLearningSettings': {}, 'id': 'x', 'assets': assets})


def supervisely(items, names, folder):
  """Supervisely's project, a data set for each split: outlines with fractions, bitmaps and boxes."""
  for i, item in enumerate(items):
    path = folder / item.split / 'img' / flat(item)
    copy(item, path)
    continuous = i % 2 == 0 and all(segmentation and any(value % 1 for polygon in segmentation for value in polygon)
                                    for _, _, segmentation in item.objects)
    whole = all(float(value).is_integer() for _, bbox, _ in item.objects for value in bbox)
    objects = []
    for k, (label, (x, y, w, h), segmentation) in enumerate(item.objects):
      common = {'id': k, 'classId': 1, 'description': '', 'tags': [], 'classTitle': label, 'instance': f'{k:032x}'}
      if continuous:
        objects += [common | {'geometryType': 'polygon', 'points': {
          'exterior': np.reshape(polygon, [-1, 2]).tolist(), 'interior': []}} for polygon in segmentation]
      elif segmentation:
        objects.append(common | {'geometryType': 'bitmap', 'bitmap': bitmap(rasterise(segmentation, item.size))})
      else:
        objects.append(common | {'geometryType': 'rectangle', 'points': {
          'exterior': [[x, y], [x + w - whole, y + h - whole]], 'interior': []}})
    write_json(folder / item.split / 'ann' / f'{flat(item)}.json', {
      'description': '', 'tags': [], 'size': {'height': item.size[0], 'width': item.size[1]}, 'objects': objects})
  write_json(folder / 'meta.json', {'classes': [{'title': name, 'shape': 'any', 'color': '#5db300', 'id': i}
                                                for i, name in names.items()], 'tags': [], 'projectType': 'images'})


def sagemaker(items, names, folder):
  """Output manifests of SageMaker Ground Truth, one a split: boxes of a job, and the job that has verified them."""
  numbers = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
  for split in dict.fromkeys(item.split for item in items):
    lines = []
    for item in (item for item in items if item.split == split):
      copy(item, folder / 'images' / split / flat(item))
      lines.append(json.dumps({
        'source-ref': f's3://bucket/{split}/{flat(item)}', 'boxes': {
          'image_size': [{'width': item.size[1], 'height': item.size[0], 'depth': 3}],
          'annotations': [{'class_id': numbers[label], 'left': x, 'top': y, 'width': w, 'height': h}
                          for label, (x, y, w, h), _ in item.objects]},
        'boxes-metadata': {'objects': [{'confidence': 0.9}] * len(item.objects), 'class-map': {
          str(i): name for name, i in numbers.items()}, 'type': 'groundtruth/object-detection',
          'human-annotated': 'yes', 'creation-date': '2024-01-01T00:00:00', 'job-name': 'labeling-job/boxes'},
        'check': '1', 'check-metadata': {'class-name': 'good', 'type': 'groundtruth/label-verification'}}))
    (folder / f'{split}.manifest').write_text('\n'.join(lines) + '\n')


def imagefolder(items, names, folder, named=True, column='categories'):
  """Hugging Face's imagefolder: metadata.jsonl beside the images of each split; classes by name, or by number."""
  numbers = {name: i for i, name in enumerate(sorted(set(names.values())))}
  for split in dict.fromkeys(item.split for item in items):
    lines = []
    for item in (item for item in items if item.split == split):
      copy(item, folder / split / item.name)
      lines.append(json.dumps({'file_name': item.name, 'objects': {
        'id': list(range(len(item.objects))), 'area': [w * h for _, (_, _, w, h), _ in item.objects],
        'bbox': [list(bbox) for _, bbox, _ in item.objects],
        column: [label if named else numbers[label] for label, _, _ in item.objects]}}))
    (folder / split / 'metadata.jsonl').write_text('\n'.join(lines) + '\n')


def labelbox(items, names, folder):
  """Labelbox's NDJSON, one file of all rows, with the images in folders of their splits: boxes and polygons."""
  lines = []
  for i, item in enumerate(items):
    copy(item, folder / item.split / flat(item))
    objects = [{'feature_id': f'f{k}', 'feature_schema_id': 's', 'name': label, 'classifications': []} | (
      {'annotation_kind': 'ImagePolygon', 'polygon': [{'x': a, 'y': b} for a, b in np.reshape(
        segmentation[0], [-1, 2]).tolist()]} if segmentation else
      {'annotation_kind': 'ImageBoundingBox', 'bounding_box': {'top': y, 'left': x, 'height': h, 'width': w}})
      for k, (label, (x, y, w, h), segmentation) in enumerate(item.objects)]
    lines.append(json.dumps({
      'data_row': {'id': f'row{i}', 'external_id': flat(item), 'row_data': f'https://storage/x/{i}'},
      'media_attributes': {'height': item.size[0], 'width': item.size[1], 'mime_type': 'image/jpeg'},
      'projects': {'project1': {'name': 'things', 'labels': [{
        'label_kind': 'Default', 'version': '1.0.0', 'id': f'label{i}', 'performance_details': {'skipped': False},
        'annotations': {'objects': objects, 'classifications': [], 'relationships': []}}]}}}))
  (folder / 'export-result.ndjson').write_text('\n'.join(lines) + '\n')


def bdd100k(items, names, folder, as_object=False):
  """BDD100K's JSON, a list of frames for each split, or Scalabel's object: boxes beside closed polygons."""
  for split in dict.fromkeys(item.split for item in items):
    frames = []
    for i, item in enumerate(item for item in items if item.split == split):
      copy(item, folder / 'images' / split / flat(item))
      frames.append({'name': flat(item), 'timestamp': i, 'size': {'width': item.size[1], 'height': item.size[0]},
                     'labels': [{'id': str(k), 'category': label, 'attributes': {'occluded': False, 'crowd': False},
                                 'box2d': {'x1': x, 'y1': y, 'x2': x + w, 'y2': y + h}} | ({'poly2d': [
                                   {'vertices': np.reshape(polygon, [-1, 2]).tolist(), 'closed': True,
                                    'types': 'L' * (len(polygon) // 2)} for polygon in segmentation]}
                                   if segmentation else {})
                                for k, (label, (x, y, w, h), segmentation) in enumerate(item.objects)]})
    write_json(folder / 'labels' / f'det_{split}.json', {'frames': frames, 'config': {}} if as_object else frames)


def cityscapes(items, names, folder):
  """Cityscapes' folders: a road behind the objects, whose outlines, or boxes, are in whole pixels, and no more."""
  for item in items:
    stem = flat(item).rpartition('.')[0]
    copy(item, folder / 'leftImg8bit' / item.split / 'a city' / f'{stem}_leftImg8bit.png')
    height, width = item.size
    objects = [{'label': 'road', 'polygon': [[0, 0], [width, 0], [width, height], [0, height]]}] + [
      {'label': label, 'polygon': [[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]]}
      for label, (x, y, w, h), _ in item.objects]
    write_json(folder / 'gtFine' / item.split / 'a city' / f'{stem}_gtFine_polygons.json', {
      'imgHeight': height, 'imgWidth': width, 'objects': objects})


def datumaro(items, names, folder):
  """Datumaro's JSON, a file a subset; outlines of one object in one group."""
  numbers = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
  for split in dict.fromkeys(item.split for item in items):
    entries = []
    for item in (item for item in items if item.split == split):
      copy(item, folder / 'images' / split / flat(item))
      annotations = []
      for k, (label, bbox, segmentation) in enumerate(item.objects, start=1):
        common = {'id': k, 'attributes': {'occluded': False}, 'group': k, 'label_id': numbers[label], 'z_order': 0}
        annotations += [common | {'type': 'polygon', 'points': list(polygon)} for polygon in segmentation]
        if not segmentation:
          annotations.append(common | {'type': 'bbox', 'bbox': list(bbox)})
      entries.append({'id': flat(item).rpartition('.')[0], 'annotations': annotations,
                      'image': {'path': flat(item), 'size': list(item.size)}})
    write_json(folder / 'annotations' / f'{split}.json', {
      'dm_format_version': '1.0', 'media_type': 2, 'infos': {}, 'categories': {'label': {
        'labels': [{'name': name, 'parent': '', 'attributes': []} for name in numbers], 'label_groups': [],
        'attributes': ['occluded']}}, 'items': entries})


def darwin(items, names, folder):
  """V7's Darwin JSON 2.0 beside the images of each split; several outlines are the paths of one polygon."""
  for item in items:
    copy(item, folder / item.split / 'images' / flat(item))
    annotations = []
    for k, (label, (x, y, w, h), segmentation) in enumerate(item.objects):
      one = {'id': str(k), 'name': label, 'slot_names': ['0'], 'properties': [],
             'bounding_box': {'x': x, 'y': y, 'w': w, 'h': h}}
      if segmentation:
        one['polygon'] = {'paths': [[{'x': a, 'y': b} for a, b in np.reshape(polygon, [-1, 2]).tolist()]
                                    for polygon in segmentation]}
      annotations.append(one)
    write_json(folder / item.split / 'annotations' / f'{flat(item).rpartition(".")[0]}.json', {
      'version': '2.0', 'schema_ref': 'https://darwin-public.s3/darwin_json/2.0/schema.json', 'item': {
        'name': flat(item), 'path': '/', 'slots': [{'type': 'image', 'slot_name': '0', 'width': item.size[1],
                                                    'height': item.size[0], 'source_files': []}]},
      'annotations': annotations})


def bitmap(mask):
  """Return Supervisely's form of a mask: the PNG of its box, with a palette and transparency, compressed once more."""
  (y0, x0), (y1, x1) = np.argwhere(mask).min(axis=0).tolist(), np.argwhere(mask).max(axis=0).tolist()
  image, data = Image.fromarray(np.ascontiguousarray(mask[y0:y1 + 1, x0:x1 + 1], np.uint8)), io.BytesIO()
  image.putpalette([0, 0, 0, 255, 255, 255])
  image.save(data, format='PNG', transparency=0)
  return {'origin': [x0, y0], 'data': base64.b64encode(zlib.compress(data.getvalue())).decode()}
