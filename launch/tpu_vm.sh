#!/usr/bin/env bash
# Create a TPU VM, train on it, and restart after preemption; see usage.
set -euo pipefail

usage() {
  cat <<'TEXT'
Train on a TPU VM with one host (v2-8, v3-8, v4-8, v5litepod-1 -4 -8, v6e-1 -4 -8):

  launch/tpu_vm.sh --name=scratch-6x --zone=us-central1-a --type=v3-8 --spot -- \
      --gin_file=gin_configs/scratch_6x.gin --data_dir=gs://my-bucket/coco --model_dir=gs://my-bucket/runs/scratch_6x

Arguments after -- go to rethink_tf.train, with gin_configs/runtime/tpu.gin added. The VM is created if it does not
exist; this checkout is copied to it, unless it trains, and installed with tensorflow-tpu. Training continues when the
connection is lost: run the same command again to see the log. A preempted spot VM is created again, and training
resumes.

  --version=V  software of the VM; default: the one for the type     --project=P  default: gcloud's
  --keep       keep the VM at the end (and pay for it)               --dry_run    print gcloud's commands, run none
TEXT
}

fail() {
  echo "tpu_vm.sh: $*" >&2
  exit 2
}

# On the VM: started by follow, below.
if [[ ${1:-} == --on_the_vm ]]; then
  shift
  cd "$(dirname "$0")/.."
  python=$HOME/.rethink_tf/bin/python state=$HOME/rethink_tf_train
  if [[ ! -f $HOME/.rethink_tf/installed ]]; then
    python3 -m venv "$HOME/.rethink_tf" 2>/dev/null ||
      { sudo apt-get -qq update && sudo apt-get -qq install -y python3-venv && python3 -m venv "$HOME/.rethink_tf"; }
    pins=$("$python" -c "import sys; print('-c constraints.txt' * (sys.version_info >= (3, 11)))")
    # shellcheck disable=SC2086  # two words or none
    "$python" -m pip install --quiet $pins -e .
    # The same module for TPUs, under another package name.
    "$python" -m pip uninstall --quiet --yes tensorflow
    "$python" -m pip install --quiet 'tensorflow-tpu~=2.20.0'
    touch "$HOME/.rethink_tf/installed"
  fi
  if kill -0 "$(cat "$state.pid" 2>/dev/null)" 2>/dev/null; then
    [[ "$(printf '%q ' "$@")" == "$(cat "$state.arguments")" ]] ||
      echo "tpu_vm.sh: a training with other arguments runs on this VM, and this is its log:" \
        "$(cat "$state.arguments")" >&2
  else
    rm -f "$state.code"
    printf '%q ' "$@" >"$state.arguments"
    : >"$state.log"  # exists before tail opens it
    # shellcheck disable=SC2016  # for the inner shell
    setsid nohup bash -c '"$1" -m rethink_tf.train "${@:3}"; echo $? >"$2.code"' _ "$python" "$state" "$@" \
      >"$state.log" 2>&1 </dev/null &
    echo $! >"$state.pid"
  fi
  tail --pid="$(cat "$state.pid")" -n +1 -f "$state.log"
  exit "$(cat "$state.code" 2>/dev/null || echo 1)"
fi

name='' zone='' type='' version='' project='' spot=false keep=false dry_run=false
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --spot) spot=true ;;
    --keep) keep=true ;;
    --dry_run) dry_run=true ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown option ${1%%=*}: arguments of training go after --; see --help" ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "--name='$name': small letters, digits and hyphens"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone='$zone' is not a zone, such as us-central1-a"
case $type in
  v2-8 | v3-8 | v4-8) default=tpu-ubuntu2204-base ;;
  v5litepod-[148]) default=v2-alpha-tpuv5-lite ;;
  v6e-[148]) default=v2-alpha-tpuv6e ;;
  *) fail "--type='$type': use v2-8, v3-8, v4-8, v5litepod-8 or another TPU of one host; see --help" ;;
esac
model_dir=''
for argument; do
  [[ $argument != --model_dir=* ]] || model_dir=${argument#*=}
done
[[ $model_dir == gs://?*/?* ]] ||
  fail "--model_dir='$model_dir': the run folder must outlive the VM; after --, give --model_dir=gs://bucket/runs/name"

place=("$name" "--zone=$zone" ${project:+"--project=$project"})

tpu() {  # gcloud compute tpus tpu-vm <verb> <name> ...
  local command=(gcloud compute tpus tpu-vm "$@")
  if $dry_run; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

state_of_vm() {
  gcloud compute tpus tpu-vm describe "${place[@]}" '--format=value(state)' 2>/dev/null || echo ABSENT
}

make_vm() {
  local create=("--accelerator-type=$type" "--version=${version:-$default}")
  if $spot; then create+=(--spot); fi
  tpu create "${place[@]}" "${create[@]}"
  copy_checkout
}

copy_checkout() {
  tpu scp "$checkout" "$name:rethink_tf.tar.gz" "${place[@]:1}"
  tpu ssh "${place[@]}" --command='mkdir -p rethink_tf && tar -xzf rethink_tf.tar.gz -C rethink_tf'
}

shown() {  # the arguments of training, without credentials in a dry run
  arguments=("$@")
  if $dry_run; then
    mapfile -d '' -t arguments < <(PYTHONPATH=$root python3 -m rethink_tf.redaction "$@")
    wait "$!" || fail '--dry_run needs python3, to leave out credentials'
  fi
}

follow() {
  shown "$@"
  arguments+=(--gin_file=gin_configs/runtime/tpu.gin)
  tpu ssh "${place[@]}" --command="bash rethink_tf/launch/tpu_vm.sh --on_the_vm$(printf ' %q' "${arguments[@]}")"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
checkout=$scratch/rethink_tf.tar.gz
root=$(cd "$(dirname "$0")/.." && pwd)
tar -czf "$checkout" -C "$root" --exclude=__pycache__ rethink_tf gin_configs launch setup.py constraints.txt README.md \
  pyproject.toml

if $dry_run; then
  make_vm
  follow "$@"
  $keep || tpu delete "${place[@]}" --quiet
  exit 0
fi

while true; do
  case $(state_of_vm) in
    READY)  # unless it trains, copy: corrections of the checkout, or the first one if a start failed before
      # shellcheck disable=SC2016  # for the shell of the VM
      tpu ssh "${place[@]}" --command='kill -0 "$(cat rethink_tf_train.pid)" 2>/dev/null' || copy_checkout
      ;;
    ABSENT) make_vm ;;
    PREEMPTED | TERMINATED)  # its disk is lost: create a new VM
      tpu delete "${place[@]}" --quiet
      make_vm
      ;;
    STOPPED | FAILED) fail "the VM is stopped: gcloud compute tpus tpu-vm start, or delete, ${place[*]}" ;;
    *) sleep 10 && continue ;;  # being created
  esac
  code=0
  follow "$@" || code=$?
  ((code == 0)) && break
  if [[ $(state_of_vm) == READY && $code != 75 ]]; then  # 75: stopped by a signal, not complete
    echo "tpu_vm.sh: training or the connection ended with code $code; the VM still exists: run the same command" \
      "again to continue, or gcloud compute tpus tpu-vm delete ${place[*]}" >&2
    exit "$code"
  fi
  echo 'tpu_vm.sh: the VM was preempted; training resumes on a new one' >&2
done
$keep || tpu delete "${place[@]}" --quiet
