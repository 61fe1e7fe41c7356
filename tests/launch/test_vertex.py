"""Jobs for Vertex AI, created and validated without an account; tests that need google-cloud-aiplatform are skipped."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.storage.run_folder import RunFolder

ROOT = pathlib.Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location('launch_vertex', ROOT / 'launch' / 'vertex.py')
vertex = importlib.util.module_from_spec(_spec)
sys.modules['launch_vertex'] = vertex
_spec.loader.exec_module(vertex)

IMAGE = 'us-docker.pkg.dev/my-project/my-repo/rethink_tf:1'
TENSORBOARD = 'projects/my-project/locations/us-central1/tensorboards/123'
ACCOUNT = 'trainer@my-project.iam.gserviceaccount.com'
REQUEST = vertex.Request(gin_files=['gin_configs/scratch_6x.gin'], model_dir='gs://my-bucket/runs/six', image=IMAGE,
                         accelerator='NVIDIA_TESLA_A100', count=8)
needs_sdk = pytest.mark.skipif(not vertex._installed(),
                               reason="no google-cloud-aiplatform: pip install -e '.[vertex]'")
EVERY_MACHINE = [(accelerator, count, machine) for accelerator, by_count in vertex.MACHINES.items()
                 for count, machines in by_count.items() for machine in machines]


def pools(**changes):
  return vertex.custom_job(REQUEST._replace(**changes))['jobSpec']['workerPoolSpecs']


def test_a_job_of_one_host_has_one_pool():
  job = vertex.custom_job(REQUEST)
  assert job['displayName'] == 'six'
  [pool] = job['jobSpec']['workerPoolSpecs']
  assert pool['replicaCount'] == 1
  assert pool['machineSpec'] == {'machineType': 'a2-highgpu-8g', 'acceleratorType': 'NVIDIA_TESLA_A100',
                                 'acceleratorCount': 8}
  assert pool['containerSpec'] == {'imageUri': IMAGE, 'args': ['--gin_file=gin_configs/scratch_6x.gin',
                                                               '--model_dir=gs://my-bucket/runs/six']}
  assert 'tensorboard' not in job['jobSpec'] and 'baseOutputDirectory' not in job['jobSpec']


def test_several_hosts_are_one_primary_and_the_rest():
  primary, others = pools(hosts=4)
  assert (primary['replicaCount'], others['replicaCount']) == (1, 3)
  assert {**others, 'replicaCount': 1} == primary
  assert primary['containerSpec']['args'][:2] == [
    '--gin_file=gin_configs/scratch_6x.gin', '--gin_file=gin_configs/runtime/multi_worker.gin']


def test_the_command_line_arrives_in_order():
  [pool] = pools(gin_files=['gin_configs/scratch_6x.gin', 'gin_configs/data/coco_10k.gin', 'gs://my-bucket/mine.gin'],
                 gin_params=['SCHEDULE = 2', "x.name = 'a b'"], data_dir='gs://my-bucket/coco',
                 weights='/gcs/my-bucket/R-50.pkl')
  assert pool['containerSpec']['args'] == [
    '--gin_file=gin_configs/scratch_6x.gin', '--gin_file=gin_configs/data/coco_10k.gin',
    '--gin_file=gs://my-bucket/mine.gin', '--gin_param=SCHEDULE = 2', "--gin_param=x.name = 'a b'",
    '--model_dir=gs://my-bucket/runs/six', '--data_dir=gs://my-bucket/coco', '--weights=/gcs/my-bucket/R-50.pkl']
  assert 'command' not in pool['containerSpec']
  assert '--allow_changes' in pools(allow_changes=True)[0]['containerSpec']['args']
  assert '--weights=detectron_r50_gn' in pools(weights='detectron_r50_gn')[0]['containerSpec']['args']
  [pool] = pools(command='pretrain', gin_files=['gin_configs/pretraining/imagenet_r50_gn.gin'])
  assert pool['containerSpec']['command'] == ['python', '-m', 'rethink_tf.pretrain']
  assert (ROOT / 'rethink_tf' / 'pretrain.py').is_file()


def test_gin_files_are_named_as_in_the_image(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  absolute = str(ROOT / 'gin_configs' / 'demo.gin')
  assert pools(gin_files=[absolute])[0]['containerSpec']['args'][0] == '--gin_file=gin_configs/demo.gin'
  (tmp_path / 'mine.gin').write_text('')
  with pytest.raises(UserError, match=r'mine\.gin is not in the image: .* gs://'):
    pools(gin_files=['mine.gin'])


@pytest.mark.parametrize('spot, strategy', [(True, 'SPOT'), (False, 'STANDARD')])
def test_a_restart_covers_all_hosts(spot, strategy):
  scheduling = vertex.custom_job(REQUEST._replace(spot=spot, hours=10))['jobSpec']['scheduling']
  assert scheduling == {'timeout': '36000s', 'restartJobOnWorkerRestart': True, 'strategy': strategy}


def test_tensorboard_reads_beside_the_run():
  spec = vertex.custom_job(REQUEST._replace(tensorboard=TENSORBOARD, service_account=ACCOUNT))['jobSpec']
  assert spec['tensorboard'] == TENSORBOARD and spec['serviceAccount'] == ACCOUNT
  assert spec['baseOutputDirectory'] == {'outputUriPrefix': 'gs://my-bucket/runs/six'}


def test_events_go_where_the_service_looks(tmp_path, monkeypatch):
  """The service sets the variable to a folder in baseOutputDirectory."""
  monkeypatch.setenv('AIP_TENSORBOARD_LOG_DIR', f'{tmp_path}/run/logs/')
  run = RunFolder(str(tmp_path / 'run'))
  for name in ('', 'averaged'):
    run.writer(name).flush()
    assert list((tmp_path / 'run' / 'logs' / name).glob('events.out.*'))
  assert not (tmp_path / 'run' / 'tensorboard').exists()


@pytest.mark.parametrize('accelerator, count, machine', EVERY_MACHINE)
def test_each_accelerator_gets_its_machine(accelerator, count, machine):
  spec = vertex.machine_spec(REQUEST._replace(accelerator=accelerator, count=count, machine_type=machine))
  assert spec.pop('machineType') == machine
  if machine.startswith('ct5lp'):
    rows, columns = map(int, spec.pop('tpuTopology').split('x'))
    assert rows * columns == count and spec == {}
  else:
    assert spec == {'acceleratorType': accelerator, 'acceleratorCount': count}
  if not machine.startswith(('n1-', 'g2-', 'cloud-tpu')):
    assert f'-{count}' in machine  # the type's name says how many it has


def test_a_tpu_takes_the_tpu_strategy():
  [pool] = pools(accelerator='TPU_V5_LITEPOD', count=8)
  assert '--gin_file=gin_configs/runtime/tpu.gin' in pool['containerSpec']['args']
  assert pool['machineSpec'] == {'machineType': 'ct5lp-hightpu-8t', 'tpuTopology': '2x4'}


def test_a_job_without_accelerators_gets_a_cpu_machine():
  assert pools(accelerator='none', count=1)[0]['machineSpec'] == {'machineType': 'n1-standard-16'}
  assert pools(accelerator='none', count=1, machine_type='e2-standard-8')[0]['machineSpec'] == {
    'machineType': 'e2-standard-8'}


@pytest.mark.parametrize('changes, words', [
  ({'accelerator': 'A100'}, '--accelerator=A100: use one of NVIDIA_TESLA_T4'),
  ({'accelerator': 'NVIDIA_TESLA_K80'}, '--accelerator=NVIDIA_TESLA_K80'),
  ({'count': 3}, '--count=3: a machine has 1, 2, 4, 8 or 16 of NVIDIA_TESLA_A100; for more use --hosts'),
  ({'accelerator': 'TPU_V3', 'count': 4}, 'a machine has 8 of TPU_V3'),
  ({'machine_type': 'n1-standard-8'}, '--machine_type=n1-standard-8 does not come with 8 x NVIDIA_TESLA_A100'),
  ({'accelerator': 'NVIDIA_TESLA_V100', 'count': 1, 'machine_type': 'n1-standard-32'}, 'does not come with 1 x'),
  ({'accelerator': 'none'}, '--count=8 counts accelerators'),
  ({'accelerator': 'none', 'count': 1, 'machine_type': 'a2-highgpu-1g'}, 'not a machine type without accelerators'),
  ({'accelerator': 'TPU_V3', 'hosts': 2}, 'one TPU host'),
  ({'hosts': 0}, '--hosts=0 must lie between 1 and 100'), ({'hours': 0}, '--hours=0'),
  ({'disk_gb': 10}, '--disk_gb=10'),
  ({'gin_files': []}, '--gin_file='), ({'gin_files': ['gin_configs/no.gin']}, 'no gin file gin_configs/no.gin'),
  ({'command': 'evaluate'}, 'train or pretrain'),
  ({'model_dir': 'runs/six'}, '--model_dir=runs/six'), ({'model_dir': None}, 'gs://bucket/runs/name'),
  ({'model_dir': 'gs://my-bucket'}, 'gs://bucket/runs/name'), ({'model_dir': 'gs://my-bucket/a b'}, 'gs://'),
  ({'data_dir': 'data/coco'}, '--data_dir=data/coco is not on the machines'), ({'weights': 'R.pkl'}, '--weights=R.pkl'),
  ({'weights': 'detectron_r50_'}, '--weights=detectron_r50_ is not on the machines'),
  ({'image': None}, '--image='), ({'image': 'rethink_tf'}, 'Dockerfile'), ({'image': 'https://x/y'}, 'Dockerfile'),
  ({'service_account': 'me'}, '--service_account=me'), ({'tensorboard': '123'}, '--tensorboard=123'),
  ({'tensorboard': TENSORBOARD}, '--tensorboard needs a --service_account'), ({'network': 'default'}, '--network='),
  ({'gin_params': ["x.token = 'abc'"]}, "x.token = '***' holds a credential"),
  ({'name': 'x?token=abc'}, 'holds a credential'), ({'gin_files': ['gs://b/x.gin?token=abc']}, 'holds a credential'),
  ({'weights': 'gs://b/w?X-Goog-Signature=0badc0de'}, 'holds a credential'),
])
def test_an_invalid_request_is_one_line(changes, words):
  with pytest.raises(UserError) as error:
    vertex.custom_job(REQUEST._replace(**changes))
  message = str(error.value)
  assert words in message and '\n' not in message and 'abc' not in message and '0badc0de' not in message


LAUNCH = str(ROOT / 'launch' / 'vertex.py')


def launch(*arguments, **environment):
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
                 **environment}
  environment.pop('GOOGLE_CLOUD_PROJECT', None)
  return subprocess.run([sys.executable, *arguments], env=environment,
                        capture_output=True, text=True, timeout=300)


JOB = ('--gin_file=gin_configs/scratch_6x.gin', '--data_dir=gs://my-bucket/coco',
       '--model_dir=gs://my-bucket/runs/six', f'--image={IMAGE}', '--accelerator=NVIDIA_TESLA_T4', '--count=4')


def assert_one_line(result, *words):
  assert result.returncode == 1 and result.stdout == ''
  lines = result.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), result.stderr
  assert all(word in lines[0] for word in words), lines[0]


def test_the_command_without_the_sdk():
  absent = ('import runpy, sys; sys.modules["google.cloud.aiplatform_v1"] = None; sys.argv.remove("-c"); '
            'runpy.run_path(sys.argv[0], run_name="__main__")')
  assert_one_line(launch('-c', absent, LAUNCH, *JOB, '--dry_run'), "pip install -e '.[vertex]'")


def test_errors_on_the_command_line():
  assert_one_line(launch(LAUNCH, *JOB[:-2]), '--accelerator', 'TPU_V5_LITEPOD')
  assert_one_line(launch(LAUNCH, *JOB, '--count=5'), '--count=5')
  assert_one_line(launch(LAUNCH, *JOB, '--tpu=local'), '--accelerator=TPU')


@pytest.fixture
def checked(monkeypatch):
  """The flags, to be called with arguments."""
  monkeypatch.setattr(vertex, 'FLAGS', None)
  flags = vertex.command_line.FLAGS
  if 'gin_file' not in flags:
    vertex.command_line.define_flags()
  yield flags
  flags.unparse_flags()  # back to the defaults
  flags(['vertex'])


def test_the_configuration_is_checked_before_submission(checked):
  checked(['vertex'])
  vertex.check_configuration(REQUEST)
  with pytest.raises(UserError, match=r"BATCH_SIZE = 16 is not a multiple of the 24 devices .*'BATCH_SIZE = 24'"):
    vertex.check_configuration(REQUEST._replace(accelerator='none', count=24))
  checked(['vertex', '--gin_param=SCHEDUEL = 2'])
  with pytest.raises(UserError, match='SCHEDUEL'):
    vertex.check_configuration(REQUEST)


REMOTE = [{'data_dir': '/gcs/my-bucket/coco'}, {'weights': '/gcs/my-bucket/R-50.pkl'},
          {'weights': 'gs://my-bucket/R-50.pkl'}, {'weights': 'torchvision_resnet50_v1'}]


@pytest.mark.parametrize('changes', REMOTE, ids=lambda changes: '-'.join(*changes.items()))
def test_data_and_weights_are_those_of_the_job(changes, checked):
  """Paths below /gcs/ exist there alone."""
  files = ['gin_configs/scratch_6x.gin', *(['gin_configs/init/imagenet.gin'] if 'weights' in changes else [])]
  request = REQUEST._replace(gin_files=files, **changes)
  assert f'--{"=".join(*changes.items())}' in vertex.arguments(request)
  checked(['vertex', *(f'--{flag}={value}' for flag, value in changes.items())])
  vertex.custom_job(request)
  vertex.check_configuration(request)


def test_the_bucket_is_not_read(checked, monkeypatch):
  """The layout of data/own.gin is found when the job starts: a dry run needs neither network nor account."""
  def read(path):
    raise tf.errors.PermissionDeniedError(None, None, f'{path} is read')

  monkeypatch.setattr(tf.io.gfile, 'exists', read)
  checked(['vertex', '--data_dir=gs://my-bucket/own'])
  vertex.check_configuration(REQUEST._replace(gin_files=['gin_configs/scratch_6x.gin', 'gin_configs/data/own.gin'],
                                              data_dir='gs://my-bucket/own'))


@needs_sdk
@pytest.mark.parametrize('changes', REMOTE, ids=lambda changes: '-'.join(*changes.items()))
def test_dry_run_with_data_and_weights_of_the_job(changes):
  files = ['--gin_file=gin_configs/init/imagenet.gin'] if 'weights' in changes else []
  result = launch(LAUNCH, *JOB, *files, *(f'--{flag}={value}' for flag, value in changes.items()), '--dry_run')
  assert result.returncode == 0 and f'--{"=".join(*changes.items())}' in result.stdout, result.stderr


@needs_sdk
@pytest.mark.parametrize('changes', [
  {}, {'hosts': 3, 'spot': True}, {'accelerator': 'none', 'count': 1}, {'accelerator': 'TPU_V5_LITEPOD'},
  {'tensorboard': TENSORBOARD, 'service_account': ACCOUNT, 'network': 'projects/7/global/networks/n'},
  {'command': 'pretrain'}, *({'accelerator': name, 'count': min(counts)} for name, counts in vertex.MACHINES.items()),
], ids=lambda changes: '-'.join(map(str, changes.values()))[:40] or 'plain')
def test_the_service_accepts_the_job(changes):
  from google.protobuf import json_format
  job = vertex.custom_job(REQUEST._replace(**changes))
  message = vertex.validated(job)
  again = json_format.MessageToDict(type(message).pb(message))
  assert again['jobSpec']['scheduling'] == job['jobSpec']['scheduling'] or not changes.get('spot')
  for ours, theirs in zip(job['jobSpec'].pop('workerPoolSpecs'), again['jobSpec'].pop('workerPoolSpecs'), strict=True):
    assert {**ours, 'replicaCount': str(ours['replicaCount'])} == theirs  # 64-bit numbers are strings in its JSON
  assert again == job


@needs_sdk
def test_the_service_rejects_unknown_fields():
  for place, value in (('jobSpec', {'workerPools': []}), ('jobSpec', {'scheduling': {'strategy': 'CHEAP'}}),
                       ('jobspec', {})):
    with pytest.raises(UserError, match='rejects this job'):
      vertex.validated({**vertex.custom_job(REQUEST), place: value})


@needs_sdk
def test_dry_run_prints_the_job():
  result = launch(LAUNCH, *JOB, '--spot', '--dry_run', HOME='/nonexistent', NO_GCE_CHECK='true')
  assert result.returncode == 0, result.stderr
  job = json.loads(result.stdout)
  assert job['jobSpec']['scheduling']['strategy'] == 'SPOT'
  assert job['jobSpec']['workerPoolSpecs'][0]['machineSpec']['machineType'] == 'n1-standard-32'
  assert_one_line(launch(LAUNCH, *JOB), '--project')
