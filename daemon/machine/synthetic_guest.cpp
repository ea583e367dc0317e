// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/synthetic_guest.hpp"

#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

namespace migrationd::synthetic {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto tick_length = 10ms;
// How long a writer writes at a stretch before it looks at the clock again.
constexpr unsigned pages_per_look = 16;
// A writer that was kept from running catches up this much and no more.
constexpr auto longest_debt = 50ms;
constexpr auto shortest_sleep = 500us;
constexpr auto longest_sleep = 20ms;
// Sleep for time spent writing, when throttled: 99 percent of what a stretch of 2 ms owes.
constexpr auto longest_owed = 200ms;

// Pages that may be written now, at a rate that may change at any time.
class Allowance {
 public:
  explicit Allowance(std::uint64_t rate) : rate_(rate), last_(Clock::now()) {}

  void grow(Clock::time_point now, unsigned throttle) {
    const auto span = std::min<Clock::duration>(now - last_, longest_debt);
    last_ = now;
    speed_ = static_cast<double>(rate_) * (100 - throttle) / 100;
    const double most = std::max(speed_ * seconds(longest_debt), double{ram::page_size});
    bytes_ = std::min(bytes_ + speed_ * seconds(span), most);
  }
  bool take_page() noexcept {
    if (bytes_ < double{ram::page_size}) return false;
    bytes_ -= double{ram::page_size};
    return true;
  }
  // Until the next page is due.
  Clock::duration wait() const noexcept {
    const double need = (double{ram::page_size} - bytes_) / speed_;
    const auto time = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(std::min(need, 1.0)));
    return std::clamp<Clock::duration>(time, shortest_sleep, longest_sleep);
  }

 private:
  static double seconds(Clock::duration span) { return std::chrono::duration<double>(span).count(); }

  std::uint64_t rate_;
  Clock::time_point last_;
  double speed_ = 0;
  double bytes_ = 0;
};

std::uint64_t monotonic_nanoseconds() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace

GuestThreads::GuestThreads(const GuestShape& shape, std::byte* view, std::uint64_t dirty_rate, Counters counters,
                           std::string instance, int log_fd)
    : shape_(shape),
      places_(shape),
      view_(view),
      rate_(dirty_rate / shape.threads),
      instance_(std::move(instance)),
      log_fd_(log_fd),
      ticks_(counters.ticks),
      running_time_(counters.running_time) {
  counters.writes.resize(shape.threads);
  for (std::uint32_t i = 0; i < shape.threads; ++i) {
    const Slice slice = slice_of(shape, i);
    writers_.push_back({WriteOrder(slice.count, order_seed(shape, i)), slice.first, counters.writes[i]});
  }
  threads_.emplace_back([this] { live([this] { tick(); }); });
  // An idle guest's writers would only sleep.
  if (rate_ == 0) return;
  for (Writer& writer : writers_) {
    threads_.emplace_back([this, &writer] { live([this, &writer] { write_pages(writer); }); });
  }
}

GuestThreads::~GuestThreads() {
  {
    const std::lock_guard lock(mutex_);
    interrupted_ = true;
    wish_ = Wish::end;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void GuestThreads::start() {
  {
    const std::lock_guard lock(mutex_);
    interrupted_ = false;
    wish_ = Wish::run;
  }
  changed_.notify_all();
}

bool GuestThreads::pause() {
  std::unique_lock lock(mutex_);
  interrupted_ = true;
  wish_ = Wish::rest;
  changed_.notify_all();
  if (changed_.wait_for(lock, longest_pause, [this] { return resting_ == threads_.size(); })) return true;
  interrupted_ = false;
  wish_ = Wish::run;
  changed_.notify_all();
  return false;
}

GuestThreads::Counters GuestThreads::counters() const {
  Counters out;
  for (const Writer& writer : writers_) out.writes.push_back(writer.writes);
  out.ticks = ticks_;
  out.running_time = running_time_;
  return out;
}

// A thread's life: rest until told to run, run until interrupted.
template <class Run>
void GuestThreads::live(Run run) {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++resting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return wish_ != Wish::rest; });
    if (wish_ == Wish::end) return;
    --resting_;
    lock.unlock();
    run();
    lock.lock();
  }
}

void GuestThreads::sleep_until(Clock::time_point time) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, time, [this] { return wish_ != Wish::run; });
}

// `rounds`: how often the page was written before, which is its generation; at 0 it may never have been filled.
void GuestThreads::look_at(std::uint64_t logical, std::uint64_t page, std::uint64_t rounds) noexcept {
  const std::byte* const at = view_ + page * ram::page_size;
  const bool filled = rounds > 0 || logical < shape_.touched_pages;
  if (filled ? page_begins(at, {page_number(0, page), rounds, shape_.seed}) : page_begins_zero(at)) return;
  std::uint64_t expected = no_page;
  wrong_page_.compare_exchange_strong(expected, page, std::memory_order_relaxed);
}

void GuestThreads::write_pages(Writer& writer) {
  Allowance allowance(rate_);
  Clock::duration busy{};
  while (!interrupted()) {
    const auto begin = Clock::now();
    const unsigned throttle = std::min(throttle_.load(std::memory_order_relaxed), 99U);
    allowance.grow(begin, throttle);
    bool out_of_pages = false;
    for (unsigned i = 0; i < pages_per_look && !interrupted(); ++i) {
      out_of_pages = !allowance.take_page();
      if (out_of_pages) break;
      const std::uint64_t index = writer.order.at(writer.writes);
      const std::uint64_t page = places_.physical(writer.first + index);
      // This write's number is its round, so the page's new generation is that plus one.
      const std::uint64_t generation = writer.writes / writer.order.pages() + 1;
      look_at(writer.first + index, page, generation - 1);
      write_page(view_ + page * ram::page_size, {page_number(0, page), generation, shape_.seed});
      ++writer.writes;
    }
    const auto now = Clock::now();
    busy = throttle == 0 ? Clock::duration{} : busy + (now - begin);
    const auto owed = std::min<Clock::duration>(busy * throttle / (100 - throttle), longest_owed);
    const auto wanted = std::max(out_of_pages ? allowance.wait() : Clock::duration{}, owed);
    if (wanted < shortest_sleep) continue;
    sleep_until(now + wanted);
    busy = {};
  }
}

void GuestThreads::tick() {
  auto last = Clock::now();
  auto next = last;
  while (!interrupted()) {
    ++ticks_;
    log_tick();
    next += tick_length;
    sleep_until(next);
    const auto now = Clock::now();
    running_time_ += static_cast<std::uint64_t>(std::chrono::nanoseconds(now - last).count());
    last = now;
    // After a long stop of the whole process the ticks missed are not made up for.
    next = std::max(next, now - tick_length);
  }
}

void GuestThreads::log_tick() const {
  if (log_fd_ < 0) return;
  std::string line = fmt::format("{} {} {}\n", instance_, ticks_, monotonic_nanoseconds());
  // Here, too: a copy that is killed, or sleeps on a page, can never be asked.
  if (const auto page = wrong_page()) line += fmt::format("{} found page {} wrong\n", instance_, *page);
  // One write of a short line to a file opened for appending is whole. A full disk loses lines, never the guest.
  [[maybe_unused]] const auto written = ::write(log_fd_, line.data(), line.size());
}

}  // namespace migrationd::synthetic
