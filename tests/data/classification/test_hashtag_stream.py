"""The stream: contents of epochs, random access, disjoint hosts, constant memory, training through gin."""

import gc
import json
import os
import pathlib
import re
import subprocess
import sys
import tracemalloc

import gin
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf import experiment, gin_files
from rethink_tf.data.classification import vocabulary as hashtags
from rethink_tf.data.classification.hashtag_shards import HashtagSource
from rethink_tf.data.classification.hashtag_stream import StreamedTrainInput, StreamPlan
from rethink_tf.data.classification.vocabulary import (
  SAMPLINGS,
  build_vocabulary,
  image_replication,
  load_synonyms,
  replication,
)
from rethink_tf.data.hashtags_conversion import convert_hashtags
from rethink_tf.errors import UserError
from rethink_tf.evaluation import on_demand
from rethink_tf.training import loop
from tests.small_classes import write_folders
from tests.tag_files import clothing, render_images, tagged, write_json_lines, write_shards, write_synonyms

ROOT = pathlib.Path(__file__).parents[3]
WEAK = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'gin_configs/pretraining').glob('wsl_*.gin'))
EPOCHS = 40
# A smaller network and smaller images than those of wsl_tiny.gin.
TINY = ('ResNet.depth = 14', 'ResNet.stem_width = 32', 'ResNet.res2_width = 32', 'CROP_SIZE = 32', 'SHORT_SIDE = 36',
        'run.eval_images_per_device = 10', 'run.log_every = 2', "strategy.kind = 'one_device'")


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """60 rendered images in 4 shards."""
  return write_shards(tmp_path_factory.mktemp('tags'), count=60, num_shards=4)[0]


@pytest.fixture(scope='module')
def many(tmp_path_factory):
  """3,000 images of 8 pixels in 12 shards, with tag frequencies from 60 % to 0.3 %."""
  folder = tmp_path_factory.mktemp('many')
  names = [name for name, _ in render_images(folder, 20, side=8)]
  rng = np.random.default_rng(1)
  shares = 0.6 * 0.45 ** np.arange(7)
  rows = [(names[i % 20], [f't{k}' for k in np.flatnonzero(rng.random(7) < shares)] or ['t0']) for i in range(3000)]
  return stored(folder, rows, 12)


def stored(folder, rows, num_shards, image_dir=None):
  file = write_json_lines(folder / 'images.jsonl', rows)
  convert_hashtags(file, build_vocabulary(file), str(folder / 'shards'), num_shards=num_shards,
                   image_dir=str(image_dir or folder))
  return str(folder / 'shards')


def inputs(folder, batch_size=16, seed=0, **options):
  return StreamedTrainInput(HashtagSource(folder, training=True), batch_size, seed, **({'crop_size': 16} | options))


def factors_of(source, sampling, threshold=None):
  """Return r(I) of each image, float64 [N], computed from its definition."""
  factors = replication(source.tag_counts, sampling, threshold)
  return np.array([max(factors[k] for k in row if k >= 0) for row in source.classes])


def epoch_ids(plan, epoch):
  start, end = plan.before(epoch), plan.before(epoch + 1)
  return plan.draw(start, end - start)[0].ids


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_natural_epoch_has_every_image_once_in_a_new_order(many):
  plan = StreamPlan(HashtagSource(many, training=True), range(12), 'natural', None, 700, 0)
  epochs = [epoch_ids(plan, e) for e in range(3)]
  for ids in epochs:
    assert sorted(ids) == list(range(3000))
  assert not np.array_equal(epochs[0], epochs[1])
  other = StreamPlan(HashtagSource(many, training=True), range(12), 'natural', None, 700, 1)
  assert not np.array_equal(epochs[0], epoch_ids(other, 0))


