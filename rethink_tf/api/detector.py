"""A trained detector in memory, called on arrays, files and folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rethink_tf.api.arguments import (
  Path,
  bindings,
  boolean,
  configuration,
  errors_in_one_line,
  number,
  path,
  paths,
  positive_integer,
)
from rethink_tf.errors import UserError, excerpt

if TYPE_CHECKING:
  from rethink_tf.data.categories import Category
  from rethink_tf.evaluation.postprocessing import ImageDetections
  from rethink_tf.predict.detectors import TrainedDetector
  from rethink_tf.predict.image_files import UnannotatedImages

Image = Path | np.ndarray  # an image file, a folder of them, or uint8 [h, w, 3] RGB or [h, w] grey


class Detections(NamedTuple):
  """Detections of one image, in its pixels, highest score first."""

  name: str | int  # path of the image file, or index of the array in the input
  size: tuple[int, int]  # height, width
  boxes: np.ndarray  # float32 [n, 4] y0, x0, y1, x1
  scores: np.ndarray  # float32 [n]
  classes: np.ndarray  # int64 [n] 1..K
  class_names: list[str]  # [n]
  masks: np.ndarray | None  # bool [n, h, w]; None from a detector without masks
  keypoints: np.ndarray | None  # float32 [n, P, 3] y, x, score; None from a detector without keypoints


class Detector:
  """A trained detector in memory.

  Weights are loaded once, and the network is traced once for each padded shape: the first image of a shape takes
  seconds longer. Create one with `from_run` or `from_saved_model`.
  """

  def __init__(self, detector: TrainedDetector):
    self._detector = detector

  @classmethod
  @errors_in_one_line()
  def from_run(cls, model_dir: Path, checkpoint: str | int = 'latest', averages: bool = False, batch: int = 1,
               gin_files: Path | Sequence[Path] = (), gin_params: str | Sequence[str] = (),
               allow_changes: bool = False) -> Detector:
    """Load the detector of a run folder; needs neither its data set nor its devices.

    Args:
      model_dir: run folder, local or gs://.
      checkpoint: 'latest', 'best' or a step.
      averages: use the moving averages of the weights, of a run with run.ema.
      batch: images that the detector processes at a time.
      gin_files, gin_params: override the configuration of the run, as gin_configs/augment/tta_detectron.gin.
      allow_changes: accept a network that is not the one that was trained.

    Raises:
      UserError: there is no run, checkpoint or average, the run is that of a classifier, or the network is another.
    """
    from rethink_tf import experiment
    from rethink_tf.predict import detectors

    folder, batch = path(model_dir, 'model_dir'), positive_integer(batch, 'batch')
    averages, changes = boolean(averages, 'averages'), boolean(allow_changes, 'allow_changes')
    overriding, params = paths(gin_files, 'gin_files'), bindings(gin_params, 'gin_params')
    params = [*detectors.run_bindings(folder, batch), *params]
    with configuration(detectors.run_files(folder, overriding), params):
      built = experiment.run('evaluate', folder, allow_changes=changes)
      return cls(detectors.RunDetector(built, checkpoint, averages))

  @classmethod
  @errors_in_one_line()
  def from_saved_model(cls, folder: Path, batch: int = 1) -> Detector:
    """Load a detector that `python -m rethink_tf.export` has written.

    Raises:
      UserError: there is no SavedModel, or it is not from this package.
    """
    from rethink_tf.predict import detectors

    return cls(detectors.SavedModelDetector(path(folder, 'folder'), positive_integer(batch, 'batch')))

  @property
  def categories(self) -> list[Category]:
    """Categories of classes 1..K."""
    return list(self._detector.categories)

  @property
  def class_names(self) -> list[str]:
    """Names of classes 1..K."""
    return [category.name for category in self._detector.categories]

  @errors_in_one_line()
  def predict(self, images: Image | Iterable[Image], threshold: float = 0.5,
              upright: bool | None = None) -> list[Detections]:
    """Detect objects in one or several images.

    Args:
      images: image files, folders (searched recursively, in natural order) and arrays, uint8 [h, w, 3] RGB or [h, w]
        grey; one or a sequence.
      threshold: minimum score. A run's detector reports none below its DetectionGenerator.score_threshold.
      upright: apply the EXIF orientation of image files; False: pixels are used as stored; None: as by training, if
        that is known, else as stored.

    Returns:
      The detections of each image, in the order of `images`. A damaged image file is logged and left out.

    Raises:
      UserError: a path does not exist, a folder has no images, a path is a video, or an array has another dtype or
        shape.
    """
    from rethink_tf.predict.detectors import applies_exif, detect_all
    from rethink_tf.predict.image_files import ImageArrays, ImageFiles

    threshold = number(threshold, 'threshold', 0, 1)
    upright = applies_exif(self._detector, None if upright is None else boolean(upright, 'upright'))
    inputs = _expand(images)
    sources: list[tuple[UnannotatedImages, list[int]]] = []  # with the indices of their images in `inputs`
    files = [i for i, (_, image) in enumerate(inputs) if isinstance(image, str)]
    arrays = [i for i, (_, image) in enumerate(inputs) if not isinstance(image, str)]
    if files:
      source = ImageFiles([inputs[i][1] for i in files], self._detector.categories, upright)
      sources.append((source, [files[k] for k in source.positions]))
    if arrays:
      sources.append((ImageArrays([inputs[i][1] for i in arrays], self._detector.categories), arrays))
    results: dict[int, Detections] = {}
    for source, positions in sources:
      if not positions:
        continue
      for index, result in detect_all(self._detector, source, threshold, self._convert):
        if result is not None:
          i = positions[index]
          results[i] = result._replace(name=inputs[i][0])
    return [results[i] for i in sorted(results)]

  def draw(self, image: np.ndarray, detections: Detections) -> np.ndarray:
    """Draw detections on their image, uint8 [h, w, 3] RGB or [h, w]; a small one is enlarged to 640 pixels.

    Raises:
      UserError: the image has another dtype, or another shape than the detections.
    """
    from rethink_tf.predict.image_files import check_array, to_rgb
    from rethink_tf.visualization import drawing

    check_array(image, 'image')
    if getattr(detections, '_fields', None) != Detections._fields:  # by name: a notebook may have reloaded the class
      raise UserError(f'detections = {excerpt(detections)}: give one element of what predict has returned')
    if image.shape[:2] != tuple(detections.size):
      raise UserError(f'the image is {image.shape[0]} x {image.shape[1]}, the detections are of one of '
                      f'{detections.size[0]} x {detections.size[1]}')
    skeleton = next((category.skeleton for category in self._detector.categories if category.keypoints), ())
    return drawing.draw(to_rgb(image), detections.boxes, detections.classes, self.class_names, detections.scores,
                        detections.masks, detections.keypoints, skeleton)

  def _convert(self, pixels: np.ndarray, detections: ImageDetections) -> Detections:
    from pycocotools import mask as coco_mask

    size, names, masks, keypoints = pixels.shape[:2], self.class_names, None, None
    if detections.masks is not None:
      masks = np.zeros([len(detections.scores), *size], bool)
      for mask, rle in zip(masks, detections.masks, strict=True):
        mask[:] = coco_mask.decode(rle)
    if detections.keypoints is not None:
      keypoints = detections.keypoints.astype(np.float32)
    return Detections('', size, detections.boxes.astype(np.float32), detections.scores.astype(np.float32),
                      detections.classes, [names[k - 1] for k in detections.classes.tolist()], masks, keypoints)


def _expand(images: Image | Iterable[Image]) -> list[tuple[str | int, str | np.ndarray]]:
  """Return (name, image file or array) of all images; folders are replaced by their files."""
  from rethink_tf.predict.image_files import check_array, find_images

  one = str | bytes | bytearray | memoryview | os.PathLike | np.ndarray  # bytes are refused as such, not as integers
  single = isinstance(images, one) or not isinstance(images, Iterable)
  expanded: list[tuple[str | int, str | np.ndarray]] = []
  for index, image in enumerate([images] if single else images):
    if isinstance(image, str | os.PathLike):
      files, videos = find_images([os.fspath(image)])
      if videos:
        raise UserError(f'{videos[0]}: is a video: give its frames as arrays, or use python -m rethink_tf.predict')
      expanded += [(file, file) for file in files]
    else:
      check_array(image, f'image {index}')
      expanded.append((index, image))
  return expanded
