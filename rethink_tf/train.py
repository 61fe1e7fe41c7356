"""Trains a detector, or continues: python -m rethink_tf.train --gin_file=gin_configs/scratch_6x.gin."""

from rethink_tf import command_line

if __name__ == '__main__':
  command_line.open_door('train')
