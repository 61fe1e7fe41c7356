"""The commands as Python functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rethink_tf.api.arguments import (
  Path,
  bindings,
  boolean,
  configuration,
  errors_in_one_line,
  number,
  optional_path,
  path,
  paths,
)
from rethink_tf.errors import UserError, excerpt

if TYPE_CHECKING:
  from rethink_tf.compare.report import Comparison
  from rethink_tf.inspect_data.report import Split
  from rethink_tf.inspect_run.detection_errors import Breakdown
  from rethink_tf.inspect_run.keypoint_errors import KeypointBreakdown


@errors_in_one_line()
def train(gin_files: Path | Sequence[Path], gin_params: str | Sequence[str] = (), model_dir: Path | None = None,
          data_dir: Path | None = None, weights: Path | None = None, allow_changes: bool = False) -> dict[str, float]:
  """Train a detector, or a classifier for pre-training; return the metrics of the last evaluation in percent.

  The same call resumes an interrupted run. Ctrl-C saves a checkpoint and raises KeyboardInterrupt.

  Args:
    gin_files: a complete configuration, as gin_configs/demo.gin, and files that override it.
    gin_params: bindings that override the files, as 'SCHEDULE = 2'.
    model_dir: run folder, local or gs://; None: runs/<name of the first gin file>.
    data_dir: folder of the data set; None: the DATA_DIR of the gin files.
    weights: weight file or run folder to start from, or the name of published weights, which are downloaded (python
      -m rethink_tf.weights --list); with a file of gin_configs/init.
    allow_changes: continue a run with settings that change the meaning of a step.

  Raises:
    UserError: the configuration, the data or the run folder has an error, or the run folder is that of another run.
  """
  from rethink_tf import experiment
  from rethink_tf.gin_files import default_run_folder
  from rethink_tf.training import loop

  files, params = paths(gin_files, 'gin_files'), bindings(gin_params, 'gin_params')
  changes = boolean(allow_changes, 'allow_changes')
  folder = optional_path(model_dir, 'model_dir') or default_run_folder(files)
  with configuration(files, params, optional_path(data_dir, 'data_dir'), optional_path(weights, 'weights')):
    return loop.train(experiment.run('train', folder, allow_changes=changes))


@errors_in_one_line()
def evaluate(model_dir: Path, checkpoint: str | int = 'latest', gin_files: Path | Sequence[Path] = (),
             gin_params: str | Sequence[str] = (), data_dir: Path | None = None,
             allow_changes: bool = False) -> dict[str, float]:
  """Evaluate a checkpoint of a run on its held-out images; return metrics in percent, as 'box/AP'.

  Args:
    model_dir: run folder, local or gs://.
    checkpoint: 'latest', 'best' or a step.
    gin_files, gin_params: override the configuration of the run, as gin_configs/augment/tta_detectron.gin.
    data_dir: folder of the data set; None: that of the run.
    allow_changes: evaluate a network that is not the one that was trained.

  Raises:
    UserError: there is no run or checkpoint, or its data set is missing.
  """
  from rethink_tf import experiment
  from rethink_tf.evaluation import on_demand
  from rethink_tf.gin_files import saved_config

  folder, files = path(model_dir, 'model_dir'), paths(gin_files, 'gin_files')
  changes = boolean(allow_changes, 'allow_changes')
  # The devices of this machine, not those of the run.
  params = ["strategy.kind = 'default'", *bindings(gin_params, 'gin_params')]
  with configuration([saved_config(folder), *files], params, optional_path(data_dir, 'data_dir')):
    return on_demand.evaluate(experiment.run('evaluate', folder, checkpoint=checkpoint, allow_changes=changes))


@errors_in_one_line()
def compare(model_dirs: Sequence[Path], output: Path = 'runs/comparison', metric: str | None = None,
            seed_spread: float | None = None) -> Comparison:
  """Compare runs; write a report with plots and a TensorBoard log.

  Args:
    model_dirs: run folders; the first is the baseline of the table of differences.
    output: folder of the report.
    metric: metric to compare by, as 'box/AP'; None: the first run's main metric.
    seed_spread: known standard deviation of the metric between seeds, in points; None: taken from the runs, of which
      one side at least must have two seeds for a verdict.

  Returns:
    `verdicts`, `text` (verdicts and tables) and `page` (path of the HTML file), among others.

  Raises:
    UserError: a folder is not a run folder, or has no evaluation.
  """
  from rethink_tf.compare import report

  if metric is not None and not isinstance(metric, str):
    raise UserError(f"metric = {excerpt(metric)}: use the name of one, as 'box/AP'")
  spread = None if seed_spread is None else number(seed_spread, 'seed_spread', 0, 100)
  return report.compare(paths(model_dirs, 'model_dirs'), path(output, 'output'), metric=metric, seed_spread=spread)


@errors_in_one_line()
def inspect_data(gin_files: Path | Sequence[Path], gin_params: str | Sequence[str] = (), output: Path | None = None,
                 data_dir: Path | None = None) -> tuple[Split, Split]:
  """Write statistics, suspicious annotations and rendered batches of the data of a configuration.

  Args:
    gin_files, gin_params, data_dir: as in `train`.
    output: folder of the report; None: data/ in the default run folder.

  Returns:
    The training and the held-out split.

  Raises:
    UserError: the configuration or the data has an error, or is for classification.
  """
  from rethink_tf import experiment
  from rethink_tf.gin_files import argument, default_run_folder
  from rethink_tf.inspect_data import inspection

  files, params = paths(gin_files, 'gin_files'), bindings(gin_params, 'gin_params')
  folder = optional_path(output, 'output') or f'{default_run_folder(files)}/data'
  names = ('train_source', 'eval_source', 'train_input', 'batch_size', 'seed')
  with configuration(files, params, optional_path(data_dir, 'data_dir')):
    train_source, eval_source, train_input, batch_size, seed = (argument(experiment.run, name) for name in names)
    return inspection.inspect(train_source, eval_source, lambda source: train_input(source, batch_size, seed),
                              folder)


@errors_in_one_line()
def inspect_run(model_dir: Path, output: Path | None = None, data_dir: Path | None = None, iou: float = 0.5,
                score: float | None = None,
                gin_params: str | Sequence[str] = ()) -> dict[str, Breakdown | KeypointBreakdown]:
  """Break down the errors of the newest evaluation of a run, with tables, plots and examples.

  Args:
    model_dir: run folder, local or gs://.
    output: folder of the report; None: that of the evaluation.
    data_dir: folder of the data set; None: that of the run.
    iou: of the confusion matrix and the precision-recall curves.
    score: lowest score in the confusion matrix; None: the threshold with the best F1.
    gin_params: override the configuration of the run, or import parts of your own, as 'import my_parts'.

  Returns:
    Breakdowns by kind: 'box', 'mask', 'keypoint'.

  Raises:
    UserError: there is no run or evaluation, or its data set is missing.
  """
  from rethink_tf import experiment
  from rethink_tf.gin_files import argument, bound, saved_config
  from rethink_tf.inspect_run import inspection, results

  run, output = path(model_dir, 'model_dir'), optional_path(output, 'output')
  iou, score = number(iou, 'iou', 0, 1), None if score is None else number(score, 'score', 0, 1)
  folder, params = results.newest_results(run), bindings(gin_params, 'gin_params')
  with configuration([saved_config(run)], params, optional_path(data_dir, 'data_dir')):
    source = argument(experiment.run, 'eval_source')(training=False)
    return inspection.inspect(folder, source, output, keypoint_sigmas=bound('CocoEvaluator.keypoint_sigmas'), iou=iou,
                              score=score)
