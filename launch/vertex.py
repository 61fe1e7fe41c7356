"""Train on Vertex AI, as a custom job:

python launch/vertex.py --gin_file=gin_configs/scratch_6x.gin --data_dir=gs://my-bucket/coco \\
    --model_dir=gs://my-bucket/runs/scratch_6x --image=us-docker.pkg.dev/my-project/my-repo/rethink_tf:1 \\
    --accelerator=NVIDIA_TESLA_A100 --count=8 --spot --dry_run

--dry_run prints the job and checks it against the service's own types: no account, no network, no costs. docs/cloud.md
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from rethink_tf import command_line
from rethink_tf.errors import UserError
from rethink_tf.process import entry
from rethink_tf.redaction import redact
from rethink_tf.weights import catalog

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMANDS = ('train', 'pretrain')
MULTI_WORKER, TPU = 'gin_configs/runtime/multi_worker.gin', 'gin_configs/runtime/tpu.gin'


def _n1(default: int, most: int) -> tuple[str, ...]:
  """N1 machine types with up to `most` vCPUs, the one with `default` first."""
  sizes = [default, *(size for size in (4, 8, 16, 32, 64, 96) if size <= most and size != default)]
  kinds = (('standard', 4), ('highmem', 4), ('highcpu', 16))
  return tuple(f'n1-{kind}-{size}' for kind, least in kinds for size in sizes if size >= least)


# Accelerator -> accelerators per machine -> machine types, the default first. N1 machines with many vCPUs need several
# accelerators; the other types have a fixed number. From "Configure compute resources for custom training". Left out:
# accelerators without kernels in TensorFlow 2.20, and TPU slices of several hosts.
MACHINES: dict[str, dict[int, tuple[str, ...]]] = {
  'NVIDIA_TESLA_T4': {1: _n1(8, 16), 2: _n1(16, 32), 4: _n1(32, 96)},
  'NVIDIA_TESLA_P100': {1: _n1(8, 16), 2: _n1(16, 32), 4: _n1(32, 32)},
  'NVIDIA_TESLA_V100': {1: _n1(8, 8), 2: _n1(16, 16), 4: _n1(32, 32), 8: _n1(64, 96)},
  'NVIDIA_L4': {1: ('g2-standard-12', 'g2-standard-4', 'g2-standard-8', 'g2-standard-16', 'g2-standard-32'),
                2: ('g2-standard-24',), 4: ('g2-standard-48',), 8: ('g2-standard-96',)},
  'NVIDIA_TESLA_A100': {**{n: (f'a2-highgpu-{n}g',) for n in (1, 2, 4, 8)}, 16: ('a2-megagpu-16g',)},
  'NVIDIA_A100_80GB': {n: (f'a2-ultragpu-{n}g',) for n in (1, 2, 4, 8)},
  'NVIDIA_H100_80GB': {n: (f'a3-highgpu-{n}g',) for n in (1, 2, 4, 8)},
  'NVIDIA_H100_MEGA_80GB': {8: ('a3-megagpu-8g',)},
  'NVIDIA_H200_141GB': {8: ('a3-ultragpu-8g',)},
  'TPU_V2': {8: ('cloud-tpu',)},  # cores; of a v5e, chips
  'TPU_V3': {8: ('cloud-tpu',)},
  'TPU_V5_LITEPOD': {n: (f'ct5lp-hightpu-{n}t',) for n in (1, 4, 8)},
}
_TOPOLOGIES = {'ct5lp-hightpu-1t': '1x1', 'ct5lp-hightpu-4t': '2x2', 'ct5lp-hightpu-8t': '2x4'}
_CPU_MACHINE = re.compile(r'(e2|n1|n2|n2d|c2|c2d)-(standard|highmem|highcpu)-\d+')


class Request(NamedTuple):
  """The values of the flags."""

  gin_files: Sequence[str]
  model_dir: str
  image: str
  accelerator: str
  count: int = 1  # accelerators per host
  hosts: int = 1
  gin_params: Sequence[str] = ()
  command: str = 'train'
  data_dir: str | None = None
  weights: str | None = None
  machine_type: str | None = None
  spot: bool = False
  disk_gb: int = 200
  hours: int = 168
  name: str | None = None
  service_account: str | None = None
  tensorboard: str | None = None
  network: str | None = None
  allow_changes: bool = False


def custom_job(request: Request) -> dict[str, Any]:
  """Return the CustomJob in its JSON form.

  Raises:
    UserError: a value is invalid, or values do not fit together.
  """
  _check(request)
  pool = {'machineSpec': machine_spec(request), 'replicaCount': 1, 'diskSpec': {'bootDiskSizeGb': request.disk_gb},
          'containerSpec': {'imageUri': request.image, 'args': arguments(request)}}
  if request.command != 'train':  # the image's entry point
    pool['containerSpec']['command'] = ['python', '-m', f'rethink_tf.{request.command}']
  pools = [pool]  # the first pool holds the primary replica alone
  if request.hosts > 1:
    pools.append({**pool, 'replicaCount': request.hosts - 1})
  spec = {
    'workerPoolSpecs': pools,
    'scheduling': {
      'timeout': f'{request.hours * 3600}s',
      # A preempted worker stops the others, since collectives need all of them. The same command then resumes from the
      # last checkpoint of the run folder.
      'restartJobOnWorkerRestart': True,
      'strategy': 'SPOT' if request.spot else 'STANDARD',
    },
  }
  for field in ('service_account', 'network'):
    if getattr(request, field):
      spec[{'service_account': 'serviceAccount'}.get(field, field)] = getattr(request, field)
  if request.tensorboard:
    spec['tensorboard'] = request.tensorboard
    spec['baseOutputDirectory'] = {'outputUriPrefix': request.model_dir}  # AIP_TENSORBOARD_LOG_DIR is below it
  name = request.name or request.model_dir.rstrip('/').rsplit('/', 1)[-1]
  return {'displayName': name[:128], 'jobSpec': spec}


def arguments(request: Request) -> list[str]:
  """Return the arguments of the job's processes: those of the user and the gin files for the machines."""
  files = [_in_image(name) for name in request.gin_files]
  if request.hosts > 1:
    files.append(MULTI_WORKER)
  if request.accelerator.startswith('TPU'):
    files.append(TPU)
  given = [f'--gin_file={name}' for name in dict.fromkeys(files)]
  given += [f'--gin_param={binding}' for binding in request.gin_params]
  given += [f'--{flag}={value}' for flag, value in (
    ('model_dir', request.model_dir), ('data_dir', request.data_dir), ('weights', request.weights)) if value]
  return given + ['--allow_changes'] * request.allow_changes


