// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/doctor.hpp"

#include <fmt/format.h>

namespace migrationd::ctl {

namespace {

// Bits of UFFDIO_API's answer (linux/userfaultfd.h); the last is newer than Debian 12's headers.
constexpr std::uint64_t feature_missing_shmem = 1u << 5;
constexpr std::uint64_t feature_wp_shmem = 1u << 12;
constexpr std::uint64_t feature_wp_async = 1u << 15;

constexpr std::uint64_t unlimited = ~std::uint64_t{0};
// A daemon with 16 multifd channels, 64 control clients and one descriptor per memory block stays below it.
constexpr std::uint64_t enough_files = 1024;
// io_uring's registered buffers and RDMA regions count as locked memory.
constexpr std::uint64_t enough_memlock = std::uint64_t{1} << 30;
constexpr std::uint64_t little_memory = std::uint64_t{512} << 20;

Finding kernel(const Facts& facts) { return {Level::good, "kernel", fmt::format("Linux {}", facts.kernel), ""}; }

Finding userfaultfd(const Facts& facts) {
  if (facts.uffd_device_opens) return {Level::good, "userfaultfd", "/dev/userfaultfd may be opened", ""};
  if (facts.uffd_syscall_works) return {Level::good, "userfaultfd", "the userfaultfd system call is permitted", ""};
  const std::string without = "live guests cannot be tracked, and postcopy is not possible";
  if (facts.uffd_device_exists)
    return {Level::missing, "userfaultfd", fmt::format("{} may not open /dev/userfaultfd: {}", facts.user, without),
            fmt::format("setfacl -m u:{}:rw /dev/userfaultfd", facts.user)};
  return {Level::missing, "userfaultfd",
          fmt::format("no /dev/userfaultfd (Linux 6.1 and newer have it) and no permission for the system call: {}",
                      without),
          "sysctl vm.unprivileged_userfaultfd=1"};
}

Finding write_protect(const Facts& facts) {
  if (!facts.uffd_features) return {Level::note, "write-protect", "cannot be asked without userfaultfd", ""};
  if ((*facts.uffd_features & feature_wp_async) != 0)
    return {Level::good, "write-protect", "asynchronous write protection: the guest never waits for dirty tracking",
            ""};
  if ((*facts.uffd_features & feature_wp_shmem) != 0)
    return {Level::note, "write-protect",
            "write faults are synchronous before Linux 6.7: dirty tracking slows a writing guest", ""};
  return {Level::missing, "write-protect",
          "no write protection of shared memory (Linux 5.19 and newer have it): live guests cannot be tracked", ""};
}

Finding postcopy(const Facts& facts) {
  if (facts.uffd_features && (*facts.uffd_features & feature_missing_shmem) != 0)
    return {Level::good, "postcopy", "missing-page faults on shared memory", ""};
  return {Level::note, "postcopy", "no missing-page faults on shared memory: postcopy is not possible", ""};
}

Finding pagemap(const Facts& facts) {
  if (facts.pagemap_scan) return {Level::good, "pagemap-scan", "the page-map scan finds dirty pages", ""};
  return {Level::note, "pagemap-scan", "no page-map scan (Linux 6.7 and newer have it): the slower dirty log is used",
          ""};
}

Finding memfd(const Facts& facts) {
  if (facts.memfd) return {Level::good, "memfd", "sealed anonymous memory files", ""};
  return {Level::missing, "memfd", "memfd_create is refused: no machine can be held", ""};
}

Finding huge_pages(const Facts& facts) {
  constexpr const char* mend = "sysctl vm.nr_hugepages=1024";
  if (!facts.huge_pages_total)
    return {Level::note, "hugepages", "this kernel has no 2 MiB pages: machines with page-size=2M cannot be held", ""};
  if (*facts.huge_pages_total == 0)
    return {Level::note, "hugepages", "no 2 MiB pages are reserved; only machines with page-size=2M need them", mend};
  return {Level::good, "hugepages",
          fmt::format("{} of {} pages of 2 MiB are free", facts.huge_pages_free, *facts.huge_pages_total), ""};
}

Finding memlock(const Facts& facts) {
  if (facts.memlock_bytes == unlimited) return {Level::good, "memlock", "locked memory is not limited", ""};
  const std::string now = fmt::format("locked memory is limited to {}", size_text(facts.memlock_bytes));
  if (facts.memlock_bytes >= enough_memlock) return {Level::good, "memlock", now, ""};
  return {Level::note, "memlock", now + ": pinned buffers may be refused", "ulimit -l unlimited"};
}

Finding open_files(const Facts& facts) {
  const std::string now = fmt::format("{} open files are allowed", facts.open_files);
  if (facts.open_files >= enough_files) return {Level::good, "open-files", now, ""};
  return {Level::note, "open-files", now + ": many channels or clients may be refused",
          fmt::format("ulimit -n {}", enough_files)};
}

Finding io_uring(const Facts& facts) {
  if (facts.io_uring) return {Level::good, "io_uring", "permitted", ""};
  return {Level::note, "io_uring", "io_uring is refused: files are written with plain calls",
          "sysctl kernel.io_uring_disabled=0"};
}

Finding vsock(const Facts& facts) {
  if (!facts.vsock)
    return {Level::note, "vsock", "this kernel has no vsock loaded: vsock: addresses do not work", "modprobe vsock"};
  if (!facts.vsock_loopback)
    return {Level::note, "vsock", "vsock works, but not within this host (CID 1)", "modprobe vsock_loopback"};
  return {Level::good, "vsock", "vsock works, within this host too", ""};
}

Finding memory(const Facts& facts) {
  const std::string now =
      fmt::format("{} of {} are available", size_text(facts.memory_available), size_text(facts.memory_total));
  if (facts.memory_available >= little_memory) return {Level::good, "memory", now, ""};
  return {Level::note, "memory", now + ": a machine needs as much as its guest has touched", ""};
}

const char* level_name(Level level) {
  switch (level) {
    case Level::good:
      return "good";
    case Level::note:
      return "note";
    case Level::missing:
      break;
  }
  return "missing";
}

}  // namespace

std::vector<Finding> judge(const Facts& facts) {
  return {kernel(facts),     memfd(facts),   userfaultfd(facts), write_protect(facts), pagemap(facts), postcopy(facts),
          huge_pages(facts), memlock(facts), open_files(facts),  io_uring(facts),      vsock(facts),   memory(facts)};
}

Json to_json(const std::vector<Finding>& findings) {
  Json out = Json::array();
  for (const Finding& finding : findings) {
    Json& entry =
        out.emplace_back(Json{{"name", finding.name}, {"level", level_name(finding.level)}, {"text", finding.text}});
    if (!finding.mend.empty()) entry["mend"] = finding.mend;
  }
  return out;
}

std::string report(const std::vector<Finding>& findings) {
  std::string out;
  for (const Finding& finding : findings) {
    out += fmt::format("{:<8} {:<14} {}\n", level_name(finding.level), finding.name, finding.text);
    if (!finding.mend.empty()) out += fmt::format("{:<23} to mend: {}\n", "", finding.mend);
  }
  return out;
}

}  // namespace migrationd::ctl
