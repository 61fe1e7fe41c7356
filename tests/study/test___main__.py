"""The command: a study from its gin file to its report, exact forks, one-line errors."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.compare import looks
from rethink_tf.distributed import devices
from tests import small_coco
from tests.in_process import call
from tests.test_command_line import ROOT, call_process

STUDY = '''
Study.base = ('gin_configs/demo.gin', 'gin_configs/runtime/deterministic.gin', 'KTimesSchedule.unit = 4',
              'KTimesSchedule.warmup_steps = 2', 'BATCH_SIZE = 2', 'train/synthetic.num_images = 20',
              'eval/synthetic.num_images = 4', 'Resize.short_side = (64,)', 'Resize.max_side = 80',
              'ResNet.stem_width = 16', 'ResNet.res2_width = 32', 'ResNet.width_per_group = 16', 'FPN.channels = 32',
              'BoxHead.fc_width = 32', 'RPNHead.channels = 32', 'CocoEvaluator.every = 0', 'run.log_every = 1',
              'group_norm.groups = 8')
Study.axes = {'schedule': {'1x': ('SCHEDULE = 0.25',), '2x': ('SCHEDULE = 0.5',)}}
'''


def command(*arguments):
  return call('study', *arguments)


def weights(run):
  newest, = (run / 'checkpoints').glob('step-*') if len(list((run / 'checkpoints').glob('step-*'))) == 1 else [
    max((run / 'checkpoints').glob('step-*'))]
  reader = tf.train.load_checkpoint(str(newest / 'weights'))
  return {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())
          if 'OBJECT_GRAPH' not in name and 'save_counter' not in name}


def test_errors_are_one_line(tmp_path):
  done = command('--gin_file=nothing.gin')
  assert done.returncode == 1 and done.stderr.startswith('error: no gin file nothing.gin')
  assert command().stderr.startswith('error: no study')


def test_the_plan_of_a_study(tmp_path):
  common = ('--gin_file=gin_configs/studies/figure1.gin', "--gin_param=WEIGHTS = 'R-50-GN.pkl'", '--dry_run',
            '--nocalibrate', f'--output={tmp_path}/study')
  done = command(*common, f'--data_dir={tmp_path}/coco')
  assert done.returncode == 1 and f'error: {tmp_path}/coco: no such data folder: set --data_dir' in done.stderr
  (tmp_path / 'coco').mkdir()
  done = command(*common, f'--data_dir={tmp_path}/coco')
  assert done.returncode == 0, done.stderr
  assert [path.name for path in tmp_path.iterdir()] == ['coco']
  assert '10 runs, 24960000 images to train on, 57% less than the runs one by one (57600000)' in done.stdout
  assert 'are left' not in done.stdout
  assert 'what it can tell is not known: ' in done.stdout, 'a plan can be looked at without its data'


def test_a_plan_whose_data_cannot_be_scored_is_an_error(tmp_path):
  small_coco.write(tmp_path / 'data', [small_coco.image(i) for i in (1, 2)], [small_coco.crowd(1)], split='val')
  done = command('--gin_file=gin_configs/studies/own_data_narrow.gin', f'--data_dir={tmp_path}/data', '--dry_run',
                 '--nocalibrate', f'--output={tmp_path}/study')
  assert done.returncode == 1 and 'none of its 2 held-out images has an object' in done.stderr, done.stdout
  assert 'what it can tell' not in done.stdout


def test_a_plan_is_refused_where_its_study_would_be(tmp_path):
  (tmp_path / 'tiny.gin').write_text(STUDY)
  common = (f'--gin_file={tmp_path}/tiny.gin', '--dry_run', '--nocalibrate', f'--output={tmp_path}/study')
  assert command(*common).returncode == 0
  looks.write(str(tmp_path / 'study'), looks.Record(5, (looks.Taken(2, {}, None),)))
  done = command(*common)
  assert done.returncode == 1 and 'looks.json: a study that stops early was begun here' in done.stderr
  (tmp_path / 'study/looks.json').unlink()
  (tmp_path / 'study/report').mkdir()
  (tmp_path / 'study/report/metrics.jsonl').write_text('')
  assert 'error: --output=' in command(*common).stderr, 'the report would replace a run'


def test_the_devices_stand_above_the_plan_and_a_gpu_without_kernels_ends_it(monkeypatch, tmp_path):
  plan = ('--gin_file=gin_configs/studies/figure1.gin', '--dry_run', '--nocalibrate', f'--output={tmp_path}/study',
          f'--data_dir={tmp_path}/no')
  monkeypatch.setattr(devices, 'unused_driver', lambda: 'an NVIDIA driver is installed, but')
  monkeypatch.setattr(devices, 'describe', lambda strategy: 'of this machine')
  lines = command(*plan).stderr.splitlines()
  assert 'an NVIDIA driver is installed, but' in lines[0] and lines[1] == 'devices: of this machine', lines
  monkeypatch.setattr(devices, 'too_new', lambda found: 'a GPU is newer than the kernels')
  done = command(*plan)
  assert (done.returncode, done.stdout, done.stderr) == (1, '', 'error: a GPU is newer than the kernels\n')
  assert 'newer' not in command(*plan, '--command=python launch/vertex.py').stderr  # trains on other machines


@pytest.mark.slow
def test_runs_are_submitted_after_their_pre_training(tmp_path):
  common = ('--gin_file=gin_configs/studies/own_data_narrow.gin', f'--output={tmp_path}/studies/own/',
            '--command=echo to')
  done = call_process('study', *common, cwd=ROOT)
  assert done.returncode == 1
  assert f'{tmp_path}/studies/pretraining/shapes must be trained first: python -m' in done.stderr
  for name in ('shapes', 'target'):
    (tmp_path / f'studies/pretraining/{name}/checkpoints/step-00000007').mkdir(parents=True)
  done = call_process('study', *common, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stdout.splitlines() if line.startswith('to --gin_file')]
  assert len(lines) == 18 and f'--model_dir={tmp_path}/studies/own/scratch_0.25x_seed0' in lines[0]
  assert f"WEIGHTS = '{tmp_path}/studies/pretraining/shapes'" in lines[6]


@pytest.mark.slow
def test_a_forked_run_equals_the_run_alone(tmp_path):
  """Bitwise in deterministic mode; a second call has nothing to do."""
  (tmp_path / 'tiny.gin').write_text(STUDY)
  common = (f'--gin_file={tmp_path}/tiny.gin', '--nocalibrate')
  done = call_process('study', *common, f'--output={tmp_path}/shared', '--metric=mask/AP', cwd=ROOT)
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'All runs are scratch' in done.stdout and 'Differences of mask AP' in done.stdout
  assert (tmp_path / 'shared/report/index.html').exists()
  alone = call_process('study', *common, f'--output={tmp_path}/alone', '--study_param=Study.share_prefixes = False',
                       cwd=ROOT)
  assert alone.returncode == 0, alone.stdout + alone.stderr
  for name in ('1x', '2x'):
    one, other = weights(tmp_path / 'shared' / name), weights(tmp_path / 'alone' / name)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)
    lines = [json.loads(line) for line in (tmp_path / 'shared' / name / 'metrics.jsonl').read_text().splitlines()]
    assert max(line['step'] for line in lines if line['kind'] == 'train') == {'1x': 8, '2x': 16}[name]
  again = command(*common, f'--output={tmp_path}/shared')
  assert again.returncode == 0 and again.stdout.count('complete to iteration') == 3
  assert f'of these 2 are complete in {tmp_path}/shared, 0 images are left' in again.stdout


@pytest.mark.slow
def test_runs_side_by_side_equal_runs_one_after_another(tmp_path, monkeypatch):
  """Bitwise with the same number of threads; one that fails does not stop the others."""
  monkeypatch.setenv('TF_NUM_INTRAOP_THREADS', '1')
  monkeypatch.setenv('TF_NUM_INTEROP_THREADS', '1')
  (tmp_path / 'tiny.gin').write_text(STUDY + """
