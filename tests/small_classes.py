"""Small data sets of coloured images with one class each, in the layout of class folders."""

import cv2
import numpy as np

COLOURS = {'blue': (30, 60, 200), 'green': (40, 180, 60), 'red': (210, 40, 50)}  # RGB


def noisy_image(colour, seed, height=48, width=64):
  """Return a noisy image of one colour, uint8 [height, width, 3] RGB."""
  rng = np.random.default_rng(seed)
  return np.clip(np.array(colour) + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)


def write_image(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  assert cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]))


def write_folders(root, per_class=4, splits=('train', 'val'), classes=tuple(COLOURS)):
  """Write root/<split>/<class>/<n>.jpg; images differ in size and noise."""
  for s, split in enumerate(splits):
    for k, name in enumerate(classes):
      for n in range(per_class):
        image = noisy_image(COLOURS[name], [s, k, n], 40 + 4 * n, 72 - 4 * n)
        write_image(root / split / name / f'{n}.jpg', image)
  return root
