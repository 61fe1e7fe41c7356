"""The page of estimates: schedules against the paper's rule, rows against numbers computed by hand."""

import pytest

from rethink_tf.bench import scaling_page as scaling
from rethink_tf.bench.capacity import Network

GIGA = 1e9
NETWORK = Network(
  45_711_152, 2.0075e12, 0.17e12, {'float32': 0.55 * GIGA, 'mixed': 0.64 * GIGA},
  {('float32', False): 3.1 * GIGA, ('float32', True): 1.9 * GIGA, ('mixed', False): 2.0 * GIGA,
   ('mixed', True): 1.4 * GIGA}, {'float32': 0.18 * GIGA, 'mixed': 0.09 * GIGA})


@pytest.fixture(scope='module')
def page():
  return scaling.document({'R50-FPN': NETWORK})


def rows(page, *cells):
  """Cells of the only row that begins with `cells`."""
  found = [line for line in page.splitlines() if line.startswith(f'| {" | ".join(cells)} |')]
  assert len(found) == 1, cells
  return [cell.strip() for cell in found[0].strip('|').split('|')]


def test_the_page_states_that_nothing_was_measured(page):
  assert page.startswith('# Many devices: estimates')
  assert 'Nothing was measured on a GPU or TPU' in page and 'assumption' in page


@pytest.mark.parametrize('batch, rate, points', [
  (16, 0.02, (480_000, 520_000, 540_000)), (64, 0.08, (120_000, 130_000, 135_000)),
  (128, 0.16, (60_000, 65_000, 67_500)), (256, 0.32, (30_000, 32_500, 33_750))])
def test_schedules_scale_linearly(page, batch, rate, points):
  schedule = scaling.rates(batch)
  warmup, factor = scaling.BATCHES[batch]
  assert tuple(schedule.points) == points
  assert float(schedule(warmup)) == pytest.approx(rate) and float(schedule(0)) == pytest.approx(rate * factor)
  assert rows(page, str(batch), f'{rate:.2f}')[2:5] == [f'{point:,}' for point in points]


def test_a_row_by_hand(page):
  """64 A100, bfloat16, 128 images: 2 x 2.0075 / (312 x 0.2) s; 182.8 MB over 300 and over 12.5 GB/s."""
  row = rows(page, '64 x A100', 'mixed_bfloat16', '128')
  compute = 2 * 2.0075 / 62.4
  exchange = 2 * 7 / 8 * 0.182845 * (1 / 300 + 1 / 12.5)
  step = compute + exchange
  assert row[3:8] == ['2', f'{1e3 * compute:.0f}', f'{1e3 * exchange:.1f}', f'{1e3 * step:.0f}', f'{128 / step:.0f}']
  host = 128 / 8 / step
  assert row[8] == f'{host:.0f}' and row[9] == f'{host * 18e9 / 118_287 / 1e6:.0f}'
  assert row[10] == f'{host * (800 * 1344 * 3 + 100 * 12564) / 1e6:.0f}' and row[11] == f'{host / 125:.1f}'
  assert row[12] == 'compute' and row[13] == f'{67_500 * step / 3600:.1f}'


def test_memory_by_hand(page):
  assert rows(page, 'R50-FPN', 'float32', 'no')[-2:] == ['4', '21']  # (13.6 - 0.55) / 3.1, (68 - 0.55) / 3.1
  assert rows(page, 'R50-FPN', 'mixed', 'yes')[-2:] == ['8', '45']  # (13.6 - 0.64) / 1.49, (68 - 0.64) / 1.49


def test_tables_are_rectangular(page):
  lines = page.splitlines()
  for above, line in zip(lines, lines[1:], strict=False):
    if above.startswith('|') and line.startswith('|'):
      assert above.count('|') == line.count('|'), line
  assert all(len(line) <= 120 for line in lines if not line.startswith(('|', 'Written')))

