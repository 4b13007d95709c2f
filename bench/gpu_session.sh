#!/usr/bin/env bash
# What docs/tensorrt.md lacks, measured: each step takes less than 8 minutes and goes on where it stopped.
#
#   bench/gpu_session.sh prepare                 # without a GPU: YOLO=…/320n.onnx, rapidocr, scikit-learn
#   bench/gpu_session.sh STEP…                   # on the GPU machine, in the order of STEPS below
#
# WORK holds models, plans and timing caches (carry what `prepare` left there); OUT gets the results and the
# caches; PY is the Python that imports TensorRT. Run a step again until it prints no "run … again".
# DRY=1 runs a step on the stand-ins of tests/standin, to see that it starts, without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
STEPS="host tests yolo serve-int8 profiles accuracy bert serve-bert serving-tests providers"
WORK=${WORK:-/tmp/tritongen-gpu} OUT=${OUT:-bench/results} PY=${PY:-python} BUDGET=${BUDGET:-440}
GPU=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sed -n '1s/^NVIDIA \([A-Za-z0-9]*\).*/\L\1/p' || true)
CARD=${CARD:-8.6.0_${GPU:-h100}} SECONDS_OF_PROMISE=${SECONDS_OF_PROMISE:-90s}
mkdir -p "$WORK" "$OUT"
export PYTHONUNBUFFERED=1 PYTHONUTF8=1
if [ -n "${DRY:-}" ]; then
    export PYTHONPATH=$PWD/tests/standin${PYTHONPATH:+:$PYTHONPATH} STANDIN_IDLE=1
fi

# The timing cache of a model, from an earlier session if there is one.
cache() {
    local file=$WORK/$1.timing kept
    for kept in "$OUT" bench/results; do
        [ -e "$file" ] || [ ! -e "$kept/tensorrt_$CARD.$1.timing.gz" ] ||
            gzip -dc "$kept/tensorrt_$CARD.$1.timing.gz" > "$file"
    done
    echo "$file"
}
keep() { [ ! -e "$WORK/$1.timing" ] || gzip -nc "$WORK/$1.timing" > "$OUT/tensorrt_$CARD.$1.timing.gz"; }

latency() { # MODEL VARIANTS OUT
    "$PY" bench/tensorrt_latency.py --work "$WORK" --models "$1" --variants "$2" --cache "$(cache "$1")" \
        --budget "$BUDGET" --seconds 0.4 ${YOLO:+--yolo "$YOLO"} ${3:+--out "$OUT/$3"}
    keep "$1"
}
serve() { # MODEL VARIANT RATE P99 OUT: the bare engine, closed loops, and a promise that is measured for long enough
    latency "$1" "$2" ""
    "$PY" bench/tensorrt_serving.py --work "$WORK" --model "$1" --variant "$2" --rate "$3" --p99-ms "$4" \
        --duration 5s --slo-duration "$SECONDS_OF_PROMISE" --out "$OUT/$5"
}
pytest_to() { # FILE ARGUMENTS…
    local file=$OUT/$1
    shift
    { echo "\$ python -m pytest $*"; "$PY" -m pytest "$@" 2>&1; } | tee "$file"
}

step() {
    case $1 in
    prepare)
        : "${YOLO:?the path of the 320n.onnx of nudenet}"
        "$PY" bench/int8_ranges.py --models yolov8n,detector,recogniser --yolo "$YOLO" --images "$WORK"
        "$PY" bench/int8_mixed.py --models detector,recogniser --block 6 --keep "$WORK" --out "$WORK/mixed.json"
        "$PY" bench/tensorrt_accuracy.py --phase prepare --work "$WORK" --yolo "$YOLO"
        rm -f "$WORK"/*.explicit.*.onnx "$WORK"/*.{residual,shared,implicit,mixed}.*.onnx # made again from the ranges
        ;;
    host) # what the backend costs this host, without its GPU
        "$PY" bench/tensorrt_backend.py --out "$OUT/tensorrt_backend_host.json"
        ;;
    tests) pytest_to tensorrt_pytest.txt tests/gpu/test_tensorrt.py tests/gpu/test_tensorrt_tuning.py -v --durations=8 ;;
    serving-tests)
        pytest_to tensorrt_pytest_serving.txt tests/gpu/test_plan_serving.py tests/gpu/test_several_gpus.py \
            -v --durations=8
        ;;
    providers) pytest_to tensorrt_pytest_providers.txt tests/gpu/test_execution_providers.py -v ;;
    yolo) # one build takes up to 7 minutes, and what is stopped has to begin anew
        BUDGET=560 latency yolov8n fp32,tf32,fp16,int8-residual,int8-shared,int8-implicit tensorrt_latency_yolov8n.json
        ;;
    profiles) # each axis is built cold: a timing cache would replay the tactics of another
        "$PY" bench/tensorrt_profiles.py --work "$WORK" --budget "$BUDGET" --out "$OUT/tensorrt_profiles_${GPU:-h100}.json" \
            --variants wide-cold,own-profiles,jit-only,no-aux-streams,sparsity,timing-x8,level-4
        ;;
    accuracy)
        for model in ${MODELS:-recogniser detector yolov8n}; do # on a machine with several GPUs: one each
            "$PY" bench/tensorrt_accuracy.py --work "$WORK" --models "$model" --cache "$(cache "$model")" \
                --budget "$BUDGET" ${YOLO:+--yolo "$YOLO"} --out "$OUT/tensorrt_accuracy.json"
            keep "$model"
        done
        ;;
    bert) latency bert-large fp32,tf32,fp16 tensorrt_latency_bert.json ;;
    serve-int8) serve resnet50 int8-residual 300 20 tensorrt_serving_resnet50_int8.json ;;
    serve-bert) serve bert-large fp16 200 50 tensorrt_serving_bert_fp16.json ;;
    *) echo "no step '$1': prepare $STEPS" >&2 && exit 2 ;;
    esac
}

for one in "${@:-}"; do
    echo "== $one"
    step "$one"
done
