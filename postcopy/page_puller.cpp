// SPDX-License-Identifier: Apache-2.0
#include "postcopy/page_puller.hpp"

#include "base/thread.hpp"

#include <pthread.h>

#include <chrono>

namespace migrationd::postcopy {
namespace {

using namespace std::chrono_literals;

// Between two looks at what has come. At 64 pages a look an idle source is asked for 250 MB/s.
constexpr auto pull_look = 1ms;

}  // namespace

Result<std::unique_ptr<PagePuller>> PagePuller::start(DestinationPages& pages, ReturnChannel& return_channel) {
  MD_TRY(auto stop, StopSource::make());
  std::unique_ptr<PagePuller> puller(new PagePuller(pages, return_channel, std::move(stop)));
  MD_CHECK(start_thread(puller->thread_, "start the page puller", [self = puller.get()] {
    ::pthread_setname_np(::pthread_self(), "puller");
    self->run();
  }));
  return puller;
}

PagePuller::~PagePuller() {
  stop_->request();
  if (thread_.joinable()) thread_.join();
}

void PagePuller::run() {
  HostPage next;
  do {
    for (std::uint64_t outstanding = pages_.outstanding(); outstanding < under_way; ++outstanding) {
      const auto page = pages_.next_unasked(next);
      // All is here or asked for. What the source leaves out as zero stays outstanding, and is zero in the end.
      if (!page) return;
      next = *page;
      if (pages_.need(next) == PageNeed::ask && !return_channel_.request(next)) return;
    }
  } while (stop_->sleep_for(pull_look));
}

}  // namespace migrationd::postcopy
