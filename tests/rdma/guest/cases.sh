# SPDX-License-Identifier: Apache-2.0
# The cases: name, seconds it may take, what it needs (quick: part of every tools/check; daemon: a migrationd built with
# RDMA; the QEMUs), and the function with its arguments.
table() {
  cat <<'ROWS'
selftest/rping                            60  quick                          rping_works
selftest/qemu-7.2-to-10.0                120  quick,qemu-7.2,qemu-10.0       qemu_pair 7.2 10.0 running
selftest/qemu-10.0-to-7.2                120  qemu-7.2,qemu-10.0             qemu_pair 10.0 7.2 running
selftest/qemu-10.0-to-7.2-stopped        120  qemu-7.2,qemu-10.0             qemu_pair 10.0 7.2 stopped
selftest/qemu-7.2-to-10.0-stopped        120  qemu-7.2,qemu-10.0             qemu_pair 7.2 10.0 stopped

link/private-data                         30  quick,link                     link_promise private-data
link/ipv6                                 30  link                           link_promise ipv6
link/messages-in-order                    30  quick,link                     link_promise messages-in-order
link/writes                               30  quick,link                     link_promise writes
link/full-queue                           30  link                           link_promise full-queue
link/wrong-key                            30  quick,link                     link_promise wrong-key
link/beyond-region                        30  link                           link_promise beyond-region
link/no-receive-posted                    30  link                           link_promise no-receive-posted
link/message-too-long                     30  link                           link_promise message-too-long
link/empty-write                          30  link                           link_promise empty-write
link/last-words                           30  quick,link                     link_promise last-words
link/disconnect-ends-own-wait             30  link                           link_promise disconnect-ends-own-wait
link/stop-ends-waits                      30  link                           link_promise stop-ends-waits
link/events-by-descriptor                 30  link                           link_promise events-by-descriptor
link/rejected                             30  link                           link_promise rejected
link/dropped-request                      30  link                           link_promise dropped-request
link/nobody-listens                       30  link                           link_promise nobody-listens
link/no-answer-in-time                    30  link                           link_promise no-answer-in-time
link/no-address                           30  link                           link_promise no-address
link/shared-domain                        30  link                           link_promise shared-domain
link/region-outlives-links                30  link                           link_promise region-outlives-links
link/device-removed                       60  link                           device_removed

synthetic/16M                             60  quick,daemon                   move_synthetic 16 none
synthetic/16M-pin-all                     60  daemon                         move_synthetic 16 none pin
synthetic/64M-dirtying                    90  quick,daemon                   move_synthetic 64 dirty-rate=2M,working-set=8M
synthetic/64M-dirtying-pin-all            90  daemon                         move_synthetic 64 dirty-rate=2M,working-set=8M pin
synthetic/64M-return-path                 90  daemon                         move_synthetic 64 none return
synthetic/64M-dirtying-return-path        90  daemon                         move_synthetic 64 dirty-rate=2M,working-set=8M return pin
synthetic/256M                           180  daemon                         move_synthetic 256 none
synthetic/256M-dirtying                  180  daemon                         move_synthetic 256 dirty-rate=2M,working-set=8M
synthetic/256M-pin-all                   180  daemon                         move_synthetic 256 none pin
synthetic/ipv6                            60  daemon                         move_by_ipv6
synthetic/pin-all-at-both                 60  daemon                         move_synthetic 16 none pin pin-two

synthetic/4-queue-pairs                   90  quick,daemon                   move_synthetic 64 dirty-rate=2M,working-set=8M queues-4
synthetic/4-queue-pairs-pin-all           90  daemon                         move_synthetic 64 dirty-rate=2M,working-set=8M queues-4 pin
synthetic/16-queue-pairs                 120  daemon                         move_synthetic 64 none queues-16 return
synthetic/postcopy                       120  daemon                         postcopy
synthetic/postcopy-pin-all               120  daemon                         postcopy pin

count/tcp                                120  daemon                         count_tcp 128
count/dynamic                            120  daemon                         count_rdma 128
count/pin-all                            120  daemon                         count_rdma 128 pin
count/4-queue-pairs                      120  daemon                         count_rdma 128 queues-4

fault/cancel                              90  quick,daemon                   cancel
fault/cancel-pin-all                      90  daemon                         cancel pin
fault/source-killed                       90  quick,daemon                   source_killed
fault/destination-killed                  90  quick,daemon                   destination_killed
fault/destination-killed-pin-all          90  daemon                         destination_killed pin
fault/device-removed                     120  daemon                         device_lost removed
fault/link-lost                          120  daemon                         device_lost down
fault/nobody-listens                      30  daemon                         nobody_listens
fault/other-size                          60  daemon                         other_size

interop/7.2-to-7.2                           120  daemon,qemu-7.2                      through 7.2 7.2
interop/7.2-to-10.0                          120  quick,daemon,qemu-7.2,qemu-10.0      through 7.2 10.0
interop/10.0-to-7.2                          120  daemon,qemu-7.2,qemu-10.0            through 10.0 7.2
interop/10.0-to-10.0                         120  daemon,qemu-10.0                     through 10.0 10.0
interop/7.2-to-7.2-stopped                   120  daemon,qemu-7.2                      through 7.2 7.2 stopped
interop/7.2-to-10.0-stopped                  120  daemon,qemu-7.2,qemu-10.0            through 7.2 10.0 stopped
interop/10.0-to-7.2-stopped                  120  daemon,qemu-7.2,qemu-10.0            through 10.0 7.2 stopped
interop/10.0-to-10.0-stopped                 120  daemon,qemu-10.0                     through 10.0 10.0 stopped
interop/7.2-to-7.2-pin-all                   120  daemon,qemu-7.2                      through 7.2 7.2 pin
interop/7.2-to-10.0-pin-all-stopped          120  daemon,qemu-7.2,qemu-10.0            through 7.2 10.0 stopped pin
interop/10.0-to-7.2-pin-all-stopped          120  quick,daemon,qemu-7.2,qemu-10.0      through 10.0 7.2 stopped pin
interop/10.0-to-10.0-pin-all                 120  daemon,qemu-10.0                     through 10.0 10.0 pin
interop/10.0-to-10.0-return-path             120  daemon,qemu-10.0                     through 10.0 10.0 return
interop/10.0-to-10.0-return-path-pin-all-stopped 120  daemon,qemu-10.0                     through 10.0 10.0 return stopped pin
interop/postcopy-to-10.0                     120  daemon,qemu-10.0                     postcopy_to
interop/postcopy-to-10.0-pin-all             120  daemon,qemu-10.0                     postcopy_to pin
interop/postcopy-from-10.0                   120  daemon,qemu-10.0                     postcopy_from
interop/postcopy-from-10.0-pin-all           120  daemon,qemu-10.0                     postcopy_from pin
interop/postcopy-to-7.2-refused              120  daemon,qemu-7.2                      no_postcopy_to_7_2
interop/postcopy-from-7.2-refused            120  daemon,qemu-7.2                      no_postcopy_from_7_2
ROWS
  hostile_table
}
. "$here/hostile.sh"

