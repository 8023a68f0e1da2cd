# Sourced by a batch script before its step, with the project's folder in root: what node.sh must know on every node.
# shellcheck shell=bash disable=SC2154
set -euo pipefail

# Submitted with --export=NONE or a list, srun would hand on as little: neither what is set here, nor the user's own.
export SLURM_EXPORT_ENV=ALL

# The first node's address as the others see it: its own file of hosts may give it a loopback address.
head=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?}" | sed -n 1p)
address=$(getent ahostsv4 "$head" | awk '$1 !~ /^127\./ { print $1; exit }' || true)
address=${address:-$(hostname -I | awk '{ print $1 }')}
# Jobs that run at once have ports of their own, below those that the kernel hands out.
export ZS_NEMO_RAY_ADDRESS=${address:?the address of $head was not found}:$((20000 + SLURM_JOB_ID % 10000))

# Who reaches Ray's port can run anything, so it asks for a secret of the job. Without one Ray takes the user's own from
# ~/.ray where there is one, but for the first question of `ray symmetric-run`, and is refused by itself.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

# Where recipe.sh leaves the recipe's exit code, and beside it its process number.
export ZS_NEMO_OUTCOME=$root/runs/slurm/$SLURM_JOB_ID.exit
mkdir -p -- "${ZS_NEMO_OUTCOME%/*}"
rm -f -- "$ZS_NEMO_OUTCOME"{,.pid,.lost}