def test_images_are_shuffled_in_the_buffer_and_shards_in_the_epoch(many):
  plan = StreamPlan(HashtagSource(many, training=True), range(12), 'natural', None, 700, 0)
  ids = epoch_ids(plan, 0)
  shards = ids // 250
  assert len(set(shards[:750])) == 3 and len(set(shards[750:1500])) == 3 and not set(shards[:750]) & set(shards[750:])
  first = ids[:750]  # consecutive images are of the same shard in a third of the cases
  assert 0.25 < np.mean(np.diff(first // 250) == 0) < 0.42
  assert abs(np.corrcoef(np.arange(750), first % 250)[0, 1]) < 4 / np.sqrt(750)


@pytest.mark.parametrize('threshold', [None, 300])
@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_every_epoch_draws_each_image_floor_or_ceiling_of_its_factor_times(many, sampling, threshold):
  source = HashtagSource(many)
  factors = factors_of(source, sampling, threshold)
  plan = StreamPlan(source, range(12), sampling, threshold, 500, 3)
  total = np.zeros(3000)
  for epoch in range(EPOCHS):
    times = np.bincount(epoch_ids(plan, epoch), minlength=3000)
    assert (np.abs(times - factors) < 1 + 1e-5).all()
    assert abs(times.sum() - factors.sum()) < 13  # a shard is at most one image off
    total += times
  fraction = factors % 1
  sigma = np.sqrt(EPOCHS * fraction * (1 - fraction))
  off = (total - EPOCHS * factors) / np.maximum(sigma, 1)
  assert np.abs(off).max() < 4.5 and abs(plan.mean_epoch - factors.sum()) < 0.01


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_tag_frequencies(many, sampling):
  """Within 3 sigma of independent samples for each tag, and chi-square for all; systematic sampling varies less."""
  source = HashtagSource(many)
  check_tag_frequencies(source, sampling, inputs(many, batch_size=100, sampling=sampling, crop_size=4))


def check_tag_frequencies(source, sampling, stream, epochs=3):
  """Compare the tags in the batches of some epochs with the sums of r(I) over the images that have them."""
  factors, classes = factors_of(source, sampling), source.classes
  has_tag = np.stack([(classes == k).any(axis=1) for k in range(source.num_classes)])  # [L, N]
  size, drawn = stream.batch_size, np.zeros(source.num_classes)
  steps = round(epochs * stream.plan.mean_epoch / size)
  for step in range(steps):
    found, _ = stream.plan.draw(step * size, size)
    drawn += np.bincount(classes[found.ids].ravel() + 1, minlength=source.num_classes + 1)[1:]
  share = steps * size / factors.sum()
  expected = share * has_tag @ factors
  sigma = np.sqrt(expected)  # of independent samples
  assert (np.abs(drawn - expected) < 3 * np.maximum(sigma, 1)).all(), (drawn, expected)
  assert (((drawn - expected) / np.maximum(sigma, 1)) ** 2).sum() < source.num_classes + 3 * np.sqrt(
    2 * source.num_classes)
  batch = stream.batch(0)  # has the tags of the images that were drawn
  np.testing.assert_array_equal(batch.classes[:, :classes.shape[1]], classes[batch.image_ids])


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_tag_frequencies_of_real_images(real_images, tmp_path, sampling):
  rows = tagged(clothing(real_images, 'train', per_class=20))
  source = HashtagSource(stored(tmp_path, rows, 5, real_images))
  assert 20 < source.num_classes and len(source.image_ids) == 200
  stream = StreamedTrainInput(source, 20, 0, sampling=sampling, crop_size=8)
  check_tag_frequencies(source, sampling, stream, epochs=5)


def test_order_of_the_sampling_rules(many):
  """Rare tags are more frequent with the square root than natural, and most frequent with uniform sampling."""
  source = HashtagSource(many)
  rarest, shares = source.num_classes - 1, []
  for sampling in ('natural', 'square_root', 'uniform'):
    factors = factors_of(source, sampling)
    shares.append(factors[(source.classes == rarest).any(axis=1)].sum() / factors.sum())
  assert shares[0] < 0.5 * shares[1] < 0.25 * shares[2]


def test_factors_of_images_match_their_definition(many):
  source = HashtagSource(many)
  tags = replication(source.tag_counts)
  found = np.concatenate([image_replication(tags, columns.tags, columns.starts)
                          for columns in map(source.columns, range(12))])
  np.testing.assert_array_equal(found, factors_of(source, 'square_root'))


def test_batches_depend_on_seed_and_step_only(folder):
  one, other = inputs(folder), inputs(folder)
  batches = [one.batch(step) for step in range(6)]
  for step in (5, 2, 0):
    assert equal(other.batch(step), batches[step])
  assert not equal(inputs(folder, seed=1).batch(0), batches[0])
  resumed = [tuple(field.numpy() for field in batch) for batch in inputs(folder).dataset(start_step=3).take(3)]
  assert all(equal(a, b) for a, b in zip(resumed, batches[3:], strict=True))


def test_late_step_reads_no_earlier_ones(many, monkeypatch):
  late = inputs(many, crop_size=4, shuffle_buffer=500)
  late.plan.draw(0, 1)
  read = []
  columns = HashtagSource.columns
  monkeypatch.setattr(HashtagSource, 'columns', lambda self, shard: read.append(shard) or columns(self, shard))
  late.batch(100_000)
  assert len(read) <= 4  # one or two groups of shards


def test_contents_of_a_batch(folder):
  batch = inputs(folder, batch_size=24, crop_size=20).batch(2)
  source = HashtagSource(folder)
  assert batch.images.shape == (24, 20, 20, 3) and batch.images.dtype == np.uint8
  assert (batch.image_sizes == 20).all() and batch.classes.shape == (24, source.most_tags)
  np.testing.assert_array_equal(batch.classes, source.classes[batch.image_ids])
  for row, i in enumerate(batch.image_ids):  # rendered images are noise within 55 of the colour of their class
    pixels = source.load(i).reshape(-1, 3)
    assert (batch.images[row] >= pixels.min(0)).all() and (batch.images[row] <= pixels.max(0)).all()


def test_copies_of_an_image_have_different_crops(folder):
  stream = inputs(folder, batch_size=200, sampling='uniform')
  batch = stream.batch(0)
  drawn, _ = stream.plan.draw(0, 200)
  ids, counts = np.unique(batch.image_ids[drawn.epochs == 0], return_counts=True)
  rows = np.flatnonzero((batch.image_ids == ids[counts.argmax()]) & (drawn.epochs == 0))
  assert len(rows) > 1 and len(set(drawn.copies[rows])) == len(rows)
  assert len({batch.images[row].tobytes() for row in rows}) == len(rows)


def test_without_flip_and_crop_images_are_unchanged(folder):
  stream = inputs(folder, crop_size=40, area=(1.0, 1.0), aspect=(1.0, 1.0), flip=False)
  batch, source = stream.batch(0), HashtagSource(folder)
  for image, i in zip(batch.images, batch.image_ids, strict=True):
    np.testing.assert_array_equal(image, source.load(i))
  flipped = inputs(folder, crop_size=40, area=(1.0, 1.0), aspect=(1.0, 1.0)).batch(0).images
  same = [np.array_equal(a, b) for a, b in zip(flipped, batch.images, strict=True)]
  mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(flipped, batch.images, strict=True)]
  assert 0 < sum(same) < 16 and sum(same) + sum(mirrored) == 16


def test_facts_match_the_batch_and_read_no_image(folder, monkeypatch):
  stream = inputs(folder, batch_size=16, crop_size=10)
  batches = [stream.batch(step) for step in range(12)]
  monkeypatch.setattr(HashtagSource, 'load_at', None)
  fresh = inputs(folder, batch_size=16, crop_size=10)
  for step, batch in enumerate(batches):
    facts = fresh.facts(step)
    np.testing.assert_array_equal(facts.image_ids, batch.image_ids)
    assert (facts.instances, facts.pixels, facts.padded_pixels) == (16, 1600, 1600)
  assert fresh.facts(0).epoch == 0 and fresh.facts(11).epoch == fresh.plan.epoch_of(12 * 16 - 1) >= 1


def context(host, hosts, replicas):
  return tf.distribute.InputContext(num_input_pipelines=hosts, input_pipeline_id=host, num_replicas_in_sync=replicas)


def test_hosts_read_disjoint_shards_and_together_all(folder):
  read = []
  for host in range(3):
    stream = inputs(folder, batch_size=12, sampling='natural')
    batches = list(stream.dataset(0, context(host, 3, 6)).take(30))
    assert batches[0].images.shape == (2, 16, 16, 3)  # of one of two replicas of this host
    ids = np.concatenate([batch.image_ids.numpy() for batch in batches])
    own = stream.share(host, 3, 2).plan.before(1)
    assert sorted(ids[:own]) == sorted(set(ids[:own]))  # an epoch of this host
    read.append(set(ids.tolist()))
    facts = stream.facts(1)
    assert facts.image_ids.tolist() == [*ids[4:8], *[-1] * 8] and facts.pixels == 12 * 256
    resumed = next(iter(stream.dataset(5, context(host, 3, 6))))
    assert np.array_equal(resumed.images, batches[10].images)
  assert not read[0] & read[1] and not read[1] & read[2] and not read[0] & read[2]
  assert set().union(*read) == set(range(60))


def test_more_hosts_than_shards(folder):
  with pytest.raises(UserError, match='has 4 shards for 5 hosts; convert into at least --shards=5'):
    inputs(folder, batch_size=10).dataset(0, context(0, 5, 5))


def test_two_replicas_of_a_strategy_share_the_batch(folder, two_replicas):
  stream = inputs(folder, batch_size=8)
  data = two_replicas.distribute_datasets_from_function(lambda context: stream.dataset(0, context))
  batch = next(iter(data))
  ids = np.concatenate([local.numpy() for local in two_replicas.experimental_local_results(batch.image_ids)])
  np.testing.assert_array_equal(ids, inputs(folder, batch_size=8).batch(0).image_ids)
  np.testing.assert_array_equal(ids, stream.facts(0).image_ids)


def damage(folder, shard, records):
  """Flip a byte in some records of a shard."""
  source = HashtagSource(folder)
  offsets = source.columns(shard).offsets
  with open(os.path.join(folder, source.shards[shard].file), 'r+b') as file:
    for i in records:
      file.seek(int(offsets[i]) + 100)
      byte = file.read(1)[0]
      file.seek(int(offsets[i]) + 100)
      file.write(bytes([byte ^ 255]))


def test_damaged_records_are_replaced_and_counted(tmp_path):
  folder = write_shards(tmp_path, count=60, num_shards=3)[0]
  clean = [inputs(folder, sampling='natural').batch(step) for step in range(4)]
  damage(folder, 1, [3, 4])
  stream = inputs(folder, sampling='natural')
  batches = [stream.batch(step) for step in range(4)]
  before, after = (np.concatenate([b.image_ids for b in some]) for some in (clean, batches))
  assert stream.unreadable == {23, 24} and stream.failure is None
  assert (after[np.isin(before, [23, 24])] == 25).all()
  np.testing.assert_array_equal(after[~np.isin(before, [23, 24])], before[~np.isin(before, [23, 24])])
  source = HashtagSource(folder)
  for batch in batches:
    np.testing.assert_array_equal(batch.classes, source.classes[batch.image_ids])
  again = inputs(folder, sampling='natural')
  assert equal(again.batch(2), batches[2])


def test_too_many_damaged_records_are_one_line(tmp_path):
  folder = write_shards(tmp_path, count=60, num_shards=3)[0]
  damage(folder, 0, range(20))
  for make in (lambda stream: stream.dataset(), lambda stream: stream.dataset(0, context(0, 1, 1))):
    stream = inputs(folder)
    with pytest.raises(tf.errors.OpError):
      for _ in make(stream).take(20):
        pass
    assert isinstance(stream.failure, UserError) and 'cannot be read' in str(stream.failure)
    assert '\n' not in str(stream.failure)


@pytest.mark.parametrize('options, message', [
  ({'seed': -1}, 'seed'), ({'crop_size': 0}, 'crop_size'), ({'shuffle_buffer': 0}, 'shuffle_buffer'),
  ({'area': (0.5, 0.1)}, 'area'), ({'aspect': (0, 1)}, 'aspect'), ({'batch_size': 0}, 'batch_size')],
  ids=['seed', 'crop', 'buffer', 'area', 'aspect', 'batch'])
def test_arguments_out_of_range(folder, options, message):
  with pytest.raises(UserError, match=message):
    inputs(folder, **options)


def test_invalid_rule_and_host_without_images(folder):
  with pytest.raises(UserError, match='sampling'):
    _ = inputs(folder, sampling='sqrt').plan
  with pytest.raises(UserError, match='none of the 0 shards of this host'):
    StreamPlan(HashtagSource(folder, training=True), [], 'uniform', None, 1, 0)


@pytest.fixture
def clean_gin():
  yield
  gin.clear_config()


def train(model_dir, files, *params):
  gin_files.parse(files, [*TINY, *params])
  return loop.train(experiment.run('train', str(model_dir)))


def check_end_to_end(folder, train_rows, held_out_rows, num_shards, image_dir=None):
  """Vocabulary, shards, training through gin, resume, and supervised fine-tuning of the result."""
  synonyms = load_synonyms(write_synonyms(folder / 'synonyms.tsv'))
  out = str(folder / 'shards')
  file = write_json_lines(folder / 'train.jsonl', ['not json', *tagged(train_rows), ('absent.jpg', ['fashion'])])
  vocabulary = build_vocabulary(file, synonyms, min_count=2)
  held_out = write_json_lines(folder / 'held_out.jsonl', tagged(held_out_rows, seed=1))
  for split, lines, shards in (('train', file, num_shards), ('validation', held_out, 1)):
    convert_hashtags(lines, vocabulary, out, split, str(image_dir or folder), shards)
  assert set(vocabulary.tags) >= {name for _, name in train_rows} | {'fashion', 'ootd', 'style'}
  assert not [tag for tag in vocabulary.tags if tag.startswith('only_once') or tag in synonyms]

  run, wsl = folder / 'wsl', ['gin_configs/pretraining/wsl_tiny.gin']
  settings = [f'DATA_DIR = {out!r}', 'BATCH_SIZE = 8', 'SteppedHalving.halvings = 2',
              'SteppedHalving.warmup_images = 8']
  train(run, wsl, *settings, 'IMAGES = 32')
  metrics = train(run, wsl, *settings, 'IMAGES = 48')  # resumes at step 4
  assert 0 <= metrics['top-1'] <= metrics['top-5'] <= 100 and np.isfinite(metrics['cross-entropy'])
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  seen = [line for line in lines if line['kind'] == 'train'][-1]
  assert (seen['step'], seen['images'], seen['instances'], seen['pixels']) == (6, 48, 48, 48 * 32 ** 2)
  assert seen['loss/class'] < 2 * np.log(len(vocabulary))
  assert json.loads((run / 'categories.json').read_text())[0]['name'] == vocabulary.tags[0]
  gin_files.parse([str(run / 'config.gin')])
  assert on_demand.evaluate(experiment.run('evaluate', str(run))) == pytest.approx(metrics, abs=1e-5)

  write_folders(folder / 'labelled', per_class=6)
  tuned = train(folder / 'tuned', ['gin_configs/pretraining/base.gin', 'gin_configs/init/pretrained_run.gin'],
                f'DATA_DIR = {str(folder / "labelled")!r}', f'WEIGHTS = {str(run)!r}', 'BATCH_SIZE = 6',
                'ResNet.width_per_group = 32', 'EpochSchedule.epochs = 1', 'EpochSchedule.drops = ()',
                'EpochSchedule.warmup_epochs = 0')
  assert 0 <= tuned['top-1'] <= 100 and (folder / 'tuned' / 'initial_weights.json').is_file()


@pytest.mark.slow
@pytest.mark.usefixtures('clean_gin')
def test_end_to_end_on_rendered_images(tmp_path):
  rows = render_images(tmp_path, 60)
  check_end_to_end(tmp_path, rows[:45], rows[45:], 3)


@pytest.mark.slow
@pytest.mark.usefixtures('clean_gin')
def test_end_to_end_on_real_images(real_images, tmp_path):
  check_end_to_end(tmp_path, clothing(real_images, 'train', per_class=8),
                   clothing(real_images, 'validation', per_class=2), 4, real_images)


@pytest.mark.usefixtures('clean_gin')
@pytest.mark.parametrize('name', WEAK)
def test_shipped_configuration_parses_and_states_its_length(name):
  gin_files.parse([name], ["WEIGHTS = 'runs/wsl'"] if 'finetune' in name else [])
  text = (ROOT / name).read_text()
  schedule = gin.query_parameter('run.schedule').configurable.wrapped.__name__
  rates = gin.get_configurable(schedule)(batch_size=gin.query_parameter('%BATCH_SIZE'), num_images=1_281_167)
  if not name.endswith('base.gin'):
    assert re.search(rf'\b{rates.total_steps:,} steps of {gin.query_parameter("%BATCH_SIZE"):,}\b', text)
    for field in ('# Reproduces', '# Cost', '# Command', '# Override', f'--gin_file={name}'):
      assert field in text


@pytest.mark.parametrize('width', [8, 16, 32, 48])
@pytest.mark.usefixtures('clean_gin')
def test_configurations_of_the_released_networks(width):
  gin_files.parse([f'gin_configs/pretraining/wsl_x101_32x{width}d.gin'])
  assert [gin.query_parameter(f'ResNet.{name}') for name in ('depth', 'groups', 'width_per_group')] == [101, 32, width]
  assert gin.query_parameter('%BATCH_SIZE') == 8064 == 336 * gin.query_parameter('run.images_per_device')
  rates = gin.get_configurable('SteppedHalving')(batch_size=8064)
  np.testing.assert_allclose(rates(10_000), 3.15, rtol=1e-6)


def index_of_rows(folder, rows, images_per_shard=500):
  """Write an index: `rows` lines that name a few images of 4 pixels, with 200 tags of decreasing frequency."""
  names = [name for name, _ in render_images(folder / 'images', 20, side=4)]
  tags = np.minimum(np.random.default_rng(0).geometric(0.03, size=(rows, 3)), 200)
  with open(folder / 'images.jsonl', 'w') as file:
    for i, row in enumerate(tags):
      file.write(f'{{"image": "{names[i % 20]}", "tags": ["#T{row[0]}", "T{row[1]}", "t{row[2]}", "row{i}"]}}\n')
  return str(folder / 'images.jsonl'), -(-rows // images_per_shard)


def peak_of_python(work):
  thresholds = gc.get_threshold()
  gc.set_threshold(700, 10, 10)  # Python's own: those of the tests (replicas.py) leave garbage for longer
  tracemalloc.start()
  try:
    work()
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
    gc.set_threshold(*thresholds)


@pytest.mark.slow
def test_memory_of_the_vocabulary_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
  """Peak memory of Python while it counts the tags of 17,000 and of 34,000 images, each with a unique tag."""
  monkeypatch.setattr(hashtags, '_CHUNK', 1 << 16)  # bytes; both files are longer than a few
  # Without the cache, which is bounded, but whose table is reallocated after many evictions.
  monkeypatch.setattr(hashtags, 'canonical', hashtags.canonical.__wrapped__)
  peaks = []
  for rows in (17_000, 34_000):
    file, _ = index_of_rows(tmp_path, rows)
    peaks.append(peak_of_python(lambda: build_vocabulary(file, min_count=5, max_candidates=1_000)))  # noqa: B023
  assert peaks[1] < 1.1 * peaks[0] + 100_000, peaks  # bytes; 17,000 strings alone are 900,000


@pytest.mark.slow
def test_memory_of_the_stream_does_not_grow_with_the_number_of_images(tmp_path):
  """Peak memory of Python and NumPy in an epoch of 2,000 and of 20,000 images."""
  peaks = []
  for rows in (2_000, 20_000):
    folder = tmp_path / str(rows)
    folder.mkdir()
    file, num_shards = index_of_rows(folder, rows)
    convert_hashtags(file, build_vocabulary(file, min_count=5), str(folder / 'shards'), num_shards=num_shards,
                     image_dir=str(folder / 'images'))

    def iterate():
      stream = inputs(str(folder / 'shards'), batch_size=250, crop_size=4, shuffle_buffer=1_000)  # noqa: B023
      for step in range(int(stream.plan.mean_epoch) // 250):
        stream.facts(step)
      stream.batch(3)

    peaks.append(peak_of_python(iterate))
  assert peaks[1] < 1.25 * peaks[0], peaks  # bytes; 18,000 Python integers alone are 500,000


MILLION = """
import resource, sys, time
from rethink_tf.data.classification.hashtag_shards import HashtagSource
from rethink_tf.data.classification.hashtag_stream import StreamedTrainInput
from rethink_tf.data.classification.vocabulary import build_vocabulary
def grown(name, work):
  start, before = time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  result = work()
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(f'{name} {before / 1024:.1f} {after / 1024:.1f} {time.time() - start:.1f}', flush=True)
  return result
file, shards = sys.argv[1:]
if shards == '-':
  vocabulary = grown('vocabulary', lambda: build_vocabulary(file, min_count=5, max_candidates=20_000))
  vocabulary.save(file + '.json')
else:
  stream = StreamedTrainInput(HashtagSource(shards, training=True), 500, 0, crop_size=4, shuffle_buffer=16_384)
  stream.batch(0)  # libraries and threads
  steps = int(stream.plan.mean_epoch) // 500
  def iterate():
    for step in range(steps):
      stream.facts(step)
      if step % 20 == 0:
        stream.batch(step)
  grown('stream', iterate)
  print('images', len(stream.source.image_ids), 'drawn', steps * 500)
"""


def measured(*arguments):
  """Run MILLION in a process, and return the growth of its peak memory in megabytes."""
  done = subprocess.run([sys.executable, '-c', MILLION, *arguments], capture_output=True, text=True,
                        env={'PYTHONPATH': str(ROOT), 'TF_CPP_MIN_LOG_LEVEL': '3'})
  assert done.returncode == 0, done.stderr
  print(done.stdout, end='')
  _, before, after, _ = done.stdout.splitlines()[0].split()
  return float(after) - float(before)


@pytest.mark.slow
def test_a_million_images_need_the_memory_of_a_hundred_thousand(tmp_path):
  """Peak resident memory of a process that counts the tags, and of one that reads an epoch."""
  grown = {'vocabulary': [], 'stream': []}
  for rows in (100_000, 1_000_000):
    folder = tmp_path / str(rows)
    folder.mkdir()
    file, num_shards = index_of_rows(folder, rows, images_per_shard=8192)
    grown['vocabulary'].append(measured(file, '-'))
    vocabulary = build_vocabulary(file, min_count=5, max_candidates=20_000)
    convert_hashtags(file, vocabulary, str(folder / 'shards'), num_shards=num_shards,
                     image_dir=str(folder / 'images'))
    grown['stream'].append(measured(file, str(folder / 'shards')))
  for small, large in grown.values():
    assert large < small + 30, grown  # megabytes; a million Python integers are 28, their set 60