# --- the harness itself ----------------------------------------------------------------------------------------------

rping_works() {
  start server rping -s -a $HOST -p "$PORT" -C 5 -v
  for _ in $(seq 20); do
    sleep 0.2
    rping -c -a $HOST -p "$PORT" -C 5 -v >client.log 2>&1 && break
  done
  same "pings of the client" "$(grep -c '^ping data' client.log)" 5
  gone server
  same "pings at the server" "$(grep -c '^server ping data' server.log)" 5
}

# A guest goes from one to the other, running or stopped.
qemu_pair() {
  qemu one "$1" 16 -bios guest.bios
  qemu two "$2" 16 -bios guest.bios -S -incoming defer
  sweeps one 5
  [ "$3" = running ] || stand_still one
  listen two
  migrate one
  until_status one completed >/dev/null
  arrived one two
}

# What a running guest's memory must be, the guest itself says: a QEMU 7.2 that sends over RDMA may leave a page as it was
# half a second ago (page 0, seen three times in four from 7.2 to 10.0 without us). A guest that stands still is compared.
stand_still() {
  ask "$1" stop >/dev/null
  until_state "$1" paused
  echo "$1" >stood-still
}

# arrived FIRST LAST: the guest that ran at the first runs on at the last, at the sweep where it was.
arrived() {
  until_status "$2" completed >/dev/null
  [ ! -e stood-still ] || same_memory "$1" "$2" 16
  ask "$2" cont >/dev/null
  sweeps "$2" 5
  ask "$2" stop >/dev/null
  one_sequence "$1" "$2"
}

