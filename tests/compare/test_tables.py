"""Settings that differ between runs."""

from types import SimpleNamespace

from rethink_tf.compare.tables import different_settings


def settings(*runs):
  return different_settings([SimpleNamespace(settings=run) for run in runs])


def test_settings_of_a_component_that_one_run_has_are_left_out_if_they_set_nothing():
  pretrained = {'run.initial_weights': '@PretrainedWeights()', 'PretrainedWeights.path': 'w', 'run.seed': 0,
                'PretrainedWeights.norm': None, 'PretrainedWeights.ignore': (), 'PretrainedWeights.new': False}
  scratch = {'run.initial_weights': None, 'run.seed': 0}
  assert settings(scratch, pretrained) == {'run.initial_weights': ['None', '@PretrainedWeights()'],
                                           'PretrainedWeights.path': ['-', 'w']}


def test_nothing_that_differs_between_runs_is_left_out():
  found = settings({'a.b': None, 'a.c': False, 'coco.data_dir': 'x'},
                   {'a.b': False, 'a.c': 3, 'coco.data_dir': 'y'}, {})
  assert found == {'a.b': ['None', 'False', '-'], 'a.c': ['False', '3', '-']}
