// SPDX-License-Identifier: Apache-2.0
// Who wakes a writer that sleeps on write protection: lifting it does, UFFDIO_UNREGISTER does not. Hence the order in
// DirtyLogSync::stop(). Also: one userfaultfd per area, one handshake per userfaultfd.
#include "tests/platform/fact.hpp"

#include <poll.h>
#include <sys/ioctl.h>

#include <atomic>
#include <thread>

using namespace migrationd;
using namespace migrationd::platform;

namespace {

Userfaultfd protect(const Mapping& view) {
  auto fault = need(Userfaultfd::open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | ram::kernel::feature_wp_hugetlbfs_shmem, false));
  need(fault.register_range({view.data(), view.size()}, UFFDIO_REGISTER_MODE_WP));
  need(fault.write_protect({view.data(), view.size()}, true));
  return fault;
}

// Until the writer's fault has arrived; then it sleeps.
void wait_for_fault(const Userfaultfd& fault) {
  pollfd wait{fault.fd(), POLLIN, 0};
  if (::poll(&wait, 1, 5000) != 1) skip("no fault within 5 s");
}

bool becomes_true(const std::atomic<bool>& flag, std::chrono::milliseconds within) {
  const auto start = std::chrono::steady_clock::now();
  while (!flag && std::chrono::steady_clock::now() - start < within)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return flag;
}

}  // namespace

int main() {
  const auto block = block_of(16 * page_size);
  const Mapping guest = view_of(*block);
  std::memset(guest.data(), 1, guest.size());
  const AddressRange page{guest.data(), page_size};
  {
    const auto fault = protect(guest);
    std::atomic<bool> written{false};
    std::thread writer([&] {
      guest.data()[0] = std::byte{2};
      written = true;
    });
    wait_for_fault(fault);
    expect(!written, "a write to a protected page sleeps");
    need(fault.write_protect(page, false));
    expect(becomes_true(written, std::chrono::seconds(5)), "lifting the protection wakes it");
    writer.join();

    auto second =
        need(Userfaultfd::open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | ram::kernel::feature_wp_hugetlbfs_shmem, false));
    const auto busy = second.register_range({guest.data(), guest.size()}, UFFDIO_REGISTER_MODE_WP);
    expect(!busy && busy.error().sys_errno() == EBUSY, "a second userfaultfd on the area is EBUSY");
    uffdio_api again{};
    again.api = UFFD_API;
    expect(::ioctl(second.fd(), UFFDIO_API, &again) != 0, "a second handshake fails");
  }
  {
    std::atomic<bool> written{false};
    std::thread writer;
    {
      const auto fault = protect(guest);
      writer = std::thread([&] {
        guest.data()[0] = std::byte{3};
        written = true;
      });
      wait_for_fault(fault);
      need(fault.unregister_range({guest.data(), guest.size()}));
      expect(!becomes_true(written, std::chrono::milliseconds(100)),
             "UFFDIO_UNREGISTER does not wake a waiter of write-protect mode");
    }
    expect(becomes_true(written, std::chrono::seconds(5)), "the last close does");
    writer.join();
  }
  return outcome();
}
