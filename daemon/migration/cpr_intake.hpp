// SPDX-License-Identifier: Apache-2.0
//
// CprIntake: the cpr socket of a new process, until a list of descriptors has come whole.
//
// One intake takes one list. It passes over probes, reports a list that is wrong and goes on listening, for the old
// process runs on and may try again. When a list has come it holds the connection: the old process waits for its end.
// Closing it says "connect the main channel", so the owner destroys the intake only after it listens there. An old
// process that closes first has given up: that is reported too, and the next list is waited for.
//
// Thread: made and destroyed on control; its own thread waits, reads and reports through `post`. After the destructor
// nothing is reported any more, though something may still be on its way: reports carry the intake's number.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "protocol/cpr/cpr_state.hpp"
#include "transports/listen.hpp"

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace migrationd::migration {

// What an intake says; control thread.
class CprListener {
 public:
  virtual ~CprListener() = default;
  // A list, or why it is none.
  virtual void cpr_arrived(std::uint64_t intake, Result<std::vector<cpr::NamedDescriptor>> descriptors) = 0;
  // The old process closed its end before we did.
  virtual void cpr_given_up(std::uint64_t intake) = 0;
};

class CprIntake {
 public:
  using Post = std::function<void(std::function<void()>)>;

  // The socket and the listener outlive it.
  static Result<std::unique_ptr<CprIntake>> start(transports::Listener& socket, CprListener& listener, Post post);
  // Closes the connection.
  ~CprIntake();

  std::uint64_t number() const noexcept { return number_; }

 private:
  CprIntake(transports::Listener& socket, CprListener& listener, Post post, std::unique_ptr<StopSource> stop);
  void run();
  // False: the stop.
  bool take_one();
  void report(Result<std::vector<cpr::NamedDescriptor>> descriptors);

  const std::uint64_t number_;
  transports::Listener& socket_;
  CprListener& listener_;
  Post post_;
  std::unique_ptr<StopSource> stop_;
  std::thread thread_;
};

}  // namespace migrationd::migration
