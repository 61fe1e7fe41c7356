"""Expansion of a grid to its runs; every shipped study and the configurations of its runs parse."""

import itertools
import pathlib
import re
import shlex

import pytest

from rethink_tf.errors import UserError
from rethink_tf.study import grid
from tests import commands

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDIES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'gin_configs/studies').glob('*.gin'))
AXES = {'init': {'scratch': (), 'pre': ('init/p.gin', 'WEIGHTS = {net}')}, 'k': {'1x': ('K = 1',), '2x': ('K = 2',)}}


def test_every_combination_in_order():
  study = grid.Study(('base.gin', 'A = 1'), AXES, {'net': ('pre.gin',)})
  trials = study.trials({'net': '/runs/net'})
  assert [trial.name for trial in trials] == ['scratch_1x', 'scratch_2x', 'pre_1x', 'pre_2x']
  assert trials[3].files == ('base.gin', 'init/p.gin')
  assert trials[3].params == ('A = 1', "WEIGHTS = '/runs/net'", 'K = 2')
  assert trials[3].choice == {'init': 'pre', 'k': '2x'}


def test_combinations_are_left_out():
  study = grid.Study((), AXES, {'net': ()}, leave_out=({'init': 'pre', 'k': '1x'},))
  assert [trial.name for trial in study.trials({'net': 'n'})] == ['scratch_1x', 'scratch_2x', 'pre_2x']


def test_a_pre_training_has_the_words_of_the_base():
  study = grid.Study(('base.gin', 'A = 1'), AXES, {'net': ('pre.gin',), 'same': ('{base}', 'low.gin', 'A = 2')})
  assert grid.of_pretraining(study, 'net', ['more.gin'], ['B = 3']) == ['pre.gin']
  assert grid.of_pretraining(study, 'same', ['more.gin'], ['B = 3']) == ['base.gin', 'A = 1', 'more.gin', 'B = 3',
                                                                        'low.gin', 'A = 2']


@pytest.mark.parametrize('files, detector', [
  (('gin_configs/demo.gin',), True), (('gin_configs/pretraining/imagenette.gin',), False), ((), True)])
def test_detectors_and_classifiers_are_distinguished(files, detector):
  assert grid.is_of_detector(files, ()) == detector


@pytest.mark.parametrize('make, message', [
  (lambda: grid.Study((), {'k': {}}), 'k has no values'),
  (lambda: grid.Study((), {'k': {'a/b': ()}}), 'folder'),
  (lambda: grid.Study((), {'k': {'report': ()}}).trials({}), "a run would be called 'report'"),
  (lambda: grid.Study((), {'k': {'a': (), 'a_b': ()}, 'l': {'b_c': (), 'c': ()}}).trials({}), "called 'a_b_c'"),
  (lambda: grid.Study((), {'norm': {'gn': (), 'GN': ()}}).trials({}), "two runs would be called 'GN'"),
  (lambda: grid.Study((), {'k': {'1x': (), '..': ()}}).trials({}), "a run would be called '..'"),
  (lambda: grid.Study((), AXES, leave_out=({'k': '3x'},)), "no k = '3x'"),
  (lambda: grid.Study((), AXES).trials({}), 'not in Study.pretraining'),
  (lambda: grid.Study((), {'k': {'1x': ()}}, leave_out=({'k': '1x'},)).trials({}), 'all runs are left out'),
  (lambda: grid.read_study('gin_configs/studies/figure1.gin', ['Study.axis = {}']), "no parameter 'axis'"),
])
def test_errors_are_one_line(make, message):
  with pytest.raises(UserError, match=message) as error:
    make()
  assert '\n' not in error.value.line()


def test_a_file_without_axes_is_not_a_study(tmp_path):
  (tmp_path / 'half.gin').write_text('Study.base = ()')
  with pytest.raises(UserError, match='is not a study'):
    grid.read_study(str(tmp_path / 'half.gin'))


@pytest.mark.parametrize('name, run', [('gin_configs/demo.gin', True), ('gin_configs/data/own.gin', False)])
def test_a_configuration_is_not_a_study(name, run):
  with pytest.raises(UserError, match='is not a study: it must bind Study.base and Study.axes') as error:
    grid.read_study(name)
  assert ('rethink_tf.train' in str(error.value)) == run


@pytest.mark.parametrize('name', STUDIES)
def test_a_shipped_study(name):
  """Its run sheet is complete, and the configurations of its first and last run parse with the command in it."""
  text = (ROOT / name).read_text()
  assert all(f'# {field}' in text for field in ('Reproduces', 'Cost', 'Command', 'Override')) and name in text
  words = shlex.split(re.search(r'# Command +(.*)', text)[1])
  commands.check(words)
  study = grid.read_study(name, commands.values(words, 'study_param'))
  trials = study.trials(dict.fromkeys(study.pretraining, '/runs/net'))
  assert len(trials) > 1 and len({trial.name for trial in trials}) == len(trials)
  for trial in (trials[0], trials[-1]):
    config = grid.read_config(trial, [f'WEIGHTS = {path!r}' for path in commands.values(words, 'weights')
                                      if 'WEIGHTS' not in str(trial) and 'scratch' not in trial.name])
    assert config.steps > 0 and config.quiet == ('CocoEvaluator.at_end = False',)


def test_trials_that_differ_only_in_length_are_of_one_kind():
  study = grid.read_study('gin_configs/studies/figure1.gin')
  configs = {trial.name: grid.read_config(trial, ["WEIGHTS = 'w'"] if 'pretrain' in trial.name else [])
             for trial in study.trials({})}
  assert configs['scratch_6x'].steps == 540_000 and configs['scratch_6x'].first_drop == 480_000
  assert configs['scratch_6x'].images == 8_640_000
  for (name, one), (other, two) in itertools.combinations(configs.items(), 2):
    assert (one.kind == two.kind) == (name.split('_')[0] == other.split('_')[0])
