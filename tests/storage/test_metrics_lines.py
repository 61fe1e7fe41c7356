"""metrics.jsonl as kills, other programs and other versions leave it."""

import pytest

from rethink_tf.storage import metrics_lines


@pytest.mark.parametrize('content, reason', [
  (b'{"step": 2, "loss', 'is incomplete'), (b'\xff\xfe', 'is incomplete'), (b'[' * 100000, 'is incomplete'),
  (b'[1]', 'is not an object'), (b'null', 'is incomplete'), (b'{"kind": "train"}', 'has no "step"'),
  (b'{"kind": "train", "step": "7"}', 'has no "step"'), (b'{"step": 1e400}', 'has no "step"'),
  (b'{"step": 1' + b'0' * 400 + b'}', 'has no "step"'), (b'{"step": -1}', 'has no "step"'),
  (b'{"step": 1, "kind": 3}', 'has a "kind"')], ids=range(11))
def test_what_is_no_line_is_skipped_and_named_once(content, reason, caplog):
  lines = list(metrics_lines.parse(b'\n'.join([b'{"step": 1}', content, content, b'{"step": 3}']), 'metrics.jsonl'))
  assert [line['step'] for _, line in lines] == [1, 3]
  assert len(caplog.records) == 1
  assert caplog.messages[0].startswith(f'metrics.jsonl: skipped 2 line(s): line 2 {reason}')


def test_numbers_that_no_plot_can_show_become_none():
  (_, line), = metrics_lines.parse(b'{"step": 3, "a": 1e999, "b": NaN, "c": 1.5, "d": 7, "time": Infinity}', 'x')
  assert line == {'step': 3, 'a': None, 'b': None, 'c': 1.5, 'd': 7, 'time': None}
  assert isinstance(line['d'], int)


def test_a_resumed_run_replaces_the_steps_that_it_repeats():
  lines = [{'step': 1}, {'step': 5}, {'step': 2, 'kind': 'resume'}, {'step': 3}]
  assert metrics_lines.without_repeated(lines) == [{'step': 1}, {'step': 3}]


def test_evaluations_on_demand_can_be_left_out():
  lines = [{'step': 1, 'kind': 'train'}, {'step': 2, 'kind': 'eval'}, {'step': 3, 'kind': 'eval', 'on_demand': True},
           {'step': 4, 'kind': 'eval/ema'}, {'step': 5}]
  assert metrics_lines.evaluated_steps(lines) == {2, 3}
  assert metrics_lines.evaluated_steps(lines, on_demand=False) == {2}
