"""Scores a run's newest checkpoint: python -m rethink_tf.evaluate --model_dir=runs/scratch_6x.

--checkpoint=best scores the one that training's evaluations liked best (best.json), --checkpoint=12000 that of a step.
"""

from rethink_tf import command_line

if __name__ == '__main__':
  command_line.run_command('evaluate')
