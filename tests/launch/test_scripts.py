"""The shell scripts, executed: real processes as workers, fake cluster commands on the PATH."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from rethink_tf.storage.run_folder import RunFolder
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))
MULTI_WORKER, SLURM, TPU_VM = (ROOT / 'launch' / name for name in ('multi_worker.sh', 'slurm.sh', 'tpu_vm.sh'))
# Prefix of the code that a worker runs: its index.
WORKER = 'import json, os; task = json.loads(os.environ["TF_CONFIG"]); index = task["task"]["index"]; '


def call(*command, cwd=ROOT, path=None, timeout=100, **environment):
  environment = {**os.environ, **environment}
  if path:
    environment['PATH'] = f'{path}:{environment["PATH"]}'
  return subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True,
                        timeout=timeout, stdin=subprocess.DEVNULL)


def fake_command(folder, name, text):
  folder.mkdir(exist_ok=True)
  (folder / name).write_text('#!/usr/bin/env bash\n' + textwrap.dedent(text))
  (folder / name).chmod(0o755)
  return folder


def workers(code, *options, count=2):
  return call(MULTI_WORKER, f'--workers={count}', *options, '--', sys.executable, '-u', '-c', WORKER + code)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
  lines = script.read_text().splitlines()
  assert lines[0] == '#!/usr/bin/env bash' and 'set -euo pipefail' in lines and os.access(script, os.X_OK)
  assert max(map(len, lines)) <= 120
  shellcheck = shutil.which('shellcheck') or shutil.which('shellcheck', path=os.path.dirname(sys.executable))
  if shellcheck is None:
    pytest.skip("no shellcheck: pip install -e '.[dev]'")
  result = call(shellcheck, script)
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_help_names_files_that_exist(script):
  result = call(script, '--help')
  assert result.returncode == 0 and f'launch/{script.name}' in result.stdout and result.stderr == ''
  for name in re.findall(r'gin_configs/\w+\.gin', result.stdout):
    assert (ROOT / name).is_file(), name


@pytest.mark.parametrize('command, words', [
  ([MULTI_WORKER], 'no command'), ([MULTI_WORKER, '--workers=2'], 'no command'),
  ([MULTI_WORKER, '--', 'true'], '--workers or --hosts'), ([MULTI_WORKER, '--workers=x', '--', 'true'], '--workers=x'),
  ([MULTI_WORKER, '--workers=0', '--', 'true'], '--workers=0'),
  ([MULTI_WORKER, '--wrokers=2', '--', 'true'], 'wrokers'),
  ([MULTI_WORKER, '--hosts=a:1,b:2', '--', 'true'], '--index'),
  ([MULTI_WORKER, '--hosts=a:1', '--index=1', '--', 'true'], '0 to 0'),
  ([MULTI_WORKER, '--hosts=a,b:2', '--index=0', '--', 'true'], "'a' is not host:port"),
  ([MULTI_WORKER, '--hosts=a"b:1', '--index=0', '--', 'true'], 'not host:port'),
  ([MULTI_WORKER, '--workers=2', '--hosts=a:1', '--', 'true'], 'not both'),
  ([SLURM], 'no configuration'), ([SLURM, '--gin_file=x'], 'not a Slurm job'),
  ([TPU_VM, '--name=a', '--', 'x'], '--zone'), ([TPU_VM, '--nmae=a'], '--nmae'), ([TPU_VM, '--name=A b'], '--name'),
  ([TPU_VM, '--name=a', '--zone=us-central1-a', '--type=v3-32', '--', 'x'], 'v3-32'),
  ([TPU_VM, '--name=a', '--zone=us-central1-a', '--type=v3-8', '--', '--model_dir=runs/x'], 'gs://'),
])
def test_a_wrong_call_is_one_line(command, words):
  environment = {'SLURM_JOB_NODELIST': ''}
  result = call(*command, **environment)
  assert result.returncode == 2 and result.stdout == ''
  assert len(result.stderr.splitlines()) == 1 and words in result.stderr


def test_every_worker_has_its_own_tf_config():
  result = workers('print(json.dumps(task))', count=3)
  assert result.returncode == 0, result.stderr
  lines = dict(line.split(' ', 1) for line in result.stdout.splitlines())
  assert set(lines) == {'[0]', '[1]', '[2]'}
  configs = [json.loads(lines[f'[{i}]']) for i in range(3)]
  assert [config['task'] for config in configs] == [{'type': 'worker', 'index': i} for i in range(3)]
  addresses = configs[0]['cluster']['worker']
  assert all(config['cluster'] == configs[0]['cluster'] for config in configs) and len(set(addresses)) == 3
  assert all(re.fullmatch(r'127\.0\.0\.1:\d+', address) for address in addresses)


def test_a_failing_worker_ends_the_others_with_their_child_processes():
  """Workers wait in a child process; a survivor would keep open the pipe that `call` reads until its timeout."""
  result = workers('import subprocess, sys; index == 1 and sys.exit(7); subprocess.run(["sleep", "600"])', count=3)
  assert result.returncode == 7
  assert 'worker 1 exited with code 7' in result.stderr


def test_a_worker_that_ignores_sigterm_is_killed():
  result = workers('import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print("ready"); '
                   'index == 1 and sys.exit(3); time.sleep(600)', '--grace=1')
  assert result.returncode == 3


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT], ids=['term', 'int'])
def test_signals_reach_all_workers(number):
  code = ('import signal, sys, time\n'
          'def end(number, frame): print("saved", number, flush=True); sys.exit(75)\n'
          'for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, end)\n'
          'print("ready", flush=True); time.sleep(600)')
  process = subprocess.Popen([MULTI_WORKER, '--workers=2', '--', sys.executable, '-c', WORKER + '\n' + code],
                             stdout=subprocess.PIPE, text=True, start_new_session=True,
                             # A shell cannot trap a signal that it inherits as ignored, as background jobs do.
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
  ready = [process.stdout.readline() for _ in range(2)]
  assert sorted(ready) == ['[0] ready\n', '[1] ready\n']
  process.send_signal(number)
  rest, _ = process.communicate(timeout=100)
  assert process.returncode == 75
  assert sorted(rest.splitlines()) == [f'[0] saved {number.value}', f'[1] saved {number.value}']


@pytest.mark.slow
def test_two_workers_train(tmp_path):
  params = (*tiny.GIN, 'train/synthetic.num_images = 10', 'eval/synthetic.num_images = 2', 'ResNet.depth = 14',
            'synthetic.image_size = (64, 64)', 'synthetic.object_size = (16, 40)', 'BATCH_SIZE = 2',
            'KTimesSchedule.unit = 0.75', 'CocoEvaluator.every = 0', 'CocoEvaluator.at_end = False',
            'run.log_every = 1')
  result = call(MULTI_WORKER, '--workers=2', '--', sys.executable, '-m', 'rethink_tf.train',
                '--gin_file=gin_configs/demo.gin', '--gin_file=gin_configs/runtime/multi_worker.gin',
                f'--model_dir={tmp_path}/run', *(f'--gin_param={param}' for param in params), timeout=900)
  assert result.returncode == 0, result.stderr[-2000:]
  lines = RunFolder(str(tmp_path / 'run'), create=False).read_metrics()
  assert [line['step'] for line in lines if line['kind'] == 'train'] == [1, 2, 3, 4, 5, 6]  # written by one worker


def test_hosts_with_numbers_in_decimal():
  hosts = ','.join(f'n{i}:2222' for i in range(11))
  result = call(MULTI_WORKER, f'--hosts={hosts}', '--index=010', '--', 'printenv', 'TF_CONFIG')
  assert json.loads(result.stdout)['task']['index'] == 10
  assert call(MULTI_WORKER, f'--hosts={hosts}', '--index=08', '--', 'true').returncode == 0


def test_a_printed_command_has_the_effect_of_its_index():
  printed = call(MULTI_WORKER, '--hosts=n1:2222,n2:2222', '--print', '--', 'echo', 'two words')
  assert printed.returncode == 0
  lines = [line for line in printed.stdout.splitlines() if not line.startswith('#')]
  assert len(lines) == 2
  for i, line in enumerate(lines):  # a printed command has the effect of --index
    by_print = call('bash', '-c', line.replace(' echo ', ' printenv TF_CONFIG # '))
    by_index = call(MULTI_WORKER, '--hosts=n1:2222,n2:2222', f'--index={i}', '--', 'printenv', 'TF_CONFIG')
    assert by_print.stdout == by_index.stdout and by_index.returncode == 0
    assert json.loads(by_index.stdout) == {'cluster': {'worker': ['n1:2222', 'n2:2222']},
                                       'task': {'type': 'worker', 'index': i}}


@pytest.fixture
def slurm(tmp_path):
  """A fake srun that runs a task per node, one after another, and exits with the code of the last failure."""
  folder = fake_command(tmp_path / 'bin', 'srun', '''
    while [[ $1 == --* ]]; do shift; done
    code=0
    for ((i = 0; i < NODES; i++)); do SLURM_PROCID=$i "$@" || code=$?; done
    exit $code
    ''')
  fake_command(folder, 'scontrol', '''
    if [[ $1 == show ]]; then for ((i = 0; i < NODES; i++)); do echo "node$i"; done; else echo "$@" >&2; fi
    ''')
  fake_command(folder, 'trainer', 'echo "${TF_CONFIG:-alone} $*"; exit "${CODE:-0}"')
  checkout = tmp_path / 'checkout'
  shutil.copytree(ROOT / 'launch', checkout / 'launch')

  def submit(nodes, *arguments, **environment):
    spooled = shutil.copy(SLURM, tmp_path / 'slurm_script')
    return call(spooled, *arguments, cwd=tmp_path, path=folder, NODES=str(nodes), SLURM_JOB_ID='1234',
                SLURM_JOB_NODELIST='node[0-9]', SLURM_SUBMIT_DIR=str(checkout), RETHINK_TF_PYTHON='trainer',
                **environment)
  return submit


def test_slurm_gives_every_node_its_index(slurm):
  result = slurm(3, '--gin_file=a.gin', '--gin_param=SCHEDULE = 2')
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert len(lines) == 3
  for i, line in enumerate(lines):
    config, arguments = line.split(' -m ')
    assert json.loads(config) == {'cluster': {'worker': [f'node{j}:21234' for j in range(3)]},
                                  'task': {'type': 'worker', 'index': i}}
    assert arguments == ('rethink_tf.train --gin_file=a.gin --gin_param=SCHEDULE = 2 '
                         '--gin_file=gin_configs/runtime/multi_worker.gin')


def test_slurm_on_one_node_needs_no_cluster(slurm):
  assert slurm(1, '--gin_file=a.gin').stdout == 'alone -m rethink_tf.train --gin_file=a.gin\n'


@pytest.mark.parametrize('nodes', [1, 2])
@pytest.mark.parametrize('code, again', [(75, True), (1, False), (69, False), (137, False)])
def test_slurm_requeues_only_after_a_signal(nodes, code, again, slurm):
  result = slurm(nodes, '--gin_file=a.gin', CODE=str(code))
  assert result.returncode == code
  assert ('requeue 1234' in result.stderr) == again


@pytest.fixture
def cloud(tmp_path):
  """A fake gcloud with one VM, whose home is a folder; each run ends with an exit code, or preempted with the VM."""
  home = tmp_path / 'vm'
  folder = fake_command(tmp_path / 'bin', 'gcloud', f'''
    home={home}
    echo "$4 ${{*:6}}" >>{tmp_path}/calls
    case $4 in
      describe) cat {tmp_path}/state 2>/dev/null || exit 1 ;;
      create) [[ ! -e {tmp_path}/state ]] || exit 1; echo READY >{tmp_path}/state; mkdir -p $home/.rethink_tf/bin
        cp {tmp_path}/python $home/.rethink_tf/bin/python; touch $home/.rethink_tf/installed ;;
      delete) rm -r {tmp_path}/state $home ;;
      scp) cp "$5" $home/"${{6#*:}}" ;;
      ssh) [[ $(cat {tmp_path}/state) == READY ]] || exit 255
        cd $home; command=${{*: -1}}; code=0; HOME=$home bash -c "${{command#--command=}}" || code=$?
        [[ $(cat {tmp_path}/state) == READY ]] || exit 255
        exit $code ;;
    esac
    ''')
  fake_command(tmp_path, 'python', f'''
    printf '%s|' "$@" >>{tmp_path}/trainings; echo >>{tmp_path}/trainings
    end=$(head -n 1 {tmp_path}/ends); sed -i 1d {tmp_path}/ends
    echo "training in $(basename "$PWD")"
    if [[ $end == preempted ]]; then echo PREEMPTED >{tmp_path}/state; exit 143; fi
    exit "$end"
    ''')

  def launch(*ends, options=('--spot',)):
    (tmp_path / 'ends').write_text(''.join(f'{end}\n' for end in ends))
    result = call(TPU_VM, '--name=six', '--zone=us-central1-a', '--type=v3-8', *options, '--',
                  '--gin_file=a.gin', "--gin_param=x.name = 'b c'", '--model_dir=gs://bucket/runs/six', path=folder)
    lines = {name: (tmp_path / name).read_text().splitlines() if (tmp_path / name).exists() else []
             for name in ('calls', 'trainings')}
    return result, [line.split()[0] for line in lines['calls']], lines['trainings'], lines['calls']
  return launch


TRAINING = ("-m|rethink_tf.train|--gin_file=a.gin|--gin_param=x.name = 'b c'|--model_dir=gs://bucket/runs/six|"
            '--gin_file=gin_configs/runtime/tpu.gin|')


def test_tpu_vm_is_created_used_and_deleted(cloud):
  result, verbs, trainings, calls = cloud(0)
  assert result.returncode == 0, result.stderr
  assert verbs == ['describe', 'create', 'scp', 'ssh', 'ssh', 'delete'] and trainings == [TRAINING]
  assert calls[1] == 'create --zone=us-central1-a --accelerator-type=v3-8 --version=tpu-ubuntu2204-base --spot'
  assert 'training in rethink_tf' in result.stdout


def test_a_preempted_tpu_vm_is_created_again(cloud):
  result, verbs, trainings, _ = cloud('preempted', 75, 0)
  assert result.returncode == 0, result.stderr
  assert trainings == [TRAINING] * 3
  assert [verb for verb in verbs if verb in ('create', 'delete')] == ['create', 'delete', 'create', 'delete']


def test_tpu_vm_stays_when_training_fails(cloud):
  result, verbs, trainings, _ = cloud(1)
  assert result.returncode == 1 and trainings == [TRAINING] and 'delete' not in verbs
  assert 'ended with code 1' in result.stderr
  result, verbs, trainings, _ = cloud(0)  # the same command again, with what was corrected in the checkout since
  assert result.returncode == 0 and verbs.count('create') == 1 and verbs.count('scp') == 2 and len(trainings) == 2


def test_tpu_vm_that_trains_keeps_its_checkout_and_says_which_training_it_is(cloud, tmp_path):
  home = tmp_path / 'vm'
  shutil.copytree(ROOT / 'launch', home / 'rethink_tf/launch')
  for name, text in (('vm/.rethink_tf/installed', ''), ('state', 'READY\n'), ('vm/rethink_tf_train.log', 'step 7\n'),
                     ('vm/rethink_tf_train.arguments', '--gin_file=b.gin ')):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  fake_command(tmp_path / 'bin', 'tail', 'kill "${1#--pid=}"; cat "${@: -1}"')  # until the training has ended
  with subprocess.Popen(['sleep', '100']) as training:
    (home / 'rethink_tf_train.pid').write_text(str(training.pid))
    result, verbs, trainings, _ = cloud()
  assert not {'create', 'scp', 'delete'} & set(verbs) and not trainings and 'step 7' in result.stdout
  assert 'a training with other arguments runs on this VM, and this is its log: --gin_file=b.gin' in result.stderr


@pytest.mark.parametrize('command', [
  [TPU_VM, '--name=six', '--zone=us-central1-a', '--type=v3-8', '--dry_run', '--', '--model_dir=gs://bucket/x'],
  [MULTI_WORKER, '--workers=2', '--print', '--', 'train']], ids=['tpu_vm', 'multi_worker'])
def test_printed_commands_hold_no_credentials(command):
  result = call(*command, "--gin_param=X.pwd = 'hun ter2'", '--weights=https://me:hun/ter2@host.example/w', '--token',
                'hunter2', '--gin_file=a b.gin')
  assert result.returncode == 0 and 'ter2' not in result.stdout + result.stderr
  assert 'host.example/w' in result.stdout and 'X.pwd' in result.stdout


def test_tpu_vm_dry_run_runs_nothing(cloud):
  result, verbs, trainings, _ = cloud(options=['--dry_run', '--keep'])
  assert result.returncode == 0 and verbs == trainings == []
  lines = result.stdout.splitlines()
  assert [line.split()[4] for line in lines] == ['create', 'scp', 'ssh', 'ssh']
  assert '--spot' not in lines[0]
