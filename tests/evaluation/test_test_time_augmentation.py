"""Test-time augmentation: merging against NumPy, symmetry under mirroring, one view against plain prediction."""

import functools
import types

import cv2
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf import experiment, gin_files
from rethink_tf.data.augment import Resize
from rethink_tf.data.categories import Category
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.errors import UserError
from rethink_tf.evaluation import on_demand
from rethink_tf.evaluation import test_time_augmentation as tta
from rethink_tf.models.classifier import Classifier
from rethink_tf.models.keypoints import KeypointHead
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rois import DetectionGenerator
from rethink_tf.structures import Detections, Views
from rethink_tf.training.trainer import Trainer
from tests import tiny

ORDER = (0, 2, 1, 4, 3)  # flip_order of the tiny.KEYPOINTS keypoints
SOURCE = functools.partial(SyntheticSource, 4, image_size=(64, 96), object_size=(16, 40), num_classes=tiny.CLASSES)
GENERATOR = functools.partial(DetectionGenerator, score_threshold=0.3, max_detections=20)

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


def trainer_of(detector):
  """Return a trainer of the detector, with weights that give distinct scores and shifted boxes."""
  batch = tiny.batch(1)
  detector(batch.images, batch.image_sizes)
  for i, variable in enumerate(detector.variables):
    if 'predictor' in variable.name and 'kernel' in variable.name:
      wide = 0.05 if 'deltas' in variable.name else 0.3
      variable.assign(tf.random.stateless_normal(variable.shape, [i, 7], stddev=wide))
  return Trainer(detector, losses=None)


@functools.cache
def trainer(kind):
  settings = {'plain': {}, 'faster': {'mask_head': None}, 'cascade': {'cascade': tiny.cascade()}, 'xla': {'xla': True}}
  make = tiny.keypoint_detector if kind == 'keypoints' else functools.partial(tiny.detector, **settings[kind])
  return trainer_of(make(detection_generator=GENERATOR()))


@functools.cache
def predictor(kind, **settings):
  """Return the predictor of a detector, and its TestTimeAugmentation."""
  augmentation = tta.TestTimeAugmentation(**({'flip_order': ORDER} | settings))
  return augmentation.predictor(trainer(kind), SOURCE()), augmentation


def resized_views(images, sizes, columns=None):
  """Return views of square images uint8 [B, s, s, 3], cropped to the first `columns`, at some sizes."""
  b, side = images.shape[:2]
  width = side if columns is None else columns
  padded_shapes, shown = [], []
  for size in sizes:
    resized = tf.image.resize(images[:, :, :width], [size, round(width * size / side)])
    resized = tf.cast(tf.round(resized), tf.uint8)
    padded_shapes.append(tf.pad(resized, [[0, 0], [0, 0], [0, size - resized.shape[2]], [0, 0]]))
    shown.append(tf.constant([[size, resized.shape[2]]] * b, tf.float32))
  return Views(tf.range(b, dtype=tf.int64), tf.constant([[side, width]] * b, tf.int32), tuple(padded_shapes),
               tuple(shown), tuple(each / tf.constant([[side, width]], tf.float32) for each in shown))


def mirrored(views):
  return views._replace(images=tuple(tta.mirror(*pair, tf.constant(True))
                                     for pair in zip(views.images, views.image_sizes, strict=True)))


def mirror_boxes(boxes, width):
  return np.stack([boxes[..., 0], width - boxes[..., 3], boxes[..., 2], width - boxes[..., 1]], -1)


def random_images(number=1, side=64):
  return tiny.batch(number, side=side).images


def numpy_iou(a, b):
  low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
  common = np.maximum(high - low, 0).prod(2)
  areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (a, b)]
  return common / (areas[0][:, None] + areas[1] - common)


def numpy_nms(boxes, scores, threshold, iou, number):
  """Suppress greedily within each class: boxes float64 [N, K, 4], scores [N, K] -> boxes, scores, classes."""
  kept = []
  for k in range(scores.shape[1]):
    order = [i for i in np.argsort(-scores[:, k], kind='stable') if scores[i, k] > threshold]
    while order:
      best, *order = order
      kept.append((scores[best, k], k + 1, boxes[best, k]))
      order = [i for i in order if numpy_iou(boxes[None, best, k], boxes[None, i, k])[0, 0] <= iou]
  kept.sort(key=lambda one: -one[0])
  kept = kept[:number]
  return (np.array([one[i] for one in kept]) for i in (2, 0, 1))


