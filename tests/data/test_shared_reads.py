"""Rows that share images: each is read once, each row is filled once, nothing is kept, no thread waits."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rethink_tf.data.shared_reads import SharedReads


def run(needed, threads=4, read=lambda index: index * 10):
  """Read and fill; return what was read, and the filled rows in the order in which they were filled."""
  loaded, filled = [], []
  reads = SharedReads(needed, lambda index: loaded.append(index) or read(index),
                      lambda row, images: filled.append((row, images)))
  with ThreadPoolExecutor(threads) as pool:
    list(pool.map(lambda pair: reads(*pair), enumerate(reads.indices.tolist())))
  return reads, loaded, filled


@pytest.mark.parametrize('threads', [1, 4])
@pytest.mark.parametrize('needed', [[[3], [1], [2]], [[0, 1], [1, 2], [2, 0]], [[5, 5], [5], [4, 5]],
                                    [[1, 2, 3, 4]] * 3])
def test_rows_get_their_images_and_each_is_read_once(needed, threads):
  reads, loaded, filled = run(needed, threads)
  assert sorted(loaded) == sorted({index for row in needed for index in row})
  assert dict(filled) == {row: {index: index * 10 for index in indices} for row, indices in enumerate(needed)}
  assert len(filled) == len(needed) and not reads._kept


def test_images_are_kept_for_the_last_row_only():
  kept = []
  needed = [[row, row + 1] for row in range(20)]
  reads = SharedReads(needed, lambda index: index, lambda row, images: kept.append(len(reads._kept)))
  for index in reads.indices.tolist():
    reads(0, index)
  assert reads.indices.tolist() == list(range(21)) and max(kept) == 2 and not reads._kept


def test_an_error_is_that_of_the_image():
  with pytest.raises(ZeroDivisionError):
    run([[0, 1], [1, 2]], read=lambda index: 1 / index)
