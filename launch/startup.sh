#!/bin/bash
# {{ description }}
# Runs as root on every TPU VM at each boot: a machine that comes back from maintenance goes on where the bucket says.
set -uo pipefail

readonly name={{ name }} bucket={{ bucket }} mount={{ mount }}
arguments=(
  {{ arguments }}
)

metadata() {
  curl -sf -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

mount_bucket() {
  if ! command -v gcsfuse >/dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
    curl -sf "$packages/doc/apt-key.gpg" >"$key" &&
      echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" >/etc/apt/sources.list.d/gcsfuse.list &&
      apt-get update && apt-get install -y gcsfuse || return
  fi
  mkdir -p "$mount"
  mountpoint -q "$mount" || gcsfuse --implicit-dirs -o allow_other "$bucket" "$mount"
}

{{ install }}

{{ run }}

# 'launches/NAME/exit_code' in the bucket tells follow.sh, on your machine, that the run is over.
finish() {
  if [[ $worker == 0 ]]; then
    mkdir -p "$mount/launches/$name" && echo "$1" >"$mount/launches/$name/exit_code"
  fi
  exit "$1"
}

export HOME=${HOME:-/root}
worker=$(metadata agent-worker-number || metadata worker-id || echo 0)
{{ processes }}

for ((attempt = 1; ; attempt++)); do
  code=1
  if mount_bucket && install; then
    run
    code=$?
  fi
  case $code in
    0 | 2) finish "$code" ;;   # done, or a mistake that no second try mends
    130 | 143) exit "$code" ;; # stopped and saved: this machine is going away
  esac
  ((attempt < {{ attempts }})) || finish "$code"
  sleep "${RETRY_SECONDS:-30}"
done
