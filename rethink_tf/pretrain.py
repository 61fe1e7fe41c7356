"""Train a classifier: python -m rethink_tf.pretrain --gin_file=gin_configs/pretraining/imagenet_r50_gn.gin.

The same command resumes an interrupted run. SIGTERM (pre-emption) and Ctrl-C end it after the current step, once its
checkpoint is saved; a second signal ends it at once. Exit codes: 0 complete; 1 an error, reported in one line;
69 another worker was lost; 75 SIGTERM (EX_TEMPFAIL: run the same command again); 130 Ctrl-C.
"""

from rethink_tf import command_line

if __name__ == '__main__':
  command_line.run_command('pretrain')
