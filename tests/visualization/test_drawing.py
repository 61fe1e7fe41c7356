"""Drawing: positions and colours, labels inside the image, image grids."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from rethink_tf.visualization.drawing import (
  ARROW_COLOUR,
  DETECTION_COLOUR,
  TRUTH_COLOUR,
  DrawnObject,
  class_colour,
  draw,
  draw_error,
  hatch,
  image_grid,
  image_grid_with_cells,
  paste_masks,
  png,
  short_name,
  stack,
  under_heading,
)


def grey(height, width):
  return np.full((height, width, 3), 128, np.uint8)


def test_without_objects_the_image_is_unchanged():
  image = np.random.default_rng(0).integers(0, 255, (700, 500, 3), np.uint8)
  np.testing.assert_array_equal(draw(image, np.zeros((0, 4)), [], ['cat'], np.zeros(0), []), image)


def test_positions_of_box_mask_and_label():
  image = grey(700, 700)
  mask = np.zeros((700, 700), bool)
  mask[350:450, 350:450] = True
  rendered = draw(image, [[300, 300, 500, 500]], [2], ['cat', 'dog'], [0.87], [mask])
  assert (image == 128).all(), 'the input image is not modified'
  colour = class_colour(2)
  assert tuple(rendered[499, 400]) == colour and tuple(rendered[400, 300]) == colour
  blended = rendered[400, 400].astype(float)
  np.testing.assert_allclose(blended, 128 * 0.58 + 0.42 * np.array(colour), atol=1.5)
  assert (rendered[320:345, 320:345] == 128).all(), 'the box is not filled'
  assert tuple(rendered[290, 301]) == colour, 'the label is above the box'
  assert (rendered[:260] == 128).all() and (rendered[520:] == 128).all()


@pytest.mark.parametrize('size', [(640, 640), (900, 60), (60, 900), (20, 30), (1, 1)])
@pytest.mark.parametrize('box', [[-20, -20, 10, 10], [0, 0, 1, 1], [0, 0, 5000, 5000], [590, 590, 700, 700]])
def test_any_box_in_any_image_size(size, box):
  image = grey(*size)
  boxes = [box] * 3
  rendered = draw(image, boxes, [1, 2, 1], ['a category with a name far too long to fit', 'b'], [1.0, 0.5, 0.1],
                 [np.ones(size)] * 3)
  assert rendered.dtype == np.uint8 and rendered.ndim == 3
  assert max(rendered.shape[:2]) >= 640
  assert abs(rendered.shape[0] / rendered.shape[1] - size[0] / size[1]) < 0.05 * size[0] / size[1] + 1e-9


def test_objects_of_a_single_class_have_different_colours():
  boxes = [[100, 100, 300, 300], [400, 400, 600, 600]]
  alone, among = (draw(grey(640, 640), boxes, [1, 1], names) for names in (['cat'], ['cat', 'dog']))
  assert tuple(alone[200, 100]) == tuple(among[200, 100]) == tuple(among[500, 400]) == class_colour(1)
  assert tuple(alone[500, 400]) == class_colour(2)


def test_keypoints_and_skeleton():
  keypoints = np.array([[[100, 100, 2], [100, 300, 1], [500, 500, 0]]])
  plain = draw(grey(640, 640), [[50, 50, 550, 550]], [1], ['person'])
  rendered = draw(grey(640, 640), [[50, 50, 550, 550]], [1], ['person'], keypoints=keypoints, skeleton=[(1, 2), (2, 3)])
  changed = (rendered != plain).any(axis=2)
  assert changed[100, 100] and changed[100, 300] and changed[100, 200], 'two points and the line between them'
  assert not changed[110:].any(), 'the unlabelled point and its line are not drawn'


def test_colours_of_80_classes_are_distinct():
  colours = {class_colour(k) for k in range(1, 81)}
  assert len(colours) == 80
  first = np.array([class_colour(k) for k in range(1, 9)], float)
  distance = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(8)
  assert distance.min() > 80


def test_image_grid_and_png():
  images = [grey(100, 200), grey(200, 100), grey(50, 50)]
  grid = image_grid(images, 2, ['one', 'two', 'three'], width=100)
  assert grid.shape == (12 + (100 + 26 + 12) * 2, 2 * 112 + 12, 3)
  assert (grid[-20:, 130:] == 255).all(), 'the empty cell is white'
  decoded = cv2.imdecode(np.frombuffer(png(grid), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
  np.testing.assert_array_equal(decoded, grid)
  assert (image_grid([], 3) == 255).all()


def test_labels_do_not_cover_a_narrow_image():
  image = grey(80, 3000)
  rendered = draw(image, [[20, 1000, 60, 1100]], [1], ['cat'], [0.5])
  rows = np.flatnonzero((rendered != 128).any(axis=(1, 2)))
  assert rows[-1] - rows[0] < 60


@pytest.mark.parametrize('detected, true', [
  ([300, 300, 320, 330], None), (None, [300, 300, 320, 330]), ([300, 300, 320, 330], [305, 310, 360, 340]),
  ([0, 0, 700, 500], [690, 490, 700, 500]), ([-20, -20, 3, 3], [0, 0, 0.2, 0.2]), (None, [699, 499, 700, 500]),
])
def test_an_error_is_drawn_enlarged(detected, true):
  rendered = draw_error(grey(700, 500), *(None if box is None else DrawnObject(box, text, np.ones((700, 500), bool))
                                          for box, text in ((detected, 'cat 0.90'), (true, 'dog'))))
  assert max(rendered.shape[:2]) == 640 and rendered.dtype == np.uint8
  for box, colour in ((detected, DETECTION_COLOUR), (true, TRUTH_COLOUR)):
    assert (box is not None) == bool((rendered == colour).all(axis=2).any()), 'a colour for each box that exists'


def test_the_crop_around_an_error():
  image = grey(1000, 1000)
  image[:, 500:] = 255
  rendered = draw_error(image, DrawnObject([490, 490, 510, 510]), None)
  assert tuple(rendered[320, 40]) == (128,) * 3 and tuple(rendered[320, 600]) == (255,) * 3


def test_keypoints_of_an_error():
  """Detected and true keypoints with an arrow between them; unlabelled ones are not drawn."""
  detected = np.array([[310, 310, 1], [340, 340, 1]], float)
  true = np.array([[310, 350, 2], [0, 0, 0]], float)
  box = [300, 300, 360, 360]
  plain = draw_error(grey(700, 500), DrawnObject(box), DrawnObject(box))
  rendered = draw_error(grey(700, 500), DrawnObject(box, keypoints=detected), DrawnObject(box, keypoints=true),
                        skeleton=[(1, 2)], wrong=(0,))
  scale = 640 / 102
  top = left = 330 - 51
  at = lambda y, x: tuple(rendered[round((y - top) * scale), round((x - left) * scale)])  # noqa: E731
  assert at(330, 310) == tuple(plain[round((330 - top) * scale), round((310 - left) * scale)]) == (128,) * 3
  assert at(340, 340) == at(325, 325) == DETECTION_COLOUR and at(310, 330) == ARROW_COLOUR
  assert (rendered == TRUTH_COLOUR).all(axis=2).sum() > (plain == TRUTH_COLOUR).all(axis=2).sum() + 50


def test_padding_is_hatched():
  padded = np.full((40, 60, 3), 7, np.uint8)
  hatched = hatch(padded, 30, 50)
  assert (hatched[:30, :50] == 7).all() and (padded == 7).all()
  assert {206, 232} == set(np.unique(hatched[30:])) == set(np.unique(hatched[:, 50:]))


def test_mask_crops_are_pasted_into_their_boxes():
  crop = np.zeros((112, 112), np.uint8)
  crop[:, 56:] = 1
  whole, left = paste_masks(np.stack([crop, crop]), [[10, 20, 30, 60], [0, 90, 10, 130]], 50, 100)
  assert whole[10:30, 40:60].all() and whole.sum() == 20 * 20
  assert left.shape == (50, 100) and left[0:10, 95:].all(), 'clipped to the image'
  assert not paste_masks(crop[None], [[5, 5, 5.2, 5.2]], 50, 100)[0].any()


def test_images_are_stacked_vertically():
  stacked = stack([under_heading('a heading far too long for it', grey(20, 60)), grey(10, 100)])
  assert stacked.shape == (44 + 20 + 10, 100, 3)
  assert (stacked[:64, 60:] == 255).all() and (stacked[64:] == 128).all() and (stacked[44:64, :60] == 128).all()


def test_labels_are_thinned_out():
  """Boxes on top of each other, or so many that labels would cover the image: the best keep theirs, the rest counts."""
  pile = [[100, 100, 300, 300]] * 30
  rendered = draw(grey(640, 640), pile, [1] * 30, ['cat', 'dog'], np.linspace(1, 0.5, 30))
  covered = (rendered != 128).any(axis=2).mean()
  assert covered < 0.1, 'six labels around the box and the note'
  boxes = [[y, x, y + 22, x + 60] for y in range(30, 600, 24) for x in range(5, 570, 66)]
  crowd = draw(grey(640, 640), boxes, [1] * len(boxes), ['wide name', 'b'], np.ones(len(boxes)))
  plates = (crowd == class_colour(1)).all(axis=2).mean()
  assert 0.05 < plates < 0.35
  whole = draw(grey(640, 640), boxes[:4], [1] * 4, ['wide name', 'b'], np.ones(4))
  assert not (whole[600:] != 128).any() and (crowd[620:] == (40, 40, 40)).all(axis=2).any(), 'a note says how many'


def test_a_note_on_an_image_without_objects():
  rendered = draw(grey(640, 640), np.zeros((0, 4)), [], ['cat'], note='best score 0.26')
  rows = np.flatnonzero((rendered != 128).any(axis=(1, 2)))
  assert rows.min() > 600 and rows.max() == 639


def test_the_cells_of_a_grid():
  images = [np.full((h, w, 3), value, np.uint8) for value, (h, w) in enumerate([(10, 20), (20, 10), (5, 5)])]
  grid, cells = image_grid_with_cells(images, 2, ['one', 'two', 'three'], width=40)
  for value, (y0, x0, y1, x1) in enumerate(cells):
    assert (grid[y0:y1, x0:x1] == value).all() and max(y1 - y0, x1 - x0) == 40
  assert image_grid_with_cells([], 3)[1] == []


def test_text_in_a_png():
  data = png(grey(3, 3), {'cells': '[1, "é"]'})
  with Image.open(io.BytesIO(data)) as file:
    assert file.text == {'cells': '[1, "é"]'} and file.size == (3, 3)
  assert png(grey(3, 3)) in (data[:33] + data[data.index(b'IDAT') - 4:],)


def test_long_file_names_keep_their_end():
  assert short_name('train/a b.jpg') == 'a b.jpg' and short_name('c:\\x\\y.png') == 'y.png'
  long = short_name('a' * 90 + '\x1b.jpg')
  assert len(long) == 30 and long.startswith('..') and long.endswith('\\x1b.jpg')
