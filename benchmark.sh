#!/usr/bin/env bash
# The main runs behind the tables (of the others about.json beside them has the commands).
# Finished runs are skipped, interrupted ones resumed.
#
#   ./benchmark.sh [--dry-run] SUITE ...      without a suite: which there are, and their cost
#
# From the environment:
#   SEEDS="1 2 3 4 5"
#   STEPS=              of each training run; empty: as many as the suite says
#   JOBS=1              runs side by side
#   DEVICE=cuda         or cpu; without a GPU both are the CPU
#   VERSION=v4          of the MuJoCo tasks; the paper's are v5
#   FLAGS=              for every training run; what an ablation changes it changes all the same
#   OUT=runs/benchmark  holds <task>/<method>/seed_<k>, logs, commits and packages
#   PYTHON=python
#   LAUNCHER=local      or slurm: one array job; partition and such by SBATCH_PARTITION and such
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export SEEDS=${SEEDS:-1 2 3 4 5} STEPS=${STEPS:-} JOBS=${JOBS:-1} DEVICE=${DEVICE:-cuda}
export VERSION=${VERSION:-v4} FLAGS=${FLAGS:-} OUT=${OUT:-runs/benchmark}
export PYTHON=${PYTHON:-python} LAUNCHER=${LAUNCHER:-local}
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8} # determinism on a GPU
cpu=$([ "$DEVICE" = cuda ] || echo --no-cuda)

fail() { echo "error: $1" >&2; exit 2; }

# A suite prints a line for each of its runs: name script flags.
train() { # name steps script flags: FLAGS come before these flags, and the last one counts
    for seed in $SEEDS; do
        echo "$1/seed_$seed" "$3" --run-dir "$OUT/$1/seed_$seed" --seed "$seed" $cpu \
            --total-timesteps "${STEPS:-$2}" $FLAGS "${@:4}"
    done
}

kettle() {
    local task=FrankaKitchen-v1-kettle g
    change() { train "$task/$1" 60000 fmer_kitchen.py --tasks kettle "${@:2}"; }
    change fmer
    for g in 0.95 0.99; do change "gamma$g" --gamma "$g"; done
    change batch128 --batch-size 128
    change no_layer_norm --no-layer-norm
    change raw --no-normalize-observations
    change explore16 --num-explore-candidates 16
    change repeat40 --warmup-repeat 40
    echo kitchen_random figures/kitchen_random.py --out "$OUT"
}

mujoco() {
    local task
    for task in HalfCheetah-$VERSION Hopper-$VERSION Walker2d-$VERSION Humanoid-$VERSION; do
        train "$task/fmer" 1000000 fmer_continuous.py --env-id "$task"
    done
}

kitchen() {
    local n
    for n in 7 4 1; do
        train "FrankaKitchen-v1-$n/fmer" 1000000 fmer_kitchen.py --num-tasks "$n"
    done
    train FrankaKitchen-v1-1/repeat40_warmup60k 200000 fmer_kitchen.py --num-tasks 1 \
        --warmup-repeat 40 --learning-starts 60000
}

ablations() {
    local task=HalfCheetah-$VERSION k n m b
    ablate() { train "ablations/$task/$1" 30000 fmer_continuous.py --env-id "$task" "${@:2}"; }
    ablate fmer
    ablate top1 --no-autotune-temperature --temperature 1e-6
    ablate T1 --no-autotune-temperature --temperature 1
    ablate no_entropy --no-autotune --alpha 0
    ablate hutchinson --no-exact-entropy
    for k in 1 2 10; do ablate "K$k" --flow-steps "$k"; done
    ablate N4_rho0.4 --num-candidates 4 --ess-target 0.4
    for n in 8 32; do ablate "N$n" --num-candidates "$n"; done
    for m in 1 4; do ablate "M$m" --num-act-candidates "$m" --num-explore-candidates "$m"; done
    for m in 4 16; do ablate "explore$m" --num-explore-candidates "$m"; done
    for b in 16 32 128; do ablate "actor_batch$b" --actor-batch-size "$b"; done
    ablate target_entropy-1 --target-entropy-scale -1
    ablate layer_norm --layer-norm
}

probes() {
    local task=FrankaKitchen-v1-7 plain="--no-layer-norm --ess-target 0.3 --temperature 1"
    local FLAGS="--batch-size 128 --gamma 0.99 --learning-starts 5000 --no-normalize-observations $FLAGS"
    change() { train "$1" 60000 fmer_kitchen.py --num-tasks 7 "${@:2}"; }
    ablate() { change "ablations/$task/$1" "${@:2}"; }
    change "$task/former"
    ablate uniform --learning-starts "${STEPS:-60000}" # random actions all along
    ablate narrow $plain --target-entropy-scale -1
    ablate wide $plain
    ablate wide_norm_T0.01 --ess-target 0.3
    ablate wide_rho0.6_T0.01 --no-layer-norm
}

multigoal() {
    echo multigoal figures/multigoal.py --num-seeds "$(wc -w <<< "$SEEDS")" --out "$OUT/multigoal"
}

speed() { echo speed figures/speed.py $cpu --out "$OUT/speed.png"; }

