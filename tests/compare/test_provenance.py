"""Runs that were continued with other settings, on other data or by other software are named in a comparison."""

import json

import pytest

from rethink_tf.compare import provenance
from rethink_tf.compare.report import compare
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.data import digest
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.storage.settings import Change
from tests import small_coco
from tests.compare.fake_runs import HALF, better, write

RATE = Change('KTimesSchedule.base_rate', 0.02, 0.01, 'meaning')
LONGER = Change('KTimesSchedule.k', 1, 2, 'length')


def run(path, changes=(), data=(), step=50, commit=None, versions=None, **settings):
  """Write a run of 100 steps that was continued at `step`."""
  folder = RunFolder(write(path, settings.pop('detected', HALF), **settings))
  now = identity.of([{'id': 0, 'name': 'cat'}], (path / 'config.gin').read_text(), {})
  was = identity.write(folder, None, now, 0)
  if changes or data:
    identity.write(folder, was, now, step, changes, data)
  if versions:
    (path / 'command.json').write_text(json.dumps({'versions': versions, 'git_commit': commit, 'earlier_starts': []}))
  return folder.path


def changes(*paths):
  return provenance.changes(read_runs(paths))


def test_a_run_of_one_piece_has_nothing_to_tell(tmp_path):
  assert changes(run(tmp_path / 'a'), write(tmp_path / 'of an earlier version', HALF)) == []
  assert changes(run(tmp_path / 'logged', [Change('run.log_every', 1, 20, 'free')])) == []


def test_settings_that_were_changed_on_the_way(tmp_path):
  line, = changes(run(tmp_path / 'a', [RATE]))
  assert line == ('a was trained with other settings up to step 50 (KTimesSchedule.base_rate 0.02 -> 0.01): its '
                  'settings do not describe all of its training.')
  many = [Change(f'ResNet.part{k}', 1, 2, 'meaning') for k in range(5)]
  assert 'ResNet.part2 1 -> 2 and 2 more)' in changes(run(tmp_path / 'b', many))[0]


def test_held_out_images_that_were_trained_on_are_named(tmp_path):
  """By the run itself, or for its initial weights."""
  data = {}
  for split, images in (('train', (1, 2, 3)), ('val', (3, 4))):
    small_coco.write(tmp_path, [small_coco.image(i) for i in images], [small_coco.annotation(1, images[0])],
                     split=split)
    data[{'train': 'train', 'val': 'held_out'}[split]] = digest.summarize(CocoSource(str(tmp_path), split))
  paths = [run(tmp_path / 's'), run(tmp_path / 'p', init='w'), write(tmp_path / 'of an earlier version', HALF)]
  assert provenance.held_out(read_runs(paths)) == []
  for path in paths[:2]:
    folder = RunFolder(path, create=False)
    identity.write(folder, None, identity.read(folder)._replace(data=data), 0)
  record = {'path': 'w', 'held_out_seen': {'run': 'runs/w', 'count': 2, 'of': 2}}
  (tmp_path / 'p/initial_weights.json').write_text(json.dumps(record))
  own, before = provenance.held_out(read_runs(paths))
  assert own == 's, p: 1 of its training images are held out too (the same files): AP is not that of unseen images.'
  assert before.startswith('p: initial weights come from runs/w, which was trained on 2 of the 2 held-out images')
  (tmp_path / 'p/initial_weights.json').write_text(json.dumps(record | {'held_out_seen': [3]}))
  assert len(provenance.held_out(read_runs(paths))) == 1


def test_data_that_was_changed_on_the_way(tmp_path):
  assert changes(run(tmp_path / 'a', data=['train: 36 -> 60 images'])) == [
    'a was trained on other data up to step 50 (train: 36 -> 60 images).']


@pytest.mark.parametrize('change, step, told', [
  (LONGER, 30, False), (LONGER, 90, True), (Change('KTimesSchedule.stop_k', 0.5, None, 'length'), 90, False)])
def test_a_longer_schedule_is_the_same_until_the_rate_drops(tmp_path, change, step, told):
  """1,200 steps of 4 images are 1x: this run of 100 steps has its drops at 67 and 89."""
  path = run(tmp_path / 'a', [change], step=step, k=1 / 12)
  assert read_runs([path])[0].drops == [67, 89]
  assert bool(changes(path)) == told


