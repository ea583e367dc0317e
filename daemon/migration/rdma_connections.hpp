// SPDX-License-Identifier: Apache-2.0
//
// The connections of a migration over RDMA, made and accepted (docs/formats/rdma.md).
//
// The source connects once for the stream, once more for a return path if it wants one, and once for each further queue
// pair that the destination granted, all before the first byte of the stream. The destination needs no setting for any
// of that: what connects between the first request and the first byte is told apart by its private data.
//
// An open port is probed here, too: a request with another version or strange numbers is rejected, a source that says
// nothing is let go, and the next one may come.
//
// Thread: the mover. Ends with the stop.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "ram/rdma_channel.hpp"
#include "transports/address.hpp"
#include "transports/rdma_link.hpp"

#include <memory>

namespace migrationd::migration {

struct RdmaWishes {
  bool pin_all = false;
  bool return_path = false;
  unsigned queue_pairs = 1;  // for pages; more than one only with a daemon like this one
};

Result<std::unique_ptr<ram::RdmaChannel>> connect_rdma(transports::RdmaFabric& fabric,
                                                       const transports::InetAddress& to, const RdmaWishes& wishes,
                                                       StopSource& stop);

// The first message of the stream has come when it returns.
Result<std::unique_ptr<ram::RdmaChannel>> accept_rdma(transports::RdmaListener& listener, StopSource& stop);

}  // namespace migrationd::migration
