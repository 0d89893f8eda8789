# To be sourced: packages of other Debian suites, from the mirror that this machine's apt uses, checked by apt with Debian's
# keys and installed nowhere. Lists and packages are kept in build/old.
old=$PWD/build/old
# need PROGRAM:PACKAGE...: installs what is missing on this machine.
need() {
  local missing=() of
  for of in "$@"; do command -v "${of%%:*}" >/dev/null || missing+=("${of##*:}"); done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null || { echo "needs ${missing[*]} and Debian's apt-get" >&2; exit 1; }
  echo "installing ${missing[*]}" >&2
  apt-get update -q >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
}
mirror() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1; }
# suite_apt SUITE COMMAND...: one of apt's programs, for a Debian of that suite on which nothing is installed.
suite_apt() {
  local dir=$old/$1 program=$2
  shift 2
  "$program" -o Dir::Etc="$dir/etc" -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=- \
    -o Dir::State="$dir" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir" -o APT::Sandbox::User=root \
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}
# suite_update SUITE: its lists. Fails where the mirror has no such suite (any more).
suite_update() {
  local dir=$old/$1 mirror=${DEBIAN_MIRROR:-$(mirror)}
  [ -n "$mirror" ] || { echo "apt knows no mirror of Debian: run apt-get update, or set DEBIAN_MIRROR" >&2; exit 1; }
  mkdir -p "$dir"/{lists/partial,archives/partial,etc/preferences.d,etc/apt.conf.d}
  : >"$dir/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" >"$dir/sources.list"
  suite_apt "$1" apt-get update -q --error-on=any >"$dir/update.log" 2>&1 || { tail -n 2 "$dir/update.log" >&2; return 1; }
}
# suite_closure SUITE PACKAGE: unpacks a package and all that it depends on, into the directory that is the third word.
suite_closure() {
  local deb
  rm -f "$old/$1"/archives/*.deb
  suite_apt "$1" apt-get install -q -y --download-only --no-install-recommends "$2" >"$old/$1/install.log" 2>&1 ||
    { tail -n 2 "$old/$1/install.log" >&2; return 1; }
  mkdir -p "$3"
  for deb in "$old/$1"/archives/*.deb; do dpkg -x "$deb" "$3" || return 1; done
}
