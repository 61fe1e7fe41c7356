"""CocoEvaluator with a detector that outputs the ground truth: on three small images and on coco_dev."""

import json
import threading
import types

import cv2
import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from rethink_tf.data.augment import Resize
from rethink_tf.data.categories import Category
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.distributed.workers import Workers
from rethink_tf.errors import UserError, WorkerLost
from rethink_tf.evaluation import coco_metrics
from rethink_tf.evaluation.coco_evaluator import CocoEvaluator
from rethink_tf.evaluation.scoring import without_masks
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Batch, Detections, Example
from rethink_tf.training.ema import EvaluatorWithAverages
from tests import small_coco

SMALL = Resize((200,), 333)  # reading and resizing is what takes the time
SIZES = np.array([[60, 80], [100, 50], [64, 64]], np.int32)
SCALES = np.array([[2.0, 2.0], [1.5, 1.5], [0.5, 0.75]], np.float32)
BOXES = [[[10, 12, 50, 70]], [[0, 0, 100, 25], [20, 30, 60, 50]], []]  # y0 x0 y1 x1
CLASSES = [[1], [2, 1], []]


class ThreeImages:
  """A source of three images: one object, two objects, none; category ids 0 and 9."""

  name = 'three'
  categories = (Category(0, 'cat', (), ()), Category(9, 'dog', (), ()))
  image_ids = np.array([5, 3, 8], np.int64)
  sizes = SIZES
  num_instances = np.array([1, 2, 0], np.int32)

  def load(self, i):
    image = np.full((*SIZES[i], 3), 120, np.uint8)
    return Example(image, np.float32(BOXES[i]), np.int32(CLASSES[i]), None, None)

  def annotations(self):
    annotations = []
    for i, (boxes, classes) in enumerate(zip(BOXES, CLASSES, strict=True)):
      for (y0, x0, y1, x1), k in zip(boxes, classes, strict=True):
        annotations.append({
          'id': len(annotations) + 1, 'image_id': int(self.image_ids[i]), 'category_id': self.categories[k - 1].id,
          'bbox': [x0, y0, x1 - x0, y1 - y0], 'area': (y1 - y0) * (x1 - x0), 'iscrowd': 0,
          'segmentation': [[x0, y0, x1, y0, x1, y1, x0, y1]],
        })
    images = [{'id': int(k), 'height': int(h), 'width': int(w)} for k, (h, w) in
              zip(self.image_ids, SIZES, strict=True)]
    return {'images': images, 'annotations': annotations, 'categories': [{'id': 0, 'name': 'cat'},
                                                                         {'id': 9, 'name': 'dog'}]}


class TwoBatches:
  """Two batches of two images; the last one is filled up."""

  def __init__(self, rows=((0, 1), (2, -1))):
    self.rows = rows

  def dataset(self, share=(0, 1)):
    for rows in self.rows[share[0]::share[1]]:
      rows = np.array(rows)
      ids = np.where(rows < 0, -1, ThreeImages.image_ids[rows])
      fields = dict.fromkeys(Batch._fields)
      fields |= {'image_ids': ids, 'scales': SCALES[rows], 'original_sizes': SIZES[rows]}
      yield Batch(**{k: None if v is None else tf.constant(v) for k, v in fields.items()})


def predict(batch, masks=True):
  """Return the ground truth in resized pixels, half a pixel beyond the border, then a slot of score 0."""
  boxes, scores, classes = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int32)
  for row, (image_id, scale) in enumerate(zip(batch.image_ids.numpy(), batch.scales.numpy(), strict=True)):
    i = ThreeImages.image_ids.tolist().index(image_id) if image_id >= 0 else 0  # wrong where the batch is filled up
    n = len(BOXES[i])
    boxes[row, :n] = np.reshape(BOXES[i], (-1, 4)) * np.tile(scale, 2)
    boxes[row, :n][boxes[row, :n] == 0] = -0.5
    scores[row, :n], classes[row, :n] = np.linspace(0.9, 0.6, n), CLASSES[i]
  classes[:, 2], boxes[:, 2] = 1, [0, 0, 10, 10]
  return Detections(tf.constant(boxes), tf.constant(scores), tf.constant(classes),
                    tf.ones((2, 3, 28, 28)) if masks else None)


