"""The table of all configurations: complete, generated, with the sentences of the run sheets."""

import pathlib
import re
import subprocess
import sys

import pytest

from rethink_tf.bench import row_table as rows
from rethink_tf.compare.published import reproduces

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / 'results/rows.md'
CHEAP = ('gin_configs/demo.gin', 'gin_configs/pretraining/clothing.gin', 'gin_configs/pretraining/wsl_tiny.gin')
UPDATE = f'update the table: python -m rethink_tf.bench.rows --output={TABLE.relative_to(ROOT)}'


@pytest.fixture(scope='module')
def table():
  return TABLE.read_text()


def test_every_shipped_configuration_has_a_row(table):
  files = [path.relative_to(ROOT).as_posix() for folder in ('gin_configs', 'gin_configs/pretraining')
           for path in sorted((ROOT / folder).glob('*.gin'))]
  complete = [name for name in files if re.search('^# Reproduces', (ROOT / name).read_text(), re.MULTILINE)]
  assert list(rows.rows_in(table)) == rows.shipped() == complete, UPDATE


def test_sentences_are_those_of_the_run_sheets(table):
  for name, line in rows.rows_in(table).items():
    sentence, published = reproduces((ROOT / name).read_text())
    assert line.startswith(f'| `{name}` | {sentence} | {published} | '), f'{name}: {UPDATE}'
    cells = line.strip('| ').split(' | ')
    assert len(cells) == 8 and all(float(cell.replace(',', '')) >= 0 for cell in cells[3:]), name


def test_the_table_is_as_generated(table):
  assert table == rows.document(rows.rows_in(table)), UPDATE


@pytest.mark.slow
@pytest.mark.parametrize('name', CHEAP)
def test_counting_a_row_again_gives_the_checked_in_one(table, name):
  assert rows.line(name, {}) == rows.rows_in(table)[name], UPDATE


@pytest.mark.slow
def test_counting_all_rows_again_gives_the_checked_in_ones(table):
  known = {}
  for name, line in rows.rows_in(table).items():
    assert rows.line(name, known) == line, UPDATE


def test_counts_equal_those_of_the_table_of_complexity(table):
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


@pytest.mark.slow
def test_one_row_is_counted_again_and_the_others_are_kept(table, tmp_path):
  output = tmp_path / 'rows.md'
  name = 'gin_configs/pretraining/clothing.gin'
  output.write_text(table.replace(rows.rows_in(table)[name], f'| `{name}` | gone |'))
  rows.write(str(output), [name])
  assert output.read_text() == table


@pytest.mark.slow
def test_an_unknown_configuration_is_one_line(tmp_path):
  command = [sys.executable, '-m', 'rethink_tf.bench.rows', f'--output={tmp_path}/rows.md',
             '--gin_file=gin_configs/no.gin']
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 1 and not (tmp_path / 'rows.md').exists()
  assert result.stderr.strip().splitlines()[-1].startswith('error: gin_configs/no.gin is not a complete configuration')
