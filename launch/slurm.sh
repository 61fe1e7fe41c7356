#!/usr/bin/env bash
#SBATCH --job-name=rethink_tf
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -euo pipefail

usage() {
  cat <<'TEXT'
Train on the nodes of a Slurm job, with one worker per node and all its GPUs:

  sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 launch/slurm.sh \
      --gin_file=gin_configs/scratch_6x.gin --data_dir=/shared/coco --model_dir=/shared/runs/scratch_6x

Options of sbatch go before launch/slurm.sh, those of rethink_tf.train after it. Submit from the checkout; Python is
.venv/bin/python there, or RETHINK_TF_PYTHON. Data and run folder must be on storage that all nodes share.

Five minutes before the time limit, and at preemption, the workers receive SIGTERM: they save a checkpoint, and the job
is requeued and resumes from it.
TEXT
}

fail() {
  echo "slurm.sh: $*" >&2
  exit 2
}

[[ ${1:-} != -h && ${1:-} != --help ]] || { usage && exit 0; }
(($#)) || fail 'no configuration: give --gin_file=... and --model_dir=...; see --help'
[[ -n ${SLURM_JOB_NODELIST:-} ]] || fail 'this is not a Slurm job: sbatch --nodes=2 launch/slurm.sh ...; see --help'

# Slurm runs a copy of this script; the checkout is the folder it was submitted from.
cd "${SLURM_SUBMIT_DIR:-.}"
[[ -f launch/multi_worker.sh ]] || fail "no launch/multi_worker.sh in $PWD: submit from the checkout"
python=${RETHINK_TF_PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || fail "no $python: make install EXTRAS=cuda, or set RETHINK_TF_PYTHON"

port=$((20000 + ${SLURM_JOB_ID:-0} % 10000))  # jobs that share a node use different ports
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/:$port/" | paste -sd, -)
train=("$python" -m rethink_tf.train "$@")

code=0
if [[ $hosts == *,* ]]; then
  # A failing task does not end the others at once: they may be saving. After two minutes the rest is terminated.
  # shellcheck disable=SC2016  # SLURM_PROCID is each task's own
  srun --kill-on-bad-exit=0 --wait=120 bash -c \
    'exec launch/multi_worker.sh --hosts="$1" --index="$SLURM_PROCID" -- "${@:2}"' _ "$hosts" \
    "${train[@]}" --gin_file=gin_configs/runtime/multi_worker.gin || code=$?
else
  srun "${train[@]}" || code=$?
fi

if ((code == 75)); then  # stopped by a signal, checkpoint saved, not complete
  echo 'slurm.sh: not complete; requeueing the job' >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
