// SPDX-License-Identifier: Apache-2.0
//
// RdmaInbox: what the destination says on the return path of a migration over RDMA, kept until it is read.
//
// A socket holds what its reader has not read yet; an RDMA connection holds nothing: who writes waits for the reader's
// READY. In postcopy that is one wait too many. The source's return path thread writes a page that was asked for to the
// main connection, and waits for the READY of the destination's page reader; that one has come to a PING, writes the
// answer to the return path, and waits for the READY of the source's return path thread. Both wait for ever, after the
// first request of a guest that comes while a piece of the background is under way.
//
// So a thread of the inbox says READY and keeps what comes, and does nothing else, as a socket's buffer would. No
// destination has to be mended for it: QEMU's answers on the thread that reads pages, too.
//
// The first READY is not said before open(), for a destination may post the receive for it after the connection stands,
// and what comes before that breaks the connection (seen). It has posted it when it says READY on the main connection.
//
// QEMU's destination sends its first message without our READY. If it had one all the same, it would have two when the
// next is said, and may take both for one: then it waits for a third, and we for its message (seen; QEMU's source and
// destination do that to each other). So its first message is taken unasked.
//
// Thread: its own uses the connection, alone; read() has one reader.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "ram/rdma_control.hpp"

#include <sys/uio.h>

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>

namespace migrationd::ram {

class RdmaInbox {
 public:
  // Nobody is asked for more while so much is unread: thousands of requests and answers, and an honest destination has
  // tens under way (StreamWindow::many, PagePuller::under_way, one a processor of the guest). One message more may
  // come.
  static constexpr std::size_t most_unread = std::size_t{256} << 10;

  // `from` outlives it and is established; nobody else uses it from now on, but for disconnect().
  // `first_unasked`: the destination is QEMU's.
  static Result<std::unique_ptr<RdmaInbox>> start(RdmaControl& from, bool first_unasked);
  // Ends the connection.
  ~RdmaInbox();
  RdmaInbox(const RdmaInbox&) = delete;
  RdmaInbox& operator=(const RdmaInbox&) = delete;

  // The destination is ready to hear from us. Any thread, any number of times.
  void open() noexcept;
  // As Channel::read(). What came before the connection's end or failure is read before it is told.
  Result<std::size_t> read(std::span<const iovec> into);

 private:
  RdmaInbox(RdmaControl& from, bool first_unasked) noexcept : from_(from), first_unasked_(first_unasked) {}
  void run();
  Result<void> take_all();

  RdmaControl& from_;
  const bool first_unasked_;
  std::mutex mutex_;  // guards all below: one thread writes, the other one reads
  std::condition_variable changed_;
  Bytes unread_;
  std::size_t read_ = 0;               // of unread_, from its start
  std::optional<Result<void>> ended_;  // nothing more will come; success: the destination has disconnected
  bool open_ = false;
  bool closing_ = false;
  std::thread thread_;
};

// The bytes of the next QEMU FILE message; nothing: the peer has disconnected. Valid until the next call. Any other
// message is an error.
Result<std::optional<ByteView>> next_stream_bytes(RdmaControl& from, bool unasked = false);

}  // namespace migrationd::ram
