"""The costs of the table, from the numbers of their sources; entries themselves: test_catalog.py."""

import pytest

from rethink_tf.weights.catalog_entries import ENTRIES

IMAGENET = 1_281_167


@pytest.mark.parametrize('name, images, pixels', [
  ('torchvision_resnet50_v1', 90 * IMAGENET, 90 * IMAGENET * 224**2),
  ('torchvision_resnet50_v2', 600 * IMAGENET, 600 * IMAGENET * 176**2),
  ('detectron_r50', 153_600_000, 153_600_000 * 224**2),
  ('swav', 800 * IMAGENET, 800 * IMAGENET * (2 * 224**2 + 6 * 96**2)),
  ('detectron2_scratch_r50_gn_9x', 12_960_000, 12_960_000 * 800 * 1333),
  ('detectron2_r50_gn_3x', 100 * IMAGENET + 4_320_000, 100 * IMAGENET * 224**2 + 4_320_000 * 800 * 1333)])
def test_costs_are_the_published_numbers_of_images_and_pixels(name, images, pixels):
  cost = ENTRIES[name].cost
  assert cost.images == pytest.approx(images) and cost.pixels == pytest.approx(pixels)


def test_instances_are_counted_as_in_figure_2():
  assert ENTRIES['moco_v2'].cost.instances == ENTRIES['moco_v2'].cost.images
  assert ENTRIES['detectron2_scratch_r50_gn_3x'].cost.instances == 7 * 4_320_000


def test_what_no_publisher_states_is_marked():
  assumed = {name for name, entry in ENTRIES.items() if entry.cost.assumed}
  assert assumed == {'detectron_x101_32x8d', 'detectron_x152_32x8d_in5k', 'dino_resnet50',
                     *(f'wsl_x101_32x{width}d' for width in (8, 16, 32, 48))}
  assert all(entry.cost.record()['source'].endswith('(partly assumed)') == (name in assumed)
             for name, entry in ENTRIES.items())