def machine_spec(request: Request) -> dict[str, Any]:
  """Return the machine spec of a host: accelerator, count and a machine type that offers them, validated."""
  accelerator, count, machine = request.accelerator, request.count, request.machine_type
  if accelerator == 'none':
    if count != 1:
      raise UserError(f'--count={count} counts accelerators: leave it out with --accelerator=none')
    if machine and not _CPU_MACHINE.fullmatch(machine):
      raise UserError(f'--machine_type={machine} is not a machine type without accelerators, such as n1-standard-16')
    return {'machineType': machine or 'n1-standard-16'}
  if accelerator not in MACHINES:
    raise UserError(f'--accelerator={accelerator}: use one of {", ".join(MACHINES)} or none')
  by_count = MACHINES[accelerator]
  if count not in by_count:
    more = '' if accelerator.startswith('TPU') else '; for more use --hosts'
    raise UserError(f'--count={count}: a machine has {_or(by_count)} of {accelerator}{more}')
  if machine and machine not in by_count[count]:
    raise UserError(f'--machine_type={machine} does not come with {count} x {accelerator}: use {_or(by_count[count])}')
  machine = machine or by_count[count][0]
  if machine in _TOPOLOGIES:
    return {'machineType': machine, 'tpuTopology': _TOPOLOGIES[machine]}
  return {'machineType': machine, 'acceleratorType': accelerator, 'acceleratorCount': count}


