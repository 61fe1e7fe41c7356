"""Data sets of a few flat pictures in PASCAL VOC's layout, to be spoilt by the tests."""

import pathlib

import cv2
import numpy as np

HEIGHT, WIDTH = 60, 80


def item(name='dog', box=(11, 21, 30, 50), difficult=0, more=''):
  """An <object>; box is xmin, ymin, xmax, ymax as VOC writes them."""
  corners = ''.join(f'<{tag}>{value}</{tag}>' for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True))
  return (f'<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>'
          f'<bndbox>{corners}</bndbox>{more}</object>')


def xml(*items, size=(HEIGHT, WIDTH)):
  """An annotation file."""
  height, width = size
  return (f'<annotation><folder>VOC</folder><filename>any.jpg</filename><size><width>{width}</width>'
          f'<height>{height}</height><depth>3</depth></size>{"".join(items)}</annotation>')


def write(folder, sets, pictures=True):
  """Writes {'VOC2007/train': {'000001': xml, ...}, ...}; a name without a year lies in the folder itself."""
  for joined, files in sets.items():
    year, _, which = joined.rpartition('/')
    home = pathlib.Path(folder) / year
    for part in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
      (home / part).mkdir(parents=True, exist_ok=True)
    (home / f'ImageSets/Main/{which}.txt').write_text(''.join(f'{name}\n' for name in files))
    for name, text in files.items():
      (home / f'Annotations/{name}.xml').write_text(text)
      if pictures:
        cv2.imwrite(str(home / f'JPEGImages/{name}.jpg'), np.full([HEIGHT, WIDTH, 3], 90, np.uint8))
  return str(folder)