def test_the_rate_that_was_logged_tells_of_an_earlier_drop(tmp_path):
  path = run(tmp_path / 'a', [LONGER], step=90, k=2)
  assert changes(path) == []
  lines = [json.loads(line) for line in (tmp_path / 'a/metrics.jsonl').read_text().splitlines()]
  for line in lines:
    if line['kind'] == 'train' and line['step'] >= 50:
      line['learning_rate'] /= 10
  (tmp_path / 'a/metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert 'KTimesSchedule.k 1 -> 2' in changes(path)[0]


@pytest.mark.parametrize('history', [[7], [{}], [{'step': '9', 'settings': [{'name': 'a.b'}]}], [{'step': 9}], [
  {'step': 9, 'settings': {'name': 'a.b'}, 'data': [3]}], [
    {'step': 9, 'data': 3}], [{'step': 9, 'settings': [{'name': 3}, None], 'data': None}]])
def test_a_history_of_another_form_is_passed_over(tmp_path, history):
  path = run(tmp_path / 'a')
  content = json.loads((tmp_path / 'a/identity.json').read_text()) | {'history': history}
  (tmp_path / 'a/identity.json').write_text(json.dumps(content))
  assert changes(path) == []


def test_software(tmp_path):
  old, new = ({'rethink_tf': '0.2.0', 'tensorflow': version, 'python': version} for version in ('2.19.0', '2.20.0'))
  same = [run(tmp_path / name, versions=old, commit='abcdef0123', seed=k) for k, name in enumerate('ab')]
  unknown = write(tmp_path / 'unknown', HALF, seed=9)
  assert provenance.software(read_runs([*same, unknown])) == ([], [])
  mixed = [*same, run(tmp_path / 'c', versions=new, commit='abcdef0123+changes', seed=3)]
  assert provenance.software(read_runs(mixed)) == ([], [
    'Software: rethink_tf 0.2.0 at abcdef0 (2 runs), 0.2.0 at abcdef0+changes (1 run); tensorflow 2.19.0 (2 runs), '
    '2.20.0 (1 run).'])
  apart = [*same, run(tmp_path / 'd', versions=new, commit='abcdef0123', init='R50.pkl')]
  found = provenance.software(read_runs(apart))
  assert found.cautions == ['Scratch and pre-trained runs were trained with different software (tensorflow 2.19.0 and '
                            '2.20.0): part of their difference may be due to it.']


def test_software_that_differs_between_the_sides_of_one_verdict(tmp_path):
  """Whatever the other verdicts' runs were trained with: another rate, or other weights."""
  versions = [{'tensorflow': version} for version in ('2.19.0', '2.20.0')]
  paths = [run(tmp_path / f'{rate}{init}', rate=rate, init=init, versions=versions[number]) for number, rate, init in
           ((0, 0.02, None), (0, 0.02, 'w'), (1, 0.02, 'v'), (1, 0.01, None), (0, 0.01, 'w'))]
  words = 'Scratch and pre-trained runs were trained with different software (tensorflow 2.19.0 and 2.20.0{}): part'
  assert provenance.software(read_runs(paths[:2])).cautions == []
  for those, where in ((paths[:3], ' (v)'), ((*paths[:2], *paths[3:]), None), ((paths[0], paths[2]), '')):
    line, = provenance.software(read_runs(those)).cautions
    expected = ('tensorflow 2.20.0 and 2.19.0 (base_rate = 0.01)' if where is None else words.format(where))
    assert expected in line


def test_a_resumed_run_has_the_versions_of_all_starts(tmp_path):
  path = run(tmp_path / 'a', versions={'tensorflow': '2.20.0'})
  record = json.loads((tmp_path / 'a/command.json').read_text())
  earlier = [{'versions': {'tensorflow': '2.19.0'}}, {'versions': 3}, 4]
  (tmp_path / 'a/command.json').write_text(json.dumps(record | {'earlier_starts': earlier}))
  assert provenance.software(read_runs([path])).notes == ['Software: tensorflow 2.19.0 (1 run), 2.20.0 (1 run).']


def on(path, *hardware, **settings):
  """Write a run whose starts, the latest first, were on such hardware."""
  write(path, HALF, **settings)
  latest, *earlier = ({'hardware': name} for name in hardware)
  (path / 'command.json').write_text(json.dumps({**latest, 'earlier_starts': earlier}))
  return str(path)


def test_hardware(tmp_path):
  old, new = 'CPU, 2 cores (old, model 1)', 'CPU, 2 cores (new, model 2)'
  same = [on(tmp_path / name, old, seed=k) for k, name in enumerate('ab')]
  unknown = [on(tmp_path / f'unknown {k}', value, seed=5 + k) for k, value in enumerate((None, 3, [old]))]
  assert provenance.hardware(read_runs([*same, *unknown])) == ([], [])
  mixed = [*same, on(tmp_path / 'resumed', new, old, init='R50.pkl')]
  assert provenance.hardware(read_runs(mixed)) == ([], [f'Hardware: {new} (1 run); {old} (3 runs).'])
  apart = [*same, on(tmp_path / 'c', new, init='R50.pkl')]
  found = provenance.hardware(read_runs(apart))
  assert found.cautions == [f'Scratch and pre-trained runs were trained on different hardware ({old}; and {new}): part '
                            'of their difference may be due to it.']
  assert found.notes == [f'Hardware: {new} (1 run); {old} (2 runs).']
  other = on(tmp_path / 'e', new, init='other')  # beside weights of which the hardware is that of scratch
  line, = provenance.hardware(read_runs([*same, other, on(tmp_path / 'f', old, init='R50.pkl')])).cautions
  assert line.startswith('Scratch and pre-trained runs (other) were trained on different hardware (')
  comparison = compare(apart, str(tmp_path / 'out'), draws=20)
  assert found.cautions[0] in comparison.text and found.notes[0] in (tmp_path / 'out/index.html').read_text()


def test_weights_of_one_name_with_other_contents(tmp_path):
  paths = [write(tmp_path / name, HALF, init=f'{place}/R50.pkl', seed=k)
           for k, (name, place) in enumerate((('a', 'x'), ('b', 'y'), ('c', 'x'), ('d', 'x')))]
  for name, sha256 in (('a', 'aaaaaaaa11'), ('b', 'aaaaaaaa11'), ('c', 'cccccccc22'), ('d', 3)):
    record = tmp_path / name / 'initial_weights.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | {'sha256': sha256}))
  assert provenance.weights(read_runs([*paths, write(tmp_path / 'scratch', HALF)])) == [
    'c started from other weights than a, both named R50.pkl (SHA-256 cccccccc and aaaaaaaa): they count as one side.']


def spread(path, *each, norm='@sync_batch_norm'):
  """Write a run with a norm, whose starts, the latest first, had these devices."""
  write(path, HALF)
  config = (path / 'config.gin').read_text()
  (path / 'config.gin').write_text(config.replace('@group_norm', norm))
  latest, *earlier = ({'devices': devices} for devices in each)
  (path / 'command.json').write_text(json.dumps({**latest, 'earlier_starts': earlier}))
  return str(path)


def devices(replicas, images, micro_batches=1):
  return {'replicas': replicas, 'micro_batches': micro_batches, 'images': images}


def test_statistics_of_other_numbers_of_images(tmp_path):
  alike = [spread(tmp_path / 'a', devices(8, 2)), spread(tmp_path / 'b', devices(4, 4))]
  assert provenance.statistics(read_runs(alike)) == []
  assert provenance.statistics(read_runs([*alike, spread(tmp_path / 'c', devices(1, 2, 8))])) == [
    'SyncBatchNorm took its statistics over 2 images in c, over 16 in a: part of the difference between runs may be '
    'due to it.']
  resumed, = provenance.statistics(read_runs([spread(tmp_path / 'd', devices(1, 4), devices(2, 4))]))
  assert resumed.startswith('SyncBatchNorm took its statistics over 4 and 8 images in d: part')
  groups = [spread(tmp_path / name, devices(k, 2), norm='@group_norm') for name, k in (('e', 1), ('f', 8))]
  assert provenance.statistics(read_runs(groups)) == []


@pytest.mark.parametrize('record', [None, 3, {}, {'replicas': 2}, devices('8', 2), devices(0, 2), devices(True, 2)])
def test_devices_of_another_form_are_not_known(tmp_path, record):
  paths = [spread(tmp_path / 'a', devices(8, 2)), spread(tmp_path / 'b', record)]
  assert provenance.statistics(read_runs(paths)) == []


def test_the_report_says_so(tmp_path):
  paths = [run(tmp_path / 'a', [RATE], versions={'tensorflow': '2.19.0'}),
           run(tmp_path / 'b', detected=better(10), init='R50.pkl', versions={'tensorflow': '2.20.0'})]
  comparison = compare(paths, str(tmp_path / 'out'), draws=20)
  page = (tmp_path / 'out/index.html').read_text()
  for words in ('a was trained with other settings up to step 50', 'trained with different software',
                'Software: tensorflow 2.19.0 (1 run), 2.20.0 (1 run).'):
    assert words in page
  assert 'a was trained with other settings up to step 50' in comparison.text
