"""What a study will be able to tell."""

import json

import cv2
import numpy as np
import pytest

from rethink_tf.compare import groups, verdict
from rethink_tf.compare.planning import Addition, Need
from rethink_tf.data import digest
from rethink_tf.data.classification.image_folder import ImageFolder
from rethink_tf.data.detection import duplicates
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.study import forecast
from rethink_tf.study.run import plan_study
from rethink_tf.study.seeds import UntilSettled
from tests import small_coco, small_voc
from tests.compare.fake_runs import share, write

STUDY = 'gin_configs/studies/miniature_figure1.gin'  # 500 synthetic images
AXES = """Study.axes = {'seed': {'seed0': ('run.seed = 0',), 'seed1': ('run.seed = 1',), 'seed2': ('run.seed = 2',)},
  'init': {'scratch': (), 'pretrain': ('gin_configs/init/pretrained_run.gin', 'WEIGHTS = {shapes}')},
  'schedule': {'0.25x': ('SCHEDULE = 0.25',), '2x': ('SCHEDULE = 2',)}}"""


@pytest.fixture(scope='module')
def plan(tmp_path_factory):
  return plan_study(STUDY, str(tmp_path_factory.mktemp('studies') / 'mini'), study_params=[AXES])


@pytest.fixture(scope='module')
def early(plan):
  """As plan, but for one schedule and at most five seeds."""
  chosen = [i for i, trial in enumerate(plan.trials) if trial.choice['schedule'] == '2x']
  return plan._replace(trials=[plan.trials[i] for i in chosen], configs=[plan.configs[i] for i in chosen],
                       until_settled=UntilSettled(5), seed_axis='seed')


def number(words):
  """The first 'above about 1.9 points'."""
  return float(words.split('above about ')[1].split()[0])


def test_a_study_says_what_it_can_tell(plan):
  assert forecast.design(plan.configs) == (1, 2, 2, 3, (2, 2), False, 0)
  words = forecast.describe(plan)
  assert 'on 500 held-out images: ' in words and ': 3 seeds: above about' in words and ';' not in words.split('2.3;')[0]
  assert 'Assumed: AP about 40, and a standard deviation between seeds of 1 point (0.3 to 2.3' in words
  known = forecast.describe(plan._replace(seed_spread=0.3))
  assert number(known) < number(words) and 'Given: a standard deviation of 0.3 points' in known


def test_no_difference_above_what_ap_can_be_is_promised(plan, early):
  words = forecast._power(early._replace(seed_spread=40.0), 100)
  assert '2 seeds: none, however far apart the sides are; 5 seeds, the most: above' in words and number(words) < 100
  assert '3 seeds: none, however far apart the sides are' in forecast._power(plan, 2)  # one degree of freedom
  low, high = forecast._power(plan, 3).split('points (')[1].split(')')[0].split(' to ')
  assert float(low) <= number(forecast._power(plan, 3)) <= float(high)


def test_one_seed_says_so_with_the_cure(plan):
  chosen = [i for i, trial in enumerate(plan.trials) if trial.choice['seed'] == 'seed0']
  one = plan._replace(trials=[plan.trials[i] for i in chosen], configs=[plan.configs[i] for i in chosen])
  words = forecast.describe(one)
  assert 'no verdict, however far apart' in words and '--until_settled' in words
  assert number(forecast.describe(one._replace(seed_spread=0.3))) > 0


def test_schedules_of_one_seed_beside_others_are_no_reason_against_a_verdict(plan):
  """Their spread is that of the other schedules of the same weights."""
  def words(leave_out):
    kept = [i for i, trial in enumerate(plan.trials) if not leave_out(trial.choice)]
    return forecast._power(plan._replace(trials=[plan.trials[i] for i in kept],
                                         configs=[plan.configs[i] for i in kept]), 500)

  def short(choice):
    return choice['seed'] != 'seed0' and choice['schedule'] == '0.25x'

  mixed = words(short)
  assert '3 seeds: above about' in mixed and mixed.endswith('Of schedules with one seed only larger ones are found')
  assert number(mixed) > number(words(lambda _: False)), 'a spread of one schedule is less certain'
  assert 'no verdict' in words(lambda choice: short(choice) or (choice['init'], choice['seed'] != 'seed0') == (
    'scratch', True))


