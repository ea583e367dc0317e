# SPDX-License-Identifier: Apache-2.0
# Peers that break the rules of docs/spec/rdma.md, played by rdma-peer.

V1=0000000100000000
# The stream up to the first hook: the machine, one block of 1 MiB, the hook.
STREAM=5145564d00000003070000000d70632d6934343066782d372e32
STREAM=${STREAM}01000000020372616d000000000000000400000000001000040670632e72616d0000000000100000
STREAM=${STREAM}0000000000000080
# The blocks of a synthetic machine of 16 MiB, as a destination tells of them.
RAM=0000000000010000000000010000000000000000010000000000000000000000
ROM=0000000000020000000000020000000000000000000400000000000000000000
# One record for block 0x63, which nobody has.
BAD_BLOCK=000000000000000000000063000000000000000000000000
# Up to the moment when the source registers, and up to the moment when it answers a destination.
AT_BLOCKS="until 4"
AT_REGISTER="until 4 send 5 1 $RAM$ROM until 9 until 7"
# A key that nobody gave.
NO_KEY=00000001000000000000000000010000

hostile_table() {
  cat <<ROWS
hostile/version-2                         30  quick,daemon  refused_source 0000000200000000
hostile/version-0                         30  daemon        refused_source 0000000000000000
hostile/no-private-data                   30  daemon        refused_source none
hostile/unknown-type                      30  quick,daemon  lying_source $V1 77 send 77 1 none
hostile/type-none                         30  daemon        lying_source $V1 NONE send 0 1 none
hostile/error                             30  daemon        lying_source $V1 ERROR send 1 1 none
hostile/unknown-flags                     30  daemon        lying_source 000000010000fe00 ERROR send 1 1 none
hostile/short-message                     30  daemon        lying_source $V1 any raw 00000000
hostile/longer-than-it-says               30  quick,daemon  lying_source $V1 length raw 00000000000000070000000100000000ff
hostile/shorter-than-it-says              30  daemon        lying_source $V1 length raw 00000018000000070000000100000000
hostile/too-long                          30  daemon        lying_source $V1 length big 3 4294967295 1000
hostile/too-many-records                  30  daemon        lying_source $V1 5000 send 7 5000 $BAD_BLOCK
hostile/records-missing                   30  daemon        lying_source $V1 any send 7 3 $BAD_BLOCK
hostile/register-bad-block                30  quick,daemon  lying_source $V1 block send 7 1 $BAD_BLOCK
hostile/register-beyond-block             30  daemon        lying_source $V1 any register 7fffffff00000000 0
hostile/register-one-too-far              30  daemon        lying_source $V1 any register 100000 0
hostile/register-too-many-chunks          30  daemon        lying_source $V1 any register 0 1
hostile/register-all-chunks               30  daemon        lying_source $V1 any register 0 ffffffffffffffff
hostile/unregister-bad-block              30  daemon        lying_source $V1 block send 10 1 $BAD_BLOCK
hostile/compress-bad-block                30  daemon        lying_source $V1 block send 6 1 000000000000006300000000000000000000000000001000
hostile/compress-beyond-block             30  daemon        lying_source $V1 any compress 0 0 ffffffffffff0000
hostile/compress-past-end                 30  daemon        lying_source $V1 any compress 0 ff000 2000
hostile/compress-value                    30  daemon        lying_source $V1 value compress 7 0 1000
hostile/stream-in-control-mode            30  daemon        lying_source $V1 QEMU send 3 1 00
hostile/source-leaves                     30  daemon        leaving_source

hostile/blocks-missing                    30  quick,daemon  lying_destination blocks $AT_BLOCKS send 5 1 $RAM
hostile/blocks-too-many                   30  daemon        lying_destination blocks $AT_BLOCKS send 5 1 $RAM$ROM$ROM
hostile/blocks-other-length               30  daemon        lying_destination length $AT_BLOCKS send 5 1 $RAM$RAM
hostile/blocks-not-whole                  30  daemon        lying_destination any $AT_BLOCKS send 5 1 00000000
hostile/blocks-other-type                 30  daemon        lying_destination expecting $AT_BLOCKS send 11 1 none
hostile/result-short                      30  daemon        lying_destination any $AT_REGISTER send 8 1 00000000
hostile/result-of-two                     30  daemon        lying_destination any $AT_REGISTER send 8 2 0000000100000000000000000001000000000001000000000000000000010000
hostile/result-other-type                 30  daemon        lying_destination expecting $AT_REGISTER send 11 1 none
hostile/result-wrong-key                  30  quick,daemon  lying_destination access $AT_REGISTER answer $NO_KEY answer-all $NO_KEY
hostile/destination-error                 30  daemon        lying_destination ERROR $AT_BLOCKS send 1 1 none
hostile/never-ready                       60  quick,daemon  silent_destination
ROWS
}

# --- at a destination ------------------------------------------------------------------------------------------------

refused_source() {
  daemon two --incoming defer
  listen two
  rdma-peer connect $HOST "$PORT" "$1" refused
}

# lying_source PRIVATE-DATA WORD STEP...: a source that lies after the first hook; the error has that word, and the daemon
# takes a machine afterwards.
lying_source() {
  private=$1 word=$2
  shift 2
  daemon two --incoming defer
  listen two
  rdma-peer connect $HOST "$PORT" "$private" take 2 send 3 1 $STREAM take 2 send 4 1 none take 5 take 2 "$@" gone
  until_status two failed >/dev/null
  judge two "$word"
}

judge() { # NAME WORD
  why=$(get "$1" /error-desc query-migrate)
  echo "the error: $why"
  [ "$2" = any ] || contains "the error" "$why" "$2"
}

leaving_source() {
  daemon two --incoming defer
  listen two
  rdma-peer connect $HOST "$PORT" $V1 take 2 send 3 1 $STREAM take 2 send 4 1 none take 5
  until_status two failed >/dev/null
  judge two RDMA
}

# --- at a source -----------------------------------------------------------------------------------------------------

play_destination() {
  start peer rdma-peer listen $HOST "$PORT" $V1 "$@"
  for _ in $(seq 100); do
    grep -q '^listening' peer.log && break
    sleep 0.1
  done
  synthetic one ram=16M,touched=16M
  migrate one
}

# lying_destination WORD STEP...: the source says why, and its guest goes on.
lying_destination() {
  word=$1
  shift
  play_destination "$@" gone
  until_status one failed >/dev/null
  gone peer
  ! grep '^rdma-peer, at' peer.log || fail "the peer did not come to its end"
  judge one "$word"
  still_here
}

# A destination that never says READY: there is no bound on a peer's silence, but the user can end it at once.
silent_destination() {
  play_destination gone
  for _ in $(seq 100); do
    grep -q '^established' peer.log && break
    sleep 0.1
  done
  # Longer than the source takes to ask whether the peer is still there.
  sleep 12
  same "run state of the source" "$(run_state one)" running
  ask one migrate_cancel >/dev/null
  until_status one cancelled >/dev/null
  gone peer
  still_here
}
