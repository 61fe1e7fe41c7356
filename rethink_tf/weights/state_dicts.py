"""The network in a checkpoint: the dictionary that holds its arrays, and the prefix of its names.

A checkpoint wraps a state dict in further dictionaries ('state_dict', 'model', 'teacher', moving averages such as
'model_ema'), and its names have the prefixes of the modules around the network: 'module.' of DataParallel, 'model.' or
'backbone.' of trainers, 'encoder_q.' beside 'encoder_k.' of MoCo. Of several copies the trained one is read, not its
moving average; of DINO the teacher. What is left out is named.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rethink_tf.errors import UserError, excerpt
from rethink_tf.weights.contents import BACKBONE, MAX_ARRAYS, Array, check_names, is_array
from rethink_tf.weights.placeholders import Opaque

_MAX_DEPTH = 8  # of dictionaries in one another

# Names of two convolutions by which a network of each naming scheme is found.
_MARKERS = (
  ('conv1.weight', 'layer1.0.conv1.weight'),  # torchvision
  *((f'{prefix}stem.conv1.weight', f'{prefix}res2.0.conv1.weight') for prefix in (BACKBONE, 'backbone.', '')),
  ('features.0.weight', 'classifier.0.weight'),  # torchvision's VGG
  ('embedder.embedder.convolution.weight', 'encoder.stages.0.layers.0.layer.0.convolution.weight'),  # transformers
  ('0.weight', '4.0.conv1.weight'),  # nn.Sequential of a ResNet's children
)
# Copies that follow the trained network, or are trained to follow it.
_FOLLOWERS = frozenset('ema momentum target swa averaged average k key'.split())
_SELF_SUPERVISED = frozenset('encoder q query base online teacher student target momentum k key'.split())
_WRAPPERS = re.compile(r'(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.')
_HEADS = re.compile(r'(?:fc\.\d+|projection\w*|projector\w*|proj_head|predictor\w*|prototypes\w*|heads?|neck|mlp|'
                    r'queue\w*|center|n_averaged|linear_classifier|online_classifier)(?:\..*)?')
_CLASSIFIER = ('fc.weight', 'fc.bias')


class Found(NamedTuple):
  """The arrays of a network by its own names. ignored: names of arrays that are left out. notes: lines for the user."""

  arrays: dict[str, Array]
  ignored: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()


class _Candidate(NamedTuple):
  dictionary: str  # 'state_dict', 'model/trunk'; '' for the outermost
  prefix: str
  first: str  # name of the first convolution after the prefix

  def __str__(self) -> str:
    prefix = f'prefix = {self.prefix!r}'
    return f'dictionary = {self.dictionary!r}, {prefix}' if self.dictionary else prefix


def find(content: Mapping[Any, Any], path: str, dictionary: str | None = None, prefix: str | None = None) -> Found:
  """Return the network in a checkpoint; dictionary and prefix choose one of several.

  Without a known network, the arrays of the outermost dictionary that has some are returned, for an error to name.

  Raises:
    UserError: there is no array, none where the arguments say, or several networks of the same rank.
  """
  dictionaries = {name: found for name, found in _dictionaries(content) if any(map(is_array, found.values()))}
  if not dictionaries:
    raise _without_arrays(content, path)
  if dictionary is not None and not _inside(dictionaries, dictionary):
    raise UserError(f'{path}: PretrainedWeights.dictionary = {dictionary!r} is not in it: it has '
                    f'{_listed(name for name in dictionaries if name)}')
  for found in dictionaries.values():
    check_names(found, path)
  dictionaries = {name: _unwrapped(found) for name, found in _inside(dictionaries, dictionary or '').items()}
  candidates = [candidate for name, found in dictionaries.items() for candidate in _candidates(name, found)]
  if prefix is not None:
    wanted = f'{prefix.removesuffix(".")}.' if prefix else ''
    if not any(candidate.prefix == wanted for candidate in candidates):
      raise UserError(f'{path}: PretrainedWeights.prefix = {prefix!r} is not that of a network: it has '
                      f'{_listed(candidate.prefix for candidate in candidates)}')
    candidates = [candidate for candidate in candidates if candidate.prefix == wanted]
  if not candidates:
    arrays = next(iter(dictionaries.values()))
    return Found({name: value for name, value in arrays.items() if is_array(value)})
  chosen = _choose(candidates, path)
  return _extract(dictionaries[chosen.dictionary], chosen, [other for other in candidates if other != chosen], path)


def _dictionaries(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Yield every dictionary with texts as keys, by the path of keys to it."""
  waiting, seen = [('', content, 0)], set()
  while waiting:
    path, found, depth = waiting.pop(0)
    if id(found) in seen or len(seen) > MAX_ARRAYS or not all(isinstance(key, str) for key in found):
      continue
    seen.add(id(found))
    yield path, found
    if depth < _MAX_DEPTH:
      waiting += [(f'{path}/{key}' if path else key, value, depth + 1) for key, value in found.items()
                  if isinstance(value, Mapping) and len(key) < 100]