def make(path, **changes):
  source = ThreeImages()
  arguments = {'eval_input': TwoBatches(), 'predict': predict, 'source': source, 'run_folder': RunFolder(str(path))}
  return CocoEvaluator(**(arguments | changes))


def test_ground_truth_scores_100(tmp_path, capsys):
  evaluator = make(tmp_path)
  metrics = evaluator.evaluate(1234, {'images': 16})
  assert metrics['box/AP'] == pytest.approx(100.0) and metrics['mask/AP'] == pytest.approx(100.0)
  assert metrics['box/APl'] == -1.0 and len(metrics) == 24 and evaluator.last == metrics
  line = RunFolder(str(tmp_path)).read_metrics()[-1]
  assert line['kind'] == 'eval' and line['step'] == 1234 and line['images'] == 16
  assert {k: line[k] for k in metrics} == metrics
  printed = capsys.readouterr().out
  assert 'step 1234' in printed and 'dog' in printed and '100.0 / 100.0' in printed


def test_results_are_in_submission_format_and_original_pixels(tmp_path):
  make(tmp_path).evaluate(20)
  folder = tmp_path / 'eval/step-00000020'
  boxes = json.loads((folder / 'bbox.json').read_text())
  assert boxes[0] == {'image_id': 5, 'category_id': 0, 'bbox': [12, 10, 58, 40], 'score': pytest.approx(0.9)}
  assert [(b['image_id'], b['category_id']) for b in boxes] == [(5, 0), (3, 9), (3, 0)]
  masks = json.loads((folder / 'segm.json').read_text())
  assert [set(m) for m in masks] == [{'image_id', 'category_id', 'score', 'segmentation'}] * 3
  assert masks[0]['segmentation']['size'] == [60, 80]
  assert coco_mask.toBbox(masks[0]['segmentation']).tolist() == [12, 10, 58, 40]
  table = (folder / 'categories.csv').read_text().splitlines()
  assert table[0].split(',')[:3] == ['id', 'category', 'box/AP'] and table[1].startswith('0,cat,100.000')
  assert cv2.imread(str(folder / 'predictions.png')).shape[0] > 300
  # The files score the same as reported.
  gt = ThreeImages().annotations()
  assert coco_metrics.evaluate(gt, masks, 'segm', 'pycocotools').metrics['AP'] == pytest.approx(1.0)
  # They name their evaluation, which `compare` looks for.
  line = RunFolder(str(tmp_path)).read_metrics()[-1]
  assert json.loads((folder / 'ground_truth.json').read_text())['evaluated'] == line['time']


def test_without_masks(tmp_path):
  metrics = make(tmp_path, predict=lambda batch: predict(batch, masks=False)).evaluate(1)
  assert metrics['box/AP'] == pytest.approx(100.0) and not any(name.startswith('mask') for name in metrics)
  assert not (tmp_path / 'eval/step-00000001/segm.json').exists()


def test_without_masks_in_the_data(tmp_path):
  """A detector with a mask head on data with boxes only: no mask AP."""
  source, with_masks = ThreeImages(), ThreeImages().annotations()
  boxes = [a | {'segmentation': [[x, y, x, y + h, x + w, y + h, x + w, y]]} for a in with_masks['annotations']
           for x, y, w, h in (a['bbox'],)]
  source.annotations = lambda: with_masks | {'annotations': boxes}
  metrics = make(tmp_path, source=source).evaluate(1)
  assert metrics['box/AP'] == pytest.approx(100.0) and not any(name.startswith('mask') for name in metrics)
  assert not (tmp_path / 'eval/step-00000001/segm.json').exists()


def test_without_detections(tmp_path):
  def nothing(batch):
    return Detections(*(tf.zeros_like(field) for field in predict(batch)[:4]))

  metrics = make(tmp_path, predict=nothing).evaluate(1)
  assert metrics['box/AP'] == 0.0 and metrics['mask/AP'] == 0.0


def test_only_the_newest_results_are_kept(tmp_path):
  evaluator = make(tmp_path)
  evaluator.evaluate(1)
  evaluator.evaluate(2)
  assert sorted(p.parent.name for p in tmp_path.glob('eval/*/bbox.json')) == ['step-00000002']
  assert len(list(tmp_path.glob('eval/*/predictions.png'))) == 2
  make(tmp_path / 'b', save_results=False, num_pictures=0).evaluate(1)
  assert [p.name for p in (tmp_path / 'b').glob('eval/*/*')] == ['categories.csv']


