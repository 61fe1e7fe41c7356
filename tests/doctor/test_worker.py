"""The plan of the checks, for machines with and without GPUs; an exception is a row."""

import pytest

from rethink_tf.distributed import devices
from rethink_tf.doctor import kernels, worker
from rethink_tf.doctor.rows import Row


@pytest.mark.parametrize('gpus, usable', [(0, True), (1, True), (2, True), (1, False)])
def test_the_plan_has_the_checks_of_each_usable_device(monkeypatch, gpus, usable):
  found = [devices.Gpu(i, 'A100', (8, 0)) for i in range(gpus)]
  monkeypatch.setattr(devices, 'gpus', lambda: found)
  monkeypatch.setattr(devices, 'too_new', lambda _: None if usable else 'too new')
  names = list(worker.plan(worker.Options(data_dir='a', model_dir='b')))
  assert names[0] == 'devices' and names[-2:] == ['data folder', 'run folder']
  assert sum('/GPU:' in name for name in names) == gpus * usable * (len(kernels.KERNELS) + 4)  # three precisions, TF32
  assert ('SyncBN on 2 GPUs' in names) == (gpus > 1) and 'replicas on 2 CPUs' in names
  quick = list(worker.plan(worker.Options(quick=True)))
  assert set(quick) < set(names) and not [name for name in quick if 'mixed' in name or name == 'input']


def test_an_exception_is_a_row_and_earlier_rows_stay():
  def check():
    yield Row('a', '', 'ok')
    raise ValueError('no\nkernel')

  first, second = worker.run('b', check)
  assert first.check == 'a' and first.seconds is not None
  assert (second.check, second.result, second.note) == ('b', 'FAILED', 'ValueError: no kernel')
