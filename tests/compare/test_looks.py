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
  line, = looks.cautions(looks.Studies({'study': record}, 2, 0))
  assert 'compared with 2 seeds before' in line and not looks.cautions(looks.Studies({'study': Record(5)}, 2, 0))


def test_runs_in_one_folder_have_its_latest_look(tmp_path):
  looks.write(str(tmp_path), Record(4))
  runs = [f'{tmp_path}/a', f'{tmp_path}/b/']
  assert looks.of_runs(runs).strictest is None  # none was taken
  looks.write(str(tmp_path), Record(4, (Taken(2, {}, ()),)))
  studies = looks.of_runs(runs)
  assert studies.strictest.look == (2, 4) and not looks.cautions(studies)


def test_a_run_from_elsewhere_does_not_undo_a_look(tmp_path):
  for name, record in (('first', Record(4, (Taken(2, {}, ()),))), ('second', Record(4, (Taken(3, {}, ()),)))):
    (tmp_path / name / 'a').mkdir(parents=True)
    looks.write(str(tmp_path / name), record)
  (tmp_path / 'other/c').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'first/a')
  own, linked, other, later = f'{tmp_path}/first/a', f'{tmp_path}/link', f'{tmp_path}/other/c', f'{tmp_path}/second/a'
  for runs in ([own, other], [own, linked], [linked], [other, later, own]):
    assert looks.of_runs(runs).strictest.look == (2, 4), runs
  assert looks.of_runs([other]).strictest is None and not looks.cautions(looks.of_runs([other]))
  assert looks.cautions(looks.of_runs([own, other])) == [
    f'1 of 2 runs are of studies that stop early ({tmp_path}/first): all intervals are widened as at the strictest of '
    'their latest looks.']
  (tmp_path / 'studies').symlink_to(tmp_path)
  assert len(looks.of_runs([own, f'{tmp_path}/studies/first/b']).records) == 1
  assert f'({tmp_path}/first, {tmp_path}/second)' in looks.cautions(looks.of_runs([own, later]))[0]


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
