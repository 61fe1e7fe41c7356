"""The page of departures lists the comments."""

import re

from tools import departures


def test_the_page_is_up_to_date():
  page = (departures.ROOT / 'docs/departures.md').read_text()
  assert page == departures.page(), 'run: python tools/departures.py > docs/departures.md'


def test_every_comment_is_found():
  files = [*(departures.ROOT / 'rethink_tf').rglob('*.py'), *(departures.ROOT / 'gin_configs').rglob('*.gin')]
  marked = {path.relative_to(departures.ROOT).as_posix() for path in files
            if re.search(r'^\s*(# )?Departure: ', path.read_text(), re.MULTILINE)}
  folders = {name.rsplit('/', 1)[0] for name, _ in departures.departures()}
  assert marked and folders == {name.rsplit('/', 1)[0] for name in marked}


def test_comments_end_where_they_end(tmp_path):
  (tmp_path / 'rethink_tf').mkdir()
  (tmp_path / 'gin_configs').mkdir()
  (tmp_path / 'rethink_tf/a.py').write_text('''
def f():
  """One.

  Departure: stated in a
  docstring."""
  # Departure: first,
  # on two lines.
  # Departure: second.
  x = 1  # and code
''')
  assert [text for _, text in departures.departures(tmp_path)] == [
    'stated in a docstring.', 'first, on two lines.', 'second.']
