"""JSON Lines files of images with hashtags for tests: noisy tags on rendered or real images."""

import json
import pathlib

import cv2
import numpy as np

from rethink_tf.data.classification.vocabulary import Vocabulary, build_vocabulary
from rethink_tf.data.hashtags_conversion import convert_hashtags

SYNONYMS = {
  't-shirt': ('Tee', '#TShirt', 'tshirts'), 'shoes': ('#sneakers', 'KICKS', 'Shoe'), 'pants': ('#Trousers',),
  'hat': ('cap', '#Hats'), 'outwear': ('Jacket', '#coat'), 'shirt': ('#Blouse',), 'red': ('#Crimson', 'rouge')}
COMMON = ('#fashion', 'OOTD', '#Style')  # on most images, as on social networks
RARE = ('#vintage', 'handmade', '#secondhand')


def write_json_lines(path, rows):
  """Write a line for each (image, tags); a string is written as it is."""
  lines = (row if isinstance(row, str) else json.dumps({'image': str(row[0]), 'tags': list(row[1])}) for row in rows)
  pathlib.Path(path).write_text(''.join(f'{line}\n' for line in lines))
  return str(path)


def write_synonyms(path):
  """Write the table of synonyms for `noisy_tags`."""
  pathlib.Path(path).write_text('# tag\n' + ''.join(
    f'{variant}\t{tag}\n' for tag, variants in SYNONYMS.items() for variant in variants))
  return str(path)


def noisy_tags(rng, name, names):
  """Return tags of an image of class `name`: a spelling of its name or synonyms, common, rare and some wrong ones."""
  tags = [str(rng.choice([name, name.upper(), f'#{name.title()}', *SYNONYMS.get(name, ())]))]
  tags += [tag for tag in COMMON if rng.random() < 0.6]
  tags += [tag for tag in RARE if rng.random() < 0.03]
  if rng.random() < 0.1:
    tags.append(str(rng.choice(names)))  # a wrong one
  if rng.random() < 0.05:
    tags.append(f'#only_once_{rng.integers(1 << 30)}')
  return [str(tag) for tag in rng.permutation(tags)]


def render_images(folder, count, names=('red', 'green', 'blue', 'grey'), side=40, seed=0):
  """Write noise in the colour of a class as PNG -> [(file name, class)]; classes become rarer along `names`."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  weights = 0.5 ** np.arange(len(names))
  colours = rng.integers(0, 200, (len(names), 3))
  rows = []
  for i in range(count):
    k = int(rng.choice(len(names), p=weights / weights.sum()))
    cv2.imwrite(str(folder / f'{i:05d}.png'), (colours[k] + rng.integers(0, 55, (side, side, 3))).astype(np.uint8))
    rows.append((f'{i:05d}.png', names[k]))
  return rows


def clothing(real_images, split, per_class=None):
  """Return [(path, class)] of the images of clothing_cls, class by class."""
  folders = sorted((real_images / 'clothing_cls' / split).iterdir())
  return [(path, folder.name) for folder in folders if folder.is_dir()
          for path in sorted(folder.glob('*.jpg'))[:per_class]]


def tagged(rows, seed=0):
  """Map [(image, class)] to [(image, noisy tags)]."""
  rng, names = np.random.default_rng(seed), sorted({name for _, name in rows})
  return [(image, noisy_tags(rng, name, names)) for image, name in rows]


def write_shards(folder, count=60, num_shards=4, tags=None, **options):
  """Write rendered images to shards -> (folder of the shards, vocabulary, [(image, tags)])."""
  folder = pathlib.Path(folder)
  rows = render_images(folder / 'images', count)
  rows = tagged(rows) if tags is None else [(image, tags(i)) for i, (image, _) in enumerate(rows)]
  file = write_json_lines(folder / 'images' / 'images.jsonl', rows)
  vocabulary = build_vocabulary(file)
  convert_hashtags(file, vocabulary, str(folder / 'shards'), num_shards=num_shards, num_workers=2, **options)
  return str(folder / 'shards'), Vocabulary.load(str(folder / 'shards' / 'train-vocabulary.json')), rows
