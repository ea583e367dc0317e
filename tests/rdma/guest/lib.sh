# SPDX-License-Identifier: Apache-2.0
# What the cases are made of (busybox sh). The working folder is empty and the case's own; PORT and the few behind it are
# its own too. Every wait is bounded; a condition that does not hold ends the case by `fail`.
set -eu

HOST=192.168.77.1

fail() {
  echo "$*"
  exit 1
}

# --- processes -------------------------------------------------------------------------------------------------------

# start NAME COMMAND...: in the background, its output in NAME.log, its id in NAME.pid.
start() {
  started=$1
  shift
  "$@" >"$started.log" 2>&1 </dev/null &
  echo $! >"$started.pid"
}

pid() { cat "$1.pid"; }

alive() { kill -0 "$(pid "$1")" 2>/dev/null; }

# gone NAME: waits until the process has ended.
gone() {
  for _ in $(seq 200); do
    alive "$1" || return 0
    sleep 0.05
  done
  fail "$1 did not end"
}

kill_hard() {
  kill -9 "$(pid "$1")"
  gone "$1"
}

# daemon NAME [OPTIONS...]
daemon() {
  named=$1
  shift
  start "$named" /usr/bin/migrationd --qmp "unix:$PWD/$named.qmp" --name "$named" --log-level debug "$@"
}

synthetic() { # NAME WORDS [OPTIONS...]
  named=$1 machine=$2
  shift 2
  daemon "$named" --machine "synthetic,$machine" "$@"
}

# qemu NAME 7.2|10.0 MIB [OPTIONS...]: the tests' guest as its firmware, so that it runs at once.
qemu() {
  named=$1 version=$2 size=$3
  shift 3
  set -- -accel tcg -M pc-i440fx-7.2,vmport=off,hpet=off -m "$size" -nodefaults -no-user-config -net none -display none \
    -L /usr/share/qemu -serial "file:$PWD/$named.serial" -qmp "unix:$PWD/$named.qmp,server=on,wait=off" "$@"
  if [ "$version" = 7.2 ]; then
    start "$named" qemu-7.2 "$@"
  else
    start "$named" chroot /q10 /usr/bin/qemu-10.0 "$@"
  fi
}

# --- the control socket ----------------------------------------------------------------------------------------------

# ask NAME COMMAND [ARGUMENTS]: its answer, one line of JSON.
ask() {
  asked=$1
  shift
  qmp "$asked.qmp" "$@" || fail "$asked: $1: $(tail -n 1 "$asked.log")"
}

# get NAME POINTER COMMAND [ARGUMENTS]: one value of the answer, "" when it is not there.
get() {
  asked=$1 pointer=$2
  shift 2
  qmp --get "$pointer" "$asked.qmp" "$@"
}

# refusal NAME COMMAND [ARGUMENTS]: the error's text.
refusal() {
  asked=$1
  shift
  if qmp "$asked.qmp" "$@" >answer 2>refused; then fail "$asked took $1: $(cat answer)"; fi
  cat refused
}

# until_status NAME STATUS...: waits for one of those; the answer. Another end fails at once.
until_status() {
  asked=$1
  shift
  wanted=$(echo "$*" | tr ' ' ,)
  qmp --until /status "$wanted" --never completed,failed,cancelled "$asked.qmp" query-migrate ||
    fail "$asked did not become $wanted"
}

capabilities() { # NAME true|false CAPABILITY...
  switched=$1 state=$2
  shift 2
  list=
  for one in "$@"; do list="$list${list:+,}{\"capability\":\"$one\",\"state\":$state}"; done
  ask "$switched" migrate-set-capabilities "{\"capabilities\":[$list]}" >/dev/null
}

switch() { # NAME CAPABILITY...
  turned=$1
  shift
  capabilities "$turned" true "$@"
}

switch_off() { # NAME CAPABILITY...
  turned=$1
  shift
  capabilities "$turned" false "$@"
}

parameter() { # NAME PARAMETER VALUE
  ask "$1" migrate-set-parameters "{\"$2\":$3}" >/dev/null
}

uri() { echo "rdma:$HOST:$PORT"; }

listen() { # NAME [URI]
  ask "$1" migrate-incoming "{\"uri\":\"${2:-$(uri)}\"}" >/dev/null
}

migrate() { # NAME [URI]
  ask "$1" migrate "{\"uri\":\"${2:-$(uri)}\"}" >/dev/null
}

# --- judgements ------------------------------------------------------------------------------------------------------

same() { # WHAT IS WANTED
  [ "$2" = "$3" ] || fail "$1: '$2', not '$3'"
}

contains() { # WHAT TEXT PART
  case $2 in *"$3"*) ;; *) fail "$1: no '$3' in '$2'" ;; esac
}

# run_state NAME
run_state() { get "$1" /status query-status; }

# until_state NAME STATE: of the guest.
until_state() { qmp --until /status "$2" "$1.qmp" query-status >/dev/null || fail "$1 is not $2"; }

# verify NAME: a synthetic guest's pages, each against its pattern.
verify() {
  pages=$(get "$1" /checked-pages __org.migrationd_verify-machine) || fail "$1: its memory is wrong"
  [ "$pages" -gt 0 ] || fail "$1: no page was checked"
}

# same_memory ONE TWO MIB: two stopped QEMUs have the same in all memory.
same_memory() {
  for one in "$1" "$2"; do
    ask "$one" pmemsave "{\"val\":0,\"size\":$(($3 << 20)),\"filename\":\"$PWD/$one.memory\"}" >/dev/null
    same "size of the memory of $one" "$(wc -c <"$one.memory")" $(($3 << 20))
  done
  cmp -l "$1.memory" "$2.memory" | head -n 20
  cmp -s "$1.memory" "$2.memory" || fail "other memory at the destination, pages (bytes): $(
    cmp -l "$1.memory" "$2.memory" | awk '{ pages[int(($1 - 1) / 4096)]++ }
      END { for (page in pages) { printf "%x (%d) ", page, pages[page]; if (++shown == 20) exit } }')"
  rm "$1.memory" "$2.memory"
}

# sweeps NAME NUMBER: waits until the tests' guest in that QEMU has printed that many sweeps here.
sweeps() {
  for _ in $(seq 600); do
    [ "$(cat "$1.serial" 2>/dev/null | wc -l)" -ge "$2" ] && return 0
    alive "$1" || fail "$1 ended: $(tail -n 1 "$1.log")"
    sleep 0.1
  done
  fail "the guest of $1 printed no $2 sweeps"
}

# one_sequence NAME...: what the guest printed on its hosts, one behind the other, is one exact sequence.
one_sequence() {
  files=
  for one in "$@"; do files="$files $one.serial"; done
  # The line that a host had not finished goes on at the next.
  cat $files | awk '
    function wrong(text) { print text; bad = 1; exit 1 }
    /^E/ { wrong("the guest found a wrong page: " $0) }
    cut { wrong("sweep " NR - 1 " was printed as " cut) }
    $0 != sprintf("%08X", NR) { if (index(sprintf("%08X", NR), $0) == 1) cut = $0; else wrong("sweep " NR " was printed as " $0) }
    END { if (!bad && NR < 2) wrong("the guest printed nothing") }' || fail "the serial outputs are no sequence"
}
