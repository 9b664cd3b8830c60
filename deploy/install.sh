#!/bin/sh
# Install redshelf into an environment of its own; what the images run, and what a machine without them does.
#     deploy/install.sh [--prefix /opt/redshelf] [--extra cpu|gpu] [WHEEL]
# Without WHEEL: the tree that this script lies in. Versions are those of the lock file. The new environment is made
# beside the one in use and takes its place when it answers; that one stays, and is `previous`. Needs no root where the
# prefix can be written. pip's own settings hold: https_proxy, PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX.
set -eu
prefix=/opt/redshelf extra=cpu wheel=
here=$(cd "$(dirname "$0")" && pwd)

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
        --prefix) prefix=${2:?install.sh: --prefix wants a folder}; shift 2 ;;
        --extra) extra=${2:?install.sh: --extra wants cpu or gpu}; shift 2 ;;
        -*) fail "unknown option $1; expected --prefix, --extra or a wheel" ;;
        *) wheel=$1; shift ;;
    esac
done
[ -f "$here/lock-$extra.txt" ] || fail "--extra $extra: expected cpu or gpu"
[ -z "$wheel" ] || [ -f "$wheel" ] || fail "$wheel: no such file; expected a wheel"

python=
for one in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if command -v "$one" >/dev/null && "$one" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        python=$one
        break
    fi
done
[ -n "$python" ] || fail "Python 3.11 or newer is needed, and ${PYTHON:-python3 is $(python3 --version 2>&1 || true)}; \
install it, or name it: PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv: apt install python3-venv"

mkdir -p "$prefix" 2>/dev/null && [ -w "$prefix" ] || fail "$prefix cannot be written by $(id -un): name another --prefix"
prefix=$(cd "$prefix" && pwd)
exec 9>"$prefix/.lock"
"$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null ||
    fail "another install.sh works in $prefix: wait for its end"

new= scratch=$(mktemp -d)
trap 'rm -rf "$scratch" ${new:+"$new"}' EXIT
trap 'exit 130' INT TERM HUP
pip_failed="pip failed. Behind a proxy set https_proxy, for a mirror PIP_INDEX_URL, without a network PIP_NO_INDEX=1 and
PIP_FIND_LINKS=FOLDER with the wheels of lock-$extra.txt"

if [ -z "$wheel" ]; then # of a copy, since setuptools writes into the tree that it builds
    tree=$here/..
    REDSHELF_REVISION=${REDSHELF_REVISION:-$(git -C "$tree" describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || true)}
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-315532800}
    export REDSHELF_REVISION SOURCE_DATE_EPOCH
    mkdir "$scratch/tree"
    for part in pyproject.toml MANIFEST.in README.md LICENSE api indexing models service deploy; do
        cp -R "$tree/$part" "$scratch/tree/"
    done
    "$python" -m venv "$scratch/build"
    "$scratch/build/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$scratch" "$scratch/tree" || fail "$pip_failed"
    wheel=$(echo "$scratch"/redshelf-*.whl)
fi
what="$(cat "$wheel" "$here/lock-$extra.txt" | sha256sum | cut -c1-16) $extra $("$python" --version)"
if [ "$(cat "$prefix/current/installed" 2>/dev/null)" = "$what" ] && "$prefix/bin/redshelf" --version; then
    echo "$prefix has it already"
    exit 0
fi

# torch brings CUDA along: an environment is 8 GB, and pip unpacks 1 GB beside it
wanted=${NEEDS_MB:-9500} free=$(($(df -Pk "$prefix" | awk 'NR == 2 { print $4 }') / 1024))
[ "$free" -ge "$wanted" ] || fail "$prefix has $free MB free, $wanted are needed"

new=$prefix/$(date -u +%Y%m%dT%H%M%SZ)-$$
"$python" -m venv "$new"
"$new/bin/python" -m pip install --quiet --no-cache-dir -c "$here/lock-$extra.txt" "$wheel[$extra]" || fail "$pip_failed"
"$new/bin/python" -c 'import faiss, lancedb, torch' || fail "what was installed does not load"
"$new/bin/redshelf" --version
echo "$what" >"$new/installed"

switch() { # NAME of a link in the prefix, to TARGET, in one step
    ln -s "$2" "$prefix/.$1.new" && mv -T "$prefix/.$1.new" "$prefix/$1"
}
rm -f "$prefix"/.*.new
before=$(readlink "$prefix/current" || true)
[ -z "$before" ] || switch previous "$before"
switch current "$(basename "$new")"
[ -e "$prefix/bin" ] || switch bin current/bin
for old in "$prefix"/2*Z-*; do
    [ "$old" = "$new" ] || [ "$(basename "$old")" = "$before" ] || rm -rf "$old"
done
new=
echo "installed: $prefix/bin/redshelf${before:+ (the one before is $prefix/previous)}"
