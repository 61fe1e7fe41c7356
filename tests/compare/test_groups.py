"""Groups of runs by their settings, and sides of runs that differ in their seed alone."""

import math

import pytest

from rethink_tf.compare import groups
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, read_runs
from tests.compare.fake_runs import HALF, better, worse, write


def test_a_side_is_the_mean_and_the_spread_of_its_seeds(tmp_path):
  runs = read_runs([write(tmp_path / f's{seed}', found, seed=seed, images=400 + 40 * seed)
                    for seed, found in enumerate((worse(4), HALF, better(4)))])
  side, = groups.sides(runs, SCRATCH)
  assert side.mean('box/AP') == pytest.approx(50) and side.spread('box/AP') == pytest.approx(2)  # 48, 50, 52
  assert side.seen == pytest.approx((440, 1320, 4.4e6)) and side.label == 'scratch 1x, 3 seeds'
  assert math.isnan(side._replace(runs=side.runs[:1]).spread('box/AP')) and not groups.sides(runs, PRETRAINED)


def test_groups_are_told_apart_by_what_differs(tmp_path):
  paths = [write(tmp_path / name, HALF, rate=rate, k=k, seed=seed, init=init, images=400 * k) for
           name, rate, k, seed, init in (('a', 0.02, 1, 0, None), ('b', 0.01, 1, 0, None), ('c', 0.02, 2, 1, 'w'))]
  for path, norm in zip(paths, ('group_norm', 'sync_batch_norm', 'group_norm'), strict=True):
    with open(f'{path}/config.gin', 'a') as file:
      file.write(f'NORM = @{norm}\nFPN.norm = %NORM\nFPN.channels = 64\n')
  runs = read_runs(paths)
  assert [[run.name for run in group] for group in groups.groups(runs)] == [['a', 'c'], ['b']]
  first, second = groups.labels(groups.groups(runs))
  assert (first, second) == ('norm = @group_norm, base_rate = 0.02', 'norm = @sync_batch_norm, base_rate = 0.01')
  assert groups.labels(groups.groups(runs), most=1)[0] == 'norm = @group_norm, …'
  assert groups.labels(groups.groups(runs[::2])) == ['']
  labels = [label for label, _ in groups.labelled_sides(runs)]
  assert labels == ['a', 'c', 'b'] and groups.in_group('scratch 1x', first) == f'scratch 1x, {first}'
