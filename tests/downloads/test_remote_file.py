"""Whether a file is the published one: size in bytes or MiB, whole checksums or their first digits."""

import hashlib

import pytest

from rethink_tf.downloads.remote_file import MIB, Digests, RemoteFile, digests

FILE = RemoteFile('https://host.example/a%20b/x-0123.pth?version=2')
FOUND = Digests(3 * MIB, 'ab12' * 16, 'cd34' * 8)


def test_the_name_is_the_last_component():
  assert FILE.name == 'x-0123.pth'
  FILE.check_address()


@pytest.mark.parametrize('published, difference', [
  ({}, ''), ({'size': 3 * MIB, 'sha256': 'ab12ab12', 'md5': 'cd34' * 8}, ''), ({'mib': 3.0009}, ''),
  ({'size': 3 * MIB + 1}, 'has 3,145,728 bytes instead of 3,145,729'),
  ({'mib': 3.002}, 'has 3.000 MiB instead of 3.002'),
  ({'sha256': 'ab12ab13'}, 'has the sha256 ab12ab12ab12ab12 instead of ab12ab13'),
  ({'sha256': 'ab12', 'md5': 'cd35'}, 'has the md5 cd34cd34cd34cd34 instead of cd35')])
def test_another_size_or_digest_is_a_difference(published, difference):
  assert FILE._replace(**published).difference(FOUND) == difference


def test_digests_are_those_of_hashlib(tmp_path):
  (tmp_path / 'x').write_bytes(b'abc')
  assert digests(str(tmp_path / 'x')) == (3, hashlib.sha256(b'abc').hexdigest(), hashlib.md5(b'abc').hexdigest())
