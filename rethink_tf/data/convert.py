"""Convert COCO json and images to TFRecords in the schema of tf-models-official.

  python -m rethink_tf.data.convert --data_dir=~/coco --split=train2017 --output_dir=gs://bucket/coco --num_shards=256

Shards are written in parallel and atomically, one image at a time. To finish an interrupted conversion, run the same
command again: finished shards are kept. From Python: rethink_tf.data.conversion.convert.
"""

from __future__ import annotations

import os
import sys

from absl import flags

from rethink_tf.process import entry

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('data_dir', None, 'folder of the data set', required=True, **here)
  flags.DEFINE_string('split', 'train2017', 'prefix of the shard names; determines the defaults of --image_dir and of '
                      'the files', **here)
  flags.DEFINE_string('annotation_file', None, 'COCO json; default: annotations/instances_<split>.json', **here)
  flags.DEFINE_string('image_dir', None, 'folder of the images; default: <split>', **here)
  flags.DEFINE_bool('keypoints', False, 'convert person keypoints too', **here)
  flags.DEFINE_string('keypoints_file', None, 'json with keypoints; default: annotations/person_keypoints_<split>.json',
                      **here)
  flags.DEFINE_string('output_dir', None, 'folder to write to, local or gs://', required=True, **here)
  flags.DEFINE_integer('num_shards', 32, 'number of files', lower_bound=1, **here)
  flags.DEFINE_bool('png_masks', True, "write tf-models-official's PNG masks too", **here)
  flags.DEFINE_integer('num_workers', None, 'threads; default: two per core', lower_bound=1, **here)


def main() -> None:
  """Convert a data set with the options of the command line."""
  entry.check_path(FLAGS.annotation_file or FLAGS.data_dir, 'no such file or folder: check --data_dir')
  from rethink_tf import console
  from rethink_tf.data import in_place, problems
  from rethink_tf.data.conversion import convert
  from rethink_tf.data.detection.coco import CocoSource

  console.hide_library_info()
  source = CocoSource(FLAGS.data_dir, FLAGS.split, FLAGS.annotation_file, FLAGS.image_dir, FLAGS.keypoints,
                      FLAGS.keypoints_file)
  problems.log_table([('converted', source.problems)])
  index = convert(source, os.path.expanduser(FLAGS.output_dir), FLAGS.split, FLAGS.num_shards, FLAGS.png_masks,
                  FLAGS.num_workers)
  print(f'{sum(len(shard.offsets) for shard in index.shards)} images in {len(index.shards)} shards in '
        f'{FLAGS.output_dir}; {in_place.use_of_records(FLAGS.output_dir, FLAGS.split)}')


if __name__ == '__main__':
  define_flags()
  entry.start(main, interrupted='stopped; run the same command again to continue')
