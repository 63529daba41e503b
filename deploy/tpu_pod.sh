#!/usr/bin/env bash
# One sweep on all hosts of a Cloud TPU slice: every host runs the same command under jax.distributed, host 0 writes.
#
#   TPU=my-slice ZONE=us-west4-a deploy/tpu_pod.sh install        # once: the checkout's revision, and its environment
#   TPU=my-slice ZONE=us-west4-a deploy/tpu_pod.sh run --scale paper --store /mnt/disk/store
#
# FILL IN: TPU, ZONE, REPOSITORY. A corpus must lie prepared at the same place on every host (`prepare` does it): a
# read-only disk or bucket that all mount, named by PROXIES_CACHE, or a copy on each. Host 0 needs the store only, but all
# hosts must see the checkpoints: PROXIES_CHECKPOINTS, a folder of a disk or bucket that all mount.
set -euo pipefail
: "${TPU:?name of the slice}" "${ZONE:?its zone}"
CHECKOUT=${CHECKOUT:-proxies}

everywhere() { gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$1"; }
proxies() {
    local settings=
    for name in PROXIES_CACHE PROXIES_CHECKPOINTS; do
        [ -z "${!name:-}" ] || settings+="$name=$(printf %q "${!name}") "
    done
    everywhere "cd $(printf %q "$CHECKOUT") && $settings.venv/bin/proxies$(printf ' %q' "$@")"
}

case "${1:-}" in
install)
    : "${REPOSITORY:?address that the hosts can clone}"
    revision=$(git rev-parse HEAD)
    everywhere "(test -d $(printf %q "$CHECKOUT") || git clone $(printf %q "$REPOSITORY") $(printf %q "$CHECKOUT")) \
        && cd $(printf %q "$CHECKOUT") && git fetch && git checkout $revision \
        && sudo apt-get install -y python3.11-venv && python3.11 -m venv .venv \
        && .venv/bin/pip install -c constraints.txt -e . 'jax[tpu]'"
    ;;
prepare) proxies data "$@" ;;
run) proxies run "${@:2}" --distributed ;;  # behind, as it may take a value
*) echo "usage: $0 install | prepare SOURCE … | run …" >&2 && exit 2 ;;
esac
