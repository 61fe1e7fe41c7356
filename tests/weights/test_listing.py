"""The table of published weights fits a terminal; JSON has all fields; an entry tells what its file does not."""

import json
import os

import pytest

from rethink_tf.errors import UserError
from rethink_tf.weights import catalog, listing

ENTRIES = catalog.entries()


def test_the_table_has_a_row_for_each_entry(tmp_path, monkeypatch):
  monkeypatch.setenv('RETHINK_TF_CACHE', str(tmp_path))
  os.makedirs(ENTRIES['swav'].folder)
  open(ENTRIES['swav'].path, 'w').close()
  lines = listing.table(ENTRIES.values()).splitlines()
  assert max(map(len, lines)) <= 120
  rows = {line.split()[0]: line for line in lines[1:len(ENTRIES) + 1]}
  assert set(rows) == {*ENTRIES, 'swav*'} - {'swav'}
  assert all(line.endswith('not tried') for line in rows.values())
  assert rows['torchvision_resnet50_v2'].split()[1:] == [
    'ResNet-50', 'bn', 'rgb/std', '98', 'BSD-3-Clause', '769M', '2.4e13', 'not', 'tried']
  assert '~3600M' in rows['wsl_x101_32x48d'] and 'Mask R-CNN R50' in rows['detectron2_r50_gn_3x']


def test_words_select_entries():
  assert [entry.name for entry in listing.matching(ENTRIES.values(), ['ResNet-101', 'gn'])] == ['detectron_r101_gn']
  assert listing.matching(ENTRIES.values(), []) == list(ENTRIES.values())
  with pytest.raises(UserError, match='--list vit: no published weights have all of these words'):
    listing.matching(ENTRIES.values(), ['vit'])


def test_json_has_every_entry(tmp_path, monkeypatch):
  monkeypatch.setenv('RETHINK_TF_CACHE', str(tmp_path))
  found = {each['name']: each for each in json.loads(listing.as_json(ENTRIES.values()))}
  assert set(found) == set(ENTRIES)
  one = found['moco_v2']
  assert one['address'].startswith('https://dl.fbaipublicfiles.com/moco/') and one['md5'] == 'a04e12f8'
  assert one['address_state'] == 'address not tried' and not one['in_cache'] and one['path'].startswith(str(tmp_path))
  assert one['cost']['images'] == 1_024_933_600 and one['source'] == 'facebookresearch/moco README.md'


def test_the_description_names_address_and_checksum():
  rows = dict(listing.description(ENTRIES['torchvision_resnet50_v1']))
  assert rows['address'] == 'https://download.pytorch.org/models/resnet50-0676ba61.pth (address not tried)'
  assert rows['published'] == '98 MiB, sha256 0676ba61…' and rows['pre-training'].startswith('1.15e+08 images')
  assert dict(listing.description(ENTRIES['keras_resnet50']))['published'] == 'md5 4d473c1dd8becc155b73f8504c6f6626'
  assert dict(listing.description(ENTRIES['detectron_r50']))['published'] == 'md5 at <address>.md5sum'
  assert dict(listing.description(ENTRIES['swav']))['published'].startswith('no checksum: ')
