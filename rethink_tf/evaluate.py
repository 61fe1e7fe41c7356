"""Scores a run's newest checkpoint: python -m rethink_tf.evaluate --model_dir=runs/scratch_6x."""

from rethink_tf import command_line

if __name__ == '__main__':
  command_line.open_door('evaluate')
