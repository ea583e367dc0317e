#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The packaged units, checked and run.
#
#   systemd_unit.sh SOURCE_DIR UNIT_DIR MIGRATIOND MIGRATIONCTL
#
# Everywhere with systemd-analyze: the units are well formed and the sandbox keeps to its bound. Then, for root, two
# instances are started by their sockets, the host's permissions are looked at from inside the sandbox, and a guest
# migrates from one to the other: under a systemd of our own (nested_systemd.sh), or, where that cannot be, under the
# host's. What has to be put on the host for that (units in /run, the user) is taken away again. Exit status 77:
# skipped, the reason is the last line.
set -euo pipefail

here=no
if [ "${1-}" = --here ]; then
  here=yes
  shift
fi

if [ $# -ne 4 ]; then
  echo "usage: $0 SOURCE_DIR UNIT_DIR MIGRATIOND MIGRATIONCTL" >&2
  exit 2
fi
source_dir=$(realpath "$1")
unit_dir=$(realpath "$2")
migrationd=$(realpath "$3")
migrationctl=$(realpath "$4")

# 10 times the exposure that systemd-analyze prints: 1.7.
readonly exposure_limit=17
readonly run_units=/run/systemd/system
readonly from=mdtest$$a
readonly to=mdtest$$b

skip() {
  echo "SKIP: $1"
  exit 77
}

# Their shadow memory and their handlers are what the sandbox forbids; the ordinary build is tested in it.
case "$(ldd "$migrationd")" in
  *libasan* | *libtsan*) skip "a build with sanitizers cannot live in the units' sandbox" ;;
esac
command -v systemd-analyze >/dev/null || skip "systemd-analyze is not installed (apt-get install systemd)"

scratch=$(mktemp -d)
made_user=no
live=no
clean_up() {
  if [ "$live" = yes ]; then
    systemctl stop "migrationd@$from.service" "migrationd@$to.service" "migrationd@$from.socket" \
      "migrationd@$to.socket" 2>/dev/null || true
    systemctl reset-failed "migrationd@$from.service" "migrationd@$to.service" 2>/dev/null || true
    rm -f "$run_units/migrationd@.service" "$run_units/migrationd@.socket" \
      "/etc/migrationd/$from.conf" "/etc/migrationd/$to.conf"
    rmdir /etc/migrationd 2>/dev/null || true
    systemctl daemon-reload || true
    rm -rf "/run/migrationd/$from" "/run/migrationd/$to" "/var/lib/migrationd/$from" "/var/lib/migrationd/$to" \
      /run/migrationd-test-bin
    if [ "$made_user" = yes ]; then
      setfacl -x u:migrationd /dev/userfaultfd 2>/dev/null || true
      userdel migrationd 2>/dev/null || true
      groupdel migrationd 2>/dev/null || true
    fi
  fi
  rm -rf "$scratch"
}
trap clean_up EXIT

# The units as installed, but with the programs of this build where the sandbox can see them (ProtectHome= hides a
# build below /home).
stage_units() {
  local bin_dir=$1 target=$2
  mkdir -p "$target"
  sed "s,^ExecStart=[^ ]*/migrationd ,ExecStart=$bin_dir/migrationd ," "$unit_dir/migrationd@.service" \
    >"$target/migrationd@.service"
  cp "$source_dir/systemd/migrationd@.socket" "$target/"
}

check_units() {
  echo "== the units are well formed"
  mkdir -p "$scratch/bin"
  cp "$migrationd" "$scratch/bin/migrationd"
  stage_units "$scratch/bin" "$scratch/units"
  for suffix in service socket; do
    cp "$scratch/units/migrationd@.$suffix" "$scratch/units/migrationd@test.$suffix"
  done
  local warnings
  warnings=$(systemd-analyze verify --man=no "$scratch/units/migrationd@test.service" \
    "$scratch/units/migrationd@test.socket" 2>&1 | grep migrationd || true)
  if [ -n "$warnings" ]; then
    echo "$warnings"
    exit 1
  fi

  echo "== the sandbox keeps to its bound"
  systemd-analyze security --offline=true --threshold="$exposure_limit" "$scratch/units/migrationd@test.service" \
    >"$scratch/security" 2>&1 || {
    grep -v '✓' "$scratch/security"
    exit 1
  }
  tail -1 "$scratch/security"

  echo "== the user and the directories can be made"
  mkdir -p "$scratch/root/etc"
  systemd-sysusers --root="$scratch/root" --inline "$(grep '^u ' "$source_dir/systemd/sysusers.conf")" >/dev/null 2>&1
  grep -q '^migrationd:' "$scratch/root/etc/passwd"
  systemd-tmpfiles --root="$scratch/root" --create "$source_dir/systemd/tmpfiles.conf" >/dev/null 2>&1
  test -d "$scratch/root/run/migrationd"
}

[ "$here" = yes ] || check_units

[ "$(id -u)" = 0 ] || skip "the live part needs root; the checks above passed"
if [ "$here" = no ]; then
  status=0
  "$source_dir/tests/integration/nested_systemd.sh" "$source_dir" "$unit_dir" "$(dirname "$migrationd")" \
    "$(dirname "$migrationctl")" -- "$source_dir/tests/integration/systemd_unit.sh" --here "$source_dir" "$unit_dir" \
    "$migrationd" "$migrationctl" || status=$?
  [ "$status" = 77 ] || exit "$status"
  [ -d /run/systemd/system ] || skip "the live part: systemd is not process 1 here either; the checks above passed"
