// SPDX-License-Identifier: Apache-2.0
#include "postcopy/fault_thread.hpp"

#include "base/log.hpp"
#include "base/thread.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>

#include <array>

namespace migrationd::postcopy {
namespace {

// Faults taken by one read; more guests' threads than that wait a moment longer.
constexpr std::size_t faults_per_read = 64;

}  // namespace

Result<std::unique_ptr<FaultThread>> FaultThread::start(GuestMemory& memory, DestinationPages& pages,
                                                        ReturnChannel& return_channel) {
  MD_TRY(auto stop, StopSource::make());
  std::unique_ptr<FaultThread> thread(new FaultThread(memory, pages, return_channel, std::move(stop)));
  MD_CHECK(start_thread(thread->thread_, "start the fault thread", [self = thread.get()] {
    ::pthread_setname_np(::pthread_self(), "fault");
    self->run();
  }));
  return thread;
}

FaultThread::~FaultThread() {
  stop_->request();
  if (thread_.joinable()) thread_.join();
}

void FaultThread::run() {
  pollfd fds[] = {{memory_.fd(), POLLIN, 0}, {stop_->fd(), POLLIN, 0}};
  while (!stop_->requested()) {
    if (::poll(fds, 2, -1) < 0 && errno != EINTR) {
      log::error("postcopy: the fault thread cannot wait: {}", Error::from_errno("poll").text());
      return;
    }
    // Several reads for one poll: a burst of faults costs one wake-up.
    while (read_faults()) {
    }
  }
}

bool FaultThread::read_faults() {
  std::array<uffd_msg, faults_per_read> messages{};
  const std::size_t count = ram::read_userfaults(memory_.fd(), messages);
  for (std::size_t i = 0; i < count; ++i) {
    if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
    serve(messages[i].arg.pagefault.address, static_cast<int>(messages[i].arg.pagefault.feat.ptid));
  }
  return count == faults_per_read;
}

void FaultThread::serve(std::uint64_t address, int thread) {
  const auto found = memory_.locate(address);
  if (!found) return log::error("postcopy: a fault at {} is in no block", hex(address));
  faults_.fetch_add(1, std::memory_order_relaxed);
  const HostPage page = pages_.host_page(found->block, found->page);
  switch (pages_.need(page, thread)) {
    case PageNeed::ask:
      // Refused while paused: it is outstanding, and asked for again by the recovery.
      return_channel_.request(page);
      return;
    case PageNeed::asked:
      return;
    case PageNeed::received:
      // Who waits sleeps on if this fails, and that is all that can be done for him: no page of unknown content.
      if (auto placed = memory_.place_zero(page.block, page.page); !placed) {
        log::error("postcopy: {}", placed.error().text());
      }
      return;
  }
}

}  // namespace migrationd::postcopy
