"""Settings of a run (the bindings of its config.gin), and what changing one means for a run that continues."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# What a change of a setting does to a run that continues.
FREE, LENGTH, MEANING = 'free', 'length', 'meaning'

# Devices, logging, checkpoints, evaluation and places of files: the weights after a step do not depend on them.
# (What is in the files is compared by the digests of the data.)
_FREE = re.compile(
  r'run\.(task|model_dir|log_every|checkpoint_every|keep_\w+|checkpoint|strategy|images_per_device|eval_\w+|'
  r'steps_per_execution|deterministic|evaluator|test_augmentation|own_evaluation|follow_minutes)$|strategy\.|eval/|'
  r'\w*Evaluator\.|DetectionGenerator\.|ProposalGenerator\.\w+_test$|TestTimeAugmentation\.|\w*EvalInput\.|'
  r'placeholder\.|PretrainedWeights\.path$|PlainRun\.path$|'
  r'.*\.(recompute|xla|landscape|nms|name|data_dir|workers|max_unreadable|max_pixels|\w+_file|\w+_dir)$')
# The length of the schedule, with the points at which the rate drops.
_LENGTH = re.compile(r'\w*Schedule\.(k|boundaries|total|stop_k|points_batch|epochs|drops)$|SteppedHalving\.images$')
# The network as it is evaluated.
_NETWORK = re.compile(r'run\.model$|(MaskRCNN|Cascade|CBNet|Classifier|ResNet|VGG|FPN|SingleLevel|RPNHead|BoxHead|'
                      r'MaskHead|KeypointHead|Anchors|RoIPooler|\w+_norm)\.(?!(freeze_at|\w*init\w*|\w+_sampler)$)')
# What else the scores of a trained network depend on; the held-out data is compared by its digest.
_SCORES = re.compile(
  r'run\.(precision|test_augmentation|eval_input|evaluator)$|'
  r'(Resize|LargeScaleJitter|\w*EvalInput|TestTimeAugmentation|DetectionGenerator|ProposalGenerator|\w*Evaluator)\.'
  r'(?!(every|at_end|num_pictures|save_results|backend|competition|workers|max_unreadable|nms|\w+_train)$)')

SCORED_OTHERWISE = 'evaluated with other settings than those of the run'  # begins a note on an evaluation


class Change(NamedTuple):
  """A setting with its earlier and its new value."""

  name: str
  was: Any
  now: Any
  kind: str  # FREE, LENGTH or MEANING

  def __str__(self) -> str:
    return f'{self.name} {_short(self.was)} -> {_short(self.now)}'


def parse(text: str) -> dict[str, Any]:
  """Return the bindings of a config.gin with macros resolved; references stay strings ('@group_norm')."""
  text = re.sub(r'^[ \t]*#.*$', '', text.replace('\\\n', ' '), flags=re.MULTILINE)
  pieces: dict[str, list[str]] = {}
  name = None
  for line in text.splitlines():
    begins = re.match(r'([\w./]+) = ?(.*)$', line)
    if begins:
      name = begins.group(1)
      pieces[name] = [begins.group(2).strip()]
    elif name and line.strip():  # continuation of a long value
      pieces[name].append(line.strip())
  raw = {name: ' '.join(lines) for name, lines in pieces.items()}
  return {name: _value(value, raw) for name, value in raw.items() if '.' in name}


def kind_of(name: str) -> str:
  """Return what changing a setting does to a run that continues: FREE, LENGTH or MEANING."""
  if _FREE.match(name):
    return FREE
  return LENGTH if _LENGTH.match(name.split('/')[-1]) else MEANING


def of_the_network(name: str) -> bool:
  """Whether the outputs of a trained network depend on a setting."""
  return kind_of(name) == MEANING and _NETWORK.match(name.split('/')[-1]) is not None


def of_the_scores(name: str) -> bool:
  """Whether the scores of an evaluation depend on a setting."""
  return of_the_network(name) or _SCORES.match(name.split('/')[-1]) is not None


def listed(found: Sequence[Change], most: int = 3) -> str:
  """Return changes in a line, the first ones if there are many."""
  return ', '.join(map(str, found[:most])) + (f' and {len(found) - most} more' if len(found) > most else '')


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
  """Return the settings of both sides that differ, those that change the meaning of a step first.

  A setting of one side only belongs to a component that the other does not have, which the setting that names the
  component tells, or to another version of the package.
  """
  found = [Change(name, was[name], now[name], kind_of(name)) for name in sorted(was.keys() & now.keys())
           if _plain(was[name]) != _plain(now[name])]
  return sorted(found, key=lambda change: (MEANING, LENGTH, FREE).index(change.kind))


def table(found: Sequence[Change]) -> str:
  """Return changes as a table for the terminal."""
  rows = [('setting', 'was', 'is now'), *((change.name, _short(change.was), _short(change.now)) for change in found)]
  widths = [max(len(row[column]) for row in rows) for column in range(2)]
  return '\n'.join(f'  {name:{widths[0]}}  {was:{widths[1]}}  {now}' for name, was, now in rows)


def _value(text: str, raw: Mapping[str, str]) -> Any:
  for _ in range(10):  # a macro may refer to another
    if not text.startswith('%'):
      break
    text = raw.get(text[1:], 'None')
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    return text


def _plain(value: Any) -> Any:
  """Convert a value to the form in which JSON returns it: lists for tuples, and 2 for 2.0."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  return value


def _short(value: Any) -> str:
  reference = isinstance(value, str) and value.startswith('@') and value.isprintable()
  text = value if reference else repr(_plain(value))
  return text if len(text) <= 40 else text[:37] + '...'
