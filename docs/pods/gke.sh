#!/bin/bash
# TPUs of a GKE cluster, by xpk: bash docs/pods/gke.sh STUDY [OPTIONS OF fedjax-fm run]
# The image is that of docs/pods/Dockerfile, in a registry that the cluster reads, and
# /shared is a disk that was attached with: xpk storage attach --mount-point=/shared ...
set -euo pipefail
study=${1:?the name of a study, see: fedjax-fm list}
shift
cluster=${CLUSTER:?the cluster, made with: xpk cluster create}
image=${IMAGE:?for example europe-west4-docker.pkg.dev/PROJECT/images/fedjax-fm:tpu}
kind=${TPU_TYPE:-v5litepod-16}

xpk workload create \
  --cluster="$cluster" \
  --workload="${study//_/-}" \
  --docker-image="$image" \
  --tpu-type="$kind" \
  --num-slices=1 \
  --max-restarts=3 \
  --command="fedjax-fm run $study --out /shared/runs/$study $*"
