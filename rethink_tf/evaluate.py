"""Evaluate the newest checkpoint of a run: python -m rethink_tf.evaluate --model_dir=runs/scratch_6x.

--checkpoint=best evaluates the one with the best metric during training (best.json), --checkpoint=12000 that of a step.
"""

from rethink_tf import command_line

if __name__ == '__main__':
  command_line.run_command('evaluate')
