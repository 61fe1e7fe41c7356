"""Self times of nested events, and the table of a step's operations."""

from tools import step_profile


def test_time_within_nested_events_belongs_to_those():
  events = [(0, 100, 'step'), (10, 30, 'a:Conv2D'), (20, 10, 'inner'), (50, 20, 'b:Mul'), (100, 5, 'after')]
  assert step_profile.nested(events[::-1]) == [('step', 50), ('a:Conv2D', 20), ('inner', 10), ('b:Mul', 20),
                                               ('after', 5)]


def test_dense_products_are_summed_first():
  table = step_profile.report({'_MklNativeConv2D': (6.0, 3.0), 'SparseMatrixMatMul': (1.0, 1.0), 'Mul': (3.0, 9.0),
                               'KernelAndDeviceFunc::Run': (50.0, 1.0)}, rows=2).splitlines()
  assert table[2:] == ['| **convolutions and matrix products** | 6.0 | 60 % of the time |', '| **all** | 10.0 | |',
                       '| _MklNativeConv2D | 6.00 | 3 |', '| Mul | 3.00 | 9 |']
