"""Credentials never reach logs or run folders; other text is unchanged."""

import io
import logging
import subprocess
import sys
import threading

import pytest

from rethink_tf.errors import UserError
from rethink_tf.process.entry import as_command
from rethink_tf.redaction import RedactingFilter, redact, redact_arguments
from rethink_tf.storage.run_folder import RunFolder

SECRET = 'Zm9vYmFyL3NlY3JldA-42'


@pytest.mark.parametrize('text', [
  f'https://user:{SECRET}@host.example/weights.pkl',
  f'https://{SECRET}@host.example/weights.pkl',
  f'https://user:p@{SECRET}@host.example/x',
  f'https://storage.example/b/w.pkl?X-Goog-Algorithm=GOOG4&X-Goog-Credential={SECRET}&X-Goog-Date=2026',
  f'https://storage.example/b/w.pkl?X-Goog-Date=2026&X-Goog-Signature={SECRET}',
  f'https://s3.example/w?X-Amz-Security-Token={SECRET}&X-Amz-Signature={SECRET}',
  f'https://s3.example/w?AWSAccessKeyId={SECRET}&Expires=1&Signature={SECRET}',
  f'https://blob.example/w?sv=2024&sig={SECRET}#part',
  f'https://host.example/w?key={SECRET}', f'https://host.example/w?token={SECRET}&v=1',
  f'https://host.example/get?url=https%3A%2F%2Fother%3Fa%3D1%26token%3D{SECRET}',
  f'--token={SECRET}', f"--gin_param=API_KEY = '{SECRET}'", f'{{"password": "{SECRET}", "a": 1}}', f'secret: {SECRET}',
  f'password = "with spaces {SECRET}"', f'Authorization: Bearer {SECRET}',
  f'"authorization": "Basic {SECRET}"', f'bearer {SECRET}', f'access_key={SECRET}, b',
  f'https://user:pa/{SECRET}@host.example/x', f'https://host.example/cb#access_token={SECRET}',
  f'https://host.example/w?sig=a%2B{SECRET}%3D&se=1', f'https://host.example/u?u=https%3A%2F%2Fo%3Fsig%3Da%2B{SECRET}',
  f'Authorization: Token {SECRET}', f'"Authorization": "Token a {SECRET}", "a": 1', f'Cookie: a=1; session={SECRET}',
  f'Authorization: Digest username="me", response="{SECRET}"', f'PRIVATE-TOKEN: {SECRET}', f'X-API-Key: {SECRET}',
  f'X.pwd = "{SECRET}"', f"X.auth = '{SECRET}'", f"X.tokens = ['a', '{SECRET}']",
  f'{{"passwords": {{"a": "{SECRET}"}}}}',
  f"X.password = \\\n    '{SECRET}'", f"X.password = \\\n    ('some words '\n     '{SECRET}')",
  f"password = '''a{SECRET}'''", f"password = 'it\\'s {SECRET}'", f'--password=a,b;{SECRET} c',
  f'AccountKey={SECRET}==;E=1', 'AKIA' + 'C2C2' * 4, 'glpat-' + 'c2' * 10, 'npm_' + 'b1' * 18, 'sk-proj-' + 'a0' * 20,
  'sk-' + 'a0' * 20, 'pypi-' + 'b1' * 20, 'GOCSPX-' + 'd3' * 14, 'nvapi-' + 'd3' * 30,
  'ya29.' + 'a0' * 20, 'hf_' + 'b1' * 17, 'ghp_' + 'c2' * 18, 'AIza' + 'd3' * 18,
  f'-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n{SECRET}\n-----END RSA PRIVATE KEY-----',
])
def test_credentials_are_hidden(text):
  hidden = redact(text)
  assert '***' in hidden and SECRET not in hidden
  assert not any(token in hidden for token in ('a0a0', 'b1b1', 'c2c2', 'C2C2', 'd3d3'))
  assert redact(hidden) == hidden


@pytest.mark.parametrize('text, hidden', [
  (f'cannot open https://me:{SECRET}@host.example:8080/a/b?x=1: no such file',
   'cannot open https://***@host.example:8080/a/b?x=1: no such file'),
  (f'https://host.example/w?a=1&X-Goog-Signature={SECRET}&b=2', 'https://host.example/w?a=1&X-Goog-Signature=***&b=2'),
  (f'see https://host.example/w?sig={SECRET}%3D: no such file', 'see https://host.example/w?sig=***: no such file'),
  (f"a.pwd = \\\n    '{SECRET}'\nb = 2", "a.pwd = \\\n    '***'\nb = 2"),
  (f"a.tokens = ('{SECRET}', 'b')\nb = 2", "a.tokens = '***'\nb = 2"),  # gin can still read it
  (f'{{"passwords": ["{SECRET}"], "b": 2}}', '{"passwords": "***", "b": 2}'),
  (f"TOKEN = '{SECRET}'\nSCHEDULE = 6", "TOKEN = '***'\nSCHEDULE = 6"),
])
def test_surrounding_text_is_unchanged(text, hidden):
  assert redact(text) == hidden


