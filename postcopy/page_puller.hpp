// SPDX-License-Identifier: Apache-2.0
//
// PagePuller: asks for all pages of a machine that does not run (a parked one), so that a postcopy into it becomes a
// pull.
//
// A source streams its memory without being asked, but not always: at a background rate of 0 it sends requested pages
// only, and one with a bandwidth limit sends those at once. So the puller keeps a few requests under way, no more: each
// moves the place from where the source goes on, and too many would make it jump about. What comes unasked is not asked
// for.
//
// Thread: construct and destroy on the mover; the destructor joins. One per connection.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "postcopy/destination_pages.hpp"
#include "postcopy/return_channel.hpp"

#include <memory>
#include <thread>

namespace migrationd::postcopy {

class PagePuller {
 public:
  // Host pages asked for and not here yet.
  static constexpr std::uint64_t under_way = 64;

  // Both outlive it.
  static Result<std::unique_ptr<PagePuller>> start(DestinationPages& pages, ReturnChannel& return_channel);
  ~PagePuller();

 private:
  PagePuller(DestinationPages& pages, ReturnChannel& return_channel, std::unique_ptr<StopSource> stop) noexcept
      : pages_(pages), return_channel_(return_channel), stop_(std::move(stop)) {}
  void run();

  DestinationPages& pages_;
  ReturnChannel& return_channel_;
  std::unique_ptr<StopSource> stop_;
  std::thread thread_;
};

}  // namespace migrationd::postcopy