# --- the contract of transports/rdma_link.hpp ------------------------------------------------------------------------

link_promise() { link-test "$1"; }

device_removed() {
  start test link-test device-removed
  for _ in $(seq 100); do
    grep -q '^connected' test.log && break
    alive test || fail "$(tail -n 1 test.log)"
    sleep 0.1
  done
  # It returns when nobody uses the device any more.
  /usr/sbin/rdma link delete rxe0 &
  gone test
  same "what the test saw" "$(tail -n 1 test.log)" seen
  wait
}

# --- two daemons -----------------------------------------------------------------------------------------------------

# two_daemons MIB WORDS: `one` with a synthetic guest, `two` that waits for it.
two_daemons() {
  words=$2
  [ "$words" = none ] && words=
  synthetic one "ram=${1}M,touched=${1}M,log=$PWD/copies${words:+,$words}"
  synthetic two "ram=${1}M,log=$PWD/copies" --incoming defer
}

# settings WORD...: of both.
settings() {
  parameter one max-bandwidth 10737418240
  for word in "$@"; do
    case $word in
      pin) switch one rdma-pin-all ;;
      pin-two) switch two rdma-pin-all ;;
      return) switch one return-path && switch two return-path ;;
      postcopy) switch one postcopy-ram && switch two postcopy-ram ;;
      queues-*)
        parameter one __org.migrationd_rdma-queue-pairs "${word#queues-}"
        parameter two __org.migrationd_rdma-queue-pairs "${word#queues-}"
        ;;
      *) fail "no setting '$word'" ;;
    esac
  done
}

# The log that all copies of the guest write: in time order the lines of one copy stand together, and ticks only rise.
one_copy() {
  sort -n -k 3 copies | awk '
    function wrong(text) { print text; exit 1 }
    / wrong$/ { wrong("the guest met a wrong page: " $0) }
    NF == 3 { if ($1 != last) { if ($1 in seen) wrong($1 " ran again"); seen[$1] = 1; last = $1 }
              if ($2 + 0 <= tick + 0) wrong("went back to tick " $2); tick = $2 }' || fail "the log of copies"
}

moved() {
  until_status one completed >one.answer
  until_status two completed >two.answer
  until_state two running
  same "run state of the source" "$(run_state one)" postmigrate
  verify two
  one_copy
}

move_synthetic() {
  two_daemons "$1" "$2"
  shift 2
  settings "$@"
  listen two
  migrate one
  moved
  for word in "$@"; do
    case $word in queues-*) same "queue pairs" "$(rdma_count two queue-pairs)" "${word#queues-}" ;; esac
  done
}

rdma_count() { get "$1" "/__org.migrationd_rdma/$2" query-migrate; }

move_by_ipv6() {
  two_daemons 16 none
  settings
  listen two "rdma:[fd77::1]:$PORT"
  migrate one "rdma:[fd77::1]:$PORT"
  moved
}

# The guest runs at the destination while most of its memory is still here.
postcopy() {
  two_daemons 24 dirty-rate=1M,working-set=8M
  settings postcopy "$@"
  parameter one max-bandwidth 4194304
  listen two
  migrate one
  some_way
  ask one migrate-start-postcopy >/dev/null
  moved
}

# --- counts that do not depend on the emulator's speed ---------------------------------------------------------------

# What the destination's processors copy for each byte of memory that arrives.
count_tcp() {
  two_daemons "$1" none
  settings
  listen two "tcp:127.0.0.1:$PORT"
  migrate one "tcp:127.0.0.1:$PORT"
  moved
  get one /ram/transferred query-migrate | awk -v mib="$1" '{
    printf "measured: %-22s %8.5f bytes copied by the destination per byte migrated\n", "tcp", $1 / (mib * 1048576) }'
}

