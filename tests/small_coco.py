"""Small data sets of plain images in COCO's layout, to be damaged by the tests."""

import json
import pathlib

import cv2
import numpy as np


def image(id_, height=60, width=80):
  """Return an entry of "images"."""
  return {'id': id_, 'file_name': f'{id_:06d}.jpg', 'height': height, 'width': width}


def annotation(id_, image_id=1, bbox=(10, 10, 20, 30), **fields):
  """Return an entry of "annotations": a rectangle."""
  x, y, w, h = bbox
  return {'id': id_, 'image_id': image_id, 'category_id': 1, 'bbox': list(bbox), 'area': w * h, 'iscrowd': 0,
          'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]]} | fields


def crowd(id_, image_id=1, height=60, width=80):
  """Return a crowd that fills the image, as uncompressed run lengths."""
  return annotation(id_, image_id, (0, 0, width, height), iscrowd=1,
                    segmentation={'size': [height, width], 'counts': [0, height * width]})


def write(folder, images=None, annotations=(), categories=None, split='train2017'):
  """Write images and annotation file in the standard layout; return the folder as a string."""
  images = [image(1)] if images is None else images
  categories = [{'id': 1, 'name': 'thing'}] if categories is None else categories
  folder = pathlib.Path(folder)
  (folder / split).mkdir(parents=True, exist_ok=True)
  for entry in images:
    pixels = np.full([entry['height'], entry['width'], 3], entry['id'] % 200, np.uint8)
    cv2.imwrite(str(folder / split / entry['file_name']), pixels)
  write_json(folder, {'images': images, 'annotations': list(annotations), 'categories': categories}, split)
  return str(folder)


def write_json(folder, content, split='train2017'):
  """Write the annotation file only: an object, or a text that is not JSON."""
  path = pathlib.Path(folder) / 'annotations' / f'instances_{split}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return str(folder)


def warnings(caplog) -> list[str]:
  """Return the warnings logged so far."""
  return [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