Study.axes = {'schedule': {'1x': ('SCHEDULE = 0.25',), '2x': ('SCHEDULE = 0.5',)},
              'rate': {'sound': (), 'huge': ('KTimesSchedule.base_rate = 1e30',)}}
""")
  common = (f'--gin_file={tmp_path}/tiny.gin', '--nocalibrate')
  for name, parallel in (('serial', 1), ('parallel', 2)):
    done = call_process('study', *common, f'--output={tmp_path}/{name}', f'--parallel={parallel}', cwd=ROOT)
    assert done.returncode == 1 and 'huge: failed with exit code 1: ' in done.stderr, done.stdout + done.stderr
    assert done.stderr.count('error: ') == 1 and 'not finite' in done.stderr and 'sound: failed' not in done.stderr
    assert ('2 runs side by side' in done.stdout) == (parallel == 2)
    assert 'All runs are scratch' in done.stdout and (tmp_path / name / 'report/index.html').exists()
  for name in ('1x_sound', '2x_sound'):
    one, other = weights(tmp_path / 'serial' / name), weights(tmp_path / 'parallel' / name)
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_a_signal_ends_a_study_with_its_run_saved(tmp_path):
  (tmp_path / 'long.gin').write_text(STUDY.replace('KTimesSchedule.unit = 4', 'KTimesSchedule.unit = 4000'))
  command = [sys.executable, '-m', 'rethink_tf.study', f'--gin_file={tmp_path}/long.gin', '--nocalibrate',
             f'--output={tmp_path}/study', '--parallel=2', '--study_param=Study.share_prefixes = False']
  study = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  metrics = [tmp_path / 'study' / name / 'metrics.jsonl' for name in ('1x', '2x')]
  while not all(path.exists() and path.read_text().count('train') > 2 for path in metrics):
    assert study.poll() is None, study.communicate()
    time.sleep(0.2)
  study.send_signal(signal.SIGTERM)
  output = study.communicate()
  assert study.returncode == 75 and 'the same command continues' in output[1], output
  for path in metrics:
    saved = max(int(one.name[5:]) for one in (path.parent / 'checkpoints').glob('step-*'))
    assert saved == max(json.loads(line)['step'] for line in path.read_text().splitlines())


@pytest.mark.slow
def test_seeds_are_added_until_the_answer_is_settled_or_given_up(tmp_path):
  """Two seeds of two sides, one from a pre-training of one step; then the report again, without a further look."""
  (tmp_path / 'tiny.gin').write_text(STUDY.partition('Study.axes')[0] + '''
Study.pretraining = {'untrained': ('gin_configs/pretraining/shapes.gin', 'EpochSchedule.epochs = 0.004',
                                   'EpochSchedule.drops = ()', 'EpochSchedule.warmup_epochs = 0',
                                   'eval/synthetic_classes.num_images = 50',
                                   'ResNet.stem_width = 16', 'ResNet.res2_width = 32', 'ResNet.width_per_group = 16',
                                   'group_norm.groups = 8')}
Study.axes = {'init': {'scratch': ('SCHEDULE = 0.25',),
                       'pretrain': ('gin_configs/init/pretrained_run.gin', 'WEIGHTS = {untrained}',
                                    'SCHEDULE = 0.25')}}
Study.until_settled = @UntilSettled()
UntilSettled.least_chance = 0.999
''')
  common = (f'--gin_file={tmp_path}/tiny.gin', '--nocalibrate', f'--output={tmp_path}/studies/tiny', '--max_seeds=3',
            '--gin_param=MaskRCNN.pixel_std = (1.0, 1.0, 1.0)')
  done = call_process('study', *common, cwd=ROOT)
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'what it can tell, on 4 held-out images' in done.stdout and 'seed 2 of at most 3: 2 runs' in done.stdout
  assert 'after 2 of at most 3 seeds' in done.stdout and 'seed 3' not in done.stdout
  runs = sorted(path.name for path in (tmp_path / 'studies/tiny').iterdir() if path.is_dir())
  assert runs == ['pretrain_seed0', 'pretrain_seed1', 'report', 'scratch_seed0', 'scratch_seed1']
  assert json.loads((tmp_path / 'studies/tiny/looks.json').read_text())['looks'][0]['more'] == []
  assert 'look 1 of at most 2, after 2 of at most 3 seeds' in (tmp_path / 'studies/tiny/report/index.html').read_text()
  again = command(*common)
  assert again.returncode == 0 and again.stdout.count('complete to iteration') == 4
  more = command(*common[:3], '--max_seeds=5', common[4])
  assert more.returncode == 1 and 'planned for at most 3 seeds' in more.stderr
