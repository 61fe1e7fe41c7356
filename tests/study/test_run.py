"""Planning and submission of a study from Python; training is tested in test___main__.py."""

import pytest

from rethink_tf.compare import looks, plots
from rethink_tf.errors import UserError
from rethink_tf.study.run import check, check_data, compare_runs, get_weights, plan_study, submit_study
from rethink_tf.weights import catalog
from tests.compare import fake_runs

STUDY = 'gin_configs/studies/own_data_narrow.gin'
TWO_RUNS = ("Study.axes = {'init': {'scratch': (), 'shapes': ('gin_configs/init/pretrained_run.gin', "
            "'WEIGHTS = {shapes}')}}",)  # in place of its 18


def test_a_plan_without_shared_iterations_has_one_stage_per_run(tmp_path):
  shared, alone = (plan_study(STUDY, f'{tmp_path}/own/', share_prefixes=share) for share in (True, False))
  assert len(shared.stages) > len(alone.stages) == len(alone.trials) == len(alone.configs) == 18
  assert shared.output == f'{tmp_path}/own'
  assert list(shared.pretraining) == [f'{tmp_path}/pretraining/{name}' for name in ('shapes', 'target')]
  assert 'less than the runs one by one' in str(shared) and 'less' not in str(alone)
  assert str(shared).startswith(f'pre-training {tmp_path}/pretraining/shapes\n')


def test_data_folders_become_arguments_and_bindings(tmp_path):
  plan = plan_study(STUDY, str(tmp_path / 'own'), ['run.seed = 3'], TWO_RUNS, data_dir='images',
                    pretraining_data_dir='other')
  assert plan.data_dir == 'images' and plan.pretraining_data_dir == 'other'
  assert all(trial.params[-1] == 'run.seed = 3' for trial in plan.trials)


def test_only_the_folder_of_the_data_that_is_read_must_exist(tmp_path):
  synthetic = plan_study('gin_configs/studies/miniature_figure1.gin', str(tmp_path / 'mini'), (), TWO_RUNS)
  check_data(synthetic)  # DATA_DIR is that of COCO, which is not read
  with pytest.raises(UserError, match='balloon: no such data folder'):
    check_data(plan_study(STUDY, str(tmp_path / 'own'), (), TWO_RUNS, data_dir=f'{tmp_path}/balloon'))
  for folder in (str(tmp_path), 'gs://bucket/coco'):
    check_data(plan_study(STUDY, str(tmp_path / 'own'), (), TWO_RUNS, data_dir=folder))


def test_further_files_override_every_run(tmp_path):
  plan = plan_study(STUDY, str(tmp_path / 'own'), run_files=['gin_configs/models/faster_rcnn.gin'])
  assert all(trial.files[-1] == 'gin_configs/models/faster_rcnn.gin' for trial in plan.trials)
  assert [any('faster_rcnn' in file for file in one.files) for one in plan.pretraining.values()] == [False, True]


@pytest.mark.parametrize('param, message', [
  ('SCHEDULE = 2', "--gin_param='SCHEDULE = 2': the axis 'schedule' of the study binds SCHEDULE"),
  ('run.seed = 3', "the axis 'seed' of the study binds run.seed"),
  ("WEIGHTS = 'other.pkl'", "the axis 'init' of the study binds WEIGHTS"),
  ('KTimesSchedule.k = 2', 'scratch_0.25x_seed0 and scratch_0.5x_seed0 have the same settings')])
def test_what_every_run_has_must_not_overwrite_an_axis(tmp_path, param, message):
  with pytest.raises(UserError, match=message):
    plan_study(STUDY, str(tmp_path / 'own'), [param])


def test_what_some_values_of_an_axis_have_in_common_may_be_overwritten(tmp_path):
  axes = ("""Study.axes = {'augment': {'flip': (), 'jitter': ('gin_configs/augment/standard_jitter.gin',
          'LargeScaleJitter.side = 224'), 'lsj': ('gin_configs/augment/large_scale_jitter.gin',
          'LargeScaleJitter.side = 224')}}""",)
  plan = plan_study(STUDY, str(tmp_path / 'own'), ['LargeScaleJitter.side = 128'], axes)
  assert [config.settings.get('LargeScaleJitter.side') for config in plan.configs] == [None, 128, 128]


def test_runs_with_the_same_settings_are_refused(tmp_path):
  with pytest.raises(UserError, match='Study.axes: one and two have the same settings'):
    plan_study(STUDY, str(tmp_path / 'own'), (), ["Study.axes = {'times': {'one': (), 'two': ()}}"])
  plan_study(STUDY, str(tmp_path / 'own'), (), ["Study.axes = {'times': {'one': (), 'two': ()}}",
                                                "Study.leave_out = [{'times': 'two'}]"])
  without_effect = """Study.axes = {'decay': {'one': ('ExponentialMovingAverage.decay = 0.99',),
                   'two': ('ExponentialMovingAverage.decay = 0.999',)}}"""  # of averages that no run has
  with pytest.raises(UserError, match='one and two have the same settings'):
    plan_study(STUDY, str(tmp_path / 'own'), (), [without_effect])


