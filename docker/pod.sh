#!/bin/sh
# Be one of the processes that share a distillation, as a pod of an indexed Job; what follows goes to `unidd`:
#
#   docker/pod.sh fit --config configs/cfm_imagenet.yaml --ckpt_path last
#
# Environment: PODS, how many pods the Job has; JOB_COMPLETION_INDEX, which of them this is, by Kubernetes; MASTER_ADDR
# and MASTER_PORT (29500), where the first is found. Not by torchrun: that would turn every exit status into 1, and the
# Job tells bad input (2) and a checkpoint at SIGTERM (143) from what is worth another try.
set -eu

refuse() {
    echo "pod.sh: $1" >&2
    exit 2
}

pods=${PODS-}
case "$pods" in
'' | *[!0-9]* | 0*) refuse "got PODS '$pods', expected the Job's number of completions: set it in the container's env" ;;
esac
index=${JOB_COMPLETION_INDEX-}
case "$index" in
'' | *[!0-9]*) refuse "got JOB_COMPLETION_INDEX '$index', expected a pod's number: give the Job completionMode: Indexed" ;;
esac
[ "$index" -lt "$pods" ] || refuse "got the pod $index of $pods, expected PODS to be the Job's number of completions"

if [ "$pods" -gt 1 ]; then
    [ -n "${MASTER_ADDR-}" ] || refuse "got no MASTER_ADDR, expected the first pod's name, as in docker/kubernetes.yaml"
    # What torchrun would set for one process a machine.
    export TORCHELASTIC_RUN_ID=pod WORLD_SIZE="$pods" RANK="$index" GROUP_RANK="$index"
    export LOCAL_WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR MASTER_PORT="${MASTER_PORT:-29500}"
fi
exec unidd "$@"
