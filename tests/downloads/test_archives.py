"""Archives are unpacked into one folder, whole and once; what would write elsewhere or without end is refused."""

import io
import os
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from rethink_tf.downloads import archives
from rethink_tf.errors import UserError

FILES = {'set/a.txt': b'one', 'set/images/b.jpg': b'two' * 1000, 'set/empty': b''}


def zipped(path, files, **extra):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('set/', b'')
    for name, content in {**files, **extra}.items():
      archive.writestr(name, content)
  return str(path)


def tarred(path, files, *entries):
  with tarfile.open(path, 'w') as archive:
    for name, content in files.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
    for entry in entries:
      archive.addfile(entry)
  return str(path)


def link(name, target, kind=tarfile.SYMTYPE):
  entry = tarfile.TarInfo(name)
  entry.type, entry.linkname = kind, target
  return entry


def refused(path, folder, message, below=''):
  with pytest.raises(UserError, match=message) as error:
    archives.unpack(path, str(folder), below)
  assert '\n' not in str(error.value)


def contents(folder):
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('write', [zipped, tarred])
def test_files_and_folders(tmp_path, write):
  path = write(tmp_path / 'archive', FILES | {'__MACOSX/set/._a.txt': b'x', 'set/.DS_Store': b'x'})
  assert archives.unpack(path, str(tmp_path / 'all')) == 3
  assert contents(tmp_path / 'all') == FILES
  archives.unpack(path, str(tmp_path / 'inner'), 'set/')
  assert set(contents(tmp_path / 'inner')) == {'a.txt', 'images/b.jpg', 'empty'}
  refused(write(tmp_path / 'other', FILES | {'else/x': b''}), tmp_path / 'inner', "'else/x' is not in set/", 'set/')


def test_what_is_there_is_not_written_again(tmp_path):
  path, folder = zipped(tmp_path / 'x.zip', FILES), tmp_path / 'out'
  archives.unpack(path, str(folder))
  before = os.stat(folder / 'set/a.txt').st_mtime_ns
  (folder / 'set/images/b.jpg').write_bytes(b'of an interrupted copy')
  assert archives.unpack(path, str(folder)) == 3
  assert os.stat(folder / 'set/a.txt').st_mtime_ns == before and contents(folder) == FILES


@pytest.mark.parametrize('write', [zipped, tarred])
@pytest.mark.parametrize('name', ['../x', '/etc/x', 'a/../../x', 'a\\..\\x', 'C:/x', 'a/\x1b[2J'])
def test_names_outside_of_the_folder(tmp_path, write, name):
  refused(write(tmp_path / 'archive', {name: b'x'}), tmp_path / 'out', 'would be written outside of the folder')
  assert not (tmp_path / 'x').exists() and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('entry', [link('l', '/etc'), link('l', 'a', tarfile.LNKTYPE), link('l', '', tarfile.CHRTYPE),
                                   link('l', '', tarfile.FIFOTYPE)])
def test_links_and_devices(tmp_path, entry):
  refused(tarred(tmp_path / 'x.tar', {'a': b'x'}, entry), tmp_path / 'out', "'l' is a link or a device")
  info = zipfile.ZipInfo('l')
  info.external_attr = (stat.S_IFLNK | 0o777) << 16
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
    archive.writestr(info, '/etc')
  refused(str(tmp_path / 'x.zip'), tmp_path / 'out', "'l' is a link or a device")


def test_a_link_that_is_there_is_replaced_and_not_followed(tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'victim').write_bytes(b'one')
  os.symlink(tmp_path / 'victim', tmp_path / 'out' / 'a')
  archives.unpack(zipped(tmp_path / 'x.zip', {'a': b'new'}), str(tmp_path / 'out'))
  assert (tmp_path / 'victim').read_bytes() == b'one' and (tmp_path / 'out' / 'a').read_bytes() == b'new'


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
  monkeypatch.setattr(archives, '_SLACK', 1000)
  path = zipped(tmp_path / 'x.zip', {'a': bytes(1_000_000)})
  refused(path, tmp_path / 'out', 'would unpack to 1,000,000 bytes in 1 files: too many for an archive of its size')
  monkeypatch.setattr(archives, '_MAX_FILES', 3)
  refused(zipped(tmp_path / 'y.zip', {str(i): b'' for i in range(5)}), tmp_path / 'out', 'in 5 files: too many')
  refused(tarred(tmp_path / 'y.tar', {str(i): b'' for i in range(5)}), tmp_path / 'out', 'in 4 files: too many')


def test_damaged_archives(tmp_path):
  whole = open(zipped(tmp_path / 'x.zip', FILES), 'rb').read()
  (tmp_path / 'cut.zip').write_bytes(whole[:-30])
  refused(str(tmp_path / 'cut.zip'), tmp_path / 'out', 'a damaged archive, or of an unknown kind .*: delete it')
  flipped = bytearray(whole)
  flipped[whole.index(b'set/images/b.jpg') + 20] ^= 0xff
  (tmp_path / 'flipped.zip').write_bytes(flipped)
  refused(str(tmp_path / 'flipped.zip'), tmp_path / 'out', 'a damaged archive')
  assert not (tmp_path / 'out/set/images/b.jpg').exists()
  tar = open(tarred(tmp_path / 'x.tar', FILES), 'rb').read()
  (tmp_path / 'cut.tar').write_bytes(tar[:1700])
  refused(str(tmp_path / 'cut.tar'), tmp_path / 'out2', 'damaged')


def test_a_full_disk_is_refused_before_unpacking(tmp_path, monkeypatch):
  path = zipped(tmp_path / 'x.zip', FILES)
  monkeypatch.setattr(archives.shutil, 'disk_usage', lambda _: archives.shutil._ntuple_diskusage(1, 1, 10))
  refused(path, tmp_path / 'out', '1 MiB are needed and 0 free: make room')


@pytest.mark.parametrize('kind', ['gz', 'bz2', 'xz'])
@pytest.mark.parametrize('place', [0.1, 0.5, 0.9, 0.995])
def test_damage_within_a_compressed_tar_is_no_full_disk(tmp_path, kind, place):
  content = np.random.default_rng(0).integers(0, 256, 30_000).astype(np.uint8).tobytes()
  path = tmp_path / f'a.tar.{kind}'
  with tarfile.open(path, f'w:{kind}') as archive:
    entry = tarfile.TarInfo('a.bin')
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
  data = bytearray(path.read_bytes())
  data[int(place * len(data))] ^= 255
  path.write_bytes(data)
  with pytest.raises(UserError, match='a damaged archive') as error:
    archives.unpack(str(path), str(tmp_path / 'folder'))
  assert '\n' not in str(error.value)