ON_THE_TARGET = """
Study.base = ('gin_configs/demo.gin', 'gin_configs/data/own.gin', 'Resize.short_side = (160,)')
Study.pretraining = {
  'imagenette': ('gin_configs/pretraining/imagenette.gin',),
  'target': ('{base}', 'gin_configs/pretraining/target_low_resolution.gin', 'BATCH_SIZE = 16'),
  'other': ('gin_configs/demo.gin', 'gin_configs/data/own.gin', "DATA_DIR = 'elsewhere'"),
}
Study.axes = {'init': {
  'scratch': (), 'imagenette': ('gin_configs/init/pretrained_run.gin', 'WEIGHTS = {imagenette}'),
  'target': ('gin_configs/init/target_pretraining.gin', 'WEIGHTS = {target}'),
  'other': ('gin_configs/init/detector_new_classes.gin', 'WEIGHTS = {other}')}}
"""


def test_a_detector_is_pre_trained_on_the_data_of_the_study(tmp_path):
  """It is the detector of the runs, with what the command adds to them, unless it names data of its own."""
  (tmp_path / 'arms.gin').write_text(ON_THE_TARGET)
  plan = plan_study(str(tmp_path / 'arms.gin'), f'{tmp_path}/runs/arms', ['run.seed = 3'], data_dir='images',
                    pretraining_data_dir='classes', run_files=['gin_configs/models/faster_rcnn.gin'])
  imagenette, target, other = plan.pretraining.values()
  assert [one.data_dir for one in plan.pretraining.values()] == ['classes', 'images', None]
  assert [one.command for one in plan.pretraining.values()] == ['pretrain', 'train', 'train']
  assert plan.pretraining_folders == ('classes', 'images', 'elsewhere')
  assert target.files == ('gin_configs/demo.gin', 'gin_configs/data/own.gin', 'gin_configs/models/faster_rcnn.gin',
                          'gin_configs/pretraining/target_low_resolution.gin')
  assert target.params == ('Resize.short_side = (160,)', 'run.seed = 3', 'BATCH_SIZE = 16')
  assert [config.weights for config in plan.configs] == [
    None, *(f'{tmp_path}/runs/pretraining/{name}' for name in ('imagenette', 'target', 'other'))]
  with pytest.raises(UserError, match='pretraining/imagenette must be trained first: python -m rethink_tf.pretrain '):
    submit_study(plan, 'echo')
  (tmp_path / 'runs/pretraining/imagenette/checkpoints/step-00000007').mkdir(parents=True)
  with pytest.raises(UserError, match='pretraining/target must be trained first: python -m rethink_tf.train .*=images'):
    submit_study(plan, 'echo')


def test_data_of_its_own_is_recognized_however_it_is_written(tmp_path):
  (tmp_path / 'arms.gin').write_text(ON_THE_TARGET.replace("DATA_DIR = 'elsewhere'", "DATA_DIR='elsewhere'"))
  plan = plan_study(str(tmp_path / 'arms.gin'), f'{tmp_path}/runs/arms', data_dir='images')
  assert plan.pretraining_folders[-1] == 'elsewhere'


def test_a_pre_training_from_which_no_run_starts_is_not_made(tmp_path):
  (tmp_path / 'arms.gin').write_text(ON_THE_TARGET + """
Study.pretraining = {
  'imagenette': ('gin_configs/pretraining/imagenette.gin',),
  'target': ('{base}', 'gin_configs/init/pretrained_run.gin', 'WEIGHTS = {imagenette}'),
  'other': ('gin_configs/demo.gin', 'gin_configs/data/own.gin', "DATA_DIR = 'elsewhere'"),
}""")

  def made(*left_out):
    param = f'Study.leave_out = {[{"init": name} for name in left_out]}'
    return [path.rpartition('/')[2] for path in plan_study(str(tmp_path / 'arms.gin'), f'{tmp_path}/runs/arms',
                                                           study_params=[param]).pretraining]

  assert made() == ['imagenette', 'target', 'other'] and made('other') == ['imagenette', 'target']
  assert made('imagenette', 'other') == ['imagenette', 'target']  # which starts from it
  assert made('target', 'other') == ['imagenette'] and made('imagenette', 'target', 'other') == []


def test_runs_are_submitted_once_what_they_start_from_is_trained(tmp_path, capfd):
  plan = plan_study(STUDY, str(tmp_path / 'own'), share_prefixes=False)
  with pytest.raises(UserError, match='must be trained first'):
    submit_study(plan, 'echo')
  submit_study(plan, 'false', dry_run=True)
  lines = capfd.readouterr().out.splitlines()
  assert len(lines) == 19 and lines[0].startswith('false --gin_file=') and 'rethink_tf.compare' in lines[-1]
  for name in ('shapes', 'target'):
    (tmp_path / f'pretraining/{name}/checkpoints/step-00000007').mkdir(parents=True)
  with pytest.raises(UserError, match='the command above failed'):
    submit_study(plan, 'false')


