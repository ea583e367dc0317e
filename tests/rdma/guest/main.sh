# SPDX-License-Identifier: Apache-2.0
# Runs the cases that the host chose, one process each, and says one line a case on the console:
#
#   ok NAME (SECONDS s)
#   not ok NAME (SECONDS s): why
#
# with the logs of a failed one before it, behind `| `, and everything a case says after `measured: ` as it is.
here=$(dirname "$0")

if [ "$1" = --list ]; then
  # On the host: the rows of every table.
  . "$here/cases.sh"
  table | grep -v '^ *#' | grep .
  exit 0
fi

up() { cut -d' ' -f1 /proc/uptime; }

# Verbs objects that exist; those of the kernel's own (the CM's) too.
objects() { rdma resource show | sed 's/^[0-9]*: //' | tr -s ' \n' ' '; }

# A case may have taken the device or its link away.
restore() {
  /usr/sbin/ip link set dummy0 up
  /usr/sbin/ip -6 addr replace fd77::1/64 dev dummy0 nodad
  [ -e /sys/class/infiniband/rxe0 ] || /usr/sbin/rdma link add rxe0 type rxe netdev dummy0
}

# What the device met since it was made: packets lost and sent again explain seconds of silence.
device_counters() {
  (cd /sys/class/infiniband/rxe0/ports/1/hw_counters && grep -H . duplicate_request out_of_seq_request completer_retry_err \
    rcvd_rnr_err retry_exceeded_err send_err 2>/dev/null | tr '\n' ' ')
}

show_logs() {
  for log in /tmp/case/out /tmp/case/*.log; do
    [ -s "$log" ] || continue
    echo "| --- $log"
    tail -c 3000 "$log" | tail -n 25 | sed 's/^/| /'
  done
  dmesg | tail -n 5 | grep -v 'speed is unknown' | sed 's/^/| kernel: /'
}

idle=$(objects)
number=0
while read -r name seconds words command; do
  number=$((number + 1))
  rm -rf /tmp/case
  mkdir /tmp/case
  cd /tmp/case || exit 1
  start=$(up)
  # Ports are never used twice: a listener may be bound while a dying process still holds the place (it happened).
  PORT=$((4000 + number * 16)) timeout -s KILL "$seconds" sh "$here/case.sh" $command >/tmp/case/out 2>&1 </dev/null
  status=$?
  # Everything but this shell and init: the guest is ours alone.
  kill -9 -1
  restore
  left=$(objects)
  for _ in $(seq 100); do
    [ "$left" = "$idle" ] && break
    sleep 0.1
    left=$(objects)
  done
  took=$(echo "$(up) $start" | awk '{printf "%.1f", $1 - $2}')
  grep '^measured: ' /tmp/case/out
  echo "device after $name: $(device_counters)"
  if [ $status = 0 ] && [ "$left" != "$idle" ]; then
    echo "not ok $name ($took s): verbs objects stayed: $left, at first $idle"
    idle=$left
  elif [ $status = 0 ]; then
    echo "ok $name ($took s)"
  else
    [ $status = 137 ] && echo "not finished within $seconds s" >>/tmp/case/out
    show_logs
    echo "not ok $name ($took s): $(grep -v '^measured: ' /tmp/case/out | tail -n 1 | cut -c 1-400)"
  fi
done </test/chosen
