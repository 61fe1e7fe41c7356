"""What tells two pre-trainings apart besides their seed."""

import json

import pytest

from rethink_tf.storage import identity, manifests
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.weights import recipes

SETTINGS = {'run.seed': 0, 'KTimesSchedule.k': 1, 'CocoEvaluator.every': 5, 'PretrainedWeights.path': 'a'}
DATA = {'train': {'images': 10}, 'held_out': {'images': 2}}


def recipe(folder, settings=(), data=DATA, images=40, start=None, history=()):
  """The recipe of a run folder with one checkpoint."""
  path = folder / 'checkpoints/step-00000005'
  path.mkdir(parents=True)
  (path / 'weights.index').write_bytes(b'x')
  manifests.write(str(path), 5, {'progress': {'images': images, 'instances': 3, 'pixels': 1e3 * len(str(folder))}})
  identity.write(RunFolder(str(folder)), None, identity.Identity(
    folder.name, [{'name': 'a'}], SETTINGS | dict(settings), data, '1', history=tuple(history)), 0)
  if start is not None:
    (folder / 'initial_weights.json').write_text(json.dumps(start))
  return recipes.of_run(str(path))


def test_seeds_places_and_evaluations_are_no_part_of_it(tmp_path):
  base = recipe(tmp_path / 'a')
  assert base['seeds'] == [0] and base['recipe']
  other = recipe(tmp_path / 'another', {'run.seed': 7, 'CocoEvaluator.every': 9, 'PretrainedWeights.path': 'b'},
                 DATA | {'held_out': {'images': 3}})
  assert other == base | {'seeds': [7]}


@pytest.mark.parametrize('options', [
  {'settings': {'KTimesSchedule.k': 2}}, {'data': {'train': {'images': 11}}}, {'images': 80},
  {'start': {'sha256': 'abc'}}, {'history': [{'step': 3, 'settings': [{'name': 'SGD.momentum', 'was': 0, 'now': 1}]}]}],
  ids=lambda options: next(iter(options)))
def test_all_else_is(tmp_path, options):
  assert recipe(tmp_path / 'a')['recipe'] != recipe(tmp_path / 'b', **options)['recipe']


def test_the_seeds_of_weights_that_led_to_it_are_told(tmp_path):
  first, second = (recipe(tmp_path / f'of{seed}', start={'recipe': 'same', 'seeds': [seed], 'sha256': str(seed)})
                   for seed in (3, 4))
  assert first['recipe'] == second['recipe'] and (first['seeds'], second['seeds']) == ([0, 3], [0, 4])


def test_a_run_of_an_earlier_version_has_none(tmp_path):
  recipe(tmp_path / 'a')
  for damage in ('{', '{}'):
    (tmp_path / 'a/identity.json').write_text(damage)
    assert recipes.of_run(str(tmp_path / 'a/checkpoints/step-00000005')) == {}
  (tmp_path / 'a/identity.json').unlink()
  assert recipes.of_run(str(tmp_path / 'a/checkpoints/step-00000005')) == {}