@pytest.mark.parametrize('rows', [((0, 1),), ((0, 1), (2, 2))])
def test_missing_or_repeated_images_are_user_errors(tmp_path, rows):
  with pytest.raises(UserError, match='three: evaluation saw'):
    make(tmp_path, eval_input=TwoBatches(rows)).evaluate(1)


def test_a_failed_write_is_logged_in_one_line(tmp_path, caplog):
  (tmp_path / 'eval').write_text('a file instead of a folder')
  metrics = make(tmp_path).evaluate(1)
  assert metrics['box/AP'] == pytest.approx(100.0)
  assert RunFolder(str(tmp_path)).read_metrics()[-1]['box/AP'] == pytest.approx(100.0)
  assert [r.message for r in caplog.records if 'could not be written' in r.message and '\n' not in r.message]


def test_unknown_choices_are_user_errors(tmp_path):
  with pytest.raises(UserError, match='mask_paste'):
    make(tmp_path, mask_paste='exact')
  with pytest.raises(UserError, match='backend'):
    make(tmp_path, backend='mine')
  with pytest.raises(UserError, match='^CocoEvaluator.num_pictures = -1: use 0 or more$'):
    make(tmp_path, num_pictures=-1)


def steps_taken(evaluator, steps):
  """Call the hooks of a callback as `fit` does, for iterations up to `steps`; yield after each iteration."""
  iterations = tf.Variable(0)
  evaluator.set_model(types.SimpleNamespace(optimizer=types.SimpleNamespace(iterations=iterations)))
  evaluator.on_train_begin()
  for step in range(1, steps + 1):
    iterations.assign(step)
    evaluator.on_train_batch_end(step - 1)
    yield step
  evaluator.on_train_end()



def evaluated(path):
  return [line['step'] for line in RunFolder(str(path)).read_metrics() if line['kind'] == 'eval']


class Blocked(ThreeImages):
  """A source whose annotations are blocked until `go` is set; then they are returned, or `failure` is raised."""

  def __init__(self, failure=None):
    self.reached, self.go, self.failure = threading.Event(), threading.Event(), failure

  def annotations(self):
    self.reached.set()
    assert self.go.wait(60)
    if self.failure is not None:
      raise self.failure
    return super().annotations()


def test_training_continues_while_scoring_is_blocked(tmp_path):
  source = Blocked()
  evaluator = make(tmp_path, source=source, every=2, at_end=False)
  steps = steps_taken(evaluator, 3)
  assert [next(steps), next(steps), next(steps)] == [1, 2, 3]
  assert source.reached.wait(60) and not evaluated(tmp_path) and not evaluator.last
  threading.Timer(0.2, source.go.set).start()
  assert not list(steps)  # on_train_end waits
  assert evaluated(tmp_path) == [2] and evaluator.last['box/AP'] == pytest.approx(100.0)
  assert (tmp_path / 'eval/step-00000002/predictions.png').exists()


def test_results_during_training_equal_those_of_a_direct_evaluation(tmp_path):
  direct, training = make(tmp_path / 'direct'), make(tmp_path / 'training', every=2)
  direct.evaluate(2)
  list(steps_taken(training, 2))
  assert training.last == direct.last
  lines = [RunFolder(str(tmp_path / name)).read_metrics()[-1] for name in ('direct', 'training')]
  for line in lines:
    assert line.pop('eval_seconds') >= line.pop('predict_seconds') >= 0 and line.pop('time')
  assert lines[0] == lines[1] and list(lines[0]) == list(lines[1])
  files = [{p.name: p.read_bytes() for p in (tmp_path / name / 'eval').rglob('*.*') if p.is_file()}
           for name in ('direct', 'training')]
  for each in files:
    each['ground_truth.json'] = {**json.loads(each['ground_truth.json']), 'evaluated': None}  # when
  assert files[0] == files[1]
  assert set(files[0]) == {'bbox.json', 'segm.json', 'ground_truth.json', 'categories.csv', 'predictions.png'}


