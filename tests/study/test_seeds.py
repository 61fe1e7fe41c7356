"""The axis of seeds of a study that adds seeds."""

import pytest

from rethink_tf.errors import UserError
from rethink_tf.study import grid, seeds
from rethink_tf.study.run import plan_study
from rethink_tf.study.seeds import UntilSettled

STUDY = 'gin_configs/studies/own_data_narrow.gin'


def test_seeds_are_added_to_the_axis_that_binds_them():
  axes = {'init': {'a': ()}, 'random': {'s7': ('run.seed = 7',), 'x': ('run.seed = 0',)}}
  extended, axis = seeds.with_seeds(axes, 4)
  assert axis == 'random' and list(extended) == ['init', 'random']
  assert extended['random'] == {'s7': ('run.seed = 7',), 'x': ('run.seed = 0',), 'seed1': ('run.seed = 1',),
                                'seed2': ('run.seed = 2',)}
  assert seeds.with_seeds({'seed': {'a': ('run.seed=0',)}}, 2)[0]['seed'] == {'a': ('run.seed=0',),
                                                                              'seed1': ('run.seed = 1',)}
  assert seeds.with_seeds({'init': {'a': ()}}, 2)[0]['seed'] == {'seed0': ('run.seed = 0',), 'seed1': ('run.seed = 1',)}


@pytest.mark.parametrize('axes, number, message', [
  ({'seed': {'a': ('run.seed = 0', 'SCHEDULE = 2')}}, 3, 'seed binds more than run.seed'),
  ({'seed': {f's{i}': (f'run.seed = {i}',) for i in range(3)}}, 2, 'seed has 3 values'),
])
def test_axes_that_cannot_be_extended(axes, number, message):
  with pytest.raises(UserError, match=message):
    seeds.with_seeds(axes, number)


@pytest.mark.parametrize('number', [1, 31, 2.5])
def test_the_number_of_seeds_is_checked(number):
  with pytest.raises(UserError, match='max_seeds'):
    UntilSettled(number)


def test_a_study_of_a_gin_file_is_planned_seed_by_seed(tmp_path):
  params = ['Study.until_settled = @UntilSettled()', 'UntilSettled.max_seeds = 3']
  plan = plan_study(STUDY, str(tmp_path / 'own'), study_params=params)
  assert len(plan.trials) == 27 and plan.until_settled.max_seeds == 3 and plan.seed_axis == 'seed'
  order = [stage.trial.choice['seed'] for stage in plan.stages]
  assert order == sorted(order) and set(order) == {'seed0', 'seed1', 'seed2'}
  assert 'at most 27 runs' in str(plan)
  assert plan.trials[0].name == 'scratch_0.25x_seed0'  # as without added seeds


def test_another_value_is_refused():
  with pytest.raises(UserError, match=r'Study.until_settled should be a part \(@UntilSettled\(\)\) or None, is True'):
    grid.read_study(STUDY, ['Study.until_settled = True'])
