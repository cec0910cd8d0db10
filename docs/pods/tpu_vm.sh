#!/bin/bash
# A slice of TPUs by itself: bash docs/pods/tpu_vm.sh create | install | run STUDY | delete
# JAX finds the other workers of the slice by itself.
set -euo pipefail
name=${TPU_NAME:-fedjax-fm}
zone=${ZONE:?for example us-west4-a}
kind=${ACCELERATOR_TYPE:-v5litepod-16}
version=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}
shared=${FEDJAX_FM_SHARED:?a folder that all workers have, an NFS mount for example}

on_all_workers() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

case ${1:?create, install, run STUDY or delete} in
  create)
    gcloud compute tpus tpu-vm create "$name" \
      --zone="$zone" --accelerator-type="$kind" --version="$version"
    ;;
  install)
    gcloud compute tpus tpu-vm scp --recurse . "$name:fedjax_fm" \
      --zone="$zone" --worker=all
    on_all_workers "pip install './fedjax_fm[hub,study]' 'jax[tpu]'"
    ;;
  run)
    study=${2:?the name of a study, see: fedjax-fm list}
    on_all_workers "fedjax-fm run $study --out $shared/runs/$study ${*:3}"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$name" --zone="$zone" --quiet
    ;;
  *)
    echo "expected create, install, run STUDY or delete, got $1" >&2
    exit 2
    ;;
esac
