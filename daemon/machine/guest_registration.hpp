// SPDX-License-Identifier: Apache-2.0
//
// GuestRegistration: what an attached guest says it is, from HELLO to READY, proved piece by piece.
//
// No socket and no thread: messages go in, answers come out. What cannot be taken (a memfd that could shrink, two
// blocks at one address) is refused in a sentence and leaves the registration as it was; what breaks the protocol
// (HELLO twice, a block before it) is ErrorKind::wire, and the end of the connection.
//
// Thread: one at a time.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "guest/protocol.hpp"
#include "ram/dirty_log_shared.hpp"
#include "ram/ram_map.hpp"

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace migrationd {

// A guest that said READY.
struct RegisteredGuest {
  guest::Hello hello;
  guest::Ready ready;
  ram::RamMap ram;
  // One of each per block.
  std::vector<std::byte*> addresses;
  std::vector<guest::Tracking> tracking;
  std::vector<std::unique_ptr<ram::SharedBitmap>> bitmaps;  // null: none
  std::vector<guest::AddDevice> devices;
};

class GuestRegistration {
 public:
  struct Answer {
    Bytes body;
    UniqueFd fd;
  };

  // `daemon`: our name for WELCOME.
  GuestRegistration(std::string daemon, std::chrono::milliseconds deadline)
      : daemon_(std::move(daemon)), deadline_(deadline) {}

  // A request before READY.
  Result<Answer> take(guest::Type type, ByteView body, std::vector<UniqueFd> fds);
  // The last message. Afterwards this object is empty.
  Result<RegisteredGuest> ready(ByteView body);

 private:
  Result<Answer> hello(ByteView body);
  Result<Answer> add_block(ByteView body, std::vector<UniqueFd> fds);
  Result<Answer> new_block(ByteView body);
  Result<Answer> add_device(ByteView body);
  Result<void> check_place(const guest::AddBlock& block, int fd);

  std::string daemon_;
  std::chrono::milliseconds deadline_;
  bool greeted_ = false;
  std::size_t blocks_made_ = 0;
  std::vector<std::pair<dev_t, ino_t>> files_;  // of the blocks
  RegisteredGuest guest_;
};

}  // namespace migrationd
