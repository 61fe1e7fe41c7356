"""Wrong flags: one line that names the flag and what to write, as other errors of the command line."""

import pytest

from tests.in_process import call


@pytest.mark.parametrize('command, arguments, line', [
  ('train', ['--modeldir=runs/a'], 'unknown flag --modeldir: did you mean --model_dir?'),
  ('train', ['--model-dir', 'runs/a'], 'unknown flag --model-dir: did you mean --model_dir?'),
  ('compare', ['--modeldir=runs/a'], 'unknown flag --modeldir; see --help'),
  ('train', ['--run_dir=runs/a'], 'unknown flag --run_dir: use --model_dir=...'),
  ('compare', ['--run_dir=runs/a'], 'unknown flag --run_dir; see --help'),
  ('study', ['--data=my_images'], 'unknown flag --data: use --data_dir=...'),
  ('train', ['--batch-size', '8'], "unknown flag --batch-size: use --gin_param='BATCH_SIZE = 8'"),
  ('evaluate', ['--follow_minutes=soon'],
   "flag --follow_minutes=soon: could not convert string to float: 'soon'; see --help"),
  ('train', ['--offline=maybe'], 'flag --offline=maybe: use true or false; see --help'),
  ('train', ['--gin_file'], 'Missing value for flag --gin_file; see --help'),
  ('data.convert', ['--split=train2017'], 'give --data_dir and --output_dir; see --help'),
  ('predict', ['--threshold=https://me:secret@host', 'a.jpg'],
   "flag --threshold=https://***@host: could not convert string to float: 'https://***@host'; see --help"),
])
def test_a_wrong_flag_is_one_line(command, arguments, line, tmp_path):
  result = call(command, *arguments, cwd=tmp_path)
  assert (result.returncode, result.stdout, result.stderr) == (1, '', f'error: {line}\n')