def test_initial_weights_of_one_seed_do_not_take_the_verdict_of_the_others(tmp_path):
  axes = AXES.replace("{'scratch'", "{'other': ('gin_configs/init/pretrained_run.gin', 'WEIGHTS = \"r/1\"'), 'scratch'")
  single = "Study.leave_out = ({'seed': 'seed1', 'init': 'other'}, {'seed': 'seed2', 'init': 'other'})"
  several = plan_study(STUDY, str(tmp_path / 'mini'), study_params=[axes, single])
  words = forecast._power(several, 500)
  assert '3 seeds: above about' in words and 'by each of its' not in words
  assert words.endswith('. No verdict on 1 other pair of sides, where one has a single seed at every schedule')
  assert 'by each of its 2 verdicts' in forecast._power(several._replace(seed_spread=0.3), 500)


@pytest.mark.parametrize('one_each', [True, False])
def test_seeds_with_a_pre_training_each_are_one_side(tmp_path, one_each):
  """As in the comparison (tests/compare/test_pretraining_seeds.py); several runs of each are not independent."""
  axes = """Study.axes = {
    'seed': {'seed0': ('run.seed = 0',), 'seed1': ('run.seed = 1',)},
    'init': {'scratch': (), 'p0': ('gin_configs/init/pretrained_run.gin', 'WEIGHTS = {shapes0}'),
             'p1': ('gin_configs/init/pretrained_run.gin', 'WEIGHTS = {shapes1}')}}"""
  pretraining = """Study.pretraining = {'shapes0': ('gin_configs/pretraining/shapes.gin',),
    'shapes1': ('gin_configs/pretraining/shapes.gin', 'run.seed = 1')}"""
  apart = "Study.leave_out = ({'seed': 'seed0', 'init': 'p1'}, {'seed': 'seed1', 'init': 'p0'})"
  plan = plan_study(STUDY, str(tmp_path / 'mini'), study_params=[axes, pretraining, *[apart] * one_each])
  words = forecast._power(plan, 500)
  assert '2 seeds: above about' in words and ('by each of its 2 verdicts' in words) != one_each


def test_a_study_that_stops_early_names_its_first_and_its_last_look(early):
  words = forecast.describe(early)
  first, last = (number(part) for part in words.split('; ')[:2])
  assert '2 seeds: above' in words and '5 seeds, the most: above' in words and last < first


def test_a_study_without_the_question_says_so(plan):
  scratch = [i for i, trial in enumerate(plan.trials) if trial.choice['init'] == 'scratch']
  assert 'without a verdict on pre-training' in forecast.describe(plan._replace(
    trials=[plan.trials[i] for i in scratch], configs=[plan.configs[i] for i in scratch]))


@pytest.mark.parametrize('question', [True, False])
def test_what_cannot_be_scored_is_said_before_anything_is_trained(tmp_path, question):
  categories = [{'id': k, 'name': name} for k, name in ((1, 'cat'), (4, 'dog'), (9, 'cow'))]

  def words(*annotations):
    small_coco.write(tmp_path, [small_coco.image(i) for i in (1, 2)], annotations, categories, split='val')
    small_coco.write(tmp_path, [small_coco.image(3)], [small_coco.annotation(3, 3)], categories, split='train')
    axes = AXES if question else AXES.replace(", 'pretrain': ('gin_configs/init/pretrained_run.gin', 'WEIGHTS = "
                                              "{shapes}')", '')
    return forecast.describe(plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'),
                                     study_params=[axes], data_dir=str(tmp_path)))

  for annotations in ((), (small_coco.crowd(1),)):
    with pytest.raises(UserError, match='val: none of its 2 held-out images has an object .*: annotate them'):
      words(*annotations)
  told = words(small_coco.annotation(1), small_coco.annotation(2, 2, category_id=9), small_coco.crowd(3, 2))
  assert told.endswith('val: 1 of 3 classes have no held-out object, so that no AP tells of them: dog')
  assert ('without a verdict' not in told) == question
  every = [small_coco.annotation(k, category_id=k) for k in (1, 4, 9)]
  assert 'no held-out object' not in words(*every)


