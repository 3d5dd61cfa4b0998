# Sourced by the scripts beside it: finding a Python, and installing without saying much.

die() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

# find_python VERSION…: the first that works. A version manager's shim for a release it has not chosen
# does not; its releases lie in folders of their own.
find_python() {
    local version candidate
    for version in "$@"; do
        for candidate in "python$version" "$HOME"/.pyenv/versions/"$version".*/bin/python; do
            if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2> /dev/null; then
                echo "$candidate"
                return
            fi
        done
    done
    die "no Python $* found; install one, or name it: PYTHON=/path/to/python"
}

# install LOG PYTHON ARGUMENTS…: pip, with all it says in the log.
install() {
    local log=$1 python=$2
    shift 2
    "$python" -m pip --disable-pip-version-check --no-input install --retries 3 --timeout 60 "$@" >> "$log" 2>&1 \
        || die "pip could not install $*: $(grep -E '^(ERROR|error):' "$log" | tail -1 | cut -c1-300) (all of it: $log)"
}
