"""What every gin file configures, as text: python -m tools.operative_configs --output=FOLDER.

Writes FOLDER/parsed/<name>.gin, gin's own view of each file once it is parsed, and FOLDER/operative/<name>.gin, the
values in use after each complete configuration has been built (made small as in tests/tiny.py, on drawn images). Two
versions of the code configure the same when `diff -r` finds no difference between their folders.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'gin_configs').rglob('*.gin'))
SMALL = ('ResNet.depth = 14', "strategy.kind = 'one_device'", 'run.train_source = @train/synthetic',
         'run.eval_source = @eval/synthetic', 'synthetic.num_images = 4', 'synthetic.image_size = (64, 64)',
         'synthetic.object_size = (16, 40)')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--output', required=True, help='folder to write to')
  parser.add_argument('--build', help='one complete gin file, which this process builds')
  options = parser.parse_args()
  output = pathlib.Path(options.output)
  if options.build:
    _write(output / 'operative', options.build, operative(options.build))
    return
  for name in FILES:
    _write(output / 'parsed', name, parsed(name))
  complete = [name for name in FILES if name.count('/') == 1 and name != 'gin_configs/base.gin']
  failed = 0
  for number, name in enumerate(complete, 1):
    # One process each: strategy, seeds and precision are global in TensorFlow.
    done = subprocess.run([sys.executable, '-m', 'tools.operative_configs', f'--output={output}', f'--build={name}'],
                          cwd=ROOT, capture_output=True, text=True)
    failed += done.returncode != 0
    print(f'{number}/{len(complete)} {name}: {"written" if done.returncode == 0 else done.stderr.strip()[-300:]}',
          flush=True)
  sys.exit(bool(failed))


def parsed(name: str) -> str:
  """Everything that a file binds, its includes among it."""
  import gin

  import rethink_tf.experiment  # noqa: F401  registers what gin files name
  with gin.unlock_config():
    gin.clear_config()
    gin.parse_config_file(str(ROOT / name), skip_unknown=name.startswith('gin_configs/studies/'))
    return gin.config_str()


def operative(name: str) -> str:
  """The values in use once a configuration is built."""
  from rethink_tf import experiment, gin_files
  from tests import tiny

  weights = ["WEIGHTS = 'weights.pkl'"] if re.search(r'\bWEIGHTS\b', parsed(name)) else []
  narrow = ('ResNet.groups = 2', 'ResNet.width_per_group = 16') if re.search('x1|cbnet_triple', name) else \
    ('VGG.width = 8', 'Anchors.sizes = (8, 16, 32, 64)') if 'vgg16' in name else ()
  gin_files.parse([name], [*weights, *tiny.GIN, *SMALL, *narrow])
  with tempfile.TemporaryDirectory() as folder:
    if hasattr(experiment, 'Parts'):  # earlier versions called a function with what they had built
      return experiment.run(lambda parts: (parts.training_input(), gin_files.operative_config())[1], folder)
    assert experiment.run('evaluate', folder).train_input is not None
    return gin_files.operative_config()


def _write(folder: pathlib.Path, name: str, text: str) -> None:
  path = folder / pathlib.Path(name).relative_to('gin_configs')
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


if __name__ == '__main__':
  main()
