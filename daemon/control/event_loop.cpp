// SPDX-License-Identifier: Apache-2.0
//
// Asio completes a cancelled operation later, when the object that started it may be gone. Every handler here
// therefore holds a share of its operation's state and asks it whether anybody still wants the call.
#include "daemon/control/event_loop.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>

#include <utility>

namespace migrationd::control {
namespace asio = boost::asio;
using boost::system::error_code;

namespace {

class AsioWatch final : public FdWatch {
 public:
  AsioWatch(asio::io_context& context) : state_(std::make_shared<State>(context)) {}
  ~AsioWatch() override {
    state_->wanted = false;
    if (state_->descriptor.is_open()) state_->descriptor.release();  // cancels; the descriptor stays open
  }

  bool assign(int fd) {
    error_code error;
    state_->descriptor.assign(fd, error);
    return !error;
  }
  void when_readable(std::function<void()> call) override {
    wait(asio::posix::stream_descriptor::wait_read, std::move(call));
  }
  void when_writable(std::function<void()> call) override {
    wait(asio::posix::stream_descriptor::wait_write, std::move(call));
  }

 private:
  struct State {
    explicit State(asio::io_context& context) : descriptor(context) {}
    asio::posix::stream_descriptor descriptor;
    bool wanted = true;
  };

  void wait(asio::posix::stream_descriptor::wait_type what, std::function<void()> call) {
    state_->descriptor.async_wait(what, [state = state_, call = std::move(call)](const error_code& error) {
      // An error other than our own cancellation is the descriptor's affair: the reader or writer will see it.
      if (state->wanted && error != asio::error::operation_aborted) call();
    });
  }

  std::shared_ptr<State> state_;
};

class AsioTimer final : public Timer {
 public:
  explicit AsioTimer(asio::io_context& context) : state_(std::make_shared<State>(context)) {}
  ~AsioTimer() override { cancel(); }

  void start(std::chrono::nanoseconds delay, std::function<void()> call) override {
    const auto turn = ++state_->turn;
    state_->timer.expires_after(std::chrono::duration_cast<asio::steady_timer::duration>(delay));
    state_->timer.async_wait([state = state_, turn, call = std::move(call)](const error_code& error) {
      if (!error && state->turn == turn) call();
    });
  }
  void cancel() noexcept override {
    ++state_->turn;
    state_->timer.cancel();
  }

 private:
  struct State {
    explicit State(asio::io_context& context) : timer(context) {}
    asio::steady_timer timer;
    std::uint64_t turn = 0;  // a handler of an earlier start() finds another number here
  };
  std::shared_ptr<State> state_;
};

}  // namespace

struct EventLoop::Impl {
  asio::io_context context{1};  // one thread runs it; others may post
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  asio::signal_set signals{context};
  std::function<void(int)> signal_call;

  void await_signal() {
    signals.async_wait([this](const error_code& error, int number) {
      if (error) return;
      signal_call(number);
      await_signal();
    });
  }
};

EventLoop::EventLoop() : impl_(std::make_unique<Impl>()) {}
EventLoop::~EventLoop() = default;

void EventLoop::run() {
  impl_->context.restart();
  impl_->context.run();
}

void EventLoop::stop() noexcept { impl_->context.stop(); }

bool EventLoop::run_for(std::chrono::nanoseconds limit) {
  impl_->context.restart();
  return impl_->context.run_one_for(limit) != 0;
}

void EventLoop::post(std::function<void()> job) { asio::post(impl_->context, std::move(job)); }

std::unique_ptr<FdWatch> EventLoop::watch(int fd) {
  auto watch = std::make_unique<AsioWatch>(impl_->context);
  if (!watch->assign(fd)) return nullptr;
  return watch;
}

std::unique_ptr<Timer> EventLoop::timer() { return std::make_unique<AsioTimer>(impl_->context); }

void EventLoop::on_signals(std::span<const int> signals, std::function<void(int)> call) {
  impl_->signal_call = std::move(call);
  error_code error;
  for (const int number : signals) impl_->signals.add(number, error);
  impl_->await_signal();
}

}  // namespace migrationd::control
