"""Error breakdowns as text and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rethink_tf.inspect_run.detection_errors import Breakdown
from rethink_tf.inspect_run.keypoint_errors import KeypointBreakdown

COLUMN_HEADS = {  # as in TIDE
  'classification': 'Cls', 'localisation': 'Loc', 'both': 'Both', 'duplicate': 'Dupe', 'background': 'Bkg',
  'missed': 'Miss', 'jitter': 'Jitter', 'inversion': 'Invers', 'swap': 'Swap', 'miss': 'Miss'}
LISTED = 15  # classes in the table


def detection_table(breakdown: Breakdown, kind: str, title: str) -> str:
  """Return a breakdown as text: by kind of error, then for the classes that lose most AP. kind: 'box' or 'mask'."""
  lines = [title, f'  {kind} AP at IoU 0.5: {100 * breakdown.ap:.1f}; {breakdown.correct} of {breakdown.objects} '
           'objects found', f'  {"":16} {"errors":>8} {"AP gained if fixed":>20}']
  for name, gained in breakdown.gained.items():
    lines.append(f'  {name:16} {breakdown.counts[name]:8} {100 * gained:20.1f}')
  lines += [f'  {"all false positives":25} {100 * breakdown.false_positives:20.1f}',
            f'  {"all false negatives":25} {100 * breakdown.false_negatives:20.1f}']
  return '\n'.join(lines + _by_class(breakdown)) + '\n'


def keypoint_table(breakdown: KeypointBreakdown, title: str) -> str:
  """Return a breakdown of keypoints as text: by kind of error, by keypoint, and by class if there are several."""
  total = max(1, int(breakdown.by_keypoint.sum()))
  lines = [title, f'  keypoint AP (mean over OKS 0.5 to 0.95): {100 * breakdown.ap:.1f}; '
           f'{breakdown.correct} of {breakdown.objects} objects have a detection',
           f'  {"":16} {"keypoints":>9} {"share":>8} {"AP gained if fixed":>20}',
           f'  {"good":16} {breakdown.good:9} {100 * breakdown.good / total:6.1f} %']
  for name, gained in breakdown.gained.items():
    count = breakdown.counts[name]
    lines.append(f'  {name:16} {count:9} {100 * count / total:6.1f} % {100 * gained:20.1f}')
  lines += [f'  {label:35} {100 * gained:20.1f}' for label, gained in (
    ('all four kinds', breakdown.all_fixed), ('unmatched detections', breakdown.false_positives),
    ('unmatched objects', breakdown.false_negatives))]
  width = max(18, *(len(name[:24]) for name in breakdown.keypoint_names))
  heads = ['Good', *(COLUMN_HEADS[name] for name in breakdown.gained)]
  lines.append(f'  {"share by keypoint":{width}} ' + ' '.join(f'{head:>8}' for head in heads))
  for name, column in zip(breakdown.keypoint_names, breakdown.by_keypoint.T, strict=True):
    shares = 100 * column / max(1, column.sum())
    lines.append(f'  {name[:24]:{width}} ' + ' '.join(f'{share:6.1f} %' for share in (shares[-1], *shares[:-1])))
  return '\n'.join(lines + (_by_class(breakdown) if (breakdown.category_ap >= 0).sum() > 1 else [])) + '\n'


def as_json(breakdown: Breakdown | KeypointBreakdown) -> dict[str, Any]:
  """Return a breakdown as JSON values, AP in percent."""
  def percent(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(100 * float(value), 4) for name, value in values.items()}

  classes = {name: {'AP': round(100 * float(ap), 4) if ap >= 0 else None,
                    'gained': percent(dict(zip(breakdown.gained, gained, strict=True)))}
             for name, ap, gained in zip(breakdown.category_names, breakdown.category_ap,
                                         breakdown.category_gained.T, strict=True)}
  record = {'AP': round(100 * breakdown.ap, 4), 'gained': percent(breakdown.gained), 'errors': breakdown.counts,
            'correct': breakdown.correct, 'objects': breakdown.objects,
            **percent({'false_positives': breakdown.false_positives, 'false_negatives': breakdown.false_negatives}),
            'classes': classes}
  if isinstance(breakdown, KeypointBreakdown):
    kinds = (*breakdown.gained, 'well')
    record |= {'all_mended': round(100 * breakdown.all_fixed, 4), 'well': breakdown.good,
               'keypoints': {name: dict(zip(kinds, column.tolist(), strict=True))
                             for name, column in zip(breakdown.keypoint_names, breakdown.by_keypoint.T, strict=True)}}
  return record


def worst_classes(breakdown: Breakdown | KeypointBreakdown) -> list[int]:
  """Return the indices of the classes with objects, those that lose most AP first."""
  lost = [(-gained.sum(), k) for k, gained in enumerate(breakdown.category_gained.T) if breakdown.category_ap[k] >= 0]
  return [k for _, k in sorted(lost)]


def _by_class(breakdown: Breakdown | KeypointBreakdown) -> list[str]:
  width = max(18, *(len(name[:24]) for name in breakdown.category_names))
  heads = ' '.join(f'{COLUMN_HEADS[name]:>6}' for name in breakdown.gained)
  lines = [f'  {"AP gained by class":{width}} {"AP":>6} {heads}']
  for k in worst_classes(breakdown)[:LISTED]:
    values = (breakdown.category_ap[k], *breakdown.category_gained[:, k])
    lines.append(f'  {breakdown.category_names[k][:24]:{width}} ' + ' '.join(f'{100 * v:6.1f}' for v in values))
  return lines
