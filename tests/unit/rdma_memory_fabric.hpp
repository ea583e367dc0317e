// SPDX-License-Identifier: Apache-2.0
//
// MemoryFabric: an RDMA device in memory, for both ends in one process. Messages and writes are copies, but the rules
// are those of an adapter: a message that finds no posted receive breaks the connection, a write needs a key of the
// peer's domain and stays within its region, a full queue takes nothing more, completions come for requests that asked.
//
// Faults: fail_step(n) makes the n-th operation (registering, posting, connecting, accepting, polling) fail, by
// disconnecting both ends.
//
// Thread: any; one lock for all of a fabric.
#pragma once

#include "transports/rdma_link.hpp"

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace migrationd::testing {

class MemoryFabric final : public transports::RdmaFabric {
 public:
  struct Options {
    std::size_t send_depth = transports::rdma_send_depth;
    // Messages that carry the stream count one record, as QEMU 7.2 writes them: those of the side that connects, and of
    // the one that accepts.
    bool old_source = false;
    bool old_destination = false;
    bool single_device = true;  // false: every connection is on a device of its own, and no domain can be shared
  };
  explicit MemoryFabric(Options options);
  MemoryFabric() : MemoryFabric(Options()) {}
  ~MemoryFabric() override;

  Result<std::unique_ptr<transports::RdmaLink>> open(const transports::InetAddress& to, StopSource& stop,
                                                     std::shared_ptr<transports::RdmaDomain> domain) override;
  Result<std::unique_ptr<transports::RdmaListener>> listen(const transports::InetAddress& at) override;

  // The n-th operation from now on fails, counted from 1; 0: none.
  void fail_step(std::uint64_t step);
  std::uint64_t steps() const;
  // Connections are cut from now on as soon as anything is done on them.
  void cut_all();
  // What every private data of a connecting side is replaced by; empty: nothing is.
  void say_instead(Bytes private_data);

  // What both ends of all connections share; for the .cpp.
  struct State;

 private:
  std::shared_ptr<State> state_;
};

}  // namespace migrationd::testing