def numpy_votes(box, class_, boxes, scores, threshold, iou):
  own, weights = boxes[:, class_ - 1], scores[:, class_ - 1]
  voters = (numpy_iou(box[None], own)[0] >= iou) & (weights > threshold)
  return (own[voters] * weights[voters, None]).sum(0) / weights[voters].sum()


def candidates(number, seed, classes=tiny.CLASSES):
  """Return clusters of similar boxes, as from several views: boxes [1, N, K, 4], scores [1, N, K]."""
  rng = np.random.default_rng(seed)
  centres = rng.uniform(20, 180, (6, 2))
  low = centres[rng.integers(6, size=(number, classes))] + rng.normal(0, 1, (number, classes, 2))
  boxes = np.concatenate([low, low + rng.normal(50, 1, (number, classes, 2))], -1).astype(np.float32)
  return boxes[None], rng.uniform(0, 1, (1, number, classes)).astype(np.float32)


def merge(views, **settings):
  found = [(tf.constant(boxes), tf.constant(scores), tf.ones(boxes.shape[:2], tf.bool)) for boxes, scores in views]
  return predictor('faster', **settings)[0].merge(found)


def test_suppression_and_voting_over_all_views_equal_numpy():
  views = [candidates(40, 0), candidates(25, 1)]
  plain, voted = merge(views, vote_iou=None), merge(views, vote_iou=0.8)
  boxes, scores = (np.concatenate(each, 1)[0].astype(np.float64) for each in zip(*views, strict=True))
  expected, expected_scores, classes = numpy_nms(boxes, scores, 0.3, 0.5, 20)
  n = len(expected)
  assert n > 12
  for found in (plain, voted):
    np.testing.assert_allclose(found.scores[0, :n], expected_scores, rtol=1e-6)  # voting does not change them
    np.testing.assert_array_equal(found.classes[0, :n], classes)
    assert not found.classes[0, n:].numpy().any() and not found.boxes[0, n:].numpy().any()
  np.testing.assert_allclose(plain.boxes[0, :n], expected, rtol=1e-6)
  votes = [numpy_votes(box, k, boxes, scores, 0.3, 0.8) for box, k in zip(expected, classes, strict=True)]
  np.testing.assert_allclose(voted.boxes[0, :n], votes, rtol=1e-5)
  assert np.abs(voted.boxes - plain.boxes).max() > 0.3


def test_voting_with_class_agnostic_boxes():
  boxes, scores = candidates(30, 2)
  shared = boxes[:, :, :1]
  voted = merge([(shared, scores)], vote_iou=0.7)
  expected, _, classes = numpy_nms(np.repeat(shared[0], 3, 1).astype(np.float64), scores[0], 0.3, 0.5, 20)
  votes = [numpy_votes(box, k, np.repeat(shared[0], 3, 1), scores[0], 0.3, 0.7)
           for box, k in zip(expected, classes, strict=True)]
  np.testing.assert_allclose(voted.boxes[0, :len(votes)], votes, rtol=1e-5)


def test_low_scores_give_no_detections():
  boxes, scores = candidates(5, 3)
  found = merge([(boxes, scores * 0.1)], vote_iou=0.9)
  assert not found.scores.numpy().any() and not found.classes.numpy().any() and not found.boxes.numpy().any()


def test_detectron_and_detectron2_merge_differently():
  """A suppresses C in the first view, B of the second A but not C: C survives only if candidates are merged."""
  a, b, c = [0, 0, 100, 100], [-40, 0, 60, 100], [30, 0, 130, 100]
  one = np.float32([[a, c]])[:, :, None], np.float32([[[0.8], [0.7]]]) * [1, 0, 0]
  two = np.float32([[b]])[:, :, None], np.float32([[[0.9]]]) * [1, 0, 0]
  generator = GENERATOR()
  generator.nms_iou = 0.4
  view = generator.select(*(tf.constant(x, tf.float32) for x in one), tf.ones([1, 2], tf.bool))
  assert view.classes[0].numpy().tolist()[:2] == [1, 0]  # C is suppressed within the view
  trainer('faster').detector.detection_generator.nms_iou = 0.4
  try:
    union = merge([tuple(np.float32(x) for x in view) for view in (one, two)], vote_iou=None)
    finals = merge([(np.float32([[a]])[:, :, None], np.float32([[[0.8, 0, 0]]])), tuple(np.float32(x) for x in two)],
                   merge='detections', vote_iou=None)
  finally:
    trainer('faster').detector.detection_generator.nms_iou = 0.5
  np.testing.assert_allclose(union.scores[0, :3], [0.9, 0.7, 0])
  np.testing.assert_allclose(finals.scores[0, :3], [0.9, 0, 0])