def _inside(dictionaries: Mapping[str, Any], name: str) -> dict[str, Any]:
  return {key: value for key, value in dictionaries.items() if not name or key == name or key.startswith(f'{name}/')}


def _unwrapped(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Return a dictionary without the prefixes that torch.compile and FSDP insert anywhere in a name."""
  return {_WRAPPERS.sub('', name): value for name, value in arrays.items()}


def _candidates(dictionary: str, names: Mapping[str, Any]) -> list[_Candidate]:
  found: dict[str, _Candidate] = {}
  for first, second in _MARKERS:
    for name in names:
      prefix = name[:len(name) - len(first)]
      if name.endswith(first) and (not prefix or prefix.endswith('.')) and f'{prefix}{second}' in names:
        found.setdefault(name, _Candidate(dictionary, prefix, first))  # the first marker takes the longest name
  return list(found.values())


def _words(*names: str) -> set[str]:
  return set(re.split(r'[./_]', '.'.join(names).lower()))


def _follows(candidate: _Candidate) -> bool:
  """Return whether a network is a copy beside the trained one; of DINO's two networks the student counts as one."""
  return bool(_words(candidate.dictionary, candidate.prefix) & _FOLLOWERS) or 'student' in _words(candidate.dictionary)


def _choose(candidates: Sequence[_Candidate], path: str) -> _Candidate:
  for rank in (lambda candidate: _follows(candidate), lambda candidate: not candidate.prefix.endswith('backbone.')):
    best = min(map(rank, candidates))
    candidates = [candidate for candidate in candidates if rank(candidate) == best]
  if len(candidates) > 1:
    raise UserError(f'{path}: holds {len(candidates)} networks: choose one with PretrainedWeights.dictionary and '
                    f'PretrainedWeights.prefix: {_listed((str(candidate) for candidate in candidates), "; ")}')
  return candidates[0]


def _extract(arrays: Mapping[str, Any], chosen: _Candidate, others: Sequence[_Candidate], path: str) -> Found:
  taken, ignored, heads = {}, [], []
  words = _words(chosen.dictionary, chosen.prefix)
  is_torchvision = chosen.first == 'conv1.weight'
  for name, value in arrays.items():
    bare = name.removeprefix(chosen.prefix)
    is_head = not name.startswith(chosen.prefix) or is_torchvision and (
      bool(_HEADS.fullmatch(bare)) or bool(words & _SELF_SUPERVISED) and bare in _CLASSIFIER)
    if is_array(value) and not is_head:
      taken[bare] = value
    elif not is_head and bare.endswith(('.weight', '.bias', '.running_mean', '.running_var')):
      kind = value.name if isinstance(value, Opaque) else type(value).__name__
      raise UserError(f'{path}: {excerpt(name)} ({kind}) is not an array of numbers: save the weights again as float32')
    else:
      ignored.append(name)
      if is_array(value):
        heads.append(name)
  notes = []
  if heads:
    groups = sorted({_group(name, chosen.prefix) for name in heads})
    notes.append(f'{len(heads)} arrays that are not of the backbone are left out: {_listed(groups)}')
  if others:
    notes.append(f'read with {chosen}; the file also has {_listed((str(other) for other in others), "; ")}: set '
                 'PretrainedWeights.dictionary and PretrainedWeights.prefix for another one')
  return Found(taken, tuple(ignored), tuple(notes))


def _group(name: str, prefix: str) -> str:
  """Return the module that a left-out array belongs to: module.encoder_q.fc.2.weight -> fc, module.queue -> queue."""
  shared = prefix
  while shared and not name.startswith(shared):
    shared = shared.rstrip('.').rpartition('.')[0]
    shared = f'{shared}.' if shared else ''
  return name.removeprefix(shared).split('.')[0]


def _listed(names: Collection[str] | Iterator[str], separator: str = ', ') -> str:
  names = [excerpt(name)[1:-1] if separator == '; ' else excerpt(name) for name in names]
  return separator.join(names[:8]) + (f'{separator}… ({len(names)})' if len(names) > 8 else '') or 'none'


def _without_arrays(content: Mapping[Any, Any], path: str) -> UserError:
  nested = [content, *(value for value in content.values() if isinstance(value, Mapping))]
  for found in nested:
    check_names(found, path)
  objects = [(name, value.name) for found in nested for name, value in found.items() if isinstance(value, Opaque)]
  for name, kind in objects[:1]:
    if 'yolo' in kind.lower() or kind.startswith('ultralytics.'):
      return UserError(f'{path}: {excerpt(name)} is a YOLO ({kind}), which is not built here: use the weights of a '
                       'plain ResNet, ResNeXt or VGG, as python -m rethink_tf.weights --list names them')
    return UserError(f'{path}: {excerpt(name)} is an object ({kind}), not an array of numbers: save the state_dict() '
                     'of a network')
  for found in reversed(nested):
    for name, value in found.items():
      if not isinstance(value, Mapping):
        return UserError(f'{path}: {excerpt(name)} is not an array of numbers: this is not a weight file')
  return UserError(f'{path}: holds no dictionary of arrays: this is not a weight file')
