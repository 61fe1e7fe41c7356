"""The study that is chosen for a data set: what the data asks for, and lengths that fit the time."""

import json
import shlex
from types import SimpleNamespace

import pytest

from rethink_tf.errors import UserError
from rethink_tf.study import grid, own_data
from rethink_tf.study.estimate import Estimate
from rethink_tf.study.grid import Trial
from rethink_tf.study.own_data import Facts
from rethink_tf.study.run import Pretraining, plan_study
from rethink_tf.study.stages import images
from rethink_tf.weights import catalog
from tests import exports
from tests.in_process import call
from tests.test_command_line import ROOT

FACTS = Facts(100, 20, 300, 2, 10, True)

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Drawn images with masks, and as Roboflow exports boxes alone."""
  folder = tmp_path_factory.mktemp('own')
  exports.draw(folder / 'masks')
  exports.roboflow(*exports.draw(folder / 'x', masks=False), folder / 'boxes')
  return folder


def test_what_the_data_asks_for(folders):
  assert own_data.read_facts(str(folders / 'masks')) == Facts(4, 2, 8, 2, 2, True)
  assert own_data.read_facts(str(folders / 'boxes')) == Facts(4, 2, 8, 2, 2, False)
  plain, boxes = (own_data.choose(facts, None, '') for facts in (FACTS, FACTS._replace(masks=False)))
  assert plain.run_files == () and boxes.run_files == ('gin_configs/models/faster_rcnn.gin',)
  crowded = own_data.choose(FACTS._replace(most_objects=120), 'a.pkl', '')
  assert crowded.run_files == ('gin_configs/models/many_objects.gin',) and 'MAX_OBJECTS = 150' in crowded.params
  assert (plain.study, crowded.study) == tuple(f'gin_configs/studies/own_data{name}.gin' for name in ('_narrow', ''))


def test_data_without_a_held_out_object_is_refused(tmp_path):
  exports.draw(tmp_path)
  path = tmp_path / 'annotations/instances_val.json'
  content = json.loads(path.read_text())
  for one in content['annotations']:
    one['iscrowd'] = 1
  for annotations in ([], content['annotations']):
    exports.write_json(path, {**content, 'annotations': annotations})
    with pytest.raises(UserError, match='val: none of its 2 held-out images has an object'):
      own_data.read_facts(str(tmp_path))


def test_masks_after_many_boxes_are_found(tmp_path):
  polygon = [1, 1, 21, 1, 1, 21]
  for split, number in (('train', 11), ('val', 1)):
    for i in range(1, number + 1):
      (tmp_path / split).mkdir(exist_ok=True)
      (tmp_path / split / f'{i}.png').touch()
    exports.write_json(tmp_path / f'annotations/instances_{split}.json', {
      'images': [{'id': i, 'file_name': f'{i}.png', 'height': 40, 'width': 40} for i in range(1, number + 1)],
      'annotations': [{'id': 1000 * i + k, 'image_id': i, 'category_id': 1, 'bbox': [1, 1, 20, 20], 'area': 400,
                       'iscrowd': 0, **({'segmentation': [polygon]} if i == number else {})}
                      for i in range(1, number + 1) for k in range(1000)],
      'categories': [{'id': 1, 'name': 'c'}]})
  assert own_data.read_facts(str(tmp_path)).masks


@pytest.mark.parametrize('weights, unit, longest', [(None, 400, 1), ('a.pkl', 75, 4)])
@pytest.mark.parametrize('minutes, fits', [(60, 'schedules that take about'), (1e6, 'at most 300 epochs'),
                                           (1, 'give more --minutes')])
def test_lengths_fit_the_time(minutes, fits, weights, unit, longest):
  def seconds(unit):  # of a study that takes 240 s without a step
    return 240 + 7 * longest * unit
  choice = own_data.fit(own_data.choose(FACTS, weights, ''), FACTS, 60 * minutes,
                         (seconds(unit), seconds(2 * unit)))
  chosen = int(choice.params[-1].rpartition(' ')[2])
  assert fits in choice.reasons[-1]
  if minutes == 60:
    assert seconds(chosen) <= 0.9 * 3600 < seconds(chosen + 1)
  else:
    assert chosen == (5 if minutes == 1 else round(100 * 300 / 16 / longest))


def test_the_time_that_is_over_counts():
  choice, times = own_data.choose(FACTS, None, ''), (3000, 5000)
  lengths = [own_data.fit(choice, FACTS, 3600, times, spent) for spent in (0.0, 600.0)]
  units = [int(one.params[-1].rpartition(' ')[2]) for one in lengths]
  assert units == [448, 340] and '1 h 0 min, of which 10 min 0 s are over' in lengths[1].reasons[-1]
  assert 'are over' not in lengths[0].reasons[-1]


@pytest.mark.parametrize('minutes, left_out', [(60, False), (20, True)])
def test_synthetic_shapes_are_left_out_where_they_take_most_of_the_time(minutes, left_out):
  choice = own_data.choose(FACTS, None, '')
  choices = own_data.alternatives(choice)
  without = choices[1]
  times = [(2700, 4500), (1400, 2600)]  # 900 s and 200 s of them in any case
  found, its = own_data.choose_alternative(choices, times, 60 * minutes)
  assert (found.study_params, its) == ((without.study_params, times[1]) if left_out else ((), times[0]))
  assert (found.reasons[-1].endswith(': of 20 min 0 s, what no shorter schedule saves would take 15 min 0 s with it, '
                                     'and takes 3 min 20 s without')) == left_out
  assert own_data.alternatives(choice._replace(weights='a.pkl')) == [choice._replace(weights='a.pkl')]
  assert own_data.choose_alternative([choice], times[:1], 1) == (choice, times[0])
  plan = plan_study(found.study, 'runs/own', study_params=found.study_params)
  assert len(plan.trials) == (12 if left_out else 18)
  words = shlex.split(found.command('a', 'b'))
  assert [word for word in words if word.startswith('--study_param=')] == [
    f'--study_param={param}' for param in found.study_params]


@pytest.mark.parametrize('gpus, given, error, weights, why', [
  ([], None, None, None, 'no GPU'), ([1], None, None, own_data.IMAGENET, "from ImageNet's"),
  ([1], None, UserError('offline'), None, 'out of reach (offline)'), ([], 'a.pkl', None, 'a.pkl', 'from a.pkl')])
def test_the_choice_of_weights_and_its_reason(monkeypatch, gpus, given, error, weights, why):
  def get(name):
    assert catalog.find(name) is not None
    if error:
      raise error
  monkeypatch.setattr(own_data.tf.config, 'list_physical_devices', lambda kind: gpus)
  monkeypatch.setattr(own_data.catalog, 'local_path', get)
  found, reason = own_data.choose_weights(given, dry_run=False)
  assert found == weights and why in reason
  monkeypatch.setattr(own_data.catalog, 'local_path', lambda name: 1 / 0)
  own_data.choose_weights(given, dry_run=True)


def test_a_choice_is_kept_and_used_again(folders, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(own_data, 'plan_study', lambda *args, **kwargs: SimpleNamespace(
    params=args[2], files=kwargs['run_files']))
  monkeypatch.setattr(own_data, '_time', lambda choices, *_: [(400.0, 800.0)] * len(choices))
  monkeypatch.setattr(own_data, 'time', SimpleNamespace(monotonic=lambda: 0.0))
  data, output = str(folders / 'boxes'), str(tmp_path / 'study')
  own_data.plan(data, 30, output, dry_run=True)
  assert not (tmp_path / 'study').exists()
  first = own_data.plan(data, 1, output)
  assert first.params == ('KTimesSchedule.warmup_limit = 0.5', 'KTimesSchedule.unit = 54')
  assert first.files == ('gin_configs/models/faster_rcnn.gin',)
  monkeypatch.setattr(own_data, 'read_facts', lambda _: 1 / 0)
  assert own_data.plan(data, 30, output) == first
  printed = capsys.readouterr().out
  assert 'no object has a mask' in printed and '--gin_file=gin_configs/studies/own_data_narrow.gin' in printed
  with pytest.raises(UserError, match='was chosen for .*another --output'):
    own_data.plan(str(folders / 'masks'), 30, output)
  with pytest.raises(UserError, match='was chosen without --weights, not for --weights=moco_v2: give another --output'):
    own_data.plan(data, 30, output, weights='moco_v2')
  earlier = json.loads((tmp_path / 'study/choice.json').read_text())
  assert earlier.pop('study_params') == []
  (tmp_path / 'study/choice.json').write_text(json.dumps(earlier))  # as before there were any
  assert own_data.plan(data, 30, output) == first
  (tmp_path / 'study/choice.json').write_text(json.dumps({'data_dir': 3}))
  with pytest.raises(UserError, match='was not written by this command: delete it'):
    own_data.plan(data, 30, output)


def test_pre_training_on_the_same_images_grows_with_the_schedules(folders, tmp_path, monkeypatch):
  """A second for each step of 16 images of it, and a tenth for those of 4 in the study."""
  class Clock:

    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

    def pretrained(self, path):
      return path.endswith('shapes')

    def remaining(self, stages):
      return images(stages) / 40

  def steps(one):
    return grid.read_config(Trial('', {}, one.files, one.params)).steps

  def estimate(runner, stages, missing):
    assert [path.rpartition('/')[2] for path in missing] == ['target']
    return Estimate({path: steps(Pretraining(*words)) for path, words in missing.items()}, runner.remaining(stages))

  monkeypatch.setattr(own_data, 'runner_of', lambda *_: Clock())
  monkeypatch.setattr(own_data.estimating, 'estimate', estimate)
  monkeypatch.setattr(own_data, 'time', SimpleNamespace(monotonic=lambda: 0.0))  # what planning takes counts
  data, output = str(folders / 'masks'), str(tmp_path / 'study')
  plan = own_data.plan(data, 2, output, dry_run=True)
  target = plan.pretraining[f'{tmp_path}/pretraining/target']
  assert 0.7 * 120 < images(plan.stages) / 40 + steps(target) <= 0.9 * 120
  assert target.data_dir == data and target.command == 'train'


def test_the_command_plans_a_study_of_a_data_folder(folders, tmp_path):
  done = call('study', f'--data_dir={folders}/boxes', '--dry_run', '--nocalibrate', f'--output={tmp_path}/study',
              cwd=ROOT)
  assert done.returncode == 0, done.stderr
  assert 'no object has a mask' in done.stdout and done.stdout.count('target_') >= 6
  assert not (tmp_path / 'study').exists()
  exports.ultralytics(*exports.load(folders / 'masks'), tmp_path / 'yolo')
  done = call('study', f'--data_dir={tmp_path}/yolo', '--dry_run', cwd=ROOT)
  assert done.returncode == 1 and 'python -m rethink_tf.data.prepare' in done.stderr


@pytest.mark.parametrize('arguments, message', [
  (['--data_dir=/nowhere'], '/nowhere: no such data folder'), (['--data_dir=/', '--minutes=0'], '--minutes = 0'),
  (['--data_dir=/', '--minutes=inf'], '--minutes = inf: use a number above 0'),
  (['--gin_file=a.gin', '--minutes=3'], '--minutes is for a study without --gin_file'),
  (['--data_dir=/', '--command=x'], 'need a study')])
def test_wrong_arguments_are_one_line(arguments, message):
  done = call('study', *arguments)
  assert done.returncode == 1 and message in done.stderr and done.stderr.count('\n') == 1