@pytest.mark.parametrize('kind, merge', [
  pytest.param('plain', 'candidates', marks=pytest.mark.slow),
  pytest.param('cascade', 'candidates', marks=pytest.mark.slow), ('faster', 'detections')])
def test_one_view_equals_plain_prediction(kind, merge):
  resize = Resize((64,), 96)
  plain = EvalInput(SOURCE(), 2, resize)
  predict, settings = predictor(kind, views=((64, 96),), flip=False, merge=merge, vote_iou=None)
  views = settings.views_of(plain)
  assert views.num_batches == plain.num_batches
  batch, view = (next(iter(inputs.dataset())) for inputs in (plain, views))
  for field in ('image_ids', 'original_sizes', 'scales'):
    np.testing.assert_array_equal(getattr(view, field), getattr(batch, field))
  np.testing.assert_array_equal(view.images[0], batch.images)
  expected, found = trainer(kind).predict_batch(batch), predict(view)
  assert (expected.classes.numpy() > 0).sum() > 5
  assert (found.masks is None) == (expected.masks is None) == (kind == 'faster')
  for name, ours, theirs in zip(Detections._fields, found, expected, strict=True):
    if theirs is not None:
      np.testing.assert_array_equal(ours, theirs, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['keypoints', 'cascade', 'xla'])
def test_a_mirrored_image_gives_mirrored_detections(kind):
  """At two sizes, with padding of different widths."""
  views = resized_views(random_images(), (64, 96), columns=51)
  predict, _ = predictor(kind, views=((64, 64), (96, 96)), vote_iou=0.8, keypoint_area=300.0)
  found, other = predict(views), predict(mirrored(views))
  n = int((found.classes[0].numpy() > 0).sum())
  assert n > 5
  np.testing.assert_allclose(other.scores, found.scores, rtol=1e-5)
  np.testing.assert_array_equal(other.classes, found.classes)
  np.testing.assert_allclose(other.boxes[0, :n], mirror_boxes(found.boxes[0, :n].numpy(), 51), atol=1e-3)
  assert found.boxes[0, :n].numpy()[:, 3].max() <= 51.001  # inside the image, not in its padding
  if kind == 'keypoints':
    points = np.array(found.keypoints[0, :n])[:, ORDER]
    points[..., 1] = 50 - points[..., 1]
    shown = np.array(other.keypoints[0, :n])
    np.testing.assert_allclose(shown[..., 2], points[..., 2], rtol=1e-4)  # the height of each maximum
    # Between two equally high pixels rounding decides, which differs between processors.
    assert (np.abs(shown[..., :2] - points[..., :2]).max(-1) < 0.05).mean() > 0.7
  else:
    np.testing.assert_allclose(other.masks[0, :n], found.masks[0, :n, :, ::-1], atol=1e-4)


@pytest.mark.slow
def test_masks_are_means_over_the_views():
  views = resized_views(random_images(), (64, 128))
  predict, _ = predictor('plain', views=((64, 64), (128, 128)), flip=False)
  found = predict(views)
  masks = []
  for i, factor in ((0, 1.0), (1, 2.0)):
    detector = trainer('plain').detector
    features = detector.fpn(detector.backbone(detector.normalise(views.images[i], views.image_sizes[i])))
    at = Detections(found.boxes * factor, found.scores, found.classes)
    masks.append(detector.detect_masks(tta.roi_pyramid(features), at).masks.numpy())
  assert np.abs(masks[0] - masks[1]).max() > 0.01
  np.testing.assert_allclose(found.masks, (masks[0] + masks[1]) / 2, atol=1e-5)


