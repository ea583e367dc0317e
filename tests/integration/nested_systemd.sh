#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs a command under a systemd of its own, on hosts where process 1 is something else.
#
#   nested_systemd.sh DIR... -- COMMAND [ARGUMENT...]
#
# systemd becomes process 1 of fresh namespaces (process, mount, network, IPC, host name, cgroup), on an overlay of
# the root file system whose upper layer is memory: nothing of the host is changed, and when this script ends, or is
# ended, the kernel ends everything in the namespaces. Each DIR is visible inside, read-only, at its own path.
# Exit status: the command's; 77 when such namespaces cannot be made here, with the reason as the last line.
set -euo pipefail

readonly time_limit=240

skip() {
  echo "SKIP: $1"
  exit 77
}

# --- inside: process 1 of the namespaces, not yet systemd ---------------------------------------------------------

device() { mknod -m "$4" "$root/dev/$1" c "$2" "$3"; }

make_devices() {
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  device null 1 3 666
  device zero 1 5 666
  device full 1 7 666
  device random 1 8 666
  device urandom 1 9 666
  device tty 5 0 666
  if [ -e /dev/userfaultfd ]; then
    device userfaultfd "$(printf '%d' "0x$(stat -c %t /dev/userfaultfd)")" \
      "$(printf '%d' "0x$(stat -c %T /dev/userfaultfd)")" 600
  fi
  mkdir "$root/dev/shm" "$root/dev/pts"
  mount -t tmpfs tmpfs "$root/dev/shm"
  ln -s /proc/self/fd "$root/dev/fd"
  local stream=0
  for name in stdin stdout stderr; do
    ln -s "/proc/self/fd/$stream" "$root/dev/$name"
    stream=$((stream + 1))
  done
}

make_root() {
  mount -t tmpfs -o mode=755,size=512m tmpfs "$base"
  mkdir "$base/upper" "$base/work" "$root"
  mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$root"
  mount -t proc proc "$root/proc"
  mount -t sysfs -o ro sysfs "$root/sys"
  mount -t tmpfs tmpfs "$root/sys/fs/cgroup" 2>/dev/null || true
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  make_devices
  mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
}

make_job() {
  # The host's own services are none of ours; basic.target alone is reached.
  rm -f "$root"/etc/systemd/system/*.wants/*
  {
    echo '#!/bin/bash'
    printf 'cd %q\n' "$PWD"
    printf '%q ' "$@"
    printf '>%q 2>&1\n' "$base/result/output"
    printf 'echo $? >%q\n' "$base/result/status"
    echo 'systemctl --no-block --force poweroff'
  } >"$root/run/nested-job"
  chmod 755 "$root/run/nested-job"
  cat >"$root/etc/systemd/system/nested-job.service" <<END
[Unit]
After=basic.target
Requires=basic.target
[Service]
Type=oneshot
ExecStart=/run/nested-job
END
}

inside() {
  base=$1
  root=$base/root
  shift
  local result=$base/result
  mount --make-rprivate /
  # Kept in view below the memory file system that now covers their place.
  mkdir -p "$base.result"
  mount --bind "$result" "$base.result"
  make_root || skip "no file systems of our own: overlay, proc, sysfs or cgroup2 may not be mounted here"
  while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --bind -o ro "$1" "$root$1"
    shift
  done
  shift
  mkdir -p "$root$result"
  mount --bind "$base.result" "$root$result"
  make_job "$@"
  mkdir "$root/.outside"
  cd "$root"
  pivot_root . .outside
  cd /
  umount -l /.outside
  rmdir /.outside
  exec env -i container=nested PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
    /lib/systemd/systemd --unit=nested-job.service --log-level=err --show-status=false
}

if [ "${1-}" = --inside ]; then
  shift
  inside "$@"
fi

# --- outside ------------------------------------------------------------------------------------------------------

[ "$(id -u)" = 0 ] || skip "a systemd of our own needs root"
[ -x /lib/systemd/systemd ] || skip "systemd is not installed"
namespaces=(--mount --pid --fork --cgroup --uts --ipc --net --kill-child)
unshare "${namespaces[@]}" true 2>/dev/null || skip "namespaces may not be made here"
base=$(mktemp -d)
trap 'rm -rf "$base" "$base.result"' EXIT
mkdir "$base/result"
ended=0
timeout --kill-after=5 "$time_limit" unshare "${namespaces[@]}" "$0" --inside "$base" "$@" >"$base/systemd" 2>&1 || ended=$?
if [ -f "$base/result/status" ]; then
  cat "$base/result/output"
  exit "$(cat "$base/result/status")"
fi
cat "$base/systemd"
[ "$ended" = 77 ] && exit 77
echo "the nested systemd ended with status $ended before the command did"
exit 1
