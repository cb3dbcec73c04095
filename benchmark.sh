#!/usr/bin/env bash
# Every run behind the README's numbers. Finished runs are skipped, interrupted ones resumed.
#
#   ./benchmark.sh [--dry-run] [mujoco] [kitchen] [ablations] [multigoal] [speed]   (none: all)
#
# From the environment:
#   SEEDS="1 2 3 4 5"   STEPS=1000000     of each training run
#   JOBS=1              runs side by side
#   DEVICE=cuda         or cpu; without a GPU both are the CPU
#   VERSION=v4          of the MuJoCo tasks; the paper's are v5
#   FLAGS=""            more flags for every training run
#   OUT=runs/benchmark  holds <task>/<method>_<seed>, logs, commits and packages
#   PYTHON=python
#   LAUNCHER=local      or slurm: one array job; partition and such by SBATCH_PARTITION and such
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export SEEDS=${SEEDS:-1 2 3 4 5} STEPS=${STEPS:-1000000} JOBS=${JOBS:-1} DEVICE=${DEVICE:-cuda}
export VERSION=${VERSION:-v4} FLAGS=$(xargs <<< "${FLAGS:-}") OUT=${OUT:-runs/benchmark} PYTHON=${PYTHON:-python}
LAUNCHER=${LAUNCHER:-local}
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8} # what determinism costs on a GPU

fail() { echo "error: $1" >&2 && exit 2; }

# One line for each run: name script flags.
mujoco() {
    for task in HalfCheetah Hopper Walker2d Humanoid; do
        seeds "$task-$VERSION/fmer" fmer_continuous.py --env-id "$task-$VERSION"
    done
}

kitchen() {
    for number in 1 4 7; do
        seeds "FrankaKitchen-v1-$number/fmer" fmer_kitchen.py --num-tasks "$number"
    done
}

ablations() {
    ablate() { seeds "HalfCheetah-$VERSION/$1" fmer_continuous.py --env-id "HalfCheetah-$VERSION" "${@:2}"; }
    ablate fmer
    ablate top-1 --no-autotune-temperature --temperature 1e-6
    ablate T=1 --no-autotune-temperature --temperature 1
    ablate no-entropy --no-autotune --alpha 0
    ablate hutchinson --no-exact-entropy
    for k in 1 2 5; do ablate "K=$k" --flow-steps "$k"; done
    for n in 4 8 32; do ablate "N=$n" --num-candidates "$n"; done
    for m in 1 4; do ablate "M=$m" --num-act-candidates "$m"; done
    ablate M-target=1 --num-target-candidates 1
    for b in 16 32 128 256; do ablate "actor-batch=$b" --actor-batch-size "$b"; done
}

multigoal() {
    local number
    number=$(wc -w <<< "$SEEDS")
    echo "multigoal figures/multigoal.py --num-seeds $number --out $OUT/multigoal"
}

speed() { echo "speed figures/speed.py --device $DEVICE --out $OUT/speed.png"; }

seeds() {
    local device=""
    [ "$DEVICE" = cuda ] || device=" --no-cuda"
    for seed in $SEEDS; do
        echo "$1_$seed $2 --run-dir $OUT/$1_$seed --total-timesteps $STEPS --seed $seed ${*:3}$device${FLAGS:+ $FLAGS}"
    done
}

finished() { # name script
    case $2 in
        fmer_*) [ -f "$OUT/$1/eval.csv" ] && [ "$(tail -n 1 "$OUT/$1/eval.csv" | cut -d, -f1)" -ge "$STEPS" ] 2> /dev/null ;;
        *) [ -f "$OUT/$1.md" ] ;;
    esac
}

run() { # name script flags: the process becomes the run, so that signals reach it
    local name=$1 script=$2
    mkdir -p "$OUT/$(dirname "$name")"
    exec 9> "$OUT/$name.lock" # held until the run ends, whoever started it
    if ! flock -n 9; then echo "running already: $name" && return; fi
    if finished "$name" "$script"; then echo "finished before: $name" && return; fi
    echo "$name"
    if [[ $script != fmer_* ]]; then
        "$PYTHON" "$here/$script" "${@:3}" > "$OUT/$name.tmp" 2> "$OUT/$name.log"
        mv "$OUT/$name.tmp" "$OUT/$name.md"
    elif [ -f "$OUT/$name/checkpoint.pt" ]; then
        exec "$PYTHON" "$here/$script" "${@:3}" --resume >> "$OUT/$name.log" 2>&1
    else
        rm -rf "${OUT:?}/$name" # it was stopped before its first checkpoint
        exec "$PYTHON" "$here/$script" "${@:3}" > "$OUT/$name.log" 2>&1
    fi
}

if [ "${1:-}" = --run ]; then
    run "${@:2}"
    exit
fi
dry=false
[ "${1:-}" != --dry-run ] || { dry=true && shift; }
[ $# -gt 0 ] || set -- mujoco kitchen ablations multigoal speed
for suite in "$@"; do
    [[ $suite =~ ^(mujoco|kitchen|ablations|multigoal|speed)$ ]] || fail "no suite '$suite'"
done
[[ $STEPS =~ ^[1-9][0-9]*$ && $JOBS =~ ^[1-9][0-9]*$ ]] || fail "STEPS and JOBS are positive integers"
[[ ! $OUT =~ [[:space:]] ]] || fail "OUT holds a blank"
[[ $DEVICE =~ ^(cuda|cpu)$ ]] || fail "DEVICE is cuda or cpu"
[[ $LAUNCHER =~ ^(local|slurm)$ ]] || fail "LAUNCHER is local or slurm"
runs=$(for suite in "$@"; do "$suite"; done | awk '!seen[$1]++')
if $dry; then cut -d ' ' -f 2- <<< "$runs" | sed "s|^|$PYTHON |" && exit; fi

mkdir -p "$OUT"
{ # appended: a run is of the last commit before its start
    date -u +%FT%TZ
    git -C "$here" describe --always --dirty --abbrev=40 || echo "no commit"
    uname -nmp
    "$PYTHON" -m pip freeze || true
} >> "$OUT/provenance.txt"
if [ "$LAUNCHER" = slurm ]; then
    export runs # the tasks take their lines from it
    sbatch --wait --requeue --export=ALL --signal=B:TERM@120 --open-mode=append --job-name=fmer \
        --array="1-$(wc -l <<< "$runs")%$JOBS" --output="$OUT/slurm_%a.log" \
        --wrap="exec $here/benchmark.sh --run \$(echo \"\$runs\" | sed -n \${SLURM_ARRAY_TASK_ID}p)" || true
else # what measures speed runs last, and alone; a run that dies does not end the others
    each() { xargs -r -P "$1" -L 1 sh -c '"$0" --run "$@" || true' "$here/benchmark.sh"; }
    grep -v '^speed ' <<< "$runs" | each "$JOBS" || true # grep: none
    grep '^speed ' <<< "$runs" | each 1 || true
fi
failed=$(while read -r name script _; do finished "$name" "$script" || echo "  $OUT/$name.log"; done <<< "$runs")
[ -z "$failed" ] || { echo -e "not finished:\n$failed" >&2 && exit 1; }