@pytest.mark.parametrize('text', [
  '', '--gin_file=gin_configs/scratch_6x.gin', "--gin_param=BATCH_SIZE = 8", '--model_dir=gs://bucket/runs/6x',
  'gs://bucket/data@2026/coco', 'projects/7/locations/us-central1/tensorboards/9', "WEIGHTS = 'R-50-GN.pkl'",
  'train.AnchorSampler.batch_size = 256', 'tokens of 12 words, signature of f: (x)', 'https://host.example/a?b=1&c=2',
  'https://host.example:8080/path@2', 'Part.max_tokens = 4096', 'Part.token = None', 'Part.password = %PASSWORD',
  'tokenizer = 3', 'Part.bypass = True', "Part.author = 'me'",
  'mail me@host.example', "strategy.kind = 'multi_worker'", 'key = 3', 'a basic understanding of 10',
  'the bearer understandably-moved', "unexpected token: 'a' (line 3)",
])
def test_other_text_is_unchanged(text):
  assert redact(text) == text


def test_hostile_text_takes_linear_time():
  for text in ('token' * 20_000, 'a-' * 50_000, 'a://' * 20_000, '?' * 100_000, '"' * 100_000 + 'token="',
               'a://b:' * 20_000, 'cookie: ' * 10_000, 'token=[' * 10_000, "token='''a'''" * 8_000,
               "token='a' " * 10_000, "token='" * 10_000, "token='a'" + " 'a'" * 20_000,
               'authorization: ' * 8_000, 'sk-' * 30_000):
    assert redact(text) is not None  # a backtracking pattern would not return


def test_secrets_in_arguments_are_replaced():
  given = ['train', '--token', SECRET, f'--weights=https://me:{SECRET}@host.example/w', '--x', 'y']
  assert redact_arguments(given) == [
    'train', '--token', '***', '--weights=https://***@host.example/w', '--x', 'y']


def test_log_lines_and_their_tracebacks_are_redacted():
  stream = io.StringIO()
  handler = logging.StreamHandler(stream)
  handler.addFilter(RedactingFilter())
  logger = logging.getLogger('test_redaction')
  logger.addHandler(handler)
  logger.propagate = False
  logger.warning('reading %s of %d', f'https://me:{SECRET}@host.example/w', 3)
  logger.warning('class %s', 'a\x1b[2J\rb')
  try:
    raise ValueError(f'bad link ?token={SECRET}')
  except ValueError:
    logger.exception('stopped')
  written = stream.getvalue()
  assert SECRET not in written
  assert 'class a\\x1b[2J\\rb\n' in written
  assert 'reading https://***@host.example/w of 3' in written and 'ValueError: bad link ?token=***' in written


COMMAND = f"""
import threading
from rethink_tf.process.entry import as_command

def fail(link):
  try:
    raise KeyError(link)
  except KeyError as error:
    raise ValueError(f'cannot open {{link}}') from error

def main():
  thread = threading.Thread(target=fail, args=('https://in:{SECRET}@thread.example/w',), name='reader')
  thread.start()
  thread.join()
  threading.Thread(target=exit).start()
  fail('https://host.example/w?sig={SECRET}')

as_command(main, ['train'], 'stopped')
"""


def test_tracebacks_of_a_command_and_its_threads_are_redacted():
  """Causes included; the rest is as Python prints it."""
  result = subprocess.run([sys.executable, '-c', COMMAND], capture_output=True, text=True, timeout=100)
  assert result.returncode == 1 and result.stdout == '' and SECRET not in result.stderr
  of_thread, of_command = result.stderr.split('thread.example/w\n')[:2], result.stderr
  assert of_thread[0].startswith('Exception in thread reader:\nTraceback')
  assert "KeyError: 'https://***@thread.example/w'" in of_command
  assert 'direct cause of the following exception' in of_command and 'line 9, in fail' in of_command
  assert of_command.endswith('ValueError: cannot open https://host.example/w?sig=***\n')
  assert of_command.count('Traceback') == 4 and 'SystemExit' not in of_command


def test_exception_hooks_are_restored(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
  before = sys.excepthook, threading.excepthook
  as_command(lambda: None, ['train'], 'stopped')
  assert (sys.excepthook, threading.excepthook) == before
  with pytest.raises(OSError) as caught:
    as_command(lambda: open(f'/no/?token={SECRET}'), ['train'], 'stopped')
  assert threading.excepthook is before[1]
  sys.excepthook(caught.type, caught.value, caught.tb)
  assert capsys.readouterr().err.endswith("No such file or directory: '/no/?token=***'\n")


def test_run_folders_hold_no_credentials(tmp_path):
  RunFolder(str(tmp_path)).save_provenance(
    ['train', f'--weights=https://me:{SECRET}@host.example/w'], f"WEIGHTS = 'https://host.example/w?sig={SECRET}'\n")
  written = {path.name: path.read_text() for path in tmp_path.iterdir()}
  assert not any(SECRET in text for text in written.values())
  assert '--weights=https://***@host.example/w' in written['command.json']
  assert written['config.gin'] == "WEIGHTS = 'https://host.example/w?sig=***'\n"


def test_errors_show_no_credentials(capsys):
  def fail():
    raise UserError(f'no file https://host.example/w?X-Goog-Signature={SECRET}: check --weights')

  with pytest.raises(SystemExit):
    as_command(fail, ['train'], 'stopped')
  assert capsys.readouterr().err == 'error: no file https://host.example/w?X-Goog-Signature=***: check --weights\n'
