#!/usr/bin/env bash
# A Ray cluster on this machine, in the foreground: a head and worker nodes, each a node of its own
# to Ray. Ctrl-C (or SIGTERM) ends all of them, and no other cluster of the machine.
#
#   WORKERS=1        worker nodes beside the head, which takes steps too
#   CPUS=1 GPUS=0    of each node: a name of Ray's for its accounts, no limit of the machine's
#   PORT=6379 DASHBOARD_PORT=8265   change both for a second cluster on the machine
#   FOLDER=/tmp/entropylong-ray     logs, <node>.pid of each, and `token`, by which clients are known
set -euo pipefail

WORKERS=${WORKERS:-1} CPUS=${CPUS:-1} GPUS=${GPUS:-0}
PORT=${PORT:-6379} DASHBOARD_PORT=${DASHBOARD_PORT:-8265}
FOLDER=${FOLDER:-/tmp/entropylong-ray}
RAY=${RAY:-ray}

# A step is the command `dagster` of the node's PATH: the one installed beside `ray`.
PATH=$(cd "$(dirname "$(command -v "$RAY")")" && pwd):$PATH
export PATH
export RAY_USAGE_STATS_ENABLED=0
# Steps that wait for a free CPU or GPU are jobs that have not started: Ray fails them after 15
# minutes by default (seconds).
export RAY_JOB_START_TIMEOUT_SECONDS=${RAY_JOB_START_TIMEOUT_SECONDS:-604800}
# Most of Ray's ports listen on every interface of the machine, so whoever asks must know this.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$FOLDER/token
HOST=127.0.0.1

mkdir -p "$FOLDER"
[ -s "$RAY_AUTH_TOKEN_PATH" ] || (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' \
  >"$RAY_AUTH_TOKEN_PATH")
nodes=()

start() {  # name, then options of `ray start`
  local name=$1 log=$FOLDER/$1.log
  shift
  "$RAY" start --block --num-cpus="$CPUS" --num-gpus="$GPUS" \
    --object-store-memory=100000000 --disable-usage-stats --include-log-monitor=false "$@" \
    >"$log" 2>&1 &
  nodes+=($!)
  echo $! >"$FOLDER/$name.pid"
}

end() {
  trap - EXIT INT TERM
  kill "${nodes[@]}" 2>/dev/null || true
  wait || true
  rm -f "$FOLDER"/*.pid
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Ports of the agents, of which each node of one machine needs its own.
agent=$((DASHBOARD_PORT + 1))

start head --head --port="$PORT" --dashboard-host="$HOST" --dashboard-port="$DASHBOARD_PORT" \
  --include-dashboard=true --dashboard-agent-listen-port="$agent"
until "$RAY" health-check --address "$HOST:$PORT" >/dev/null 2>&1; do
  kill -0 "${nodes[0]}" 2>/dev/null || { tail -5 "$FOLDER/head.log"; exit 1; }
  sleep 0.3
done
for i in $(seq "$WORKERS"); do
  start "worker-$i" --address="$HOST:$PORT" --dashboard-agent-listen-port="$((agent + i))"
done
echo "Ray at http://$HOST:$DASHBOARD_PORT: a head and $WORKERS workers of $CPUS CPUs and $GPUS GPUs"
# A node that ends, or is killed, leaves the others running.
wait "${nodes[0]}"
