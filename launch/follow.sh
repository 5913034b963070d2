#!/bin/bash
# {{ description }}
# Asks for the TPU, asks again when it was preempted, and gives it back when the run is over; exits as the run did.
# It may be stopped and started again at any time: it takes up what it finds.
set -uo pipefail
cd "$(dirname "$0")" || exit

readonly name={{ name }} ended=gs://{{ bucket }}/launches/{{ name }}/exit_code
where=(
  {{ where }}
)

{{ verbs }}

was=
was=$(state) || exit
if [[ $was == absent ]]; then
  gcloud storage rm --quiet "$ended" 2>/dev/null
  create || exit
fi
while true; do
  if code=$(gcloud storage cat "$ended" 2>/dev/null); then
    echo "$name is over, exit code $code; deleting its TPU"
    delete
    exit "$code"
  fi
  now=$(state) || now=unknown # a passing error of the network
  if [[ $now != "$was" ]]; then echo "$(date '+%F %T') $name: $now"; fi
  was=$now
  case $now in
    lost) delete ;;
    absent) create ;;
    failed)
      describe
      exit 1
      ;;
  esac
  sleep "${POLL_SECONDS:-60}"
done
