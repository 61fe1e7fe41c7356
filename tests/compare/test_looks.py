"""The record of looks: nothing is lost, and nothing changes behind it."""

import pytest

from rethink_tf.compare import looks
from rethink_tf.compare.looks import Record, Taken
from rethink_tf.errors import UserError


def test_what_is_written_is_read(tmp_path):
  assert looks.read(str(tmp_path)) is None
  record = Record(5, (), 2).with_look(Taken(2, {'a': 41.5}, ('a',))).with_look(Taken(3, {'a': 41.5, 'b': 40.0}, None))
  looks.write(str(tmp_path), record)
  assert looks.read(str(tmp_path)) == record
  assert (record.look.seeds, record.look.max_seeds) == (3, 5) and record.at(2).more == ('a',) and record.at(4) is None
  assert len(record.with_look(Taken(3, {'a': 41.5}, ())).taken) == 2
  assert looks.described(record) == 'look 2 of at most 4, after 3 of at most 5 seeds'
  assert 'compared with 2 seeds before' in looks.cautions(record)[0] and not looks.cautions(Record(5))


def test_runs_in_one_folder_have_its_latest_look(tmp_path):
  looks.write(str(tmp_path), Record(4))
  runs = [f'{tmp_path}/a', f'{tmp_path}/b/']
  assert looks.of_runs(runs) is None  # none was taken
  looks.write(str(tmp_path), Record(4, (Taken(2, {}, ()),)))
  assert looks.of_runs(runs).look == (2, 4)
  assert looks.of_runs([*runs, f'{tmp_path}/other/c']) is None


@pytest.mark.parametrize('content', ['[]', '{"max_seeds": 3}', '{"max_seeds": 3, "looks": [{"seeds": "x"}]}',
                                     '{"max_seeds": 3, "compared_before": 0, "looks": [{"seeds": 9, "scores": {}, '
                                     '"more": []}]}', '{"max_seeds": 1e999, "compared_before": 0, "looks": []}',
                                     '{"max_seeds": 1000000, "compared_before": 0, "looks": []}', '{'])
def test_damage_is_reported(tmp_path, content):
  (tmp_path / 'looks.json').write_text(content)
  with pytest.raises(UserError, match='looks.json'):
    looks.read(str(tmp_path))


def test_a_run_with_another_score_is_another_study(tmp_path):
  record = Record(5, (Taken(2, {'a': 41.5}, ('a',)),))
  looks.check_scores('study', record, {'a': 41.5, 'b': 3.0})
  with pytest.raises(UserError, match='study/looks.json: a had 41.5000 at an earlier look and has 41.6000 now'):
    looks.check_scores('study', record, {'a': 41.6})