count_rdma() {
  mib=$1
  two_daemons "$mib" none
  shift
  settings "$@"
  listen two
  migrate one
  moved
  echo "$(rdma_count two control-bytes) $(rdma_count two control-messages) $(rdma_count two registrations)" \
    "$(rdma_count two completions) $(rdma_count one writes) $(rdma_count one written-bytes) $(rdma_count one completions)" \
    "$(rdma_count one registrations)" | awk -v mib="$mib" -v how="rdma ${*:-dynamic}" '{
    gib = mib / 1024
    printf "measured: %-22s %8.5f bytes copied by the destination per byte migrated\n", how, $1 / (mib * 1048576)
    printf "measured: %-22s per GiB at the destination: %d messages, %d registrations, %d completions\n", "", $2 / gib, $3 / gib, $4 / gib
    printf "measured: %-22s per GiB at the source: %d writes of %d KiB, %d registrations, %d completions\n", "", $5 / gib, $6 / $5 / 1024, $8 / gib, $7 / gib
    if ($1 > mib * 1048576 / 100) { print "the destination copied more than a hundredth"; exit 1 } }'
  # Of so many requests a body of the stream begins with one that has nothing to write behind it.
  grep -o 'RDMA: [0-9]* requests for keys, .*' one.log | sed 's/^RDMA:/measured:                       /'
}

# --- faults ----------------------------------------------------------------------------------------------------------

# A migration of 64 MiB that has come some way, at 4 MiB/s.
under_way() {
  two_daemons 64 dirty-rate=1M,working-set=4M
  settings "$@"
  parameter one max-bandwidth 4194304
  listen two
  migrate one
  some_way
}

some_way() {
  for _ in $(seq 300); do
    sent=$(get one /ram/transferred query-migrate)
    [ "${sent:-0}" -gt 4000000 ] && return 0
    sleep 0.1
  done
  fail "nothing was sent: $(ask one query-migrate)"
}

still_here() {
  same "run state of the source" "$(run_state one)" running
  verify one
}

# And it can go another time.
again() {
  PORT=$((PORT + 1))
  parameter one max-bandwidth 10737418240
  listen two
  migrate one
  until_status one completed >/dev/null
  until_status two completed >/dev/null
  verify two
  one_copy
}

cancel() {
  under_way "$@"
  ask one migrate_cancel >/dev/null
  until_status one cancelled >/dev/null
  until_status two failed >/dev/null
  same "run state of the source" "$(run_state one)" running
  again
}

source_killed() {
  under_way "$@"
  kill_hard one
  until_status two failed >/dev/null
}

destination_killed() {
  under_way "$@"
  kill_hard two
  until_status one failed >/dev/null
  contains "the error" "$(get one /error-desc query-migrate)" "RDMA"
  still_here
}

# The network card, or its cable, goes while a migration is under way.
device_lost() {
  under_way
  case $1 in
    removed) /usr/sbin/rdma link delete rxe0 & ;;
    down) /usr/sbin/ip link set dummy0 down ;;
  esac
  until_status one failed >/dev/null
  contains "the error" "$(get one /error-desc query-migrate)" "RDMA"
  still_here
  until_status two failed >/dev/null
  # A soft-RoCE device whose link was down does not connect any more; the next case gets a new one.
  [ "$1" = removed ] && return 0
  kill_hard one
  kill_hard two
  /usr/sbin/rdma link delete rxe0
}

nobody_listens() {
  synthetic one ram=16M
  migrate one
  until_status one failed >/dev/null
  contains "the error" "$(get one /error-desc query-migrate)" "RDMA ERROR: connecting to destination!"
  still_here
}

other_size() {
  synthetic one ram=16M
  synthetic two ram=32M --incoming defer
  listen two
  migrate one
  until_status one failed >/dev/null
  until_status two failed >/dev/null
  contains "the destination's error" "$(get two /error-desc query-migrate)" "ynthetic.ram"
  still_here
}

