"""The doctor's table, verdict and JSON."""

import json
import math

import pytest

from rethink_tf.doctor import rows
from rethink_tf.doctor.rows import Row

GOOD = rows.compared('NMS', '/GPU:0', 0.0, 0.0, 'boxes')
BAD = rows.compared('GroupNorm', '/GPU:0', 0.2, 1e-5)


@pytest.mark.parametrize('error, result', [
  (1e-5, 'ok'), (1.1e-5, 'FAILED'), (math.nan, 'FAILED'), (math.inf, 'FAILED')])
def test_a_comparison_passes_within_its_tolerance(error, result):
  assert rows.compared('a', 'b', error, 1e-5).result == result


@pytest.mark.parametrize('found, text, code', [
  ([GOOD, GOOD], 'works: 2 checks', 0),
  ([GOOD, Row('devices', '', rows.WARNING)], 'works, with 1 warning: 2 checks', 0),
  ([GOOD, BAD, BAD._replace(device='/CPU:0'), Row('steps', '', rows.NOT_RUN)],
   '3 of 4 checks failed: GroupNorm on /GPU:0, GroupNorm on /CPU:0, steps', 1),
])
def test_the_verdict_counts_failures_and_sets_the_exit_code(found, text, code):
  assert rows.verdict(found) == (text, code)


def test_text_and_json_hold_neither_credentials_nor_control_characters():
  secret = Row('data', 'CPU', rows.FAILED, note='gs://a?token=abcdefgh1 \x1b[31m', seconds=2)
  found = [BAD._replace(error=math.nan), secret]
  facts = {'XLA_FLAGS': '--api_key=abcdefgh2'}
  text = rows.table(found) + rows.facts_table(facts)
  report = rows.report(found, facts)
  for shown in (text, report):
    assert 'abcdefgh' not in shown and '\x1b' not in shown
  content = json.loads(report)
  assert content['exit_code'] == 1 and [check['result'] for check in content['checks']] == ['FAILED'] * 2
  assert math.isnan(rows.from_json(content['checks'][0]).error)
  lines = rows.table(found).splitlines()
  assert lines[1].split()[:5] == ['GroupNorm', '/GPU:0', 'FAILED', 'nan', '1.0e-05'] and '2.0 s' in lines[2]
