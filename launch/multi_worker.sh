#!/usr/bin/env bash
# Start several workers that train together; see usage. Needs bash 4.
set -euo pipefail

usage() {
  cat <<'TEXT'
Train with several workers (gin_configs/runtime/multi_worker.gin): the same command for each, with its own TF_CONFIG.

On this machine, over the loopback, for tests (for the GPUs of one machine use runtime/mirrored.gin):
  launch/multi_worker.sh --workers=2 -- python -m rethink_tf.train --gin_file=gin_configs/demo.gin \
      --gin_file=gin_configs/runtime/multi_worker.gin --model_dir=runs/two

On several machines, each with its own --index (0 writes the run folder, which all must be able to read):
  launch/multi_worker.sh --hosts=node1:2222,node2:2222 --index=0 -- python -m rethink_tf.train ...

  --print   print the command line of each worker with its TF_CONFIG, and start nothing
  --grace=N seconds that workers have to exit after a failure or a signal (120)

SIGINT, SIGTERM, SIGHUP and SIGUSR1 are forwarded to all workers; a second one kills them. When a worker fails, the
others are terminated, and its exit code is that of this command.
TEXT
}

fail() {
  echo "multi_worker.sh: $*" >&2
  exit 2
}

workers='' hosts='' index='' grace=120 print=false
while (($#)); do
  case $1 in
    --workers=*) workers=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --index=*) index=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --print) print=true ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown option ${1%%=*}: the command goes after --; see --help" ;;
  esac
  shift
done
(($#)) || fail 'no command: give it after --; see --help'
[[ $grace =~ ^[0-9]+$ ]] || fail "--grace=$grace is not a number of seconds"
[[ -z $workers || -z $hosts ]] || fail 'give --workers for this machine or --hosts for several, not both'

addresses=()
if [[ -n $workers ]]; then
  [[ $workers =~ ^[1-9][0-9]?$ ]] || fail "--workers=$workers must lie between 1 and 99"
  [[ -z $index ]] || fail '--index belongs to --hosts: --workers starts all of them'
  port=$((20000 + RANDOM % 10000))
  while ((${#addresses[@]} < workers)); do
    # A port that refuses connections is free.
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || addresses+=("127.0.0.1:$port")
    port=$((port + 1))
  done
elif [[ -n $hosts ]]; then
  IFS=, read -ra addresses <<<"$hosts"
  for address in "${addresses[@]}"; do
    [[ $address =~ ^[A-Za-z0-9._-]+:[0-9]+$ ]] || fail "--hosts: '$address' is not host:port"
  done
  $print || [[ $index =~ ^[0-9]+$ && $((10#$index)) -lt ${#addresses[@]} ]] ||
    fail "--index='$index' must be the index of this machine in --hosts, 0 to $((${#addresses[@]} - 1))"
else
  fail 'give --workers or --hosts; see --help'
fi

tf_config() {  # of worker $1
  local quoted
  quoted=$(printf ', "%s"' "${addresses[@]}")
  printf '{"cluster": {"worker": [%s]}, "task": {"type": "worker", "index": %d}}' "${quoted:2}" "$1"
}

if $print; then
  root=$(cd "$(dirname "$0")/.." && pwd)
  mapfile -d '' -t shown < <(PYTHONPATH=$root python3 -m rethink_tf.redaction "$@")
  wait "$!" || fail '--print needs python3, to leave out credentials'
  for i in "${!addresses[@]}"; do
    echo "# ${addresses[i]}"
    printf "TF_CONFIG='%s'" "$(tf_config "$i")"
    printf ' %q' "${shown[@]}"
    echo
  done
  exit 0
elif [[ -n $hosts ]]; then
  TF_CONFIG=$(tf_config "$((10#$index))") exec "$@"  # 010 is ten
fi

pids=() deadline='' result=0 signalled=''

signal_all() {  # running workers and their child processes
  local pid
  for pid in "${pids[@]}"; do
    [[ -z $pid ]] || kill "-$1" -- "-$pid" 2>/dev/null || true
  done
}

named() {  # prefix output lines with the index of the worker, also those written at its end
  trap '' INT TERM HUP USR1
  exec sed -u "s/^/[$1] /"
}

# shellcheck disable=SC2329  # the traps call it
on_signal() {
  if [[ -n $signalled ]]; then
    signal_all KILL
  else
    signalled=$1
    deadline=$((SECONDS + grace))
    signal_all "$1"
  fi
}
trap 'on_signal INT' INT
trap 'on_signal TERM' TERM
trap 'on_signal HUP' HUP
trap 'on_signal USR1' USR1
trap 'signal_all KILL' EXIT

set -m  # a process group per worker, so that its child processes end with it
for i in "${!addresses[@]}"; do
  TF_CONFIG=$(tf_config "$i") "$@" </dev/null > >(named "$i") 2> >(named "$i" >&2) &
  pids[i]=$!
done
set +m

running=${#pids[@]}
while ((running)); do
  for i in "${!pids[@]}"; do
    if [[ -z ${pids[i]} ]] || kill -0 "${pids[i]}" 2>/dev/null; then
      continue
    fi
    code=0
    wait "${pids[i]}" || code=$?
    pids[i]=''
    running=$((running - 1))
    if ((code)) && [[ -z $deadline ]]; then
      echo "multi_worker.sh: worker $i exited with code $code; terminating the others" >&2
      deadline=$((SECONDS + grace))
      signal_all TERM
    fi
    ((result)) || result=$code
  done
  if [[ -n $deadline ]] && ((SECONDS > deadline)); then
    signal_all KILL
  fi
  sleep 0.1
done
trap - EXIT
exit "$result"