def test_the_command_that_compares_submitted_runs_has_the_options_of_the_study(tmp_path, capfd):
  plan = plan_study(STUDY, str(tmp_path / 'own'), share_prefixes=False)
  for margin, options in ((0.5, ' --metric=mask/AP'), (1.0, ' --metric=mask/AP --margin=1')):
    submit_study(plan._replace(metric='mask/AP', margin=margin), 'false', dry_run=True)
    assert capfd.readouterr().out.splitlines()[-1].endswith(f'seed1{options}')


@pytest.mark.parametrize('files, metric, scored', [
  ((), 'keypoint/AP', 'box/AP, mask/AP alone: choose one of these'), ((), 'voc/mAP', 'box/AP, mask/AP alone'),
  (('gin_configs/models/faster_rcnn.gin',), 'mask/AP', 'box/AP alone: choose it'), ((), 'mask/AP', None)])
def test_a_metric_that_no_run_has_is_refused_before_anything_is_trained(tmp_path, files, metric, scored):
  plan = plan_study('gin_configs/studies/miniature_figure1.gin', str(tmp_path / 'mini'), (), TWO_RUNS, run_files=files)
  plan = plan._replace(metric=metric)
  if scored is None:
    check(plan)
    return
  with pytest.raises(UserError, match=f'--metric={metric}: scratch is scored by {scored}'):
    check(plan)
  with pytest.raises(UserError, match=f'--metric={metric}'):
    submit_study(plan, 'false', dry_run=True)


ARMS = """
Study.base = ('gin_configs/scratch_1x.gin',)
Study.axes = {'init': {'scratch': (), 'given': ('gin_configs/init/imagenet.gin',),
                       'moco': ('gin_configs/init/moco_v2.gin', 'WEIGHTS = "moco_v2"')}}
"""


def test_weights_are_those_of_arms_that_name_none_and_there_before_training(tmp_path, monkeypatch):
  study, fetched = tmp_path / 'arms.gin', []
  study.write_text(ARMS)
  plan = plan_study(str(study), str(tmp_path / 'runs'), weights='detectron_r50_gn')
  assert [config.weights for config in plan.configs] == [None, 'detectron_r50_gn', 'moco_v2']
  assert ['WEIGHTS' in ' '.join(trial.params) for trial in plan.trials] == [False, True, True]
  monkeypatch.setattr(catalog, 'local_path', fetched.append)
  get_weights(plan)
  assert fetched == ['detectron_r50_gn', 'moco_v2']
  (tmp_path / 'runs/moco').mkdir(parents=True)
  (tmp_path / 'runs/moco/initial_weights.json').write_text('{}')  # loaded before
  get_weights(plan)
  assert fetched[2:] == ['detectron_r50_gn']
  study.write_text(ARMS.replace("'gin_configs/init/imagenet.gin',", ''))
  with pytest.raises(UserError, match='--weights=detectron_r50_gn is given, but no run of .*arms.gin starts from it'):
    plan_study(str(study), str(tmp_path / 'runs'), weights='detectron_r50_gn')


def test_a_report_that_does_not_fit_is_no_reason_for_another_folder(tmp_path, monkeypatch):
  """In which everything would be trained again."""
  resource = pytest.importorskip('resource')  # not on Windows
  monkeypatch.setattr(plots, 'render', lambda figures, kind: dict.fromkeys(figures, b'<svg/>'))
  for drawn in ('panels', 'curves', 'end_points', 'by_size', 'losses', 'answer'):
    monkeypatch.setattr(plots, drawn, lambda *of, drawn=drawn: {} if drawn == 'panels' else drawn)
  paths = [fake_runs.write(tmp_path / 's', fake_runs.HALF), fake_runs.write(tmp_path / 'p', fake_runs.HALF, init='w')]
  plan = plan_study(STUDY, str(tmp_path / 'own'), (), TWO_RUNS)
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
  try:
    for write in (lambda: compare_runs(plan, paths), lambda: looks.write(plan.output, looks.Record(
        5, tuple(looks.Taken(2, {'s' * 1000: 1.0}, None) for _ in range(2))))):
      with pytest.raises(UserError, match='cannot be written: File too large.*; mend that and run the same command'):
        write()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_weights_that_do_not_exist_stop_a_study_before_it_trains(tmp_path):
  (tmp_path / 'arms.gin').write_text(ARMS)
  plan = plan_study(str(tmp_path / 'arms.gin'), str(tmp_path / 'runs'), weights=f'{tmp_path}/R-50-GN.pkl')
  with pytest.raises(UserError, match='R-50-GN.pkl: no such file: give its path, or --weights=detectron_r50_gn'):
    get_weights(plan)
