"""Convert images with hashtags, listed in JSON Lines, to sharded TFRecords for weakly supervised pre-training.

  python -m rethink_tf.data.hashtags_convert --json=images.jsonl --vocabulary=vocabulary.json --out=gs://bucket/tags

To finish an interrupted conversion, run the same command again: finished shards are kept.
From Python: rethink_tf.data.hashtags_conversion.convert_hashtags.
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
  flags.DEFINE_string('json', None, 'JSON Lines of {"image": path, "tags": [...]}, local or gs://', required=True,
                      **here)
  flags.DEFINE_string('vocabulary', None, 'file that python -m rethink_tf.data.classification.hashtags has written',
                      required=True, **here)
  flags.DEFINE_string('out', None, 'folder to write to, local or gs://', required=True, **here)
  flags.DEFINE_alias('output_dir', 'out', **here)  # this and --num_shards: as in data.convert
  flags.DEFINE_string('split', 'train', 'prefix of the shard names', **here)
  flags.DEFINE_string('image_dir', None, 'folder of the images; default: that of --json', **here)
  flags.DEFINE_integer('shards', None, 'number of files; default: one for 8192 images', lower_bound=1, **here)
  flags.DEFINE_alias('num_shards', 'shards', **here)
  flags.DEFINE_integer('max_tags', 64, 'maximum number of tags of an image', lower_bound=1, **here)
  flags.DEFINE_integer('num_workers', None, 'threads; default: two per core', lower_bound=1, **here)


def main() -> None:
  """Convert images with hashtags with the options of the command line."""
  entry.check_path(FLAGS.json, 'no such file: check --json')
  from rethink_tf import console
  from rethink_tf.data.classification.vocabulary import Vocabulary
  from rethink_tf.data.hashtags_conversion import convert_hashtags

  console.hide_library_info()
  index = convert_hashtags(os.path.expanduser(FLAGS.json), Vocabulary.load(os.path.expanduser(FLAGS.vocabulary)),
                           os.path.expanduser(FLAGS.out), FLAGS.split, FLAGS.image_dir, FLAGS.shards, FLAGS.max_tags,
                           num_workers=FLAGS.num_workers)
  print(f'{index.num_images} images in {len(index.shards)} shards in {FLAGS.out}; read them with @hashtags(), '
        f'hashtags.data_dir and hashtags.split = {FLAGS.split!r}')


if __name__ == '__main__':
  define_flags()
  entry.start(main, interrupted='stopped; run the same command again to continue')
