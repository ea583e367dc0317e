// SPDX-License-Identifier: Apache-2.0
//
// ThreadRoster: which threads work for a migration right now (query-migrationthreads, qmp.md 9), and on which CPUs
// those may run that move pages.
//
// A thread enters at its start and is listed until its Place ends. The kernel shows the same name, cut to 15 bytes, in
// top(1) and /proc. Workers are given one CPU each, in turn, where CPUs were given at all.
//
// Thread: give_cpus() before any other thread knows the roster; the rest from any thread.
#pragma once

#include "base/result.hpp"

#include <cstdint>
#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd {

// "0-3,8": numbers and ranges, in the order given, each at most once. Error: ErrorKind::plan, what is wrong with the
// text, or a CPU that this process may not use.
Result<std::vector<unsigned>> parse_cpu_list(std::string_view text);

class ThreadRoster {
 public:
  struct Entry {
    std::string name;
    std::int64_t id = 0;  // the kernel's
  };
  class Place {
   public:
    Place(ThreadRoster& roster, std::list<Entry>::iterator entry) noexcept : roster_(roster), entry_(entry) {}
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    ~Place();

   private:
    ThreadRoster& roster_;
    const std::list<Entry>::iterator entry_;
  };

  void give_cpus(std::vector<unsigned> cpus) { cpus_ = std::move(cpus); }

  // The calling thread, until the Place ends.
  [[nodiscard]] Place enter(std::string name);
  // A worker, the `number`th of its kind: "NAME_NUMBER". A CPU that is gone meanwhile is no reason to fail: it is said
  // in the log, and the thread runs where it may.
  [[nodiscard]] Place enter_worker(std::string_view name, std::size_t number);

  // The youngest first, as QEMU lists them.
  std::vector<Entry> list() const;

 private:
  mutable std::mutex mutex_;  // control asks while threads come and go
  std::list<Entry> entries_;
  std::vector<unsigned> cpus_;
};

}  // namespace migrationd
