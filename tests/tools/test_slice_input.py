"""Two hosts of a slice, played by processes without this package: the same batches as one, and no Python there."""

import subprocess
import sys

import pytest

from rethink_tf.bench.measure import Timing
from rethink_tf.data.conversion import convert
from rethink_tf.data.detection.coco import CocoSource
from tools.slice_input import Differences, report


def test_report_has_rates_and_ratios():
  timings = {'Python': Timing(2.0, 1.0, 3.0, 5), 'graph': Timing(4.0, 4.0, 4.0, 5)}
  text = report(Differences(12, 0.114, 0.0), timings, 12, 4, 'mine/train', 'python -m tools.slice_input')
  assert '11.4 % of the pixel values differ by one level of 256, 0.0 % by more' in text
  assert '| Python | 6.0 | 24 | 1.00 |' in text and '| graph | 3.0 | 12 | 0.50 |' in text


@pytest.mark.slow
def test_two_hosts_make_the_batches_of_one(real_images, tmp_path):
  """On photographs with masks and keypoints. The servers would refuse Python: they have none of its functions."""
  source = CocoSource(str(real_images / 'coco_dev'), 'val2017', keypoints=True)
  convert(source, str(tmp_path), 'val2017', num_shards=3, png_masks=False)
  ran = subprocess.run([sys.executable, '-m', 'tools.slice_input', f'--data_dir={tmp_path}', '--split=val2017',
                        '--keypoints', '--short_side=320', '--batches=20', '--rounds=1'], capture_output=True,
                       text=True, check=False, timeout=300)
  assert ran.returncode == 0, ran.stderr[-3000:]
  assert '20 batches of two hosts, from step 0 on and again from the middle on, are those of one host' in ran.stdout
  assert ', 0.0 % by more' in ran.stdout