fi
for suffix in service socket; do
  if systemctl cat "migrationd@.$suffix" >/dev/null 2>&1; then
    skip "the live part: migrationd@.$suffix is installed on this host; the checks above passed"
  fi
done

# --- live -----------------------------------------------------------------------------------------------------
live=yes
id migrationd >/dev/null 2>&1 || made_user=yes
systemd-sysusers "$source_dir/systemd/sysusers.conf"
systemd-tmpfiles --create "$source_dir/systemd/tmpfiles.conf" || echo "(some of tmpfiles.conf could not be done)"
install -D -m 755 "$migrationd" /run/migrationd-test-bin/migrationd
install -D -m 755 "$migrationctl" /run/migrationd-test-bin/migrationctl
stage_units /run/migrationd-test-bin "$run_units"
mkdir -p /etc/migrationd
echo "MIGRATIOND_OPTIONS=--machine synthetic,ram=64M,dirty-rate=4M" >"/etc/migrationd/$from.conf"
echo "MIGRATIOND_OPTIONS=--machine synthetic,ram=64M --incoming defer" >"/etc/migrationd/$to.conf"
systemctl daemon-reload

echo "== what the sandbox allows"
# The unit's own sandbox around doctor: every setting of [Service] but those about the daemon's start.
settings=$(sed -n '/^\[Service\]/,/^\[Install\]/p' "$run_units/migrationd@.service" |
  grep -E '^[A-Za-z]+=' | grep -vE '^(Type|NotifyAccess|EnvironmentFile|ExecStart|Restart|KillMode|TimeoutStopSec|RuntimeDirectory|StateDirectory|WorkingDirectory)')
arguments=()
while read -r setting; do arguments+=(-p "$setting"); done <<<"$settings"
status=0
systemd-run --quiet --wait --pipe "${arguments[@]}" /run/migrationd-test-bin/migrationctl --json doctor \
  >"$scratch/doctor.json" || status=$?
wanted=(memfd userfaultfd write-protect)
# A container's root may lack the right to raise limits; then nobody can have locked memory.
if (ulimit -H -l unlimited) 2>/dev/null; then
  wanted+=(memlock)
else
  echo "(not looked at: locked memory, this root may not raise limits)"
fi
python3 - "$scratch/doctor.json" "${wanted[@]}" <<'END'
import json, sys
findings = {entry["name"]: entry for entry in json.load(open(sys.argv[1]))}
bad = [name for name in sys.argv[2:] if findings[name]["level"] != "good"]
for name in bad:
    print("inside the sandbox:", findings[name])
sys.exit(1 if bad else 0)
END
[ "$status" = 0 ] || { echo "doctor ended with status $status inside the sandbox"; exit 1; }

echo "== socket activation and readiness"
ctl() { timeout 60 "$migrationctl" -n "$@"; }
systemctl start "migrationd@$from.socket" "migrationd@$to.socket"
if systemctl is-active --quiet "migrationd@$from.service"; then
  echo "the service runs before anybody asked"
  exit 1
fi
ctl "$from" status
systemctl is-active --quiet "migrationd@$from.service"
systemctl show -p StatusText --value "migrationd@$from.service" | grep -q .
echo "== exec: is off"
if ctl "$from" migrate "exec:cat >/dev/null" 2>"$scratch/refusal"; then
  echo "exec: was not refused"
  exit 1
fi
grep 'switched off' "$scratch/refusal"

echo "== a live update"
main_process() { systemctl show -p MainPID --value "migrationd@$from.service"; }
replaced() {
  local before
  before=$(main_process)
  ctl "$from" update
  [ "$(main_process)" != "$before" ] || { echo "the unit's main process is still the old one"; exit 1; }
  systemctl is-active --quiet "migrationd@$from.service"
}
# A new program where the old one was: another file, as a package's is.
install -m 755 "$migrationd" /run/migrationd-test-bin/migrationd
replaced
replaced
echo "== a live update to a program that does not start"
before=$(main_process)
printf '#!/bin/sh\nexit 3\n' >"$scratch/broken"
install -m 755 "$scratch/broken" /run/migrationd-test-bin/migrationd
status=0
ctl "$from" update 2>"$scratch/refusal" || status=$?
[ "$status" = 4 ] || { echo "update ended with status $status"; cat "$scratch/refusal"; exit 1; }
grep 'it ended by itself' "$scratch/refusal"
[ "$(main_process)" = "$before" ]
install -m 755 "$migrationd" /run/migrationd-test-bin/migrationd
ctl "$from" status

echo "== a migration"
ctl "$to" incoming "unix:/run/migrationd/$to/stream.sock"
ctl "$from" migrate "unix:/run/migrationd/$to/stream.sock"
ctl "$to" stop
ctl "$to" verify-machine
echo "== a clean end"
systemctl stop "migrationd@$from.socket" "migrationd@$to.socket" "migrationd@$from.service" "migrationd@$to.service"
for name in "$from" "$to"; do
  result=$(systemctl show -p Result --value "migrationd@$name.service")
  [ "$result" = success ] || {
    echo "migrationd@$name ended with '$result'"
    systemctl show -p ExecMainPID,ExecMainCode,ExecMainStatus "migrationd@$name.service"
    systemctl status --no-pager --lines=40 "migrationd@$name.service" || true
    exit 1
  }
done
echo "OK"
