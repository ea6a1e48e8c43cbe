#!/bin/bash
# The tests and the benchmark that need a GPU, on a bare machine without a network:
#
#   tests/gpu/check.sh fill WHEELS [VERSION]   with a network: download what the check needs,
#                                              for Python VERSION (such as 3.12) on Linux x86-64
#   tests/gpu/check.sh run WHEELS [OPTION...]  build, test and measure with nothing but WHEELS and
#                                              what the machine's Python has
#
# Options of `run`: --tests or --bench for one of the two, --quick for fewer rounds, --sanitize to
# run the tests under compute-sanitizer's memcheck, --keep to keep what was built and print where.
# The machine must have a C compiler, and in its Python numpy, CuPy, pip and, for the figures of tcp,
# Numba with CUDA; PYTHON names the Python.
# docs/gpu-workers.md tells more.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
NEEDED=(
    distributed nvidia-ml-py cryptography                  # of the package and its tests
    "pytest>=8" "pytest-asyncio>=0.24" pytest-timeout
    "cython>=3.1" "scikit-build-core>=0.10" "setuptools-scm>=9.2"   # of the build
)
PROGRAMS=(cmake ninja)  # of the build too; wheels only where the machine has none
UCX=${UCX:-libucx-cu13}

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
}

fill() {
    local wheels=$1 version=${2:-} target=()
    if [ -n "$version" ]; then
        target=(--only-binary=:all: --python-version "$version" --implementation cp)
        for number in 39 34 31 28 27 24 17 12 5; do
            target+=(--platform "manylinux_2_${number}_x86_64")
        done
        target+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
    fi
    "$PYTHON" -m pip download --quiet --dest "$wheels" "${target[@]}" \
        "${NEEDED[@]}" "${PROGRAMS[@]}" numpy
    # Alone: what it depends on has to do with loading it from Python, which is not done here.
    "$PYTHON" -m pip download --quiet --no-deps --dest "$wheels" "${target[@]}" "$UCX"
    # The machine has its own: another one might not suit its CuPy.
    rm -f "$wheels"/numpy-*
    du -sh "$wheels"
}

# Wheels as they are, and what is not among them from PYTHON's own packages.
install() {
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
        --disable-pip-version-check --target "$site" "$@"
}

build() {
    local wheel name chosen=()
    for wheel in "$wheels"/*.whl; do
        name=$(basename "$wheel")
        name=${name%%-*}
        if [[ " ${PROGRAMS[*]} " != *" $name "* ]] || ! command -v "$name" >/dev/null; then
            chosen+=("$wheel")
        fi
    done
    install "${chosen[@]}"
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    export PATH="$site/libucx/bin:$site/bin:$PATH" # ucx_perftest is in the first
    "$PYTHON" -m pip wheel --quiet --no-index --no-deps --no-build-isolation \
        --disable-pip-version-check -C "build-dir=$work/build" --wheel-dir "$work/wheel" .
    install "$work"/wheel/dask_fabric-*.whl
}

run_tests() {
    local under=()
    if $sanitize; then
        # Each process that the tests start is watched; an error of CUDA fails them.
        under=(compute-sanitizer --tool memcheck --target-processes all --error-exitcode 86)
    fi
    "${under[@]}" "$PYTHON" -m pytest -p no:cacheprovider -m gpu tests/gpu
}

run_benchmark() {
    local options=()
    $quick && options=(--quick)
    mkdir -p build/bench # as `make bench`
    "$PYTHON" benchmarks/gpu.py "${options[@]}" --json build/bench/gpu.json
}

has_gpu() {
    "$PYTHON" -c 'import sys
from dask_fabric.gpu.seats import find_seats
seats, reason = find_seats()
print(*seats or [f"no GPU: {reason}"], sep="\n")
sys.exit(not seats)'
}

run() {
    wheels=$(realpath "$1") quick=false sanitize=false keep=false tests=true bench=true
    shift
    for option in "$@"; do
        case $option in
            --tests) bench=false ;;
            --bench) tests=false ;;
            --quick) quick=true ;;
            --sanitize) sanitize=true ;;
            --keep) keep=true ;;
            *) usage ;;
        esac
    done
    work=$(mktemp -d)
    # A folder that PYTHON looks at before its own packages. In an environment of its own CuPy would
    # not find the libraries of CUDA that PYTHON has as wheels.
    site=$work/site
    $keep || trap 'rm -rf "$work"' EXIT
    build
    local status=0
    if $tests; then run_tests || status=$?; fi
    if $bench && has_gpu; then run_benchmark || status=$?; fi
    if $keep; then echo "kept: $work"; fi
    return $status
}

case ${1:-} in
    fill) [ $# -ge 2 ] && [ $# -le 3 ] || usage; shift; fill "$@" ;;
    run) [ $# -ge 2 ] || usage; shift; run "$@" ;;
    *) usage ;;
esac