def test_the_next_evaluation_waits_for_the_previous_one(tmp_path, caplog, see_logs):
  source = Blocked()
  evaluator = make(tmp_path, source=source, every=1, at_end=False, num_pictures=0)
  steps = steps_taken(evaluator, 3)
  next(steps)
  assert source.reached.wait(60)
  threading.Timer(0.2, source.go.set).start()
  next(steps)
  assert evaluated(tmp_path)[0] == 1  # the first is complete before the second begins
  assert 'step 2 waits for the scoring of step 1' in caplog.text
  list(steps)
  assert evaluated(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize('averages', [False, True])
def test_scoring_is_waited_for_before_the_process_ends(tmp_path, averages, caplog):
  """After SIGTERM training resumes from a later step, at which that evaluation is not due again."""
  source = Blocked()
  evaluator = of_weights = make(tmp_path, source=source, every=2)
  if averages:
    evaluator = EvaluatorWithAverages(of_weights, make(tmp_path / 'ema'), None)
  evaluator.settle(60)  # nothing to wait for
  of_weights.start(2)
  evaluator.settle(0.0)
  assert not evaluated(tmp_path) and 'the evaluation at step 2 was not complete after 0 s' in caplog.text
  threading.Timer(0.2, source.go.set).start()
  evaluator.settle(60)
  assert evaluated(tmp_path) == [2]


def test_an_error_of_scoring_is_raised_at_the_next_step(tmp_path):
  failure = UserError('annotations.json: gone')
  source = Blocked(failure)
  evaluator = make(tmp_path, source=source, every=2)
  steps = steps_taken(evaluator, 1000)
  assert [next(steps), next(steps), next(steps)] == [1, 2, 3]
  source.go.set()
  with pytest.raises(UserError, match='gone') as error:
    list(steps)
  assert error.value is failure and evaluated(tmp_path) == []


def test_an_error_of_scoring_is_raised_at_the_end_of_training(tmp_path):
  failure = UserError('annotations.json: gone')
  source = Blocked(failure)
  source.go.set()
  with pytest.raises(UserError) as error:
    list(steps_taken(make(tmp_path, source=source), 1))
  assert error.value is failure
  with pytest.raises(UserError, match='gone'):
    make(tmp_path, source=source).evaluate(1)


def test_the_table_is_printed_in_one_write(tmp_path, monkeypatch):
  written = []
  monkeypatch.setattr('sys.stdout', types.SimpleNamespace(write=written.append, flush=lambda: None,
                                                          isatty=lambda: False))
  make(tmp_path).evaluate(3)
  (table,) = filter(None, written)
  assert table.startswith('evaluation at step 3') and table.endswith('\n')


def test_ground_truth_of_coco_dev_through_the_pipeline(real_images, tmp_path):
  """Boxes scaled to the padded shape and back, masks at 28 x 28: box AP 100, mask AP close to it."""
  source = CocoSource(str(real_images / 'coco_dev'), split='val2017', num_images=30)

  def detect(batch):
    crops = tf.cast(batch.gt_masks, tf.float32)
    masks = tf.reduce_mean(tf.reshape(crops, (*crops.shape[:2], 28, 4, 28, 4)), axis=(3, 5))
    return Detections(batch.gt_boxes, tf.cast(batch.gt_classes > 0, tf.float32), batch.gt_classes, masks)

  inputs = EvalInput(source, 4, SMALL)
  metrics = CocoEvaluator(inputs, detect, source, RunFolder(str(tmp_path))).evaluate(7)
  assert metrics['box/AP'] == pytest.approx(100.0)
  assert metrics['mask/AP'] > 98.0
  folder = tmp_path / 'eval/step-00000007'
  for kind, iou_type in (('box', 'bbox'), ('mask', 'segm')):
    expected = coco_metrics.evaluate(
      source.annotations(), json.loads((folder / f'{iou_type}.json').read_text()), iou_type, 'pycocotools').metrics
    for name, value in expected.items():
      assert metrics[f'{kind}/{name}'] == pytest.approx(100 * value if value >= 0 else -1, abs=1e-12)
  detectron = CocoEvaluator(inputs, detect, source, RunFolder(str(tmp_path)), mask_paste='detectron')
  assert metrics['mask/AP'] > detectron.evaluate(8)['mask/AP'] > 60.0


def some_files(folder, missing=(), damaged=(), images=6):
  """Held-out images 1 ..., one object each, of which some files are gone or damaged."""
  entries = [small_coco.image(i) for i in range(1, images + 1)]
  small_coco.write(folder, entries, [small_coco.annotation(i, i) for i in range(1, images + 1)], split='val')
  for i in missing:
    (folder / 'val' / small_coco.image(i)['file_name']).unlink()
  for i in damaged:
    (folder / 'val' / small_coco.image(i)['file_name']).write_bytes(b'no image')
  return CocoSource(str(folder), 'val')


def detect_objects(batch):
  """Return the object of every image that exists, grey ones included."""
  boxes = [[small_coco_box(image_id, scale)] for image_id, scale in zip(batch.image_ids, batch.scales, strict=True)]
  found = tf.cast(batch.image_ids >= 0, tf.int32)[:, None]
  return Detections(tf.constant(boxes, tf.float32), tf.cast(found, tf.float32), found)


def small_coco_box(image_id, scale):
  x, y, w, h = small_coco.annotation(1)['bbox']
  return np.array([y, x, y + h, x + w]) * np.tile(scale, 2) if image_id >= 0 else np.zeros(4)


@pytest.mark.parametrize('workers', [1, 2])
def test_missing_and_unreadable_images_are_not_scored(tmp_path, capsys, workers):
  source = some_files(tmp_path, missing=[2], damaged=[5])
  evaluators = [CocoEvaluator(EvalInput(source, 1, Resize((60,), 80), max_unreadable=0.5), detect_objects, source,
                              RunFolder(str(tmp_path / 'run'))) for _ in range(workers)]
  for index, one in reversed(list(enumerate(evaluators))):  # the chief last, in this one process
    one.workers = Workers(index, workers, 'token')
    one.start(3)
    one.finish()
  assert evaluators[0].last['box/AP'] == pytest.approx(100.0)
  line = RunFolder(str(tmp_path / 'run')).read_metrics()[-1]
  assert (line['images_scored'], line['images_missing'], line['images_unreadable']) == (4, 1, 1)
  printed = capsys.readouterr().out
  assert 'evaluation at step 3: 4 of 6 images' in printed and '(1 missing, 1 unreadable)' in printed
  truth = json.loads((tmp_path / 'run/eval/step-00000003/ground_truth.json').read_text())
  assert [image['id'] for image in truth['images']] == [1, 3, 4, 6]


def test_too_many_unreadable_images_are_one_line(tmp_path):
  source = some_files(tmp_path, damaged=[2, 3, 5])
  inputs = EvalInput(source, 2, Resize((60,), 80))
  with pytest.raises(UserError, match='[23] of the first . images cannot be read, more than EvalInput.max_unread'):
    CocoEvaluator(inputs, detect_objects, source, RunFolder(str(tmp_path / 'run'))).evaluate(3)
  all_damaged = some_files(tmp_path / 'b', damaged=range(1, 7))
  inputs = EvalInput(all_damaged, 2, Resize((60,), 80), max_unreadable=1.0)
  with pytest.raises(UserError, match='none of the 6 images can be read'):
    CocoEvaluator(inputs, detect_objects, all_damaged, RunFolder(str(tmp_path / 'run'))).evaluate(3)


def detect_keypoints(batch):
  """Return the ground truth, with higher scores for objects with keypoints: detections of the others count as false."""
  labelled = tf.reduce_any(batch.gt_keypoints[..., 2] > 0, axis=-1)
  scores = tf.where(batch.gt_classes > 0, tf.where(labelled, 1.0, 0.5), 0.0)
  return Detections(batch.gt_boxes, scores, batch.gt_classes, None, batch.gt_keypoints)


def test_keypoints_of_coco_dev_through_the_pipeline(real_images, tmp_path):
  """Keypoints scaled to the padded shape and back have AP 100; noisy ones score as pycocotools scores the file."""

  source = CocoSource(str(real_images / 'coco_dev'), split='val2017', keypoints=True,
                      annotation_file='annotations/person_keypoints_val2017.json')
  rng = np.random.default_rng(0)

  def detect_noisy_keypoints(batch):
    noise = rng.normal(0, 4, batch.gt_keypoints.shape) * [1, 1, 0]
    return detect_keypoints(batch._replace(gt_keypoints=batch.gt_keypoints + tf.cast(noise, tf.float32)))

  inputs = EvalInput(source, 4, SMALL)
  exact = CocoEvaluator(inputs, detect_keypoints, source, RunFolder(str(tmp_path))).evaluate(1)
  assert exact['keypoint/AP'] == pytest.approx(100.0) and exact['box/AP'] == pytest.approx(100.0)
  noisy = CocoEvaluator(inputs, detect_noisy_keypoints, source, RunFolder(str(tmp_path))).evaluate(2)
  assert 10 < noisy['keypoint/AP'] < 90
  written = json.loads((tmp_path / 'eval/step-00000002/keypoints.json').read_text())
  assert len(written[0]['keypoints']) == 51 and 'bbox' not in written[0]
  expected = coco_metrics.evaluate(source.annotations(), written, 'keypoints', 'pycocotools').metrics
  for name, value in expected.items():
    assert noisy[f'keypoint/{name}'] == pytest.approx(100 * value if value >= 0 else -1, abs=1e-12)
  assert (tmp_path / 'eval/step-00000002/categories.csv').read_text().splitlines()[0].endswith('keypoint/AR')


def test_sigmas_of_another_number_of_keypoints(tmp_path):
  """1/P each by default, with the P keypoints of drawn shapes."""
  from rethink_tf.data.detection.synthetic import SyntheticSource

  source = SyntheticSource(6, split='val', num_classes=3)
  number = source.num_keypoints

  def shifted(batch):
    return detect_keypoints(batch._replace(gt_keypoints=batch.gt_keypoints + [1.5, 0.0, 0.0]))

  inputs, aps = EvalInput(source, 2, SMALL), {}
  for sigmas in (None, (1 / number,) * number, (0.02,) * number):
    evaluator = CocoEvaluator(inputs, shifted, source, RunFolder(str(tmp_path)), keypoint_sigmas=sigmas,
                              num_pictures=0)
    aps[sigmas] = evaluator.evaluate(1)['keypoint/AP']
  default, explicit, strict = aps.values()
  assert default == explicit > strict
  with pytest.raises(UserError, match='keypoint_sigmas has 2 numbers'):
    CocoEvaluator(inputs, shifted, source, RunFolder(str(tmp_path)), keypoint_sigmas=(0.1, 0.1))


@pytest.mark.parametrize('count', [2, 3])  # of three workers one has no batch
def test_workers_score_each_image_once(tmp_path, count, capsys):
  metrics = make(tmp_path / 'alone').evaluate(20)
  capsys.readouterr()
  evaluators = [make(tmp_path / 'shared') for _ in range(count)]
  for index, one in enumerate(evaluators):
    one.workers = Workers(index, count, 'token')
  for one in reversed(evaluators):  # the chief last, in this one process
    one.start(20)
  for one in evaluators:
    one.finish()
  assert evaluators[0].last == metrics and all(one.last == {} for one in evaluators[1:])
  for name in ('bbox.json', 'segm.json', 'categories.csv'):
    one, other = (tmp_path / path / 'eval/step-00000020' / name for path in ('alone', 'shared'))
    assert one.read_bytes() == other.read_bytes(), name
  assert len(RunFolder(str(tmp_path / 'shared')).read_metrics()) == 1
  assert capsys.readouterr().out.count('evaluation at step 20') == 1
  assert list((tmp_path / 'shared/gather').iterdir()) == []


def test_missing_results_of_a_worker_are_an_error(tmp_path):
  chief = make(tmp_path)
  chief.workers = Workers(0, 2, 'token', timeout=0.1)
  with pytest.raises(WorkerLost, match='worker 1 has sent no detections-20'):
    chief.evaluate(20)


def test_data_without_masks_is_recognized(tmp_path):
  """By the outline that sources give to boxes, in every source; a rectangle that is annotated is a mask."""
  from rethink_tf.data.conversion import convert
  from rethink_tf.data.detection.records import RecordSource

  found = [small_coco.annotation(i, i, (3.25, 4.5, 20.1, 30.7)) for i in (1, 2)]
  masks = CocoSource(small_coco.write(tmp_path / 'a', [small_coco.image(i) for i in (1, 2)], found, split='val'), 'val')
  for one in found:
    del one['segmentation']
  boxes = CocoSource(small_coco.write(tmp_path / 'b', [small_coco.image(i) for i in (1, 2)], found, split='val'), 'val')
  convert(boxes, str(tmp_path / 'c'), 'val', num_shards=1)
  sources = [masks, boxes, RecordSource(str(tmp_path / 'c'), 'val')]
  assert [without_masks(source.annotations()['annotations']) for source in sources] == [False, True, True]
  assert not without_masks([])