@pytest.mark.slow
def test_masks_and_keypoints_of_all_views_equal_numpy():
  """Views of other sizes and padding, each mirrored: a second computation, image by image and view by view."""
  sizes = ((64, 96), (40, 200), (90, 200))
  one = trainer_of(tiny.detector(detection_generator=GENERATOR(), keypoint_head=KeypointHead(2, 32),
                                 num_keypoints=tiny.KEYPOINTS))
  settings = tta.TestTimeAugmentation(sizes, flip_order=ORDER, vote_iou=0.8, keypoint_area=26.0**2)
  source = SyntheticSource(3, image_size=(61, 93), object_size=(16, 40), num_classes=tiny.CLASSES)
  for views in settings.views_of(EvalInput(source, 2, Resize((64,), 96))).dataset():
    found = settings.predictor(one, source)(views)
    for row in np.flatnonzero(views.image_ids.numpy() >= 0):
      check_one_image(one.detector, [[np.asarray(part)[row] for part in view] for view in zip(*views[2:], strict=True)],
                      Detections(*(None if field is None else field[row].numpy() for field in found)))


def check_one_image(detector, views, found):
  """Compare the detections of an image in its views (pixels, size, scale) with NumPy's."""
  both = [(*view, flipped) for view in views for flipped in (False, True)]
  first, features, boxes, scores = views[0][2], [], [], []

  def to_view(boxes, size, scale, flipped):
    there = boxes / np.tile(first, 2) * np.tile(scale, 2)
    return mirror_boxes(there, size[1]) if flipped else there

  for pixels, size, scale, flipped in both:
    image, width = pixels.copy(), int(size[1])
    if flipped:
      image[:, :width] = pixels[:, :width][:, ::-1]
    features.append(detector.fpn(detector.backbone(detector.normalise(image[None], size[None]))))
    _, proposals = detector.propose(features[-1], size[None], False)
    _, own, probabilities = detector.score_boxes(tta.roi_pyramid(features[-1]), proposals, size[None])
    valid = proposals.valid[0].numpy()
    own = own[0].numpy()[valid].astype(np.float64)
    boxes.append((mirror_boxes(own, size[1]) if flipped else own) / np.tile(scale, 2) * np.tile(first, 2))
    scores.append(probabilities[0].numpy()[valid])
  boxes, scores = np.concatenate(boxes), np.concatenate(scores)
  kept, best, classes = numpy_nms(boxes, scores, 0.3, 0.5, 20)
  n = len(kept)
  assert n > 5 and not found.classes[n:].any()
  np.testing.assert_allclose(found.scores[:n], best, rtol=1e-4)
  np.testing.assert_array_equal(found.classes[:n], classes)
  voted = np.array([numpy_votes(box, k, boxes, scores, 0.3, 0.8) for box, k in zip(kept, classes, strict=True)])
  np.testing.assert_allclose(found.boxes[:n], voted, atol=2e-3)

  masks, maps, counted = [], [], []
  for (_, size, scale, flipped), pyramid in zip(both, map(tta.roi_pyramid, features), strict=True):
    at = Detections(tf.constant(to_view(voted, size, scale, flipped)[None], tf.float32), best[None],
                    tf.constant(classes[None], tf.int32))
    mask = detector.detect_masks(pyramid, at).masks[0].numpy()
    heat = detector.keypoint_logits(pyramid, at.boxes, at.classes > 0)[0].numpy()
    masks.append(mask[..., ::-1] if flipped else mask)
    maps.append(heat[:, ORDER][..., ::-1] if flipped else heat)
    small = ((voted[:, 2:] - voted[:, :2]) / first).prod(1) <= 26.0**2
    counted.append(np.where(small, scale[0] >= first[0], scale[0] <= first[0]))
  np.testing.assert_allclose(found.masks[:n], np.mean(masks, 0), atol=2e-4)
  assert not found.masks[n:].any()
  weights = np.array(counted, np.float64)
  assert set(weights.sum(0)) == {4.0}  # two views of three, both ways
  mean = np.einsum('vn,vnpyx->npyx', weights, np.array(maps)) / 4
  for i, (y0, x0, y1, x1) in enumerate(voted):
    height, width = max(y1 - y0, 1), max(x1 - x0, 1)
    rows, columns = int(np.ceil(height)), int(np.ceil(width))
    for point, heat in zip(found.keypoints[i], mean[i], strict=True):
      resized = cv2.resize(heat.astype(np.float32), (columns, rows), interpolation=cv2.INTER_CUBIC)
      y, x = (point[:2] + 0.5 - (y0, x0)) / (height / rows, width / columns) - 0.5  # the pixel that was chosen
      assert abs(y - round(y)) < 0.05 and abs(x - round(x)) < 0.05
      assert resized[round(y), round(x)] >= resized.max() - 1e-3 * np.ptp(resized)
      np.testing.assert_allclose(point[2], 1 / np.exp(heat - resized.max()).sum(), rtol=5e-3)


