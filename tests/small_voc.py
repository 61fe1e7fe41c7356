"""Small data sets of plain images in PASCAL VOC's layout, to be damaged by the tests."""

import pathlib

import cv2
import numpy as np

HEIGHT, WIDTH = 60, 80


def item(name='dog', box=(11, 21, 30, 50), difficult=0, more=''):
  """Return an <object>; box is xmin, ymin, xmax, ymax as in VOC."""
  corners = ''.join(f'<{tag}>{value}</{tag}>' for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True))
  return (f'<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>'
          f'<bndbox>{corners}</bndbox>{more}</object>')


def xml(*items, size=(HEIGHT, WIDTH)):
  """Return the text of an annotation file."""
  height, width = size
  return (f'<annotation><folder>VOC</folder><filename>any.jpg</filename><size><width>{width}</width>'
          f'<height>{height}</height><depth>3</depth></size>{"".join(items)}</annotation>')


def write(folder, sets):
  """Write {'VOC2007/train': {'000001': xml, ...}, ...}; sets without a year are written to the folder itself."""
  for full_name, files in sets.items():
    year, _, image_set = full_name.rpartition('/')
    root = pathlib.Path(folder) / year
    for name in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
      (root / name).mkdir(parents=True, exist_ok=True)
    (root / f'ImageSets/Main/{image_set}.txt').write_text(''.join(f'{name}\n' for name in files))
    for name, text in files.items():
      (root / f'Annotations/{name}.xml').write_text(text)
      cv2.imwrite(str(root / f'JPEGImages/{name}.jpg'), np.full([HEIGHT, WIDTH, 3], 90, np.uint8))
  return str(folder)
