// SPDX-License-Identifier: Apache-2.0
#include "ram/bus_guard.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <array>
#include <csignal>
#include <mutex>

namespace migrationd::ram {
namespace {

constexpr std::uint64_t nothing_broken = ~std::uint64_t{0};

// Read by the handler, so plain atomics: `start` is written last and cleared first.
struct Slot {
  std::atomic<std::uintptr_t> start{0};
  std::atomic<std::size_t> length{0};
  std::atomic<std::size_t> page{0};
  std::atomic<std::uint64_t> broken{nothing_broken};
};

std::array<Slot, BusGuard::most_ranges> slots;
// Slots ever used: the handler looks no further.
std::atomic<std::size_t> slots_used{0};
// Taking and giving back of slots, and the handler's installation: several machines may be made at once.
std::mutex slots_lock;
bool installed = false;
struct sigaction previous {};

// True: a page of zeros stands where the fault was.
bool put_zeros(std::uintptr_t address) noexcept {
  const std::size_t used = slots_used.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < used; ++i) {
    Slot& slot = slots[i];
    const std::uintptr_t start = slot.start.load(std::memory_order_acquire);
    if (start == 0 || address < start || address - start >= slot.length.load(std::memory_order_relaxed)) continue;
    const std::size_t page = slot.page.load(std::memory_order_relaxed);
    const std::uint64_t offset = (address - start) / page * page;
    void* const at = reinterpret_cast<void*>(start + offset);
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    if (::mmap(at, page, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) return false;
    std::uint64_t none = nothing_broken;
    slot.broken.compare_exchange_strong(none, offset, std::memory_order_acq_rel);
    return true;
  }
  return false;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int before = errno;
  // Only the kernel's own word about an address; a SIGBUS sent by kill(2) has none.
  const bool of_memory = info->si_code > 0;
  if (of_memory && put_zeros(reinterpret_cast<std::uintptr_t>(info->si_addr))) {
    errno = before;
    return;
  }
  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != nullptr) {
    return previous.sa_sigaction(signal, info, context);
  }
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
  // As before: the faulting instruction runs again and finds nobody; a sent signal is sent again.
  ::signal(SIGBUS, SIG_DFL);
  if (!of_memory) ::raise(SIGBUS);
}

Result<void> install() {
  if (installed) return {};
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  ::sigemptyset(&action.sa_mask);
  if (::sigaction(SIGBUS, &action, &previous) != 0) return Error::from_errno("guard against SIGBUS");
  installed = true;
  return {};
}

}  // namespace

Result<std::unique_ptr<BusGuard>> BusGuard::watch(std::byte* start, std::size_t length, std::size_t page) {
  const std::lock_guard lock(slots_lock);
  MD_CHECK(install());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    Slot& slot = slots[i];
    if (slot.start.load(std::memory_order_relaxed) != 0) continue;
    slot.length.store(length, std::memory_order_relaxed);
    slot.page.store(page, std::memory_order_relaxed);
    slot.broken.store(nothing_broken, std::memory_order_relaxed);
    slot.start.store(reinterpret_cast<std::uintptr_t>(start), std::memory_order_release);
    if (i >= slots_used.load(std::memory_order_relaxed)) slots_used.store(i + 1, std::memory_order_release);
    return std::unique_ptr<BusGuard>(new BusGuard(i));
  }
  return Error(ErrorKind::limit, fmt::format("more than {} pieces of memory of other processes", most_ranges));
}

BusGuard::~BusGuard() {
  const std::lock_guard lock(slots_lock);
  slots[slot_].start.store(0, std::memory_order_release);
}

std::optional<std::uint64_t> BusGuard::broken() const noexcept {
  const std::uint64_t offset = slots[slot_].broken.load(std::memory_order_acquire);
  if (offset == nothing_broken) return std::nullopt;
  return offset;
}

}  // namespace migrationd::ram
