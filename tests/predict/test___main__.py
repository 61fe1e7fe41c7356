"""The command predict: all kinds of input, and its errors."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from rethink_tf import api
from tests import tiny_run
from tests.in_process import call
from tests.test_command_line import assert_one_line


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return tiny_run.make(tmp_path_factory)


def write_inputs(folder):
  """Folders with equal names, damaged files, images of all kinds; and a video beside them."""
  for name in ('a', 'b'):
    (folder / name).mkdir(parents=True)
    Image.fromarray(np.full((50, 70), 90, np.uint8)).save(folder / name / 'same.jpg')
  Image.fromarray(np.zeros((1, 3, 3), np.uint8)).save(folder / 'tiny.png')
  (folder / 'text.jpg').write_text('hello')
  colours = np.random.default_rng(0).integers(0, 255, (40, 60, 4), np.uint8)
  Image.fromarray(colours[..., :3]).save(folder / 'cut.jpg')
  whole = (folder / 'cut.jpg').read_bytes()
  (folder / 'cut.jpg').write_bytes(whole[:len(whole) * 3 // 4])  # only decoding detects it
  Image.fromarray(colours).save(folder / 'clear.png')
  Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(folder / 'deep.png')
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(colours[..., :3]).save(folder / 'turned.jpg', exif=exif)
  video = cv2.VideoWriter(str(folder.parent / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10.0, (80, 60))
  for frame in range(5):
    video.write(np.full((60, 80, 3), 40 * frame, np.uint8))
  video.release()


@pytest.mark.slow
def test_all_kinds_of_input(run, tmp_path):
  folder, out = tmp_path / 'mixed', tmp_path / 'out'
  write_inputs(folder)
  command = ['predict', str(folder), str(tmp_path / 'clip.mp4'), f'--model_dir={run}/run', f'--output={out}',
             '--threshold=0.05', '--batch=2', '--frames']
  result = call(*command, cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  assert '2 of 13 images could not be read' in result.stdout and f'{run}/run: step ' in result.stdout
  assert 'text.jpg: cannot' in result.stderr and 'cut.jpg: the JPEG is truncated; skipped' in result.stderr
  assert '1 images have an EXIF orientation: ignored; --upright applies it, as training does for' in result.stderr
  assert 'placeholder' not in result.stderr + result.stdout
  images = [f'images/{name}.jpg' for name in ('a/same', 'b/same', 'clear', 'deep', 'tiny', 'turned')]
  assert sorted(path.relative_to(out).as_posix() for path in (out / 'images').rglob('*.jpg')) == images
  assert cv2.imread(str(out / 'images/turned.jpg')).shape[:2] == (427, 640), 'as stored, and enlarged'
  content = json.loads((out / 'images.json').read_text())
  assert [image['file_name'] for image in content['images']] == [
    'a/same.jpg', 'b/same.jpg', 'clear.png', 'cut.jpg', 'deep.png', 'tiny.png', 'turned.jpg']
  assert set(content['skipped']) == {'text.jpg', 'cut.jpg'} and len(content['categories']) == 6
  names = {category['id']: category['name'] for category in content['categories']}
  entries = json.loads((out / 'predictions.json').read_text())
  assert all(entry['score'] >= 0.05 and entry['category_name'] == names[entry['category_id']] for entry in entries)
  same = [[(e['bbox'], e['score']) for e in entries if e['file_name'] == f'{name}/same.jpg'] for name in 'ab']
  np.testing.assert_allclose([e[1] for e in same[0]], [e[1] for e in same[1]], atol=1e-5)
  capture = cv2.VideoCapture(str(out / 'clip' / 'predictions.mp4'))
  assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
  assert len(list((out / 'clip' / 'frames').iterdir())) == 5
  assert len(json.loads((out / 'clip' / 'images.json').read_text())['images']) == 5
  (out / 'predictions.json').write_text('of another run')
  limit = float(np.median([entry['score'] for entry in entries]))
  again = call(*command, f'--threshold={limit}', '--nofilm', '--nopictures', cwd=tmp_path)  # earlier names of flags
  assert again.returncode == 0, again.stderr
  confident = json.loads((out / 'predictions.json').read_text())
  assert len(confident) == pytest.approx(len(entries) / 2, abs=3)
  assert min(entry['score'] for entry in confident) >= limit


@pytest.mark.slow
def test_a_saved_model(run, tmp_path):
  exported = call('export', f'--model_dir={run}/run', f'--out={tmp_path}/saved', cwd=tmp_path)
  assert exported.returncode == 0, exported.stderr
  result = call('predict', str(run / 'images'), f'--saved_model={tmp_path}/saved', f'--output={tmp_path}/out',
                '--threshold=0.01', '--noimages', cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  entries = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
  own = np.concatenate([one.scores for one in api.Detector.from_run(run / 'run').predict(run / 'images', 0.01)])
  assert len(entries) == pytest.approx(len(own), abs=2) and len(own) > 5
  assert not (tmp_path / 'out' / 'images').exists() and 'custom gradient' not in result.stderr
  np.testing.assert_allclose(sorted(e['score'] for e in entries)[-5:], sorted(own)[-5:], atol=0.01)
  together = call('predict', str(run / 'images'), f'--saved_model={tmp_path}/saved', f'--output={tmp_path}/together',
                  '--threshold=0.01', '--batch=2', '--noimages', cwd=tmp_path)
  assert together.returncode == 0, together.stderr
  of_batches = json.loads((tmp_path / 'together' / 'predictions.json').read_text())
  for one, alone in zip(of_batches, entries, strict=True):
    assert {**one, 'score': 0} == {**alone, 'score': 0} and one['score'] == pytest.approx(alone['score'], abs=1e-6)


@pytest.mark.parametrize('arguments, words', [
  ([], ['no images', '--model_dir']),
  (['{here}/empty', '--saved_model={here}/empty'], ['no images there']),
  (['{here}', '--model_dir=runs/x'], ['no config.gin in runs/x']),
  (['{here}/a.jpg'], ['--model_dir', '--saved_model']),
  (['{here}/a.jpg', '--model_dir=runs/x', '--threshold=50'], ['--threshold', '0 to 1']),
  (['{here}/a.jpg', '--saved_model={here}/empty', '--averages'], ['SavedModel', '--averages']),
], ids=['nothing', 'empty', 'no-config', 'no-run', 'threshold', 'averages-of-a-file'])
def test_errors(arguments, words, tmp_path):
  if '{here}/a.jpg' in arguments:
    (tmp_path / 'a.jpg').write_bytes(b'x')
  (tmp_path / 'empty').mkdir()
  arguments = [argument.format(here=tmp_path) for argument in arguments]
  assert_one_line(call('predict', *arguments, cwd=tmp_path), *words)


def test_a_folder_without_a_run(tmp_path):
  (tmp_path / 'a.jpg').write_bytes(b'x')
  (tmp_path / 'run').mkdir()
  assert_one_line(call('predict', f'{tmp_path}/a.jpg', f'--model_dir={tmp_path}/run', cwd=tmp_path), 'config.gin')
  assert_one_line(call('predict', f'{tmp_path}/a.jpg', f'--saved_model={tmp_path}/run', cwd=tmp_path),
                  'no SavedModel', str(tmp_path / 'run'))
