"""The cost of initial weights, along the chain of runs that led to them."""

import json
import math
import pathlib

import pytest

from rethink_tf.weights import costs
from rethink_tf.weights.costs import Cost, Seen

OLD = pathlib.Path(__file__).parents[1] / 'old_run/checkpoints/step-00000006'
OWN = Seen(24.0, 117.0, 98304.0)  # of its checkpoint
CATALOG = {'path': 'moco_v2', 'name': 'moco_v2', 'format': 'torchvision',
           'cost': {'images': 3, 'instances': 4, 'pixels': 5, 'source': '800 epochs'}}


@pytest.fixture
def run(tmp_path):
  """A checkpoint whose run has the record of its initial weights that a test writes beside it."""
  (tmp_path / 'run/checkpoints').mkdir(parents=True)
  (tmp_path / 'run/checkpoints/step-00000006').symlink_to(OLD)

  def started_from(record):
    (tmp_path / 'run' / costs.RECORD).write_text(record if isinstance(record, str) else json.dumps(record))
    return str(tmp_path / 'run/checkpoints/step-00000006')

  return started_from


def test_the_samples_that_a_run_has_seen_are_in_its_checkpoint(tmp_path):
  assert costs.at_checkpoint(str(OLD)) == OWN
  assert costs.at_checkpoint(str(tmp_path)) is None


def test_a_run_from_random_weights_has_its_own_cost_alone():
  assert costs.of_run(str(OLD)) == (Cost(OWN, ''), costs.NOTHING)
  assert costs.start_of(str(OLD.parents[1])) is None


@pytest.mark.parametrize('record, before, source', [
  (CATALOG, Seen(3, 4, 5), 'moco_v2: 800 epochs'),
  ({'path': 'runs/net', 'seen': {'images': 1, 'instances': 2, 'pixels': 3}, 'before': 'moco_v2: 800 epochs'},
   Seen(1, 2, 3), 'run runs/net, which started from moco_v2: 800 epochs'),
  ({'path': 'R-50.pkl', 'format': 'Detectron .pkl'}, Seen(128_116_700, 128_116_700, 128_116_700 * 224.0 ** 2),
   'R-50.pkl, assumed to be 100 epochs of ImageNet'),
  ({'path': 'd.pkl', 'format': 'Detectron2 .pkl', 'part': 'detector'}, None, 'd.pkl, a detector whose training is not'),
  ({'path': 'runs/x', 'format': 'run of this package, step-00000003'}, None, 'runs/x, which no longer exists'),
  *(({'path': 'runs/x', 'seen': {'images': count, 'instances': 2, 'pixels': 3}, 'format': 'run of this package'}, None,
     'runs/x, which no longer exists') for count in (10 ** 400, math.inf, True, '1')),
  ({'path': 'runs/x', 'seen': None, 'before': 'd.pkl, a detector'}, None, 'runs/x, which started from d.pkl'),
  ('{"path": ', None, 'unknown origin'), ('[1]', None, 'unknown origin')])
def test_what_a_run_started_from_counts_too(tmp_path, run, record, before, source):
  whole, started = costs.of_run(run(record))
  assert started.seen == before and source in started.source and whole.source == started.source
  assert whole.seen == (None if before is None else OWN.plus(before))
  # What continues from it has a start that is not random, even if its record is damaged.
  assert costs.start_of(str(tmp_path / 'run')) == (
    record if isinstance(record, dict) else {'format': 'run of this package'})


def test_a_run_that_continues_another_one_has_counted_its_samples(run):
  """The switch to a cascade: what the plain run started from is the only cost beside its own."""
  assert costs.of_run(run({'path': 'runs/plain', 'continues': None}))[0] == Cost(OWN, '')
  whole, _ = costs.of_run(run({'path': 'runs/plain', 'continues': CATALOG}))
  assert whole == Cost(OWN.plus(Seen(3, 4, 5)), 'moco_v2: 800 epochs')
  assert costs.of_record({'path': 'runs/plain', 'continues': 7}).seen is None


def test_records_of_earlier_versions_are_completed_by_the_metrics_of_their_run(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(json.dumps(line) for line in (
    {'kind': 'train', 'step': 20, 'images': 640, 'pixels': 9}, {'kind': 'train', 'step': 10, 'images': 320},
    {'kind': 'eval', 'step': 30})) + '\n')
  assert costs.of_record({'path': str(tmp_path)}).seen == (640, 640, 9)