def test_a_mask_ap_of_boxes_is_refused_before_anything_is_trained(tmp_path):
  boxes = {name: value for name, value in small_coco.annotation(1).items() if name != 'segmentation'}
  for split in ('train', 'val'):
    small_coco.write(tmp_path, [small_coco.image(1)], [boxes], split=split)
  own = plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'), study_params=[AXES],
                   data_dir=str(tmp_path))
  assert 'what it can tell' in forecast.describe(own)
  with pytest.raises(UserError, match='--metric=mask/AP: .*: no held-out object has a mask'):
    forecast.describe(own._replace(metric='mask/AP'))


def test_images_to_train_on_that_cannot_be_read_are_known_before_the_pre_training(tmp_path):
  small_coco.write(tmp_path, [small_coco.image(1)], [small_coco.annotation(1)], split='val')
  plan = plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'), data_dir=str(tmp_path))
  with pytest.raises(UserError, match='instances_train.json: no such annotation file'):
    forecast.describe(plan)
  assert 'the images to train on cannot be read: ' in forecast.describe(plan, without_data=True)


def test_images_that_are_held_out_too_are_said_before_anything_is_trained(tmp_path):
  def words(numbers):  # a file of small_coco has the same content for the same number
    for split, images in (('train', (1, 2, 3)), ('val', numbers)):
      small_coco.write(tmp_path, [small_coco.image(i) for i in images], [small_coco.annotation(i, i) for i in images],
                       split=split)
    return forecast.describe(plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'),
                                     data_dir=str(tmp_path)))

  assert words((2, 3, 4)).endswith('train: 2 of its 3 images are held out too (the same files), so that AP is not that '
                                   'of unseen images: hold out others')
  assert 'held out too' not in words((4, 5)) and 'the same file' not in words((4, 5))
  assert 'val: 2 of its 3 images are the same file as another one of them: intervals take them' in words((4, 5, 204))


def test_a_detector_that_runs_start_from_may_have_seen_the_held_out_images(tmp_path, monkeypatch):
  """That of a stage of the study with data of its own, or a run that is there already."""
  for name, split, images in (('a', 'train', (1, 2)), ('a', 'val', (3, 4, 5)), ('b', 'train', (4, 5, 6, 7))):
    small_coco.write(tmp_path / name, [small_coco.image(i) for i in images],
                     [small_coco.annotation(i, i) for i in images], split=split)

  def words(pretraining, weights):
    pretrain = 'gin_configs/init/detector.gin', f'WEIGHTS = {weights}'
    axes = f"""Study.axes = {{'seed': {{'seed0': ('run.seed = 0',), 'seed1': ('run.seed = 1',)}}, 'init': {{
      'scratch': (), 'pretrain': {pretrain!r}}}}}"""
    plan = plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'), data_dir=str(tmp_path / 'a'),
                      study_params=[axes, f'Study.pretraining = {pretraining!r}'])
    return forecast.describe(plan)

  stage = {'det': ('{base}', f"DATA_DIR = '{tmp_path}/b'", 'run.seed = 9')}
  assert words(stage, '{det}').endswith(
    'pretraining/det: 2 of its 4 images are held out in the study (the same files), so that AP of the runs that start '
    'from it is not that of unseen images: hold out others')
  assert 'held out in the study' not in words({'det': ('{base}', 'run.seed = 9')}, '{det}')
  done = RunFolder(str(tmp_path / 'pretraining/det'))  # whose data is not needed any more
  done.write_text('schedule.json', '{"total_steps": 4}')
  monkeypatch.setattr(forecast.Runner, 'pretrained', lambda path: path == done.path)
  (tmp_path / 'b/annotations/instances_train.json').rename(tmp_path / 'hidden.json')
  assert 'held-out images (' not in words(stage, '{det}')
  (tmp_path / 'hidden.json').rename(tmp_path / 'b/annotations/instances_train.json')
  run = RunFolder(str(tmp_path / 'before'))
  trained = digest.summarize(CocoSource(str(tmp_path / 'b'), 'train'))
  identity.write(run, None, identity.of([], '', {'train': trained}), 0)
  later = RunFolder(str(tmp_path / 'later'))
  identity.write(later, None, identity.of([], '', {}), 0)
  later.write_text('initial_weights.json', json.dumps({'path': f'{run.path}/checkpoints/step-00000100'}))
  for weights in (run.path, later.path):
    assert f'initial weights come from {run.path}, which was trained on 2 of the 3 held-out images' in words(
      {}, repr(weights))


