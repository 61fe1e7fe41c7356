"""Hyper-parameters in the TensorBoard log; its curves are tested in test_report.py."""

import re

import pytest

from rethink_tf.compare import tensorboard_log
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.errors import UserError
from tests.compare.fake_runs import HALF, write


def test_only_what_differs_is_a_hyper_parameter(tmp_path):
  runs = read_runs([write(tmp_path / 'a', HALF), write(tmp_path / 'b', HALF, init='w')])
  names = {'init', 'schedule', 'norm', 'learning_rate', 'seed', 'batch_size'}
  assert names == set(tensorboard_log.hyper_parameters(runs[0]))

  def written(runs, name):
    tensorboard_log.write(runs, 'box/AP', str(tmp_path / name))
    data = b''.join(path.read_bytes() for path in (tmp_path / name).rglob('events*'))
    return {each for each in [*names, 'ResNet.depth'] if re.search(rf'\x0a.{each}[\x12\x1a"]'.encode(), data, re.S)}

  assert written(runs, 'one') == {'init'}
  data = b''.join(path.read_bytes() for path in (tmp_path / 'one').rglob('events*'))
  assert b'eval/box/AP$' in data and b'eval/mask/AP$' not in data, 'no chart without curves'
  assert written(runs[:1], 'single') == {'init', 'schedule'}
  other = read_runs([write(tmp_path / 'c', HALF, seed=1), *(str(tmp_path / name) for name in 'ab')])
  other[0].settings['ResNet.depth'] = 14
  assert written(other, 'two') == {'init', 'seed', 'ResNet.depth'}
  names.add('weights')
  assert written(read_runs([write(tmp_path / 'd', HALF, init='v'), str(tmp_path / 'b')]), 'arms') == {'weights'}
  assert b'weights' not in data, 'of a single pre-training'


def test_names_sort_as_on_the_page(tmp_path):
  runs = read_runs([write(tmp_path / name, HALF, k=k, init=init, images=400 * k) for name, k, init in (
    ('z/a', 2, 'w'), ('b', 2, None), ('my_pretrained', 1, 'w'), ('pretrain_d', 1, None))])
  names = [name for name, _ in tensorboard_log.log_names(runs)]
  assert names == ['04_pretrain_a', '02_scratch_b', '03_my_pretrained', '01_scratch_pretrain_d']
  pattern = re.search(r'runColorGroup=regex:(.*)#', tensorboard_log.ADDRESS).group(1)
  assert [re.search(pattern, name).group(1) for name in sorted(names)] == ['scratch'] * 2 + ['pretrain'] * 2


@pytest.mark.parametrize('name', [
  'events.out.tfevents.1.host', 'train/events.out.tfevents.1.host', '01_mine/events.out.tfevents.1.host',
  '01_scratch/notes.txt', '01_scratch/more/events.out.tfevents.1.host'])
def test_only_the_log_of_a_comparison_is_replaced(tmp_path, name):
  runs = read_runs([write(tmp_path / 'a', HALF)])
  log = tmp_path / 'out/tensorboard'
  tensorboard_log.write(runs, 'box/AP', str(log))
  first = {path.name for path in log.rglob('events*')}
  tensorboard_log.write(runs, 'box/AP', f'{log}/')
  assert {path.parent.name for path in log.rglob('events*')} == {'01_scratch_a'}
  assert not first & {path.name for path in log.rglob('events*')}
  (log / name).parent.mkdir(parents=True, exist_ok=True)
  (log / name).write_text('of somebody else')
  with pytest.raises(UserError, match='no comparison has written it.*--output'):
    tensorboard_log.write(runs, 'box/AP', str(log))
  assert (log / name).read_text() == 'of somebody else'
