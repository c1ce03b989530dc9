# shellcheck shell=bash
# What the batch scripts share; they source it from the folder that sbatch was called in, as Slurm
# runs a copy of them from elsewhere.

limited=0 cancelled=0 # whether Slurm has said that the time limit is near, that the job shall end
trap 'limited=1' USR1 # it may come before there is anything to pass it on to

cd "$SLURM_SUBMIT_DIR" || exit
set +u # modules and environments often read what is not set
# shellcheck source=jobs/site.sh
source jobs/site.sh
set -u

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
export HDF5_USE_FILE_LOCKING=FALSE # a file has one writer; parallel file systems often lack locks
export SLURM_EXPORT_ENV=ALL        # for the ranks too, where sbatch is set to export nothing
export SLURM_NTASKS="${SLURM_NTASKS:-$((SLURM_JOB_NUM_NODES * ${SLURM_NTASKS_PER_NODE:-1}))}"

staged= # folder of the shards on every node's own disk

# Where the job works and writes job.out; files of an earlier job with the same RUN are continued.
enter() {
    run="${RUN:-$1}"
    mkdir -p "$run"
    echo "job $SLURM_JOB_ID writes $run/job.out"
    exec >>"$run/job.out" 2>&1
    echo "$(date '+%F %T') job $SLURM_JOB_ID on $SLURM_JOB_NODELIST," \
        "start $((${SLURM_RESTART_COUNT:-0} + 1))"
    choose_launcher
}

# LAUNCH as given, or srun where ranks that it starts find each other, or mpirun.
choose_launcher() {
    local given=${LAUNCH:-} two=$((SLURM_NTASKS > 1 ? 2 : 1)) said
    LAUNCH=${given:-srun --mpi=pmix}
    read -ra launch <<<"$LAUNCH"
    if [[ $LAUNCH == srun* ]] && ! said=$(timeout -k 10 60 "${launch[@]}" -n "$two" python -c \
        "from mpi4py import MPI; raise SystemExit(MPI.COMM_WORLD.size != $two)" 2>&1); then
        echo "$LAUNCH: the ranks it starts do not find each other${said:+, it says:}"
        [[ -z $said ]] || echo "$said"
        if [[ -n $given ]]; then
            echo "another LAUNCH is needed: see the launcher's section in docs/clusters.md"
            exit 1
        fi
        LAUNCH=mpirun
    fi
    read -ra launch <<<"$LAUNCH"
    echo "ranks by $LAUNCH"
    # Cores of its own for every rank, as many as its threads; options in LAUNCH go before these.
    if [[ $LAUNCH == srun* ]]; then
        export SLURM_CPU_BIND=cores SRUN_CPUS_PER_TASK="$OMP_NUM_THREADS"
    else
        local policy=PRTE_MCA_rmaps_default_mapping_policy
        export "$policy=${!policy:-slot:PE=$OMP_NUM_THREADS}"
    fi
}

# Train in folder $1 with the other arguments; queued again where the time limit came first.
train() {
    local shield=() word elastic=0
    for word in "${@:2}"; do
        if [[ $word == --elastic* ]]; then # ranks die, and the others go on
            # Of srun by which mpirun starts its daemons; Slurm's PMIx ends a step with its first rank.
            elastic=1 LAUNCH=${LAUNCH:-mpirun}
            export SLURM_NO_KILL=set SLURM_KILL_BAD_EXIT=0 SLURM_OVERLAP=1
        fi
    done
    enter "$1"
    if ((elastic)) && [[ $LAUNCH == mpirun* && $LAUNCH != *--with-ft* ]]; then
        launch+=(--with-ft ulfm)
    fi
    for word in "${@:2}"; do
        if [[ $word =~ ^--(out|resume)(=|$) ]]; then
            echo "$word: a job resumes the run in its folder, which RUN=DIR sbatch ... names"
            exit 2
        fi
    done
    claim
    stage "${@:2}"
    # scancel sends SIGTERM to everything: the ranks shall write a checkpoint, and mpirun and its
    # daemons, which would kill them after a quarter of a second, shall not hear of it.
    if [[ $LAUNCH != srun* ]] && env --block-signal=TERM true 2>/dev/null; then
        shield=(env --block-signal=TERM)
        export PRTE_MCA_prte_launch_agent="${shield[*]} prted"
    fi
    while :; do
        await USR1 "${shield[@]}" "${launch[@]}" -n "$SLURM_NTASKS" python -m apts_mpi train \
            --out "$run" --resume auto --threads "$OMP_NUM_THREADS" "${@:2}" \
            ${staged:+--data "$staged"}
        ((elastic && !limited && !cancelled)) || break
        fewer_nodes || break
    done
    unstage
    # Status 3 means a checkpoint after at least one iteration of this start, so that a run whose
    # job is queued again and again comes to its end.
    finish $((status == 3)) "checkpoint"
}