def test_a_classifier_that_runs_start_from_may_have_seen_the_held_out_images(tmp_path):
  for split, images in (('train', (1, 2)), ('val', (3, 4, 5))):
    small_coco.write(tmp_path / 'a', [small_coco.image(i) for i in images],
                     [small_coco.annotation(i, i) for i in images], split=split)
  for k, label in ((3, 'x'), (4, 'x'), (1, 'y')):
    (tmp_path / 'c/train' / label).mkdir(parents=True, exist_ok=True)
    image = next((tmp_path / 'a').glob(f'*/{k:06d}.jpg'))
    (tmp_path / 'c/train' / label / f'photo{k}.jpg').write_bytes(image.read_bytes())
  axes = """Study.axes = {'seed': {'seed0': ('run.seed = 0',), 'seed1': ('run.seed = 1',)}, 'init': {
    'scratch': (), 'pretrain': ('gin_configs/init/pretrained_run.gin', 'WEIGHTS = {cls}')}}"""
  stage = {'cls': ('gin_configs/pretraining/imagenette.gin', f"DATA_DIR = '{tmp_path}/c'")}
  plan = plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'), data_dir=str(tmp_path / 'a'),
                    study_params=[axes, f'Study.pretraining = {stage!r}'])
  assert '2 of its 3 images are held out in the study (the same files)' in forecast.describe(plan)
  run = RunFolder(str(tmp_path / 'classifier'))  # on which a run looks at its start
  identity.write(run, None, identity.of([], '', {'train': digest.summarize(ImageFolder(str(tmp_path / 'c')))}), 0)
  assert forecast.seen_images.find(run.path, CocoSource(str(tmp_path / 'a'), 'val')) == (run.path, 2, 3)


def test_on_several_held_out_sets_the_smallest_and_the_largest_are_told(tmp_path):
  """Not the first one alone."""
  sizes = {'b': 9, 'a': 4, 'c': 60}
  for name, count in sizes.items():
    for split, images in (('train', (100,)), ('val', range(count))):
      small_coco.write(tmp_path / name, [small_coco.image(i) for i in images],
                       [small_coco.annotation(i + 1, i) for i in images], split=split)
  folders = {name: (f'DATA_DIR = {str(tmp_path / name)!r}',) for name in sizes}
  axes = f"""Study.axes = {{'seed': {{'seed0': ('run.seed = 0',), 'seed1': ('run.seed = 1',)}}, 'data': {folders!r},
    'init': {{'scratch': (), 'pretrain': ('gin_configs/init/imagenet.gin', "WEIGHTS = 'w.pkl'")}}}}"""
  words = forecast.describe(plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'),
                                       study_params=[axes]))
  assert 'a/val: what it can tell, on 4 held-out images by each of its 3 verdicts: ' in words
  assert 'c/val: what it can tell, on 60 held-out images by each' in words and 'on 9 held-out' not in words


def test_photographs_that_are_held_out_at_another_size_or_quality_are_said(tmp_path, monkeypatch):
  pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
  for split, images in (('train', (1, 2)), ('val', (3, 4))):
    small_coco.write(tmp_path, [small_coco.image(i) for i in images], [small_coco.annotation(i, i) for i in images],
                     split=split)
  cv2.imwrite(str(tmp_path / 'train/000002.jpg'), pixels)
  cv2.imwrite(str(tmp_path / 'val/000004.jpg'), pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])
  told = forecast.describe(plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'),
                                      data_dir=str(tmp_path)))
  assert ('val: 1 of its 2 images are near-duplicates of images that are trained on (e.g. 000004.jpg of 000002.jpg), '
          'so that AP is not that of unseen images') in told
  assert 'of another one of them' not in told
  cv2.imwrite(str(tmp_path / 'val/000003.jpg'), cv2.resize(pixels, (80, 60)), [cv2.IMWRITE_JPEG_QUALITY, 70])
  told = forecast.describe(plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'),
                                      data_dir=str(tmp_path)))
  assert 'val: 2 of its 2 images are near-duplicates of another one of them: intervals take them for different' in told
  monkeypatch.setattr(duplicates, '_MAX_DECODED', 3)
  monkeypatch.setattr(duplicates, '_BLOCK', 1)
  told = forecast.describe(plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'),
                                      data_dir=str(tmp_path)))
  assert 'val: 2 of 2 images looked at (a sample of its 2, beside 1 to train on) are near-duplicates of another' in told


