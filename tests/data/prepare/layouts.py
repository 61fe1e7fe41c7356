"""The smallest annotation file of some layouts, and what a layout reads of files."""

import json

from rethink_tf.data.prepare.layout import Options
from rethink_tf.data.prepare.source_folder import SourceFolder

COCO = {'images': [{'id': 1, 'file_name': 'a.jpg', 'height': 8, 'width': 9}],
        'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 2, 2], 'area': 4, 'iscrowd': 0}],
        'categories': [{'id': 1, 'name': 'cat'}]}
LABELME = {'shapes': [], 'imagePath': 'a.jpg', 'imageData': None}
VOC = '<annotation><filename>a.jpg</filename></annotation>'


def reading_of(layout, root, files, images, options=None):
  """Write files, {name: text or content of JSON}, and empty images; return the reading of a layout, and its images."""
  for name, content in {**files, **dict.fromkeys(images, '')}.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
  folder = SourceFolder(str(root))
  assert layout.recognize(folder) is not None
  reading = layout.read(folder, options or Options())
  return reading, list(reading.images)
