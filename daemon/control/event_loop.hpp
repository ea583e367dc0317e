// SPDX-License-Identifier: Apache-2.0
//
// EventLoop: the control thread's loop, one Asio io_context behind a light interface.
//
// Control is callbacks on this loop: sessions, listening sockets, timers, signals, and whatever other threads
// post. Nothing in a callback may block. Plain callbacks and not coroutines: each source of events has one
// callback and one small state, so there is no frame that could hold a temporary across a suspension
// (docs/architecture.md, "Toolchain rules"), and Asio's headers stay in one source file.
//
// Thread: run() is called by the control thread; every callback runs there. post() and stop() may be called by
// any thread; all else by the control thread (or before run()). The loop outlives its watches and timers.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>

namespace migrationd::control {

// Tells when a descriptor can be read or written. Does not own the descriptor, which must stay open while the
// watch lives. Each request is for one callback; ask again from within it for the next. One watch per descriptor.
class FdWatch {
 public:
  virtual ~FdWatch() = default;  // no callback runs after this
  virtual void when_readable(std::function<void()> call) = 0;
  virtual void when_writable(std::function<void()> call) = 0;
};

class Timer {
 public:
  virtual ~Timer() = default;  // no callback runs after this
  // Calls once after `delay`; a second start() replaces the first.
  virtual void start(std::chrono::nanoseconds delay, std::function<void()> call) = 0;
  virtual void cancel() noexcept = 0;
};

class EventLoop {
 public:
  EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;
  ~EventLoop();

  // Runs callbacks until stop().
  void run();
  void stop() noexcept;
  // Runs what is ready, at most until `limit` has passed; for tests and for the last flush. False: nothing ran.
  bool run_for(std::chrono::nanoseconds limit);

  // `job` runs on the control thread, after everything posted before it.
  void post(std::function<void()> job);

  // Null when the descriptor cannot be polled (a regular file).
  std::unique_ptr<FdWatch> watch(int fd);
  std::unique_ptr<Timer> timer();
  // Calls with the signal's number each time one arrives. At most one call of this per loop.
  void on_signals(std::span<const int> signals, std::function<void(int)> call);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace migrationd::control
