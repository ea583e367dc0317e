// SPDX-License-Identifier: Apache-2.0
//
// `migrationctl doctor`: what kernel, permissions and limits allow, and the command that mends what they do not.
// probe() asks the system, judge() turns the facts into findings and is pure, so that every judgement is tested
// without the kernel it speaks of.
#pragma once

#include "tools/migrationctl/text.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::ctl {

struct Facts {
  std::string kernel;  // release, "6.1.0-18-amd64"
  int kernel_major = 0;
  int kernel_minor = 0;
  std::string user;
  bool uffd_device_exists = false;
  bool uffd_device_opens = false;
  bool uffd_syscall_works = false;  // with faults in the kernel too
  std::optional<std::uint64_t> uffd_features;
  bool pagemap_scan = false;
  bool memfd = false;
  bool io_uring = false;
  bool vsock = false;
  bool vsock_loopback = false;
  std::optional<std::uint64_t> huge_pages_total;  // of 2 MiB
  std::uint64_t huge_pages_free = 0;
  std::uint64_t memlock_bytes = 0;  // soft limit; UINT64_MAX: none
  std::uint64_t open_files = 0;     // soft limit
  std::uint64_t memory_total = 0;   // bytes
  std::uint64_t memory_available = 0;
};

enum class Level { good, note, missing };

struct Finding {
  Level level;
  std::string name;  // stable, for scripts
  std::string text;  // what is so, and what follows from it
  std::string mend;  // a command; empty when nothing is to be done
};

Facts probe();
std::vector<Finding> judge(const Facts& facts);
Json to_json(const std::vector<Finding>& findings);
// One finding per line, the mending command below it.
std::string report(const std::vector<Finding>& findings);

}  // namespace migrationd::ctl
