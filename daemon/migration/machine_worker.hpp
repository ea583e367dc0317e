// SPDX-License-Identifier: Apache-2.0
//
// Worker: what is done with a machine beside migrations and takes longer than a command may: checking its memory,
// measuring its dirty rate. One at a time; no migration starts meanwhile. Private to DaemonService.
//
// Thread: constructed and destroyed on control (the destructor stops and joins); the work runs on its own thread and
// its result is posted.
#pragma once

#include "daemon/migration/daemon_service.hpp"

#include <thread>

namespace migrationd::migration {

class DaemonService::Worker {
 public:
  // `work` gets the stop; what it returns is called on control, after which the worker is gone.
  using Finish = std::function<void()>;
  static Result<std::unique_ptr<Worker>> start(DaemonService& service, std::function<Finish(StopSource&)> work);
  ~Worker();
  // Ends the work soon; its result is still called.
  void request_stop() noexcept { stop_->request(); }

 private:
  explicit Worker(std::unique_ptr<StopSource> stop) noexcept : stop_(std::move(stop)) {}

  std::unique_ptr<StopSource> stop_;
  std::thread thread_;
};

}  // namespace migrationd::migration