# Whether the ranks have ended with some of their nodes; the others are then all that there are.
# mpirun cannot live without a node; the job can, with sbatch --no-kill.
fewer_nodes() {
    local node k=0 tasks total=0 left=() per=() cores=()
    ((status != 3)) && [[ $status != 0 || ! -e $run/summary.json ]] || return 1
    status=$((status ? status : 1)) # mpirun may take the end of its daemons for a good one
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        # Where they do not come out even, the first nodes have one more.
        tasks=$(((SLURM_NTASKS + SLURM_JOB_NUM_NODES - 1 - k++) / SLURM_JOB_NUM_NODES))
        if timeout -k 5 30 srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$node" \
            --mpi=none true &>/dev/null; then
            left+=("$node") per+=("$tasks") cores+=("$((tasks * OMP_NUM_THREADS))")
            total=$((total + tasks))
        fi
    done
    ((${#left[@]} && ${#left[@]} < SLURM_JOB_NUM_NODES)) || return 1
    echo "$((SLURM_JOB_NUM_NODES - ${#left[@]})) of $SLURM_JOB_NUM_NODES nodes are lost:" \
        "the run is resumed on ${left[*]}"
    local IFS=,
    export SLURM_JOB_NODELIST="${left[*]}" SLURM_NODELIST="${left[*]}"
    export SLURM_JOB_NUM_NODES=${#left[@]} SLURM_NNODES=${#left[@]}
    export SLURM_NTASKS=$total SLURM_NPROCS=$total
    export SLURM_TASKS_PER_NODE="${per[*]}" SLURM_JOB_CPUS_PER_NODE="${cores[*]}"
}

# Refuse a folder in which another job trains, which may have been queued again meanwhile.
claim() {
    local other
    other=$(cat "$run/.job" 2>/dev/null || true)
    if [[ -n $other && $other != "$(job)" && -n $(squeue --noheader --jobs="$other" \
        --states=RUNNING,SUSPENDED,COMPLETING 2>/dev/null || true) ]]; then
        echo "job $other trains in $run: wait for its end, or scancel it"
        exit 1
    fi
    job >"$run/.job"
}

# Run `python -m benchmarks $1` in folder $2 with the other arguments, and report.
benchmark() {
    local before word again=()
    enter "$2"
    for word in "${@:3}"; do # what an earlier start has measured is not to be forgotten
        [[ $word == --fresh && ${SLURM_RESTART_COUNT:-0} != 0 ]] || again+=("$word")
    done
    before=$(results)
    await TERM python -m benchmarks "$1" --out "$run" --launch "$LAUNCH -n {ranks}" "${again[@]}"
    if (($(results) && !cancelled && (status == 0 || !limited))); then
        python -m benchmarks report "$run"/*.jsonl --out "$run" || status=$((status ? status : $?))
    fi
    # A run that takes longer than the limit would be begun again and again.
    finish $(($(results) != before)) "result"
}

# Number of results so far.
results() {
    cat "$run"/*.jsonl 2>/dev/null | wc -l || true
}

# Run a command that is sent signal $1 when the time limit is near; sets status.
await() {
    local signal=$1 pid='' again
    trap 'again=1 limited=1; [[ -z $pid ]] || kill -s "$signal" "$pid" || true' USR1
    trap 'again=1 cancelled=1' TERM # Slurm has signalled the ranks, which may take KillWait to end
    if ((limited || cancelled)); then
        status=1 # there may be time to start, but not for more
    else
        "${@:2}" &
        pid=$!
        ((!limited)) || kill -s "$signal" "$pid" || true
        while again=0 status=0; wait "$pid" || status=$?; ((again)); do :; done
    fi
    trap 'limited=1' USR1
    trap - TERM
}

# End; where the time limit was the reason, queue this job again if $1 is 1: it has a new $2.
finish() {
    local known
    known=$(scontrol show job "$(job)" 2>/dev/null || true)
    if ((status)) && [[ $known =~ PreemptTime=[0-9] ]]; then
        requeue "the job is preempted" # by Slurm, which forgets one that ends while it has time to
    elif ((status && limited && !cancelled)); then
        if (($1)); then
            requeue "the time limit is near"
        else
            echo "the time limit is near, and this start has no new $2: not queued again," \
                "as the next would have none either; give the job more --time"
        fi
    fi
    exit "$status"
}

requeue() {
    echo "$1: queued again"
    scontrol requeue "$(job)" || echo "it cannot be: resume with RUN=$run sbatch ..."
}

# This job's name; the number of an array's last task is that of the whole array.
job() {
    echo "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
}

# STAGE=1: copy the shards of --data to every node's own disk.
stage() {
    local source='' word before=''
    for word in "$@"; do
        [[ $before == --data ]] && source=$word
        [[ $word == --data=* ]] && source=${word#--data=}
        before=$word
    done
    if [[ ${STAGE:-0} == 1 ]]; then
        if [[ ! -d $source ]]; then
            echo "STAGE=1: --data names no shard directory to copy"
            exit 2
        fi
        staged="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/apts_mpi-$SLURM_JOB_ID"
        trap unstage EXIT
        # shellcheck disable=SC2016
        on_every_node sh -c 'rm -rf "$1" && mkdir -m 700 "$1" && cp -r "$2/." "$1"' \
            - "$staged" "$source"
        echo "shards of $source copied to $staged on every node"
    fi
}

unstage() {
    if [[ -n $staged ]]; then
        trap - EXIT
        rm -rf "$staged" || true # here even when the job is cancelled and no more steps can start
        on_every_node rm -rf "$staged" 2>/dev/null || true
    fi
}

on_every_node() {
    local nodes=$SLURM_JOB_NUM_NODES
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --mpi=none "$@"
}
