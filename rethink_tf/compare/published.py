"""Published results of the shipped configurations, from the run sheets of their gin files."""

from __future__ import annotations

import re

from rethink_tf import gin_files
from rethink_tf.errors import UserError
from rethink_tf.storage.run_folder import RunFolder

RESULT = re.compile(r'\d+\.\d (?:box AP|keypoint AP|mAP)|top-1 / top-5 [\d.]+ / [\d.]+|top-1 \d+\.\d')
NOT_PUBLISHED = 'not published'


def reproduces(sheet: str) -> tuple[str, str]:
  """Return the first sentence of a run sheet's "Reproduces" field, and the published result in it or 'not published'.

  Raises:
    UserError: the field is missing.
  """
  field = re.search(r'^# Reproduces +(.*(?:\n#  +.*)*)', sheet, re.MULTILINE)
  if field is None:
    raise UserError('the run sheet at the head of the file has no field "# Reproduces"')
  text = re.sub(r'\s*\n#\s+', ' ', field.group(1)).strip()
  sentence = re.split(r'(?<!Fig)\.(?=\s+[A-Z]|$)', text)[0]
  result = RESULT.search(sentence)
  negated = result is None or re.search(r'\b(no|not|nothing)\b', sentence[:result.start()])
  return sentence, NOT_PUBLISHED if negated else result.group()


def published_result(folder: RunFolder) -> str:
  """Return the published result of the shipped gin file that a run was started with.

  '' with several files, one that is not shipped, or a --gin_param. --data_dir and --weights do not matter.
  """
  argv = [str(word) for word in folder.read_command().get('argv', [])]
  files, overridden = [], False
  for flag in argv[1:]:
    name, _, value = flag.lstrip('-').partition('=')
    if name == 'gin_file':
      files.append(value)
    overridden |= name == 'gin_param'
  if len(files) != 1 or overridden:
    return ''
  path = gin_files.shipped_root() / files[0]
  if not path.is_file() or path.parent.name != 'gin_configs':
    return ''
  result = reproduces(path.read_text())[1]
  return '' if result == NOT_PUBLISHED else result
