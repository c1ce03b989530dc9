# shellcheck shell=bash
# Your cluster: the one file to edit. Every job reads it first; docs/clusters.md explains choices.
# Account and partition go on sbatch's command line, or into SBATCH_ACCOUNT and SBATCH_PARTITION.

# module purge
# module load python openmpi

if [[ -e .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi

# What starts the ranks, with options of its own if it needs any: srun, mpirun, or another command
# that takes -n RANKS. Left out: srun where ranks that it starts find each other, else mpirun.
# export LAUNCH='srun --mpi=pmix'

# MPI settings, as `python -m benchmarks micro` finds them:
# export OMPI_MCA_...