@pytest.mark.slow
def test_detectron2_merging_selects_from_the_boxes_of_the_views():
  views = resized_views(random_images(), (64, 96))
  single = [predictor('faster', views=((size, size),), flip=False, vote_iou=None)[0] for size in (64, 96)]
  finals = [predict(views._replace(images=views.images[i:i + 1], image_sizes=views.image_sizes[i:i + 1],
                                   view_scales=views.view_scales[i:i + 1])) for i, predict in enumerate(single)]
  pool = np.concatenate([finals[0].boxes[0], finals[1].boxes[0] / 1.5])
  both, _ = predictor('faster', views=((64, 64), (96, 96)), flip=False, merge='detections', vote_iou=None)
  found = both(views)
  boxes = found.boxes[0].numpy()[found.classes[0].numpy() > 0]
  nearest = np.abs(boxes[:, None] - pool).max(2)
  assert len(boxes) > 5 and nearest.min(1).max() < 1e-3
  assert {int(i) // 20 for i in nearest.argmin(1)} == {0, 1}  # from both views


def test_size_dependent_keypoints():
  predict, _ = predictor('keypoints', views=((64, 64), (96, 96), (32, 32)), keypoint_area=30.0 * 30)
  boxes = tf.constant([[[0, 0, 20, 20], [0, 0, 60, 60]]], tf.float32)
  one = tf.ones([1, 2])
  counts = [predict._counts(boxes, scale * one, one).numpy()[0].tolist() for scale in (1.0, 1.5, 0.5)]
  assert counts == [[True, True], [True, False], [False, True]]  # small ones from large views and vice versa
  half = predict._counts(boxes, 0.5 * one, 0.5 * one).numpy()  # the area is in original pixels
  assert half.all()
  assert not predict._counts(boxes * 0.5, 0.4 * one, 0.5 * one).numpy()[0, 0]


def test_mirroring_leaves_the_padding_in_place():
  images = np.random.default_rng(0).integers(1, 255, (2, 8, 10, 3), np.uint8)
  images[0, :, 6:] = 0
  sizes = tf.constant([[8.0, 6.0], [8.0, 10.0]])
  found = tta.mirror(tf.constant(images), sizes, tf.constant(True)).numpy()
  np.testing.assert_array_equal(found[0, :, :6], images[0, :, 5::-1])
  assert not found[0, :, 6:].any()
  np.testing.assert_array_equal(found[1], images[1, :, ::-1])
  np.testing.assert_array_equal(tta.mirror(tf.constant(images), sizes, tf.constant(False)), images)


def test_from_first_view_inverts_to_first_view():
  boxes = tf.constant(np.random.default_rng(1).uniform(0, 50, (2, 7, 3, 4)), tf.float32)
  sizes, scales = tf.constant([[60.0, 80.0], [50.0, 70.0]]), tf.constant([[1.5, 1.6], [2.0, 1.9]])
  first = tf.constant([[0.7, 0.8], [1.1, 1.2]])
  for flag in (False, True):
    moved = tta.to_first_view(boxes, sizes, scales, first, tf.constant(flag))
    np.testing.assert_allclose(tta.from_first_view(moved, sizes, scales, first, tf.constant(flag)), boxes, atol=1e-3)
    expected = mirror_boxes(boxes[1, 0].numpy(), 70) if flag else boxes[1, 0].numpy()
    np.testing.assert_allclose(moved[1, 0], expected * np.array([0.55, 1.2 / 1.9] * 2), rtol=1e-4)


@pytest.mark.slow
def test_two_devices_equal_one(two_replicas):
  views = resized_views(random_images(2), (64, 96))
  settings = tta.TestTimeAugmentation(((64, 64), (96, 96)))
  expected = settings.predictor(trainer('plain'), SOURCE())(views)
  with two_replicas.scope():
    shared = trainer_of(tiny.detector(detection_generator=GENERATOR()))
  for ours, theirs in zip(shared.detector.variables, trainer('plain').detector.variables, strict=True):
    ours.assign(theirs)
  found = settings.predictor(shared, SOURCE())(views)
  for ours, theirs in zip(found[:4], expected[:4], strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize('settings, message', [
  (dict(views=()), 'views'), (dict(views=((800,),)), 'views'), (dict(views=((800, 400),)), 'short_side'),
  (dict(merge='both'), 'merge'), (dict(vote_iou=0.0), 'vote_iou'), (dict(vote_iou=1.1), 'vote_iou')])
def test_impossible_settings_are_user_errors(settings, message):
  with pytest.raises(UserError, match=message) as error:
    tta.TestTimeAugmentation(**settings)
  assert '\n' not in str(error.value)


def test_unsupported_models_are_user_errors():
  with pytest.raises(UserError, match='keypoints'):
    tta.TestTimeAugmentation(merge='detections').predictor(trainer('keypoints'), SOURCE())
  with pytest.raises(UserError, match='detections'):
    tta.TestTimeAugmentation().predictor(Trainer(Classifier(3, ResNet(14)), None), SOURCE())


@pytest.mark.parametrize('order', [(0, 1), (0, 2, 1, 4, 5), (0, 0, 0, 0, 0)])
def test_a_flip_order_that_is_none_of_the_keypoints(order):
  with pytest.raises(UserError, match=r'flip_order = \(0, .*\): give each of 0 to 4 once'):
    tta.TestTimeAugmentation(flip_order=order).predictor(trainer('keypoints'), SOURCE())
  tta.TestTimeAugmentation(flip_order=order).predictor(trainer('plain'), SOURCE())  # has no keypoints


def test_flip_order_from_the_names_of_keypoints():
  """As in images of people; the drawn shapes of the other tests have no named keypoints."""
  names = ('nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear')
  source = types.SimpleNamespace(categories=(Category(1, 'person', names),), num_keypoints=len(names))
  assert tta.TestTimeAugmentation().predictor(trainer('keypoints'), source).flip_order.tolist() == list(ORDER)
  assert tta.TestTimeAugmentation().predictor(trainer('plain'), source).flip_order.tolist() == []


def test_sides_are_exchanged_by_the_pairs_of_each_category():
  hand, ear = Category(1, 'person', ('nose', 'left', 'right')), Category(2, 'dog', ('left', 'right', 'tail'))
  source = types.SimpleNamespace(categories=(hand, ear), num_keypoints=3)
  order = tta.TestTimeAugmentation().predictor(trainer('keypoints'), source).flip_order
  maps = tf.reshape(tf.range(6), [1, 2, 3, 1, 1])
  assert tta.exchange_sides(maps, tf.constant([[1, 2]]), order)[..., 0, 0].numpy().tolist() == [[[0, 2, 1], [4, 3, 5]]]


@pytest.mark.slow
def test_evaluate_with_one_gin_file(tmp_path):
  """A checkpoint of random weights, evaluated with Detectron's augmentation."""
  params = (
    *tiny.GIN, 'train/synthetic.num_images = 8', 'eval/synthetic.num_images = 3', 'ResNet.depth = 14',
    "strategy.kind = 'one_device'", 'synthetic.image_size = (64, 64)', 'synthetic.object_size = (16, 40)',
    'DetectionGenerator.score_threshold = 0.001', 'TestTimeAugmentation.views = ((64, 64), (96, 96))')
  gin_files.parse(['gin_configs/demo.gin', 'gin_configs/augment/tta_detectron.gin'], params)
  built = experiment.run('evaluate', str(tmp_path))
  assert built.checkpoints.save(0, built.trackables, {})
  metrics = on_demand.evaluate(built)
  assert {'box/AP', 'mask/AP'} <= set(metrics) and all(np.isfinite(value) for value in metrics.values())
  assert len(list((tmp_path / 'eval').glob('*/bbox.json'))) == 1
