"""What is published of the configuration that a run was made with: its gin file's run sheet, in the file's words."""

from __future__ import annotations

import re

from rethink_tf import gin_files
from rethink_tf.errors import UserError
from rethink_tf.storage.run_folder import RunFolder

FIGURE = re.compile(r'\d+\.\d (?:box AP|keypoint AP|mAP)|top-1 / top-5 [\d.]+ / [\d.]+|top-1 \d+\.\d')
NOT_PUBLISHED = 'not published'


def reproduces(sheet: str) -> tuple[str, str]:
  """First sentence of a run sheet's "Reproduces", and the published figure in it or 'not published'.

  Raises:
    UserError: there is no such field.
  """
  field = re.search(r'^# Reproduces +(.*(?:\n#  +.*)*)', sheet, re.MULTILINE)
  if field is None:
    raise UserError('the run sheet at the head of the file has no field "# Reproduces"')
  text = re.sub(r'\s*\n#\s+', ' ', field.group(1)).strip()
  sentence = re.split(r'(?<!Fig)\.(?=\s+[A-Z]|$)', text)[0]
  figure = FIGURE.search(sentence)
  denied = figure is None or re.search(r'\b(no|not|nothing)\b', sentence[:figure.start()])
  return sentence, NOT_PUBLISHED if denied else figure.group()


def row_of(folder: RunFolder) -> str:
  """The published figure of the shipped file that a run was started with; '' with any other file or override.

  Where the data are (--data_dir) and which weights (--weights) leave the row as it is.
  """
  argv = [str(word) for word in folder.read_command().get('argv', [])]
  files, other = [], False
  for flag in argv[1:]:
    name, _, value = flag.lstrip('-').partition('=')
    if name == 'gin_file':
      files.append(value)
    other |= name == 'gin_param'
  if len(files) != 1 or other:
    return ''
  path = gin_files.shipped_root() / files[0]
  if not path.is_file() or path.parent.name != 'gin_configs':
    return ''
  figure = reproduces(path.read_text())[1]
  return '' if figure == NOT_PUBLISHED else figure
