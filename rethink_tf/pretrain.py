"""Trains a classifier: python -m rethink_tf.pretrain --gin_file=gin_configs/pretraining/imagenet_r50_gn.gin."""

from rethink_tf import command_line

if __name__ == '__main__':
  command_line.open_door('train')
