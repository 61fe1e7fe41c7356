"""The table of every row: complete, as generated, in the words of the run sheets."""

import pathlib
import re
import subprocess
import sys

import pytest

from rethink_tf.bench import rows
from rethink_tf.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
TABLE = ROOT / 'results/rows.md'
CHEAP = ('gin_configs/demo.gin', 'gin_configs/pretraining/clothing.gin', 'gin_configs/pretraining/wsl_tiny.gin')
AGAIN = f'write the table again: python -m rethink_tf.bench.rows --output={TABLE.relative_to(ROOT)}'


@pytest.fixture(scope='module')
def table():
  return TABLE.read_text()


def test_every_shipped_configuration_has_a_row(table):
  files = [path.relative_to(ROOT).as_posix() for folder in ('gin_configs', 'gin_configs/pretraining')
           for path in sorted((ROOT / folder).glob('*.gin'))]
  complete = [name for name in files if re.search('^# Reproduces', (ROOT / name).read_text(), re.MULTILINE)]
  assert list(rows.rows_in(table)) == rows.shipped() == complete, AGAIN


def test_the_words_are_those_of_the_run_sheets(table):
  for name, line in rows.rows_in(table).items():
    sentence, figure = rows.reproduces((ROOT / name).read_text())
    assert line.startswith(f'| `{name}` | {sentence} | {figure} | '), f'{name}: {AGAIN}'
    cells = line.strip('| ').split(' | ')
    assert len(cells) == 8 and all(float(cell.replace(',', '')) >= 0 for cell in cells[3:]), name


def test_the_document_is_what_the_module_writes(table):
  assert table == rows.document(rows.rows_in(table)), AGAIN


@pytest.mark.parametrize('name', CHEAP)
def test_a_row_counted_anew_is_the_checked_in_one(table, name):
  assert rows.line(name, {}) == rows.rows_in(table)[name], AGAIN


@pytest.mark.slow
def test_all_rows_counted_anew_are_the_checked_in_ones(table):
  known = {}
  for name, line in rows.rows_in(table).items():
    assert rows.line(name, known) == line, AGAIN


def test_counts_agree_with_the_table_of_complexity(table):
  complexity = (ROOT / 'results/complexity.md').read_text()
  for detector, name in (
      ('Mask R-CNN R50-FPN', 'scratch_6x'), ('Mask R-CNN R101-FPN', 'scratch_6x_r101'),
      ('Mask R-CNN X101-32x8d-FPN', 'pretrain_2x_x101_32x8d'),
      ('Cascade Mask R-CNN X152-8x32d-FPN', 'scratch_9x_x152_cascade'),
      ('Mask R-CNN CBNet dual R50-FPN', 'scratch_6x_cbnet_dual_r50'),
      ('Cascade Mask R-CNN CBNet triple X152-8x32d-FPN', 'scratch_9x_cbnet_triple_x152_cascade'),
      ('Keypoint R-CNN R50-FPN, one class', 'keypoints_scratch_2x'),
      ('Faster R-CNN VGG-16, one level, no norm', 'vgg16_scratch_11x')):
    parameters, multiply_adds = re.search(rf'\| {detector} \| total \| ([\d,]+) \| ([\d,]+) ', complexity).groups()
    cells = rows.rows_in(table)[f'gin_configs/{name}.gin'].strip('| ').split(' | ')
    assert cells[4:6] == [parameters, f'{int(multiply_adds.replace(",", "")) / 1e9:,.1f}']


@pytest.mark.parametrize('text, expected', [
  ('Table 1, R50 random, 6x: 41.3 box AP (paper, val2017). Table 2: AP50 61.8', '41.3 box AP'),
  ('Fig. 4 (SyncBN behaves as GN does; the paper prints no number).', 'not published'),
  ('Fig. 6, random at 3x: its number is not in the text (2x: 65.6 keypoint AP).', 'not published'),
  ('Fig. 6 and its text, random at 2x: 65.6 keypoint AP (paper, val2017).', '65.6 keypoint AP'),
  ('section 5.2: 77.6 mAP on val2012 (paper; more training does not help).', '77.6 mAP'),
  ('nothing published; photographs gave top-1 37.0, top-5 79.8.', 'not published'),
  ('no row with this network. Nearest: 40.8 box AP', 'not published'),
  ("Detectron's R-50-GN.pkl: 24.0 % top-1 error, so top-1 76.0 (models).", 'top-1 76.0'),
  ('half of it: top-1 / top-5 82.2 / 96.4 (WSL-Images). More.', 'top-1 / top-5 82.2 / 96.4')])
def test_published_figures_are_read_from_the_run_sheet(text, expected):
  words = text.split(' ')
  sheet = f'# Title.\n#\n# Reproduces  {" ".join(words[:4])}\n#             {" ".join(words[4:])}\n# Cost        much\n'
  sentence, figure = rows.reproduces(sheet)
  assert figure == expected and text.startswith(sentence)
  assert sentence.startswith('Fig. ') == text.startswith('Fig. ')


def test_a_file_without_the_field_is_named():
  with pytest.raises(UserError, match='Reproduces'):
    rows.reproduces('# Title.\n# Cost  much\n')


def test_published_rows_of_others_name_their_source():
  assert all(len(row) == 5 and row[4] for row in rows.OTHERS)
  for system in ('DSOD', 'ScratchDet', 'CornerNet', 'CBNet'):
    assert any(system in row[0] for row in rows.OTHERS)


def test_one_row_is_counted_anew_and_the_others_stay(table, tmp_path):
  output = tmp_path / 'rows.md'
  name = 'gin_configs/pretraining/clothing.gin'
  output.write_text(table.replace(rows.rows_in(table)[name], f'| `{name}` | gone |'))
  rows.write(str(output), [name])
  assert output.read_text() == table


def test_a_name_that_is_not_shipped_is_one_line(tmp_path):
  command = [sys.executable, '-m', 'rethink_tf.bench.rows', f'--output={tmp_path}/rows.md',
             '--gin_file=gin_configs/no.gin']
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 1 and not (tmp_path / 'rows.md').exists()
  assert result.stderr.strip().splitlines()[-1].startswith('error: gin_configs/no.gin is no complete configuration')
