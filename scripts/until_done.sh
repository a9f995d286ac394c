#!/usr/bin/env bash
# Runs a training command, on one host, until the training is done:
#   bash scripts/until_done.sh .venv/bin/python -m efficientnet_tf.train --variant=b4 --tpu=local --model_dir=gs://bucket/b4 ...
# Status 75 says that a signal stopped it and all is saved: it is started again at once. Killed, or aborted by a library,
# it is started again after a pause, which doubles with every time in a row that it lives less than ten minutes, and at
# most TRIES (8) times in such a row. Any other status is an error that would come again: it is this script's, too.
# A SIGTERM or SIGINT to this script goes to the command, whose status this script then has.
set -uo pipefail
[ $# -gt 0 ] || { sed -n '2,7s/^# //p' "$0"; exit 2; }
tries=${TRIES:-8} pause=${PAUSE:-10} short=0 signals=0 child=
trap 'signals=$((signals + 1)); [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
while true; do
  started=$SECONDS status=127
  "$@" &
  child=$!
  [ "$signals" = 0 ] || kill -TERM "$child"  # one that came before the line above
  while true; do
    seen=$signals
    wait "$child"
    code=$?
    [ "$code" = 127 ] || status=$code  # 127 of a second waiting: its status is known
    [ "$seen" != "$signals" ] || break  # a signal has ended the waiting, not the command
  done
  [ "$signals" = 0 ] || exit "$status"
  if [ "$status" != 75 ] && [ "$status" -le 128 ]; then
    exit "$status"
  fi
  if [ "$status" = 75 ]; then
    echo "until_done: stopped by a signal, starting again" >&2
    continue
  fi
  [ $((SECONDS - started)) -ge 600 ] && short=0
  short=$((short + 1))
  if [ "$short" -gt "$tries" ]; then
    echo "until_done: ended by signal $((status - 128)) $short times in a row within ten minutes: giving up" >&2
    exit "$status"
  fi
  wait_for=$((pause * 2 ** (short - 1)))
  echo "until_done: ended by signal $((status - 128)), starting again in $wait_for s" >&2
  sleep "$wait_for" &
  child=$!
  wait "$child"
  [ "$signals" = 0 ] || exit "$status"
done
