"""What a study will be able to tell, worked out before it starts: the smallest difference that it can detect."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rethink_tf import gin_files
from rethink_tf.compare import intervals, planning, report
from rethink_tf.compare.data_sets import folders_of
from rethink_tf.compare.planning import LEVEL, SPREAD, SPREAD_RANGE, Noise
from rethink_tf.compare.run_summary import init_key, twin_key
from rethink_tf.compare.sequential import FIRST, Look
from rethink_tf.compare.verdict import Verdict
from rethink_tf.console import counted, points
from rethink_tf.data import digest, in_place
from rethink_tf.data.detection import duplicates
from rethink_tf.errors import UserError
from rethink_tf.evaluation.scoring import source_without_masks
from rethink_tf.storage.metrics_lines import evaluated_steps
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Source
from rethink_tf.study.execution import Runner
from rethink_tf.study.grid import Trial, TrialConfig
from rethink_tf.training import seen_images

if TYPE_CHECKING:
  from rethink_tf.study.run import Pretraining, StudyPlan

Key = tuple[tuple[str, str], ...]  # settings
_WEIGHTS = 'PretrainedWeights.path'


class Design(NamedTuple):
  """The properties of a study on which the width of its intervals depends."""

  verdicts: int  # pairs of kinds of initial weights, scratch and pre-trained, that a verdict compares
  scratch: int  # schedules, at most
  pretrained: int  # schedules that a scratch schedule is compared with, at most
  seeds: int  # of the side that has fewest; of those with two or more, where each kind of initial weights has such
  repeated: tuple[int, int] = (0, 0)  # schedules of both with two seeds or more, whose spread is pooled
  single: bool = False  # whether there are also schedules with one seed
  unknown: int = 0  # pairs without a verdict, as a side has one seed at every schedule, beside others with one


def design(configs: Sequence[TrialConfig], same: Mapping[str, str] = MappingProxyType({}),
           spread_given: bool = False) -> Design:
  """Return the design of a study from the schedules and settings of its runs.

  same: run folder of a pre-training -> that of the first one that differs from it in its seed alone.
  spread_given: whether sides of one seed have a verdict, too.
  """
  paths = [(_twin(one.settings), one.steps, one.settings.get(_WEIGHTS)) for one in configs if one.weights in same]
  joined = len(set(paths)) == len(paths)  # otherwise their runs are not independent (compare/pretraining_seeds.py)
  seeds: dict[tuple, set[Any]] = {}
  for config in configs:
    settings, path = config.settings, same.get(config.weights or '') if joined else None
    settings = {**settings, _WEIGHTS: path} if path else settings
    # A run that continues another one, by a cascade: of the shipped files a scratch one.
    pretrained = settings.get('run.initial_weights') not in (None, 'None', '@PlainRun()')
    key = (_twin(settings), pretrained, init_key(settings), config.steps)
    seeds.setdefault(key, set()).add((settings.get('run.seed', 0), config.weights if path else None))
  schedules = collections.Counter(key[:3] for key in seeds)
  repeated = collections.Counter(key[:3] for key, of in seeds.items() if len(of) >= FIRST)
  arms = [(one, other) for one in schedules for other in schedules
          if one[0] == other[0] and not one[1] and other[1]]
  known = [pair for pair in arms if repeated[pair[0]] and repeated[pair[1]]]  # compare pools the spread over schedules
  told = arms if spread_given else known or arms
  counts = sorted({len(of) for key, of in seeds.items() if any(key[:3] in pair for pair in told)})
  of_seeds = [count for count in counts if count >= FIRST] if told == known else counts

  def most(of: Mapping[tuple, int]) -> tuple[int, int]:
    return tuple(max((of[pair[side]] for pair in told), default=0) for side in (0, 1))

  return Design(len(told), *most(schedules), min(of_seeds, default=0), most(repeated), counts != of_seeds,
                len(arms) - len(told))


def _twin(settings: Mapping[str, Any]) -> tuple:
  """Return a key that is equal for runs of one group, whatever folder of data an axis of the study chooses."""
  return twin_key(settings), folders_of(settings)


def describe(plan: StudyPlan, without_data: bool = False) -> str:
  """Return lines that say what a study will be able to tell, and for what its data is not fit.

  without_data: say so if the data cannot be read: a plan can be looked at without it.

  Raises:
    UserError: the data cannot be read, no held-out image has an object, or none has a mask where the metric needs them.
  """
  told, data, powers = [], data_sets(plan), {}

  def read(one: Trial | Pretraining, training: bool, otherwise: str) -> Source | None:
    try:
      return _source(plan, one, training)
    except UserError as error:
      if not without_data:
        raise
      told.append(f'{otherwise}: {error.line()}')
      return None

  for held_out_of, trainings in data:
    held_out = read(held_out_of, False, 'what it can tell is not known')
    if held_out is None:
      continue
    check_objects(held_out)
    if plan.metric == 'mask/AP' and source_without_masks(held_out):
      raise UserError(f'--metric=mask/AP: {held_out.name}: no held-out object has a mask, so that no run has a mask '
                      'AP: choose --metric=box/AP')
    powers.setdefault(len(held_out.image_ids), held_out.name)
    if missing := _without_objects(held_out):
      names = ', '.join(missing[:5]) + (', ...' if len(missing) > 5 else '')
      told.append(f'{held_out.name}: {len(missing)} of {held_out.num_classes} classes have no held-out object, so that '
                  f'no AP tells of them: {names}')
    said, trained = False, set()
    for trial in trainings:
      about = f'{trial.name}, ' if len(data) > 1 or len(trainings) > 1 else ''
      training = read(trial, True, f'{about}the images to train on cannot be read')
      if training is not None:
        trained.add(_of(training))
        copies, shared = _repeated(training, held_out)
        told += [*([] if said else copies), *(f'{about}{one}' for one in shared)]
        said = True
    told += _seen_before(plan, held_out, trained, read)
  return '.\n'.join([*_powers(plan, powers), *dict.fromkeys(told)])


def _powers(plan: StudyPlan, sizes: Mapping[int, str]) -> list[str]:
  """Return lines that say what the study can tell on its held-out data; of several, on the smallest and the largest.

  sizes: number of images -> name of a data set.
  """
  if len(sizes) < 2:
    return [_power(plan, images) for images in sizes]
  return [f'{name}: {_power(plan, images)}' for images, name in (min(sizes.items()), max(sizes.items()))]


def _of(source: Source) -> tuple[str, int]:
  """Return a key that is equal for sources with the same images."""
  return source.name, len(source.image_ids)


def _seen_before(plan: StudyPlan, held_out: Source, trained: Set[tuple[str, int]],
                 read: Callable[..., Source | None]) -> list[str]:
  """Return a warning for each network that a run starts from and that was, or will be, trained on held-out images.

  trained: images that the runs themselves are trained on, of which enough is said.
  """
  lines, done = [], {path for path in plan.pretraining if Runner.pretrained(path)}  # whose data may not be there now
  for path, one in plan.pretraining.items():
    # Of classifiers, folders of images alone: other sources may take an hour to list.
    if path in done or one.command != 'train' and not _of_an_image_folder(one):
      continue
    training = read(one, True, f'pre-training {path}, the images to train on cannot be read')
    if training is None or _of(training) in trained:
      continue
    if both := (_same_files(training, held_out)[0] if one.command == 'train' else digest.same_images(
        *map(digest.summarize, (training, held_out)))):
      lines.append(f'pre-training {path}: {both} of its {len(training.image_ids)} images are held out in the study '
                   '(the same files), so that AP of the runs that start from it is not that of unseen images: hold '
                   'out others')
  for weights in sorted(done | {config.weights for config in plan.configs} - {None, *plan.pretraining}):
    if (seen := seen_images.find(weights, held_out)) is not None:
      lines.append(f'runs that start from {weights}: {seen}')
  return lines


def data_sets(plan: StudyPlan) -> list[tuple[Trial, list[Trial]]]:
  """Return one run for each held-out data set, and for each of these one run for each training set used with it."""
  found: dict[Key, tuple[Trial, dict[Key, Trial]]] = {}
  for trial, config in zip(plan.trials, plan.configs, strict=True):
    train, held_out = (_of_source(config.settings, split) for split in ('train', 'eval'))
    found.setdefault(held_out, (trial, {}))[1].setdefault(train, trial)
  return [(trial, list(trainings.values())) for trial, trainings in found.values()]


def _of_source(settings: Mapping[str, Any], split: str) -> Key:
  """Return the settings of the source of a split ('train' or 'eval'), with those of all its parts."""
  found, parts, other = {}, [f'run.{split}_source'], {'train': 'eval/', 'eval': 'train/'}[split]
  while parts:
    part = parts.pop()
    for name in settings.keys() - found.keys():
      if (name == part or _component(name.rpartition('.')[0]) == part) and not name.startswith(other):
        found[name] = str(settings[name])
        parts += map(_component, re.findall(r'@([\w./]+)', found[name]))
  return tuple(sorted(found.items()))


def _component(name: str) -> str:
  """Return the name of a part, without scopes and modules."""
  return re.split('[./]', name)[-1]


def check_objects(source: Source) -> None:
  """Check that the held-out images have an object.

  Raises:
    UserError: there is none, so that all runs would be trained and none could be scored.
  """
  if not np.any(source.num_instances):
    raise UserError(f'{source.name}: none of its {len(source.image_ids)} held-out images has an object (crowds and '
                    'difficult ones do not count), so that no run can be scored: annotate them, or hold out others')


def _power(plan: StudyPlan, images: int) -> str:
  found = design(plan.configs, _same_but_for_seed(plan), plan.seed_spread is not None)
  if not found.verdicts:
    return ('what it can tell: runs side by side, without a verdict on pre-training: no scratch run has a pre-trained '
            'counterpart that is otherwise the same')
  if images < 2:
    return 'what it can tell: nothing, on one held-out image: hold out more images'
  if found.seeds < FIRST and plan.seed_spread is None:
    return ('what it can tell: no verdict, however far apart the sides are: with one seed a side the spread between '
            'seeds stays unknown. Add --until_settled, which adds seeds as they are needed, an axis of seeds to '
            'Study.axes, or --seed_spread if you know it')
  measured = None if plan.seed_spread is not None else _measured(plan, images)
  noise, source = measured or _assumed(plan, images)
  numbers = _numbers(plan, found)
  found_above = [f'{_seeds(seeds, look)}: {_above(plan, found, noise, seeds, look)}' for seeds, look in numbers]
  each = '' if found.verdicts == 1 else f' by each of its {found.verdicts} verdicts'
  source += '. Of schedules with one seed only larger ones are found' if found.single else ''
  if found.unknown:
    source += (f'. No verdict on {counted(found.unknown, "other pair")} of sides, where one has a single seed at every '
               'schedule')
  return (f'what it can tell, on {images} held-out images{each}: differences that it finds in four of five cases: '
          f'{"; ".join(found_above)}. {source}')


def next_commands(plan: StudyPlan, verdicts: Sequence[Verdict]) -> list[str]:
  """Return lines with the commands that may settle open questions; [] if none are open or nothing is likely to."""
  needs = [one.need for one in verdicts if one.need is not None]
  lines, more = ['To settle it:'], max((need.sure.seeds or need.even.seeds or 0 for need in needs), default=0)
  if more:
    now = max(len(side.runs) for one in verdicts for side in one.schedules)
    lines.append(f'  more seeds, {more} at most: {_more_seeds(plan, more, now)}')
  # Runs that are evaluated again, and other runs, are a further look at a study that stops early.
  own = ('' if plan.until_settled is None else 'as a new study, since this one has been looked at: the same '
         'command with another --output')
  if images := max((need.even.images or need.sure.images or 0 for need in needs), default=0):
    then = own or 'then python -m rethink_tf.evaluate --model_dir=RUN for each run, and the same command'
    lines.append(f'  about {images:,} more held-out images: add them to the annotations of the held-out split, {then}')
  if any(need.longer for need in needs):
    k, then = 2 * max(config.steps / config.unit for config in plan.configs), own or (
      'runs that are complete are not trained again')
    lines.append(f"  a longer schedule: --study_param='Study.axes = ...' with '{k:g}x': ('SCHEDULE = {k:g}',) in the "
                 f'axis of schedules; {then}')
  return lines if len(lines) > 1 else []


def _more_seeds(plan: StudyPlan, more: int, now: int) -> str:
  if plan.until_settled is None:
    return f'the same command with --until_settled --max_seeds={now + more}'
  if now + more <= plan.until_settled.max_seeds:
    return "the same command with --study_param='UntilSettled.least_chance = 0'"
  return (f'a new study, since the looks of this one end with {plan.until_settled.max_seeds}: the same command '
          f'with --max_seeds={now + more} and another --output')


def _same_but_for_seed(plan: StudyPlan) -> dict[str, str]:
  """Return {path: first path} of the pre-trainings that differ from another one only in their seed."""
  first, found = {}, {}
  for path, one in plan.pretraining.items():
    params = tuple(param for param in one.params if not re.match(r'\s*run\.seed\s*=', param))
    found[path] = first.setdefault(one._replace(params=params), path)
  return {path: of for path, of in found.items() if list(found.values()).count(of) > 1}


def _source(plan: StudyPlan, one: Trial | Pretraining, training: bool) -> Source:
  """Return the source that a run or a pre-training is trained on, or evaluated on.

  Raises:
    UserError: they cannot be read: better known now than after the pre-training.
  """
  from rethink_tf import experiment  # registers what gin files name

  in_place.parse(one.files, one.params, plan.data_dir if isinstance(one, Trial) else one.data_dir)
  try:
    return gin_files.argument(experiment.run, 'train_source' if training else 'eval_source')(training=training)
  finally:
    gin_files.clear()


def _of_an_image_folder(one: Pretraining) -> bool:
  from rethink_tf import experiment  # noqa: F401  registers what gin files name

  in_place.parse(one.files, one.params, one.data_dir)
  try:
    return 'image_folder' in str(gin_files.effective(['run.train_source']).get('run.train_source'))
  finally:
    gin_files.clear()


def _same_files(training: Source, held_out: Source) -> tuple[int, int]:
  """Return the numbers of training images, and of held-out images, that are the same file as another held-out image."""
  found = duplicates.find({duplicates.TRAINING: training, duplicates.HELD_OUT: held_out})
  return (found[duplicates.TRAINING].counts[duplicates.HELD_OUT_TOO],
          found[duplicates.HELD_OUT].counts[duplicates.LISTED_TWICE])


def _repeated(training: Source, held_out: Source) -> tuple[list[str], list[str]]:
  """Return warnings about held-out images that occur more than once, or that are trained on."""
  both, copies = _same_files(training, held_out)
  near, images = duplicates.near(training, held_out), len(held_out.image_ids)
  alone, shared = [], []
  if copies or near.copies:
    files = copies >= near.copies
    alone.append(f'{held_out.name}: {max(copies, near.copies)} of '
                 f'{f"its {images} images" if files else _looked_at(near, training, held_out)} are '
                 f'{"the same file as" if files else "near-duplicates of"} another one of them: '
                 'intervals take them for different ones, and are too narrow: hold out each once')
  if both:
    shared.append(f'{training.name}: {both} of its {len(training.image_ids)} images are held out too (the same files), '
                  'so that AP is not that of unseen images: hold out others')
  if len(near.trained) > both:
    shared.append(f'{held_out.name}: {len(near.trained)} of {_looked_at(near, training, held_out)} are near-duplicates '
                  f'of images that are trained on (e.g. {near.trained[0][0]} of {near.trained[0][1]}), so that AP is '
                  'not that of unseen images: `python -m rethink_tf.data.prepare --resplit` keeps them on one side')
  return alone, shared


def _looked_at(near: duplicates.Near, training: Source, held_out: Source) -> str:
  if not near.sampled(training, held_out):
    return f'its {near.held_out} images'
  return (f'{near.held_out:,} images looked at (a sample of its {len(held_out.image_ids):,}, beside {near.training:,} '
          'to train on)')


def _without_objects(source: Source) -> list[str]:
  """Return the names of the classes without objects; [] for sources that would read every record to count them."""
  if not hasattr(source, 'image_annotations'):
    return []
  missing = {category.id: category.name for category in source.categories}
  for i in range(len(source.image_ids)):
    for one in source.image_annotations(i):
      if not one.get('iscrowd'):
        missing.pop(one['category_id'], None)
    if not missing:
      break
  return list(missing.values())


def _numbers(plan: StudyPlan, found: Design) -> list[tuple[int, Look | None]]:
  """Return the smallest and the largest number of seeds at which the study is judged."""
  if plan.until_settled is None:
    return [(found.seeds, None)]
  most = plan.until_settled.max_seeds
  return [(seeds, Look(seeds, most)) for seeds in sorted({FIRST, most})]


def _seeds(seeds: int, look: Look | None) -> str:
  words = counted(seeds, 'seed')
  return words if look is None or look.seeds < look.max_seeds else f'{words}, the most'


def _above(plan: StudyPlan, found: Design, noise: Sequence[Noise], seeds: int, look: Look | None) -> str:
  """Return 'above about 1.9 points (1.5 to 3.0)', or 'none, ...'.

  noise: the expected one, and its range if it is assumed.
  """
  schedules = found.repeated if plan.seed_spread is None else None
  tail = intervals.outside(0.95, found.pretrained, look)
  least = [min(planning.found(one, (seeds, seeds), schedules, tail), intervals.LARGEST) for one in noise]
  if least[0] >= intervals.LARGEST:
    return 'none, however far apart the sides are'
  ends = f' ({min(least):.1f} to {max(least):.1f})' if len(least) > 1 else ''
  return f'above about {least[0]:.1f} points{ends}'


def _assumed(plan: StudyPlan, images: int) -> tuple[list[Noise], str]:
  """Return the expected noise with its smallest and largest spread, and the assumptions in words."""
  if plan.seed_spread is not None:
    return ([Noise.expected(images, plan.seed_spread)],
            f'Given: a standard deviation of {points(plan.seed_spread)} between seeds; assumed: AP about {LEVEL:g}')
  low, high = SPREAD_RANGE
  return ([Noise.expected(images, spread) for spread in (SPREAD, low, high)],
          f'Assumed: AP about {LEVEL:g}, and a standard deviation between seeds of {points(SPREAD)} ({low:g} to '
          f'{high:g}; --seed_spread, if you know it)')


def _measured(plan: StudyPlan, images: int) -> tuple[list[Noise], str] | None:
  """Return the noise measured on the study's existing runs, and its source in words; None if it cannot be measured."""
  folders = [os.path.join(plan.output, trial.name) for trial in plan.trials]
  folders = [path for path, config in zip(folders, plan.configs, strict=True) if _complete(path, config)]
  noise = report.noise(folders, plan.metric) if folders else None
  if noise is None:
    return None
  return [noise.times(images / noise.held_out.num_images)], f'Measured on the runs that are there ({len(folders)})'


def _complete(path: str, config: TrialConfig) -> bool:
  """Whether a run folder has the evaluation at the end of its schedule."""
  return os.path.isdir(path) and config.steps in evaluated_steps(RunFolder(path, create=False).read_metrics())
