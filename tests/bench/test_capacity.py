"""Formulas against numbers computed by hand, and the rule for the work of a step against a counted step."""

import math

import pytest
import tensorflow as tf

from rethink_tf.bench import activations, capacity, work
from rethink_tf.bench.capacity import Device, Network, System
from tests.bench.test_activations import SPEC, Chain, conv, total

DEVICE = Device('device', 1e9, {'float32': 10e12, 'mixed_bfloat16': 40e12},
                {'float32': 0.5, 'mixed_bfloat16': 0.25}, 10.0)
NETWORK = Network(20, 6e12, 1e12, {'float32': 240.0, 'mixed': 280.0},
                  {('float32', False): 100.0, ('float32', True): 40.0, ('mixed', False): 60.0, ('mixed', True): 30.0},
                  {'float32': 20.0, 'mixed': 10.0})


def system(hosts=2, devices=4, network=5.0, cores=4):
  return System(DEVICE, hosts, devices, network, cores)


def test_a_ring_sends_all_but_one_share_twice():
  assert capacity.ring(100.0, 4, 10.0) == 15.0
  assert capacity.ring(100.0, 1, 10.0) == 0.0


def test_all_reduce_within_hosts_then_between_them():
  assert NETWORK.gradient_bytes == 80
  assert capacity.all_reduce_seconds(80, system()) == 12.0 + 16.0
  assert capacity.all_reduce_seconds(80, system(hosts=1)) == 12.0
  assert capacity.all_reduce_seconds(80, system(network=math.inf)) == 14.0  # eight devices on one ring


def test_input_is_limited_by_cores_and_by_python():
  assert capacity.input_rate(2) == 250.0
  assert capacity.input_rate(96) == pytest.approx(1 / 1.2e-3)


def test_a_step_takes_as_long_as_its_slowest_stage():
  found = capacity.step(NETWORK, system(), 'float32', 9)  # one device has two images, the others wait for it
  assert found.compute == pytest.approx(2 * 6e12 / 5e12) and found.all_reduce == 28.0
  assert found.input == pytest.approx(9 / 2 / 500)
  assert found.seconds == pytest.approx(2.4 + 28.0) and found.limit == 'all-reduce'
  assert capacity.step(NETWORK, system(network=math.inf), 'mixed_bfloat16', 80).compute == pytest.approx(6.0)
  many = capacity.step(NETWORK, system(network=math.inf), 'mixed_bfloat16', 800)
  assert many.limit == 'compute' and many.seconds == pytest.approx(60.0 + 14.0)
  slow_input = capacity.Step(compute=0.1, all_reduce=0.05, input=0.2)
  assert slow_input.limit == 'input' and slow_input.seconds == 0.2


def test_cores_and_network_that_are_needed():
  assert capacity.cores_needed(system(), 0.1) == pytest.approx(40 / 125)
  # 13 s less the 12 s within a host leave 1 s for the 80 bytes that each of two hosts sends once.
  assert capacity.network_needed(NETWORK, system(), 13.0) == pytest.approx(80.0)
  assert math.isinf(capacity.network_needed(NETWORK, system(), 11.0))


def test_images_that_fit():
  assert capacity.images_that_fit(NETWORK, 1000, 'float32', False) == 6  # (850 - 240) / 100
  assert capacity.images_that_fit(NETWORK, 1000, 'float32', True) == 10  # (850 - 240) / (40 + 20)
  assert capacity.images_that_fit(NETWORK, 1000, 'mixed_float16', False) == 9  # (850 - 280) / 60
  assert capacity.images_that_fit(NETWORK, 100, 'float32', False) == 0


def test_the_largest_block():
  assert capacity.largest_block(6.875, (3, 4, 6, 3)) == 1.0  # 3 + 4 / 2 + 6 / 4 + 3 / 8


def test_bytes_sent_to_a_device():
  assert capacity.decoded_bytes() == 800 * 1344 * 3 + 100 * (112 * 112 + 16 + 4)


def test_a_step_is_three_times_its_forward_pass_less_the_gradient_of_the_image():
  one = 8 * 8 * 4 * 4 * 9  # multiply-adds of a convolution
  _, done = activations.of_step(lambda: Chain(conv(), conv()), total, SPEC)
  assert done.forward == 2 * one

  def step(model, batch):
    return tf.gradients(total(model(batch.images, None), batch)['sum'], model.trainable_variables)

  _, graph = activations.traced(lambda: Chain(conv(), conv()), step, SPEC)
  assert capacity.training_flop(done.forward, one) == 2 * 5 * one
  # The graph includes the gradient of the image; nothing reads it, so it is never computed.
  assert 1e9 * work.gflop(graph, 0) == pytest.approx(2 * 6 * one)


def test_assumptions_are_complete():
  for found, batches in capacity.SYSTEMS:
    assert found.device.peak.keys() == found.device.reached.keys() and batches
    assert all(0 < share < 1 for share in found.device.reached.values())
