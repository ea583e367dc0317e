// SPDX-License-Identifier: Apache-2.0
#include "postcopy/stream_turns.hpp"

#include "base/log.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

namespace migrationd::postcopy {
namespace {

using TimePoint = StreamTurns::TimePoint;

// Words of the board.
constexpr std::size_t started_place = 0;
constexpr std::size_t asked_place = 1;
constexpr std::size_t waiting_place = 2;
constexpr std::size_t first_slot_place = 8;
// The byte whose lock is a slot; nothing is stored there.
constexpr off_t first_lock = 4096;
// Times on the board are that old at most.
constexpr std::chrono::milliseconds tell_again{1};

std::int64_t to_ns(TimePoint time) noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

TimePoint from_ns(std::int64_t ns) noexcept {
  return TimePoint(std::chrono::duration_cast<TimePoint::duration>(std::chrono::nanoseconds(ns)));
}

// Only a file of our own that nobody else can write to.
UniqueFd open_board(const std::string& path) noexcept {
  UniqueFd board(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  struct stat about {};
  if (!board || ::fstat(board.get(), &about) != 0) return {};
  const bool ours = S_ISREG(about.st_mode) && about.st_uid == ::geteuid() && (about.st_mode & 077) == 0;
  return ours ? std::move(board) : UniqueFd();
}

}  // namespace

std::string StreamTurns::usual_path() { return fmt::format("/dev/shm/migrationd-turns-{}", ::geteuid()); }

std::size_t StreamTurns::usual_slots() noexcept {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  return std::clamp<std::size_t>(static_cast<std::size_t>(CPU_COUNT(&allowed)) / 2, 1, most_slots);
}

StreamTurns::StreamTurns(const std::string& path, std::size_t slots) noexcept
    : board_(open_board(path)), slots_(std::clamp<std::size_t>(slots, 1, most_slots)) {
  if (!board_) log::debug("background streams take no turns: {} cannot be used", path);
}

// --- times --------------------------------------------------------------------------------------------------------

TimePoint StreamTurns::read_time(std::size_t place, TimePoint now) const noexcept {
  std::int64_t ns = 0;
  if (!board_ || ::pread(board_.get(), &ns, sizeof ns, static_cast<off_t>(place * sizeof ns)) != sizeof ns) return {};
  return ns < 0 || ns > to_ns(now) ? TimePoint{} : from_ns(ns);
}

// What cannot be told is not known to the others; they do without.
void StreamTurns::write_time(std::size_t place, TimePoint time) const noexcept {
  const std::int64_t ns = to_ns(time);
  if (board_) [[maybe_unused]]
    const ssize_t ignored = ::pwrite(board_.get(), &ns, sizeof ns, static_cast<off_t>(place * sizeof ns));
}

void StreamTurns::note_started(TimePoint now) noexcept {
  started_.store(to_ns(now), std::memory_order_relaxed);
  write_time(started_place, now);
}

void StreamTurns::note_asked(TimePoint now) noexcept {
  asked_.store(to_ns(now), std::memory_order_relaxed);
  if (now - from_ns(told_.load(std::memory_order_relaxed)) < tell_again) return;
  told_.store(to_ns(now), std::memory_order_relaxed);
  write_time(asked_place, now);
}

BackgroundPace::Urgent StreamTurns::urgent(TimePoint now) const noexcept {
  const auto latest = [&](const std::atomic<std::int64_t>& own, std::size_t place) {
    return std::min(now, std::max(from_ns(own.load(std::memory_order_relaxed)), read_time(place, now)));
  };
  return {latest(started_, started_place), latest(asked_, asked_place)};
}

// --- slots --------------------------------------------------------------------------------------------------------

bool StreamTurns::lock(std::size_t slot, bool on) const noexcept {
  struct flock range {};
  range.l_type = static_cast<short>(on ? F_WRLCK : F_UNLCK);
  range.l_whence = SEEK_SET;
  range.l_start = first_lock + static_cast<off_t>(slot);
  range.l_len = 1;
  return ::fcntl(board_.get(), F_OFD_SETLK, &range) == 0;
}

bool StreamTurns::another_waits(TimePoint now) const noexcept {
  return now - read_time(waiting_place, now) < 2 * ask_again;
}

bool StreamTurns::anyone_stands_still(TimePoint now) const noexcept {
  for (std::size_t slot = 0; slot < slots_; ++slot) {
    if (now - read_time(first_slot_place + slot, now) >= longest_standstill) return true;
  }
  return false;
}

bool StreamTurns::take(TimePoint now) noexcept {
  if (!board_) return true;
  if (slot_ && now - since_ >= longest_turn) {
    if (another_waits(now)) {
      give_back();
      away_until_ = now + 2 * ask_again;  // long enough for it to ask again
    }
    since_ = now;
  }
  if (!slot_ && now >= away_until_) {
    for (std::size_t slot = 0; slot < slots_ && !slot_; ++slot) {
      if (lock(slot, true)) slot_ = slot;
    }
    if (slot_) since_ = now;
  }
  if (!slot_) {
    if (now < away_until_) return false;
    write_time(waiting_place, now);
    return anyone_stands_still(now);
  }
  if (now - got_on_ >= ask_again) {
    got_on_ = now;
    write_time(first_slot_place + *slot_, now);
  }
  return true;
}

void StreamTurns::give_back() noexcept {
  if (!slot_) return;
  lock(*slot_, false);
  slot_.reset();
  got_on_ = {};
}

}  // namespace migrationd::postcopy
