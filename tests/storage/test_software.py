"""The commit of the package, in a checkout and installed."""

import os
import subprocess

import rethink_tf
from rethink_tf.storage import software


def test_git_commit_is_that_of_the_package(tmp_path, monkeypatch):
  def git(*arguments):
    environment = {**os.environ, 'GIT_AUTHOR_NAME': 'a', 'GIT_AUTHOR_EMAIL': 'a@b', 'GIT_COMMITTER_NAME': 'a',
                   'GIT_COMMITTER_EMAIL': 'a@b'}
    return subprocess.run(['git', '-C', str(tmp_path), *arguments], check=True, capture_output=True, text=True,
                          env=environment).stdout.strip()
  package = tmp_path / 'rethink_tf'
  package.mkdir()
  (package / '__init__.py').write_text('')
  monkeypatch.setattr(rethink_tf, '__file__', str(package / '__init__.py'))
  assert software.git_commit() is None  # no repository
  git('init', '-q')
  git('add', '.')
  git('commit', '-q', '-m', 'first')
  assert software.git_commit() == git('rev-parse', 'HEAD')
  (package / '__init__.py').write_text('edited = True\n')
  assert software.git_commit() == git('rev-parse', 'HEAD') + '+changes'
  installed = tmp_path / 'site-packages' / 'rethink_tf' / '__init__.py'
  monkeypatch.setattr(rethink_tf, '__file__', str(installed))
  installed.parent.mkdir(parents=True)
  assert software.git_commit() is None  # inside a repository that is not the package's
