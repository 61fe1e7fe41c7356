"""Compilations in TensorFlow's log, and the table of them."""

from tools import xla_compilations

LOG = b"""I0000 00:00:1795925070.935556    6459 device_compiler.h:196] Compiled cluster using XLA!  This line
I0000 00:00:1795925070.935775    6459 device_compiler.h:501] Compilation of XLA executable time: 87.6 ms (87594 us) (cum
I0000 00:00:1795925071.033850    6459 device_compiler.h:501] Compilation of XLA executable time: 1.2 s (1206000 us) (cum
"""


def test_compilations_are_counted_by_the_log():
  assert xla_compilations.compilations(LOG) == [0.087594, 1.206] and not xla_compilations.compilations(b'')


def test_later_epochs_have_their_own_row():
  rows = [('800 x 1088', 30, 5.0), ('800 x 800', 56, 9.0), ('800 x 1088', 56, 9.0), ('800 x 800', 58, 9.5)]
  assert xla_compilations.report(rows, images=2).splitlines()[2:] == [
    '| 800 x 1088 | 1 | 30 |', '| 800 x 800 | 1 | 26 |', '| epoch 2 | 2 | 2 |', '| **all** | 4 | 58, 10 s |']