def _check(request):
  if not request.gin_files:
    raise UserError('no configuration: give --gin_file=gin_configs/scratch_6x.gin or another file of gin_configs/')
  if request.command not in COMMANDS:
    raise UserError(f'--command={request.command}: use {_or(COMMANDS)}')
  if not re.fullmatch(r'gs://[a-z0-9][\w.-]{1,220}[a-z0-9]/[^\s*?\[\]#]+', request.model_dir or ''):
    raise UserError(f'--model_dir={request.model_dir}: the run folder must outlive the machine: gs://bucket/runs/name')
  for flag, path in (('data_dir', request.data_dir), ('weights', request.weights)):
    if path and not path.startswith(('gs://', '/gcs/')) and not (flag == 'weights' and catalog.find(path)):
      raise UserError(f'--{flag}={path} is not on the machines of the job: copy it to a bucket, gs://bucket/…')
  if not re.fullmatch(r'[\w.-]+(:\d+)?(/[\w.-]+)+(:[\w.-]+)?(@sha256:[0-9a-f]{64})?', request.image or ''):
    raise UserError(f'--image={request.image}: name the image that was built from the Dockerfile and pushed, such as '
                    'us-docker.pkg.dev/my-project/my-repository/rethink_tf:1')
  for name, value, most in (('hosts', request.hosts, 100), ('hours', request.hours, 24 * 365),
                            ('disk_gb', request.disk_gb, 64000)):
    least = 100 if name == 'disk_gb' else 1
    if not least <= value <= most:
      raise UserError(f'--{name}={value} must lie between {least} and {most}')
  if request.hosts > 1 and request.accelerator.startswith('TPU'):
    raise UserError(f'--hosts={request.hosts}: only slices of one TPU host are supported here')
  _check_access(request)
  given = [value for value in request if isinstance(value, str)]
  for value in (*request.gin_files, *request.gin_params, *given):
    if redact(value) != value:
      raise UserError(f'{redact(value)} holds a credential, which everybody who sees the job could read: give the '
                      "job's --service_account access instead")


def _check_access(request):
  if request.service_account and not re.fullmatch(r'[\w.-]+@[\w.-]+\.[a-z]+', request.service_account):
    raise UserError(f'--service_account={request.service_account}: give its address, '
                    'name@my-project.iam.gserviceaccount.com')
  if request.tensorboard and not re.fullmatch(r'projects/[\w:.-]+/locations/[\w-]+/tensorboards/\d+',
                                              request.tensorboard):
    raise UserError(f'--tensorboard={request.tensorboard}: give the whole name, '
                    'projects/my-project/locations/us-central1/tensorboards/123')
  if request.tensorboard and not request.service_account:
    raise UserError('--tensorboard needs a --service_account, with the roles Storage Admin and Vertex AI User')
  if request.network and not re.fullmatch(r'projects/\d+/global/networks/[\w-]+', request.network):
    raise UserError(f'--network={request.network}: give the whole name, projects/<number>/global/networks/name')


def _in_image(name: str) -> str:
  """Return the path of a gin file in the image: gin_configs/... of the checkout, or gs://."""
  if name.startswith('gs://'):
    return name
  path = next((path for path in (pathlib.Path(name), ROOT / name) if path.is_file()), None)
  if path is None:
    raise UserError(f'no gin file {name} in {pathlib.Path.cwd()} or {ROOT}')
  if not path.resolve().is_relative_to(ROOT / 'gin_configs'):
    raise UserError(f'{name} is not in the image: put it under {ROOT / "gin_configs"} and build the image again, or '
                    'copy it to a bucket, gs://…')
  return path.resolve().relative_to(ROOT).as_posix()


def _or(values) -> str:
  *others, last = map(str, values)
  return f'{", ".join(others)} or {last}' if others else last


def validated(job: dict[str, Any]):
  """Return the job as the message of the service; UserError for an unknown field or name."""
  from google.cloud import aiplatform_v1
  from google.protobuf import json_format

  message = aiplatform_v1.CustomJob()
  try:
    json_format.ParseDict(job, aiplatform_v1.CustomJob.pb(message))
  except json_format.ParseError as error:
    raise UserError(f'google-cloud-aiplatform rejects this job: {error}') from error
  return message


def submit(message, project: str, region: str) -> str:
  """Submit a job and return its name."""
  from google.api_core.exceptions import GoogleAPIError
  from google.auth.exceptions import GoogleAuthError
  from google.cloud import aiplatform_v1

  try:
    client = aiplatform_v1.JobServiceClient(client_options={'api_endpoint': f'{region}-aiplatform.googleapis.com'})
    return client.create_custom_job(parent=f'projects/{project}/locations/{region}', custom_job=message).name
  except GoogleAuthError as error:
    raise UserError(f'no access to Google Cloud: {error}; run gcloud auth application-default login') from error
  except GoogleAPIError as error:
    raise UserError(f'Vertex AI refused the job: {error}') from error


