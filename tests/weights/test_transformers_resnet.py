"""Names of ResNets in Hugging Face transformers."""

from rethink_tf.weights import transformers_resnet


def test_names_become_those_of_torchvision():
  renamed = transformers_resnet.renamed
  assert renamed('embedder.embedder.convolution.weight') == 'conv1.weight'
  assert renamed('embedder.embedder.normalization.running_var') == 'bn1.running_var'
  assert renamed('encoder.stages.2.layers.22.layer.1.convolution.weight') == 'layer3.22.conv2.weight'
  assert renamed('encoder.stages.0.layers.0.layer.2.normalization.bias') == 'layer1.0.bn3.bias'
  assert renamed('encoder.stages.0.layers.0.shortcut.convolution.weight') == 'layer1.0.downsample.0.weight'
  assert renamed('encoder.stages.0.layers.0.shortcut.normalization.weight') == 'layer1.0.downsample.1.weight'
  assert renamed('encoder.stages.0.layers.0.attention.weight') == 'encoder.stages.0.layers.0.attention.weight'
  assert transformers_resnet.recognizes({'embedder.embedder.convolution.weight'})
