"""Colours of runs."""

import itertools

import numpy as np
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.text import Text

from rethink_tf.compare import plots, report, verdict
from rethink_tf.compare.differences import Differences
from rethink_tf.compare.run_summary import read_runs
from tests.compare.fake_runs import HALF, write


def test_hue_by_initial_weights_and_shade_by_length(tmp_path):
  paths = [write(tmp_path / f'{init or "s"}{k}', HALF, k=k, init=init, images=int(400 * k))
           for init in (None, 'w') for k in (1, 2, 3)]
  by_name = plots.colours(read_runs(paths))
  hues, _, values = np.array([rgb_to_hsv(to_rgb(by_name[name])) for name in ('s1', 's2', 's3', 'w1', 'w2', 'w3')]).T
  assert np.all((hues[:3] > 0.5) & (hues[:3] < 0.7)) and np.all((hues[3:] < 0.1) | (hues[3:] > 0.9))
  assert np.all(np.diff(values[:3]) < 0) and np.all(np.diff(values[3:]) < 0)  # longer schedules are darker
  more = read_runs([*paths, write(tmp_path / 'other', HALF, rate=0.3)])
  assert len(set(plots.colours(more).values())) == 7


def test_kinds_of_initial_weights_look_different(tmp_path):
  """As in the default study of own data: two pre-trainings, the same schedules."""
  runs = read_runs([write(tmp_path / f'{init or "s"}{k}', HALF, k=k, init=init, images=int(400 * k))
                    for init in (None, 'v', 'w') for k in (1, 2)])
  by_name, style_of = plots.colours(runs), plots.styles(runs)
  hues = {name: rgb_to_hsv(to_rgb(colour))[0] for name, colour in by_name.items()}
  for k in '12':
    names = [f'{init}{k}' for init in 'svw']
    assert len({style_of[name] for name in names}) == len({style_of[name].dashes for name in names}) == 3
    assert min(abs(hues[a] - hues[b]) for a, b in itertools.combinations(names, 2)) > 0.1
  assert style_of['v1'] == style_of['v2'] and abs(hues['v1'] - hues['v2']) < 0.05
  lines = {line.get_label(): line.get_linestyle() for line in plots.losses(runs).axes[0].lines}
  assert (lines['s1'], lines['v1'], lines['w1']) == ('-', '--', '-.')


def test_the_legend_names_the_confidence_with_all_its_digits(tmp_path):
  runs = read_runs([write(tmp_path / 's', HALF), write(tmp_path / 'p', HALF, init='w')])
  differences = Differences(runs, 'box/AP', report.matches_reader(runs, 'box/AP'), 20, 0.999, seed_spread=1.0)
  only, = verdict.verdicts(runs, differences)
  labels = [text.get_text() for text in plots.answer(only, 0.5).findobj(Text)]
  assert any('bars: 99.9 % interval of the difference' in label for label in labels)


def test_names_of_schedules_do_not_overlap(tmp_path):
  """Ten schedules, of which two are of one length."""
  ks = (0.1, 0.25, 0.5, 1, 2, 3, 4, 5)
  paths = [write(tmp_path / f's{k}', HALF, k=k, images=int(400 * k)) for k in ks]
  for name, drops in (('early', (300, 500)), ('late', (400, 550))):
    paths.append(write(tmp_path / name, HALF, k=6, images=2400))
    with open(tmp_path / name / 'config.gin', 'a') as file:
      file.write(f'KTimesSchedule.boundaries = {drops}\nKTimesSchedule.total = 600\n')
  paths.append(write(tmp_path / 'p', HALF, init='w'))
  runs = read_runs(paths)
  only, = verdict.verdicts(runs, Differences(runs, 'box/AP', report.matches_reader(runs, 'box/AP'), 10,
                                             seed_spread=1.0))
  figure = plots.answer(only, 0.5)
  figure.draw_without_rendering()
  boxes = sorted((label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()),
                 key=lambda box: box.x0)
  assert len(boxes) >= 5 and all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
  named = [label.get_text() for label in figure.axes[0].get_xticklabels()]
  assert named[0] == '0.1x' and named[-1] == '0.6k (drops at 300, 500)\n0.6k (drops at 400, 550)'


def test_no_metric_is_drawn_that_cannot_be(tmp_path):
  """The interval of four images, of which each side finds other ones, is wider than AP."""
  found = np.array([1, 1, 1, 0], bool)
  runs = read_runs([write(tmp_path / f'{name}{seed}', np.roll(found, seed + 2 * bool(init)), seed=seed, init=init)
                    for name, init in (('s', None), ('p', 'w')) for seed in (0, 1)])
  only, = verdict.verdicts(runs, Differences(runs, 'box/AP', report.matches_reader(runs, 'box/AP'), 100))
  assert only.steps[0].difference.half > 60
  low, high = plots.answer(only, 0.5).axes[0].get_ylim()
  assert 0 <= low < 75 < high <= 100


def test_sides_of_one_schedule_stand_beside_each_other_below_its_name(tmp_path):
  paths = [write(tmp_path / f'{init or "s"}{seed}', HALF | bool(seed), k=1, init=init, images=400, seed=seed)
           for init in (None, 'w') for seed in (0, 1)]
  fig = plots.end_points(read_runs(paths), 'box/AP')
  axes = fig.axes[0]
  fig.canvas.draw()
  points = [bars.lines[0].get_transform().transform(bars.lines[0].get_xydata())[0] for bars in axes.containers]
  assert len(points) == 2 and points[1][0] - points[0][0] >= 5
  tops = [bar.get_transform().transform(bar.get_segments()[0])[:, 1].max() for bars in axes.containers
          for bar in bars.lines[2]]
  assert axes.texts[0].get_window_extent().y0 > max(tops)
