"""Prepare the export of an annotation tool for training: COCO json with training and held-out images.

  python -m rethink_tf.data.prepare my_export --output_dir=data/my_images

Reads exports of Roboflow, CVAT, Label Studio, Labelbox, LabelMe, YOLO, VIA, VoTT, V7, Supervisely, Datumaro, Create ML,
SageMaker Ground Truth, Hugging Face's imagefolder, Open Images' tables, PASCAL VOC's xml, one COCO json, tables, and
masks as PNG files (docs/data.md), keeps their splits or holds out images, and ends with the report of inspect_data.
Nothing in the source is changed.
From Python: rethink_tf.data.prepare.preparation.prepare.
"""

from __future__ import annotations

import os
import sys

from absl import flags

from rethink_tf.errors import UserError
from rethink_tf.process import entry

FLAGS = flags.FLAGS
LAYOUTS = (  # recognition.NAMES
  'coco', 'yolo', 'voc', 'labelme', 'label_studio', 'via', 'cvat', 'createml', 'vott', 'supervisely',
  'sagemaker', 'imagefolder', 'labelbox', 'datumaro', 'darwin', 'bdd100k', 'cityscapes', 'open_images', 'csv', 'masks')


def define_flags() -> None:
  """Define the flags of the command line."""
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('output_dir', None, 'folder to write', required=True, **here)
  flags.DEFINE_enum('layout', None, LAYOUTS, 'layout of the source; default: recognized by its files', **here)
  flags.DEFINE_bool('copy', False, 'copy images; default: hard links, or symbolic links to another disk', **here)
  flags.DEFINE_bool('link', True, 'the opposite of --copy', **here)
  flags.DEFINE_float('held_out', 0.2, 'fraction of the images to hold out if the source has no splits', **here)
  flags.DEFINE_integer('seed', 0, 'seed of the choice of held-out images', **here)
  flags.DEFINE_bool('resplit', False, 'choose the held-out images anew, ignoring the splits of the source', **here)
  flags.DEFINE_bool('group_duplicates', True, 'keep near-duplicate images in one split', **here)
  flags.DEFINE_string('annotation_file', None, 'the file to read if there are several, relative to the source', **here)
  flags.DEFINE_string('class_key', None, 'attribute of VIA that holds the class, job of a SageMaker manifest '
                      'or project of Labelbox whose objects are read, if there are several', **here)
  flags.DEFINE_enum('crowds', 'auto', ['auto', 'keep', 'objects'], 'meaning of iscrowd = 1 in a COCO json: a crowd '
                    '(keep), or an object drawn with a brush (objects); auto: objects in exports of CVAT', **here)
  flags.DEFINE_bool('follow_links', False, 'follow links that lead out of the source', **here)
  flags.DEFINE_bool('inspect', True, 'end with the report of inspect_data', **here)
  flags.DEFINE_string('report_dir', None, 'folder for the report of --inspect; default: runs/data/<name of '
                      '--output_dir>', **here)


def main(arguments: list[str]) -> None:
  """Prepare the source on the command line."""
  if len(arguments) != 1:
    raise UserError('name one folder to read: python -m rethink_tf.data.prepare my_export --output_dir=data/my_images')
  if FLAGS.copy and FLAGS['link'].present and FLAGS.link:
    raise UserError('--copy and --link: choose one of them')
  entry.check_path(arguments[0], 'no such folder: give the folder that the annotation tool has exported')
  from rethink_tf import console
  from rethink_tf.data.prepare import preparation
  from rethink_tf.data.prepare.layout import Options

  console.hide_library_info()
  prepared = preparation.prepare(
    arguments[0], FLAGS.output_dir, FLAGS.layout, Options(FLAGS.annotation_file, FLAGS.class_key, FLAGS.crowds),
    preparation.Division(FLAGS.held_out, FLAGS.seed, FLAGS.resplit, FLAGS.group_duplicates),
    FLAGS.copy or not FLAGS.link, FLAGS.follow_links)
  print(preparation.report(prepared, FLAGS.output_dir), flush=True)
  if FLAGS.inspect:
    _inspect()
  print(f'next: python -m rethink_tf.study --data_dir={FLAGS.output_dir}')


def _inspect() -> None:
  from rethink_tf import experiment
  from rethink_tf.inspect_data import inspection

  folder = os.path.abspath(os.path.expanduser(FLAGS.output_dir))
  experiment.configure(['gin_configs/scratch_1x.gin', 'gin_configs/data/own.gin'], (), folder)
  try:
    inspection.inspect_configured(os.path.expanduser(FLAGS.report_dir or f'runs/data/{os.path.basename(folder)}'))
  except UserError as error:
    raise UserError(f'{FLAGS.output_dir} is complete, but the report on it failed: '
                    + error.line().replace('--output', '--report_dir')) from error


if __name__ == '__main__':
  define_flags()
  entry.start(main, takes_arguments=True, interrupted='stopped; nothing was written to --output_dir')
