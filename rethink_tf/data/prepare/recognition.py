"""Recognizes the layout of a folder by its files."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from typing import NamedTuple

from rethink_tf.data import in_place
from rethink_tf.data.images import LFS
from rethink_tf.data.prepare import (
  bdd100k,
  cityscapes,
  coco_json,
  createml,
  cvat,
  darwin,
  datumaro,
  imagefolder,
  label_studio,
  labelbox,
  labelme,
  mask_images,
  open_images,
  sagemaker,
  supervisely,
  tables,
  via,
  voc_folders,
  vott,
  yolo,
)
from rethink_tf.data.prepare.layout import Layout
from rethink_tf.data.prepare.source_folder import ARCHIVES, EXAMINED, JsonShape, SourceFolder
from rethink_tf.errors import UserError, excerpt

LAYOUTS: tuple[Layout, ...] = (coco_json, yolo, voc_folders, labelme, label_studio, via, cvat, createml, vott,
                              supervisely, sagemaker, imagefolder, labelbox, datumaro, darwin, bdd100k, cityscapes,
                              open_images, tables, mask_images)
NAMES = tuple(layout.NAME for layout in LAYOUTS)
_ANNOTATIONS = 'annotations'  # folder of COCO's layout, beside those of the images
_OWN = '--gin_file=gin_configs/data/own.gin'
_TOOLS = (  # keys of a JSON object, or of the first one of a list; what that is, and what to do
  ({'project', 'metadata', 'attribute'}, False, 'a project of VIA 3: export its annotations as COCO json'),
  ({'sourceConnection', 'tags'}, False, "a project of VoTT without its regions: export it as 'VoTT JSON', with images"),
  ({'project_name', 'label_classes', 'images'}, False, 'JSON of Hasty: export as COCO json'),
  ({'imgHeight', 'imgWidth', 'objects'}, False, 'JSON as of Cityscapes, of which '
   'NAME_gtFine_polygons.json is read: convert the annotations to COCO json'),
  ({'Labeled Data', 'Label'}, True, "JSON of Labelbox's first version: export again, as NDJSON"),
  ({'image'}, True, "Label Studio's JSON-MIN: export as JSON, or as COCO with images"))
_LINES = {'.manifest': 'JSON Lines without the source-ref of SageMaker Ground Truth',
          '.odgt': 'JSON Lines of CrowdHuman',
          '.jsonl': "JSON Lines without the objects of Hugging Face's imagefolder",
          '.ndjson': 'JSON Lines'}
_OF_IMAGES = re.compile(r'image|file|\.(jpe?g|png)\b|x_?min|bbox', re.IGNORECASE)  # not the metrics of a training
_NUMBERS = re.compile(r'([-+.\deE]+[\s,;]+){3}[-+.\d]')  # four of them, as a box has


class Found(NamedTuple):
  """A layout, and the evidence for it."""

  layout: Layout
  evidence: str

  def __str__(self) -> str:
    return f'{self.layout.TITLE} ({self.evidence})'


def find(folder: SourceFolder) -> list[Found]:
  """Return all layouts that a folder may have."""
  found = [Found(layout, evidence) for layout in LAYOUTS if (evidence := layout.recognize(folder)) is not None]
  # Beside annotations, masks are a further output of most tools, and tables are made from these, as in the tutorials
  # of TensorFlow's object detection.
  return [one for one in found if one.layout not in (tables, mask_images)] or found


def choose(folder: SourceFolder, name: str | None = None) -> Found:
  """Return the layout of a folder; name: the layout to choose if the folder has files of several.

  Raises:
    UserError: no layout is found, or several are.
  """
  if name is not None:
    layout = next((one for one in LAYOUTS if one.NAME == name), None)
    if layout is None:
      raise UserError(f'--layout = {name!r}: use one of {", ".join(NAMES)}')
    evidence = layout.recognize(folder)
    if evidence is None:
      others = find(folder)
      raise UserError(f'{folder.root}: no {layout.TITLE} in it'
                      + (f': it has {" and ".join(map(str, others))}' if others else ''))
    return Found(layout, evidence)
  found = find(folder)
  if not found:
    raise UserError(f'{folder.root}: {_explain(folder)}')
  if len(found) > 1:
    raise UserError(f'{folder.root}: may be {" or ".join(map(str, found))}: choose with '
                    f'{" or ".join(f"--layout={one.layout.NAME}" for one in found)}')
  return found[0]


def describe(path: str) -> str | None:
  """Describe what is at a local path instead of the expected data, and what to do; None if there is nothing."""
  if os.path.isfile(path) and not path.lower().endswith(ARCHIVES):
    return f'{path} is a file: give the folder of the data set'
  if not os.path.exists(path):
    return None
  above = os.path.dirname(os.path.abspath(path))
  if os.path.isdir(os.path.join(above, _ANNOTATIONS)) and not os.path.isdir(os.path.join(path, _ANNOTATIONS)):
    return f'{path} is a part of a data set: give the folder above it, {above}'
  try:
    folder = SourceFolder(path, follow_links=True)
    found = find(folder)
    if not found:
      return f'{path}: {_explain(folder)}'
  except UserError as error:
    return error.line()
  if in_place.is_readable(path):
    return (f'{path} holds {" and ".join(map(str, found))}: {_OWN}, with no bindings of your own for the sources, '
            'reads it as it is')
  layout = f' --layout={found[0].layout.NAME}' if len(found) > 1 else ''
  return (f'{path} holds {" and ".join(map(str, found))}: python -m rethink_tf.data.prepare {shlex.quote(path)} '
          f'--output_dir=data/my_images{layout} writes what {_OWN} reads, with --data_dir=data/my_images')


def _texts_with_boxes(folder: SourceFolder) -> tuple[str | None, str | None]:
  """Return messages about text files with numbers: one that has the name of an image, and one that has not."""
  of_many = None
  for file in folder.with_suffix('.txt')[:EXAMINED] if folder.images else ():
    line = next((line for line in folder.read_text(file).splitlines() if _NUMBERS.search(line[:200])), None)
    if line is not None and folder.image_of(file):
      return (f'{file} has the name of an image, but {excerpt(line, 60)} is not a YOLO label (class number, x, y, '
              'width and height as fractions, with blanks between them): convert the annotations to COCO json'), None
    if line is not None and of_many is None:
      of_many = (f'{file} has numbers, as {excerpt(line, 60)}, but not the name of an image: annotations of many '
                 'images in one text file (MOT, WIDER FACE and similar) are not read: convert them to COCO json')
  return None, of_many


def _head(folder: SourceFolder, file: str) -> str:
  """Return the first two lines of a text file, '' if it is not one."""
  try:
    return '\n'.join(folder.read_text(file).splitlines()[:2])
  except UserError:
    return ''


def _tool(shape: JsonShape | list[JsonShape] | None) -> str | None:
  """Return the tool that wrote JSON of a shape, and what to do; None if unknown."""
  listed = isinstance(shape, list)
  first = (shape[0] if shape else None) if listed else shape
  return None if first is None else next(
    (text for keys, of_a_list, text in _TOOLS if listed == of_a_list and keys <= set(first.keys)), None)


def _explain(folder: SourceFolder) -> str:
  """Explain why no layout was recognized, and what to do."""
  for file in folder.with_suffix('.json', '.vott')[:EXAMINED]:
    if (tool := _tool(folder.json_shape(file))) is not None:
      return f'{file} is {tool}'
  for file in folder.with_suffix('.json', '.xml', '.txt', '.csv')[:EXAMINED]:
    if _head(folder, file).encode().startswith(LFS):
      return f'{file} is a pointer of Git LFS: fetch the files with `git lfs pull`'
  if folder.named('labelmap.txt') and any('SegmentationObject/' in file for file in folder.images):
    return "SegmentationObject/ holds CVAT's segmentation masks: export the task as 'COCO 1.0', with images"
  if folder.named('_classes.csv') and (mask := next(
      (file for file in folder.images if file.lower().endswith('_mask.png')), None)) is not None:
    return (f"{mask} is one of Roboflow's semantic masks, which do not tell the objects of a class apart: export as "
            "'COCO Segmentation'")
  of_one, of_many = _texts_with_boxes(folder)
  if of_one is not None:
    return of_one
  if (mask := mask_images.in_another_format(folder)) is not None:
    return (f'{mask} seems to be a mask: masks are read from PNG files alone: save them as PNG, of 16 bits where an '
            'image has more than 255 objects; of JPEG files set the pixels below 128 to 0 and the others to 255, since '
            'those at the edges have other values')
  if (file := next((one for one in folder.with_suffix('.csv')[:EXAMINED] if _OF_IMAGES.search(_head(folder, one))),
                   None)) is not None:
    return (f'{file} is a table without the columns {tables.COLUMNS}: export the annotations as JSON (VIA), as COCO '
            'json, or with these columns')
  for file in folder.with_suffix(*_LINES)[:1]:
    next(folder.lines(file), '')  # which says so if it is not UTF-8 text
    return (f'{file} is {_LINES[posixpath.splitext(file)[1].lower()]}, which is not read: convert the annotations to '
            'COCO json')
  if of_many is not None:
    return of_many
  if folder.with_suffix('.tfrecord', '.record'):
    return 'holds TFRecords, which need no preparation: see docs/data.md'
  if not folder.files:
    return 'is empty'
  if archives := folder.with_suffix(*ARCHIVES):
    return f'holds no annotations of a known layout, but the archive {archives[0]}: unpack it'
  by_class = {posixpath.dirname(image) for image in folder.images}
  if len(by_class) > 1 and len(folder.images) > 0.9 * len(folder.files) and all(map(posixpath.dirname, folder.images)):
    return (f'{len(folder.images)} images in {len(by_class)} folders, without annotations: images in folders by class '
            'are for pre-training (docs/pretraining.md); a detector needs boxes')
  return (f'no annotations of a known layout among its {len(folder.files)} files, of which {len(folder.images)} are '
          'images: Roboflow, CVAT, Label Studio, Labelbox, LabelMe, YOLO, VIA, VoTT, V7, Supervisely, Datumaro, '
          'Create ML, SageMaker, Hugging Face, Open Images, BDD100K, Cityscapes, PASCAL VOC, COCO json, tables with a '
          'box a row and masks as PNG files are read (docs/data.md)')
