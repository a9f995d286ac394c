#!/usr/bin/env bash
# Run a training command on this host, and start it again until training is done:
#   bash scripts/until_done.sh .venv/bin/python -m efficientnet_tf.train --variant=b4 --tpu=local --model_dir=gs://bucket/b4 ...
# Exit status 75 means that a signal stopped the command and everything is saved. The command is started again at once.
# If it was killed or a library aborted it, it is started again after a pause. The pause doubles each time that the
# command lives less than ten minutes, and after TRIES (8) such times in a row the script gives up.
# Any other status is an error that would happen again. The script exits with that status.
# SIGTERM and SIGINT are passed on to the command, and the script exits with the command's status.
set -uo pipefail
[ $# -gt 0 ] || { sed -n '2,8s/^# //p' "$0"; exit 2; }
tries=${TRIES:-8} pause=${PAUSE:-10} short=0 signals=0 child=
trap 'signals=$((signals + 1)); [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
while true; do
  started=$SECONDS status=127
  "$@" &
  child=$!
  [ "$signals" = 0 ] || kill -TERM "$child"  # the signal came before the line above
  while true; do
    seen=$signals
    wait "$child"
    code=$?
    [ "$code" = 127 ] || status=$code  # 127 means that its status was already known
    [ "$seen" != "$signals" ] || break  # a signal ended the wait, not the command
  done
  [ "$signals" = 0 ] || exit "$status"
  if [ "$status" != 75 ] && [ "$status" -le 128 ]; then
    exit "$status"
  fi
  if [ "$status" = 75 ]; then
    echo "until_done: stopped by a signal, starting it again" >&2
    continue
  fi
  [ $((SECONDS - started)) -ge 600 ] && short=0
  short=$((short + 1))
  if [ "$short" -gt "$tries" ]; then
    echo "until_done: ended by signal $((status - 128)) $short times in a row within ten minutes, giving up" >&2
    exit "$status"
  fi
  wait_for=$((pause * 2 ** (short - 1)))
  echo "until_done: ended by signal $((status - 128)), starting it again in $wait_for seconds" >&2
  sleep "$wait_for" &
  child=$!
  wait "$child"
  [ "$signals" = 0 ] || exit "$status"
done
