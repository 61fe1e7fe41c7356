"""Hyper-parameters in the TensorBoard log; its curves are tested in test_report.py."""

from rethink_tf.compare import tensorboard_log
from rethink_tf.compare.run_summary import read_runs
from tests.compare.fake_runs import HALF, write


def test_equal_hyper_parameters_are_left_out(tmp_path):
  runs = read_runs([write(tmp_path / 'a', HALF), write(tmp_path / 'b', HALF, init='w')])
  names = {'init', 'schedule', 'norm', 'learning_rate', 'seed', 'batch_size'}
  assert names == set(tensorboard_log.hyper_parameters(runs[0]))
  tensorboard_log.write(runs, 'box/AP', str(tmp_path / 'one'))
  data = b''.join(path.read_bytes() for path in (tmp_path / 'one').rglob('events*'))
  assert b'schedule' in data and b'learning_rate' in data and b'batch_size' not in data
  other = read_runs([write(tmp_path / 'c', HALF, seed=1), *(str(tmp_path / name) for name in 'ab')])
  tensorboard_log.write(other, 'box/AP', str(tmp_path / 'two'))
  assert b'seed' in b''.join(path.read_bytes() for path in (tmp_path / 'two').rglob('events*'))
