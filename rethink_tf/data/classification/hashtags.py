"""Write the vocabulary of images with hashtags, listed in JSON Lines (Mahajan et al. 2018).

  python -m rethink_tf.data.classification.hashtags --json=images.jsonl \\
    --vocabulary=vocabulary.json --synonyms=synsets.tsv

A line of the file is {"image": "folder/name.jpg", "tags": ["#Sneakers", "shoe"]}.
From Python: rethink_tf.data.classification.vocabulary.write_vocabulary.
"""

from __future__ import annotations

import sys

from absl import flags

from rethink_tf.process import entry

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Define the flags of the command line."""
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('json', None, 'JSON Lines of {"image": path, "tags": [...]}, local or gs://', required=True,
                      **here)
  flags.DEFINE_string('vocabulary', 'vocabulary.json', 'file to write', **here)
  flags.DEFINE_string('synonyms', None, 'table of synonyms: tag, tab, canonical tag; or a .json object', **here)
  flags.DEFINE_bool('only_synonyms', False, 'keep only tags of the table of synonyms', **here)
  flags.DEFINE_integer('min_count', 1, 'minimum number of images of a tag', lower_bound=1, **here)
  flags.DEFINE_integer('max_candidates', 2_000_000, 'different tags counted at a time', lower_bound=1, **here)


def main() -> None:
  """Build a vocabulary with the options of the command line."""
  entry.check_path(FLAGS.json, 'no such file: check --json')
  from rethink_tf import console
  from rethink_tf.data.classification.vocabulary import write_vocabulary

  console.hide_library_info()
  vocabulary = write_vocabulary(FLAGS.vocabulary, FLAGS.json, FLAGS.synonyms, FLAGS.min_count, FLAGS.only_synonyms,
                                FLAGS.max_candidates)
  print(f'{len(vocabulary)} tags in {FLAGS.vocabulary}; most frequent: '
        + ', '.join(f'{tag} {n}' for tag, n in zip(vocabulary.tags[:5], vocabulary.counts.tolist(), strict=False)))


if __name__ == '__main__':
  define_flags()
  entry.start(main, interrupted='stopped; nothing was written')