def test_every_data_set_of_a_study_is_looked_at(tmp_path):
  """Not that of the first run alone: an axis may choose the folder, or the number of images."""
  for folder, held_out in (('a', (4, 5)), ('b', (2, 3))):
    for split, images in (('train', (1, 2, 3)), ('val', held_out)):
      small_coco.write(tmp_path / folder, [small_coco.image(i) for i in images],
                       [small_coco.annotation(i, i) for i in images], split=split)

  def told(values, **options):
    axes = f"""Study.axes = {{'init': {{'scratch': ()}}, 'data': {values!r}}}"""
    plan = plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'), study_params=[axes], **options)
    return plan, forecast.describe(plan)

  folders = {name: (f'DATA_DIR = {str(tmp_path / name)!r}',) for name in 'ab'}
  plan, words = told(folders)
  assert '\nscratch_b, b/train: 2 of its 3 images are held out too (the same files)' in words
  assert words.count('held out too') == 1
  assert len(forecast.data_sets(plan)) == 2
  (tmp_path / 'b/annotations/instances_train.json').unlink()
  assert 'scratch_b, the images to train on cannot be read: ' in forecast.describe(plan, without_data=True)
  (tmp_path / 'a/annotations/instances_val.json').rename(tmp_path / 'hidden.json')
  words = forecast.describe(plan, without_data=True)  # of the first data that can be read
  assert 'what it can tell is not known: ' in words and 'what it can tell: runs side by side' in words
  (tmp_path / 'hidden.json').rename(tmp_path / 'a/annotations/instances_val.json')
  two = 'train/coco.num_images = 2'
  shares = {'all': (), 'two': (two,), 'two_again': ('run.seed = 1', two)}
  plan, words = told(shares, data_dir=str(tmp_path / 'a'))
  assert [[trial.name for trial in trials] for _, trials in forecast.data_sets(plan)] == [
    ['scratch_all', 'scratch_two']] and 'held out too' not in words


def test_voc_folders_are_read_as_they_are(tmp_path):
  sets = {name: {name: small_voc.xml(small_voc.item())} for name in ('train', 'val')}
  folder = small_voc.write(tmp_path / 'voc', sets)
  plan = plan_study('gin_configs/studies/own_data_narrow.gin', str(tmp_path / 'own'), data_dir=folder)
  assert 'nothing, on one held-out image' in forecast.describe(plan)


def test_runs_that_are_there_replace_the_assumptions(plan, tmp_path):
  here = plan._replace(output=str(tmp_path))
  for trial, config in zip(plan.trials, plan.configs, strict=True):
    if trial.choice['schedule'] == '0.25x' and trial.choice['seed'] != 'seed2':
      seed = int(trial.choice['seed'][4:])
      write(tmp_path / trial.name, share(100, seed=seed), k=0.25, seed=seed, images=4 * config.steps,
            init='w' if trial.choice['init'] == 'pretrain' else None)
  assert 'Measured on the runs that are there (4)' in forecast.describe(here)


def test_the_commands_that_would_settle_it(plan, early):
  sides = (groups.Side('1x', (None,) * 3),)
  need = Need('', '', Addition(2, 120), longer=True)
  one = verdict.Verdict('box/AP', None, sides, (), None, verdict.OPEN, '', '', '', need)
  text = '\n'.join(forecast.next_commands(plan, [one]))
  assert '--until_settled --max_seeds=5' in text and '120 more held-out images' in text
  assert "'4x': ('SCHEDULE = 4',)" in text
  assert not forecast.next_commands(plan, [one._replace(need=None)])
  assert not forecast.next_commands(plan, [one._replace(need=Need('', ''))]), 'no heading without a line'
  sure = one._replace(need=need._replace(sure=Addition(6)))  # stops early, where fewer do
  assert '--max_seeds=9' in forecast.next_commands(plan, [sure])[1]
  assert "'UntilSettled.least_chance = 0'" in forecast.next_commands(early, [one])[1]
  assert 'evaluate --model_dir=RUN' in text and 'are not trained again' in text
  for line in forecast.next_commands(early, [one])[2:]:
    assert 'with another --output' in line and '--model_dir' not in line, 'both would be one more look'
  most = one._replace(schedules=(groups.Side('1x', (None,) * 5),))
  assert '--max_seeds=7 and another --output' in forecast.next_commands(early, [most])[1]
