"""Problems of annotations in an index, which may come from anybody."""

import pytest

from rethink_tf.data.problems import LEFT_OUT, Case, Problems


def test_problems_come_back_from_json():
  problems = Problems()
  problems.add('without area', 3, [Case('1.jpg', 1, 2, (0.0, 0.0, 1.0, 1.0), label='cat')], LEFT_OUT)
  again = Problems.from_json(problems.to_json())
  assert again.to_json() == problems.to_json() and again.counts == {'without area': 3}
  assert Problems.from_json({'outside': 2}).counts == {'outside': 2}


@pytest.mark.parametrize('entry', [
  {'count': 'x'}, {}, [], None, {'count': 1, 'outcome': 'x'}, {'count': 1, 'examples': [{'text': 'a\x1b[2J'}]},
  {'count': 1, 'examples': [{'text': 'a', 'box': ' '}]}, {'count': 1, 'examples': [{'text': 'a', 'box': [10 ** 400]}]},
  {'count': 1, 'examples': [{'text': 'a', 'more': 1}]}, {'count': 1, 'examples': 5}])
def test_damaged_problems(entry):
  with pytest.raises(TypeError):
    Problems.from_json({'outside': entry})
  with pytest.raises(TypeError):
    Problems.from_json({'\x1b[2J': 1})
