"""Error breakdown of a run as text and JSON."""

from __future__ import annotations

from typing import Any

COLOURS = {'classification': '#d1495b', 'localisation': '#e9a23b', 'both': '#8c6d4f', 'duplicate': '#4aa5a8',
           'background': '#7a52a3', 'missed': '#5b7db1',
           'jitter': '#e9a23b', 'inversion': '#d1495b', 'swap': '#7a52a3', 'miss': '#5b7db1'}


SHORT = dict(zip(COLOURS, ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss', 'Jitter', 'Invers', 'Swap', 'Miss'),
                 strict=True))  # heads of columns, as in TIDE


LISTED = 15  # classes in the table


def table(breakdown: Any, kind: str, title: str) -> str:
  """The breakdown as text: by kind, then for the classes that lose most."""
  lines = [title, f'  {kind} AP at IoU 0.5: {100 * breakdown.ap:.1f}; {breakdown.correct} of {breakdown.objects} '
           'objects found', f'  {"":16} {"errors":>8} {"AP gained if mended":>20}']
  for name, gained in breakdown.gained.items():
    lines.append(f'  {name:16} {breakdown.counts[name]:8} {100 * gained:20.1f}')
  lines += [f'  {"all that is wrong":25} {100 * breakdown.false_positives:20.1f}',
            f'  {"all that is not found":25} {100 * breakdown.false_negatives:20.1f}']
  return '\n'.join(lines + _by_class(breakdown)) + '\n'


def keypoint_table(breakdown: Any, title: str) -> str:
  """The breakdown of keypoints as text: by kind, by keypoint, and by class where there are several."""
  total = max(1, int(breakdown.by_keypoint.sum()))
  lines = [title, f'  keypoint AP (mean over OKS 0.5 to 0.95): {100 * breakdown.ap:.1f}; a detection stands for '
           f'{breakdown.correct} of {breakdown.objects} objects',
           f'  {"":16} {"keypoints":>9} {"share":>8} {"AP gained if mended":>20}',
           f'  {"found well":16} {breakdown.well:9} {100 * breakdown.well / total:6.1f} %']
  for name, gained in breakdown.gained.items():
    count = breakdown.counts[name]
    lines.append(f'  {name:16} {count:9} {100 * count / total:6.1f} % {100 * gained:20.1f}')
  lines += [f'  {label:35} {100 * gained:20.1f}' for label, gained in (
    ('all four kinds', breakdown.all_mended), ('detections that stand for nothing', breakdown.false_positives),
    ('objects that nothing stands for', breakdown.false_negatives))]
  width = max(18, *(len(name[:24]) for name in breakdown.keypoint_names))
  heads = ['Well', *(SHORT[name] for name in breakdown.gained)]
  lines.append(f'  {"share by keypoint":{width}} ' + ' '.join(f'{head:>8}' for head in heads))
  for name, column in zip(breakdown.keypoint_names, breakdown.by_keypoint.T, strict=True):
    shares = 100 * column / max(1, column.sum())
    lines.append(f'  {name[:24]:{width}} ' + ' '.join(f'{share:6.1f} %' for share in (shares[-1], *shares[:-1])))
  return '\n'.join(lines + (_by_class(breakdown) if (breakdown.category_ap >= 0).sum() > 1 else [])) + '\n'


def _by_class(breakdown):
  width = max(18, *(len(name[:24]) for name in breakdown.category_names))
  lines = [f'  {"AP gained by class":{width}} {"AP":>6} ' + ' '.join(f'{SHORT[name]:>6}' for name in breakdown.gained)]
  for k in _worst_classes(breakdown)[:LISTED]:
    figures = [100 * one for one in (breakdown.category_ap[k], *breakdown.category_gained[:, k])]
    lines.append(f'  {breakdown.category_names[k][:24]:{width}} ' + ' '.join(f'{figure:6.1f}' for figure in figures))
  return lines


def as_json(breakdown: Any) -> dict[str, Any]:
  """All figures in percent."""
  def percent(values):
    return {name: round(100 * float(value), 4) for name, value in values.items()}

  classes = {name: {'AP': round(100 * float(ap), 4) if ap >= 0 else None,
                    'gained': percent(dict(zip(breakdown.gained, gained, strict=True)))}
             for name, ap, gained in zip(breakdown.category_names, breakdown.category_ap,
                                         breakdown.category_gained.T, strict=True)}
  return {'AP': round(100 * breakdown.ap, 4), 'gained': percent(breakdown.gained), 'errors': breakdown.counts,
          'correct': breakdown.correct, 'objects': breakdown.objects,
          **percent({'false_positives': breakdown.false_positives, 'false_negatives': breakdown.false_negatives}),
          'classes': classes}


def keypoints_as_json(breakdown: Any) -> dict[str, Any]:
  """What only keypoints have: numbers of keypoints by name and kind."""
  kinds = (*breakdown.gained, 'well')
  return {'all_mended': round(100 * breakdown.all_mended, 4), 'well': breakdown.well,
          'keypoints': {name: dict(zip(kinds, column.tolist(), strict=True))
                        for name, column in zip(breakdown.keypoint_names, breakdown.by_keypoint.T, strict=True)}}


def _worst_classes(breakdown):
  """Indices of the classes with objects, those that lose most first."""
  lost = [(-gained.sum(), k) for k, gained in enumerate(breakdown.category_gained.T) if breakdown.category_ap[k] >= 0]
  return [k for _, k in sorted(lost)]
