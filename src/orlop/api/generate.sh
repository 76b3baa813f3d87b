#!/bin/sh
# Generates Python from the .proto files beside this script, reproducibly.
#   generate.sh          writes *_pb2.py and *_pb2.pyi next to their sources
#   generate.sh --check  generates into a temporary folder and fails where the tree differs
set -eu
PYTHON=${PYTHON:-python3}
case $PYTHON in
    /*) ;;
    */*) PYTHON=$PWD/$PYTHON ;; # it was named from where the caller is
esac
here=$(cd "$(dirname "$0")" && pwd)
src=$(cd "$here/../.." && pwd)
cd "$src"
wellknown=$($PYTHON -c 'import google.rpc.status_pb2 as m, pathlib; print(pathlib.Path(m.__file__).parents[2])')

generate() {
    find orlop/api -name '*.proto' | LC_ALL=C sort | xargs \
        "$PYTHON" -m grpc_tools.protoc -I. "-I$wellknown" "--python_out=$1" "--pyi_out=$1"
}

if [ "${1:-}" = --check ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
    generate "$out"
    status=0
    for file in $(cd "$out" && find . -name '*_pb2.py*'); do
        # The first lines name the compiler's version, which may differ from that of the committed code.
        if ! diff -u -I '^# Protobuf Python Version' -I '^    *[0-9]*,$' "$file" "$out/$file"; then status=1; fi
    done
    [ $status = 0 ] || echo "generated code is not what the .proto files give: run 'make proto'" >&2
    exit $status
fi
generate .
find orlop/api -mindepth 1 -type d ! -name __pycache__ -exec sh -c 'touch "$1/__init__.py"' _ {} \;
