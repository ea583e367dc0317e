// SPDX-License-Identifier: Apache-2.0
#include "base/thread_roster.hpp"

#include "base/log.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <utility>

namespace migrationd {
namespace {

// What the kernel keeps of a thread's name, without the zero byte.
constexpr std::size_t kernel_name_bytes = 15;

Error not_a_list(std::string_view text) {
  return plan_error(fmt::format("'{}' is not a list of CPUs such as 0-3,8", printable(text)));
}

// The number at the front of `text`, which is taken off; CPU_SETSIZE where there is none.
unsigned take_number(std::string_view& text) {
  unsigned number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || number >= CPU_SETSIZE) return CPU_SETSIZE;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return number;
}

}  // namespace

Result<std::vector<unsigned>> parse_cpu_list(std::string_view text) {
  cpu_set_t usable;
  if (::sched_getaffinity(0, sizeof usable, &usable) != 0) return Error::from_errno("ask which CPUs there are");
  std::vector<unsigned> cpus;
  std::string_view rest = text;
  while (true) {
    const unsigned first = take_number(rest);
    unsigned last = first;
    if (rest.starts_with('-')) {
      rest.remove_prefix(1);
      last = take_number(rest);
    }
    if (first == CPU_SETSIZE || last == CPU_SETSIZE || last < first) return not_a_list(text);
    for (unsigned cpu = first; cpu <= last; ++cpu) {
      if (!CPU_ISSET(cpu, &usable)) return plan_error(fmt::format("CPU {} is not one that this process may use", cpu));
      if (std::find(cpus.begin(), cpus.end(), cpu) == cpus.end()) cpus.push_back(cpu);
    }
    if (rest.empty()) return cpus;
    if (!rest.starts_with(',')) return not_a_list(text);
    rest.remove_prefix(1);
  }
}

ThreadRoster::Place::~Place() {
  const std::lock_guard lock(roster_.mutex_);
  roster_.entries_.erase(entry_);
}

ThreadRoster::Place ThreadRoster::enter(std::string name) {
  ::pthread_setname_np(::pthread_self(), name.substr(0, kernel_name_bytes).c_str());
  const std::lock_guard lock(mutex_);
  entries_.push_front({std::move(name), ::gettid()});
  return {*this, entries_.begin()};
}

ThreadRoster::Place ThreadRoster::enter_worker(std::string_view name, std::size_t number) {
  if (!cpus_.empty()) {
    const unsigned cpu = cpus_[number % cpus_.size()];
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(cpu, &only);
    const int failure = ::pthread_setaffinity_np(::pthread_self(), sizeof only, &only);
    if (failure != 0)
      log::warning(Error::from_errno(fmt::format("{}_{}: use CPU {}", name, number, cpu), failure).text());
  }
  return enter(fmt::format("{}_{}", name, number));
}

std::vector<ThreadRoster::Entry> ThreadRoster::list() const {
  const std::lock_guard lock(mutex_);
  return {entries_.begin(), entries_.end()};
}

}  // namespace migrationd