def check_configuration(request: Request) -> None:
  """Parse the configuration as the job will, so that a misspelt name costs nothing; gs:// files are not read."""
  files = [argument.removeprefix('--gin_file=') for argument in arguments(request) if '--gin_file=' in argument]
  remote = [name for name in files if name.startswith('gs://')]
  if remote:
    print(f'{remote[0]} is not read locally: the configuration is checked when the job starts', file=sys.stderr)
    return
  from rethink_tf import experiment, gin_files  # noqa: F401  registers what gin files name

  command_line.configure(files, elsewhere=True)
  batch, replicas = gin_files.bound('%BATCH_SIZE'), request.count * request.hosts
  if isinstance(batch, int) and batch % replicas:
    raise UserError(f'BATCH_SIZE = {batch} is not a multiple of the {replicas} devices that share it: give '
                    f"--gin_param='BATCH_SIZE = {-(-batch // replicas) * replicas}' or other --count and --hosts")


def _define_flags():
  command_line.define_flags()
  here = {'module_name': sys.argv[0]}
  flags.DEFINE_string('image', None, 'image built from the Dockerfile, in a registry', **here)
  flags.DEFINE_string('accelerator', None, f'{", ".join(MACHINES)}, or none', **here)
  flags.DEFINE_integer('count', 1, 'accelerators per host', **here)
  flags.DEFINE_integer('hosts', 1, 'machines that train together', **here)
  flags.DEFINE_string('machine_type', None, 'machine type; default: the one for the accelerators', **here)
  flags.DEFINE_bool('spot', False, 'cheaper machines that may be preempted: the job restarts and resumes',
                    **here)
  flags.DEFINE_integer('disk_gb', 200, 'boot disk of each host in GB', **here)
  flags.DEFINE_integer('hours', 168, 'stop the job after so many hours; the same command resumes it', **here)
  flags.DEFINE_enum('command', 'train', COMMANDS, 'command of the job: train a detector, or pre-train a backbone',
                    **here)
  flags.DEFINE_alias('door', 'command', **here)  # an earlier name
  flags.DEFINE_string('name', None, 'name of the job; default: that of the run folder', **here)
  flags.DEFINE_string('project', os.environ.get('GOOGLE_CLOUD_PROJECT'),
                      'project of the job; default: GOOGLE_CLOUD_PROJECT', **here)
  flags.DEFINE_string('region', 'us-central1', 'region of the job; use that of the bucket', **here)
  flags.DEFINE_string('service_account', None, 'account of the job; needs access to the buckets', **here)
  flags.DEFINE_string('tensorboard', None, 'projects/…/tensorboards/…, to show the curves while training', **here)
  flags.DEFINE_string('network', None, 'projects/<number>/global/networks/…, to peer with', **here)
  flags.DEFINE_bool('dry_run', False, 'validate and print the job without submitting it', **here)


def main() -> None:
  if FLAGS.tpu:
    raise UserError('--tpu is for training on the machine itself: use --accelerator=TPU_V3 or another')
  if FLAGS.cache_dir or FLAGS.offline:
    raise UserError('--cache_dir and --offline are for training on the machine itself: a job downloads by itself')
  if FLAGS.accelerator is None:
    raise UserError(f'give --accelerator: {", ".join(MACHINES)} or none')
  request = Request(gin_files=FLAGS.gin_file, gin_params=FLAGS.gin_param, **{
    field: getattr(FLAGS, field) for field in Request._fields if not field.startswith('gin_')})
  job = custom_job(request)
  if not _installed():
    raise UserError("google-cloud-aiplatform is not installed: pip install -e '.[vertex]'")
  if not FLAGS.dry_run and not FLAGS.project:
    raise UserError('give --project, or set GOOGLE_CLOUD_PROJECT')
  check_configuration(request)
  message = validated(job)
  if FLAGS.dry_run:
    from google.protobuf import json_format

    print(json_format.MessageToJson(type(message).pb(message), indent=2))
    return
  name = submit(message, FLAGS.project, FLAGS.region)
  print(f'{name}\nhttps://console.cloud.google.com/vertex-ai/locations/{FLAGS.region}/training/'
        f'{name.rsplit("/", 1)[-1]}?project={FLAGS.project}')


def _installed() -> bool:
  try:
    return importlib.util.find_spec('google.cloud.aiplatform_v1') is not None
  except ModuleNotFoundError:
    return False


if __name__ == '__main__':
  _define_flags()
  entry.start(main, interrupted='stopped; a submitted job continues: see the console')
