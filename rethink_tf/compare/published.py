"""Published results of the shipped configurations, from the run sheets of their gin files."""

from __future__ import annotations

import itertools
import re

from rethink_tf import gin_files
from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder

RESULT = re.compile(r'\d+\.\d (?:box AP|keypoint AP|mAP)|top-1 / top-5 [\d.]+ / [\d.]+|top-1 \d+\.\d')
NOT_PUBLISHED = 'not published'
_IMAGES = {'box AP': 5000, 'keypoint AP': 5000}  # of COCO's val2017


def reproduces(sheet: str) -> tuple[str, str]:
  """Return the first sentence of a run sheet's "Reproduces" field, and the result it quotes or 'not published'.

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

  '' with several files, one that is not shipped, or a --gin_param; or if other images were held out than those of the
  publication, as far as their number tells. --weights do not matter.
  """
  argv = [str(word) for word in folder.read_command().get('argv', [])]
  files, overridden = [], False
  for flag, following in itertools.pairwise([*argv[1:], '']):
    name, assigned, value = flag.lstrip('-').partition('=')
    if name == 'gin_file':
      files.append(value if assigned else following)
    overridden |= name == 'gin_param'
  if len(files) != 1 or overridden:
    return ''
  path = gin_files.shipped_root() / files[0]
  if not path.is_file() or path.parent.name != 'gin_configs':
    return ''
  result = reproduces(path.read_text())[1]
  return '' if result == NOT_PUBLISHED or _of_other_images(folder, result) else result


def _of_other_images(folder: RunFolder, result: str) -> bool:
  try:
    recorded = identity.read(folder)
  except UserError:  # said elsewhere
    return False
  images = recorded.data.get('held_out', {}).get('images') if recorded is not None else None
  return images is not None and any(result.endswith(metric) and images != number for metric, number in _IMAGES.items())