# --- QEMU to migrationd to QEMU --------------------------------------------------------------------------------------

# through FROM TO [stopped] [pin] [return]: the guest of a QEMU goes to a daemon and on to another QEMU.
through() {
  qemu one "$1" 16 -bios guest.bios
  daemon mid --incoming defer
  qemu two "$2" 16 -bios guest.bios -S -incoming defer
  shift 2
  sweeps one 5
  for word in "$@"; do
    case $word in
      pin) switch one rdma-pin-all && switch mid rdma-pin-all ;;
      return) switch one return-path && switch mid return-path && switch two return-path ;;
      stopped) stand_still one ;;
      *) fail "no setting '$word'" ;;
    esac
  done
  listen mid
  migrate one
  until_status one completed >/dev/null
  until_status mid completed >/dev/null
  PORT=$((PORT + 1))
  listen two
  migrate mid
  until_status mid completed >/dev/null
  arrived one two
}

# held VERSION: `mid` holds the machine of a QEMU `one`.
held() {
  qemu one "$1" 16 -bios guest.bios
  daemon mid --incoming defer
  sweeps one 5
  listen mid
  migrate one
  until_status one completed >/dev/null
  until_status mid completed >/dev/null
  PORT=$((PORT + 1))
}

# From a daemon that holds a QEMU's machine into a QEMU that runs before its memory is there.
postcopy_to() {
  held 10.0
  qemu two 10.0 16 -bios guest.bios -incoming defer
  switch mid postcopy-ram ${1:+rdma-pin-all}
  switch two postcopy-ram
  parameter mid max-bandwidth 1048576
  listen two
  migrate mid
  until_status mid active,postcopy-active >/dev/null
  ask mid migrate-start-postcopy >/dev/null
  until_status mid completed >/dev/null
  until_status two completed >/dev/null
  sweeps two 5
  ask two stop >/dev/null
  one_sequence one two
}

# From a QEMU into a daemon that asks for the machine's pages, and on to where it runs.
postcopy_from() {
  qemu one 10.0 16 -bios guest.bios
  daemon mid --incoming defer
  qemu two 10.0 16 -bios guest.bios -S -incoming defer
  switch one postcopy-ram ${1:+rdma-pin-all}
  switch mid postcopy-ram
  sweeps one 5
  listen mid
  migrate one
  ask one migrate-start-postcopy >/dev/null
  until_status one completed >one.answer
  until_status mid completed >mid.answer
  PORT=$((PORT + 1))
  switch_off mid postcopy-ram
  listen two
  migrate mid
  until_status mid completed >/dev/null
  arrived one two
}

# QEMU 7.2 breaks there (docs/formats/rdma.md): nothing is lost, and without postcopy it goes.
no_postcopy_to_7_2() {
  held 7.2
  qemu two 7.2 16 -bios guest.bios -S -incoming defer
  switch mid postcopy-ram
  switch two postcopy-ram
  parameter mid max-bandwidth 1048576
  listen two
  migrate mid
  ask mid migrate-start-postcopy >/dev/null
  until_status mid failed >/dev/null
  contains "the error" "$(get mid /error-desc query-migrate)" "postcopy over RDMA with QEMU 7.2 breaks"
  # QEMU ends with its incoming migration.
  gone two
  qemu three 7.2 16 -bios guest.bios -S -incoming defer
  PORT=$((PORT + 1))
  parameter mid max-bandwidth 10737418240
  switch_off mid postcopy-ram
  listen three
  migrate mid
  until_status mid completed >/dev/null
  arrived one three
}

no_postcopy_from_7_2() {
  qemu one 7.2 16 -bios guest.bios
  daemon mid --incoming defer
  switch one postcopy-ram
  switch mid postcopy-ram
  sweeps one 5
  listen mid
  migrate one
  until_status mid failed >/dev/null
  contains "the error" "$(get mid /error-desc query-migrate)" "postcopy over RDMA from QEMU 7.2 breaks"
  until_status one failed >/dev/null
  # Its guest has noticed nothing.
  sweeps one $(($(cat one.serial | wc -l) + 5))
  ask one stop >/dev/null
  one_sequence one
}
