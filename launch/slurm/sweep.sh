#!/usr/bin/env bash
# Ends what is left of the job's Ray on this node; with the word delete its folder goes too. Started by the scripts here.
set -euo pipefail

# By their environment: Ray's processes change their names, and leave the tree that SLURM may know the job by.
found=$(grep -lsz "^RAY_TMPDIR=/tmp/zsn-${SLURM_JOB_ID:?}-" /proc/[0-9]*/environ || true)
for environment in $found; do
    process=${environment#/proc/}
    kill -KILL "${process%/environ}" 2>/dev/null || true
done
if [[ ${1:-} == delete ]]; then rm -rf -- "/tmp/zsn-$SLURM_JOB_ID-${SLURM_NODEID:?}"; fi
