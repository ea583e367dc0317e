// SPDX-License-Identifier: Apache-2.0
//
// start_thread: std::thread's constructor throws when the process is at its limit of threads or memory. That is a
// refused command, not the end of a process that holds a machine.
#pragma once

#include "base/result.hpp"

#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace migrationd {

// Starts it in `thread`, which must be empty and stays so on failure. Error: ErrorKind::io with the system's number,
// beginning with `what` ("start the mover"). (Not a Result<std::thread>: a thread can be made from anything, an Error
// too.)
template <class Function>
Result<void> start_thread(std::thread& thread, const std::string& what, Function function) {
  try {
    thread = std::thread(std::move(function));
    return {};
  } catch (const std::system_error& failure) {
    return Error::from_errno(what, failure.code().value());
  }
}

}  // namespace migrationd