suites() {
    cost() { # suite, steps per second, what it is
        "$1" | awk -v name="$1" -v speed="$2" -v text="$3" '
            { for (i = 1; i < NF; i++) if ($i == "--total-timesteps") steps += $(i + 1) }
            END { hours = steps ? sprintf("%.1f", steps / speed / 3600) : "-"
                  printf "%-10s %4d %6s  %s\n", name, NR, hours, text }'
    }
    printf "\nsuite      runs  hours  (of one CPU core)\n"
    cost mujoco 85 "1M steps, the paper's MuJoCo tasks and Hopper"
    cost kettle 70 "60k steps in the kitchen with the kettle alone, one change at a time"
    cost kitchen 50 "1M steps, the paper's kitchen"
    cost ablations 95 "30k steps on HalfCheetah, one change at a time"
    cost probes 85 "60k steps in the kitchen with 7 tasks, its former defaults"
    cost multigoal 0 "2-D task with four goals, table and pictures: 7 minutes a seed"
    cost speed 0 "training speed of this machine, table and picture: minutes"
}

# What makes two runs of a name the same one; $OUT/<name>.flags keeps it.
flags() { sed -E 's/ --(run-dir|total-timesteps) [^ ]+| --no-cuda//g' <<< "$*"; }

finished() { # name script flags
    local line="$*"
    local steps=${line##*--total-timesteps }
    case $2 in
        fmer_*) [ -f "$OUT/$1/eval.csv" ] \
            && [ "$(cat "$OUT/$1.flags" 2> /dev/null || flags "$@")" = "$(flags "$@")" ] \
            && [ "$(tail -n 1 "$OUT/$1/eval.csv" | cut -d, -f1)" -ge "${steps%% *}" ] 2> /dev/null ;;
        *) [ -f "$OUT/$1.md" ] ;;
    esac
}

run() { # name script flags: the process becomes the run, so that signals reach it
    local name=$1 script=$2
    mkdir -p "$OUT/$(dirname "$name")"
    exec 9> "$OUT/$name.lock" # held until the run ends, whoever started it
    if ! flock -n 9; then echo "running already: $name"; return; fi
    if finished "$@"; then echo "finished before: $name"; return; fi
    echo "$name"
    if [[ $script != fmer_* ]]; then
        "$PYTHON" "$here/$script" "${@:3}" > "$OUT/$name.tmp" 2> "$OUT/$name.log"
        mv "$OUT/$name.tmp" "$OUT/$name.md"
    elif [ -f "$OUT/$name/checkpoint.pt" ]; then # it refuses other flags
        exec "$PYTHON" "$here/$script" "${@:3}" --resume >> "$OUT/$name.log" 2>&1
    elif [ -f "$OUT/$name/eval.csv" ] && grep -qs '^done: \|stopped; ' "$OUT/$name.log"; then
        echo "its checkpoint is gone: $name"
    else
        rm -rf "${OUT:?}/$name" # it was stopped before its first checkpoint
        flags "$@" > "$OUT/$name.flags"
        exec "$PYTHON" "$here/$script" "${@:3}" > "$OUT/$name.log" 2>&1
    fi
}

if [ "${1:-}" = --run ]; then
    run "${@:2}"
    exit
fi
dry=false
[ "${1:-}" != --dry-run ] || { dry=true && shift; }
for suite in "$@"; do
    [[ " mujoco kettle kitchen ablations probes multigoal speed " = *" $suite "* ]] \
        || fail "no suite '$suite'"
done
[[ $STEPS =~ ^([1-9][0-9]*)?$ && $JOBS =~ ^[1-9][0-9]*$ ]] \
    || fail "STEPS and JOBS are positive integers"
[[ $SEEDS =~ ^\ *[0-9]+(\ +[0-9]+)*\ *$ ]] || fail "SEEDS are integers"
[[ ! " $FLAGS" =~ \ --(seed|run-dir|resume) ]] || fail "FLAGS has a flag that names a run"
[[ ! $OUT =~ [[:space:]] ]] || fail "OUT holds a blank"
[[ $DEVICE =~ ^(cuda|cpu)$ ]] || fail "DEVICE is cuda or cpu"
[[ $LAUNCHER =~ ^(local|slurm)$ ]] || fail "LAUNCHER is local or slurm"
[ $# -gt 0 ] || { sed -n '2,/^set/{s/^# \?//p}' "$0"; suites; exit; }
runs=$(for suite in "$@"; do "$suite"; done | awk '!seen[$1]++')
if $dry; then
    cut -d ' ' -f 2- <<< "$runs" | sed "s|^|$PYTHON |"
    exit
fi

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
        --wrap="exec '$here/benchmark.sh' --run \$(echo \"\$runs\" | sed -n \${SLURM_ARRAY_TASK_ID}p)" || true
else # what measures speed runs last, and alone; a run that dies does not end the others
    each() { xargs -r -P "$1" -L 1 sh -c '"$0" --run "$@" || true' "$here/benchmark.sh"; }
    grep -v '^speed ' <<< "$runs" | each "$JOBS" || true # grep: none
    grep '^speed ' <<< "$runs" | each 1 || true
fi
failed=$(while read -r line; do finished $line || echo "  $OUT/${line%% *}.log"; done <<< "$runs")
[ -z "$failed" ] || { echo -e "not finished:\n$failed" >&2; exit 1; }
