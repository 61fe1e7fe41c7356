"""Trains a classifier: python -m rethink_tf.pretrain --gin_file=gin_configs/pretraining/imagenet_r50_gn.gin.

The same command continues an interrupted run. SIGTERM (pre-emption) and Ctrl-C save a checkpoint at the end of the step
and end it; a second signal ends at once. Exit codes: 0 complete, 1 an error told in one line, 75 SIGTERM (EX_TEMPFAIL:
give the same command again), 130 Ctrl-C.
"""

from rethink_tf import command_line

if __name__ == '__main__':
  command_line.run_command('train')
