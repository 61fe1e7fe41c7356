"""The command: run folders as arguments, flags, one-line errors."""


from tests.compare.fake_runs import share, write
from tests.in_process import call


def command(*arguments):
  return call('compare', *arguments)


def test_two_runs_and_a_missing_folder(tmp_path):
  paths = [write(tmp_path / 's', share(60), k=6), write(tmp_path / 'p', share(100), k=2, init='w.pkl')]
  done = command(*paths, f'--output={tmp_path}/out', '--draws=20', '--seed_spread=0.5')
  assert done.returncode == 0, done.stderr
  assert 'Scratch does not catch up by 6x' in done.stdout
  assert f'report: {tmp_path}/out/index.html' in done.stdout
  failed = command(str(tmp_path / 'nowhere'))
  assert failed.returncode == 1 and failed.stderr.strip() == f'error: {tmp_path}/nowhere: no such run folder'
