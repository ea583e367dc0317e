// SPDX-License-Identifier: Apache-2.0
//
// What can be said of rdma_verbs without a device. With one: tests/rdma/run.
#include "transports/rdma_link.hpp"

#include "tests/unit/transports/support.hpp"

#include <unistd.h>

using namespace migrationd;
using namespace migrationd::testing;
using namespace migrationd::transports;

namespace {

bool kernel_has_rdma() {
  if (::access("/dev/infiniband/rdma_cm", F_OK) != 0) return false;
  WARN("skipped: this kernel has RDMA");
  return true;
}

std::unique_ptr<RdmaFabric> fabric() {
  auto made = make_rdma_fabric();
  REQUIRE(made.has_value());
  return std::move(*made);
}

}  // namespace

TEST_CASE("RdmaVerbs.opening_says_that_the_kernel_has_no_rdma") {
  if (kernel_has_rdma()) return;
  const auto stop = StopSource::make();
  const auto link = fabric()->open({.host = "127.0.0.1", .port = "4444"}, **stop);
  REQUIRE_FALSE(link.has_value());
  CHECK(link.error().text() ==
        "RDMA ERROR: could not create CM channel: no RDMA in this kernel: /dev/infiniband/rdma_cm is not there "
        "(module rdma_ucm)");
  CHECK(link.error().kind() == ErrorKind::io);
}

TEST_CASE("RdmaVerbs.listening_says_that_the_kernel_has_no_rdma") {
  if (kernel_has_rdma()) return;
  const auto listener = fabric()->listen({.host = "127.0.0.1", .port = "0"});
  REQUIRE_FALSE(listener.has_value());
  CHECK(listener.error().text().starts_with("RDMA ERROR: could not create rdma event channel: no RDMA in this kernel"));
}

TEST_CASE("RdmaVerbs.a_wrong_port_is_found_before_any_device") {
  const auto stop = StopSource::make();
  const auto link = fabric()->open({.host = "127.0.0.1", .port = "99999"}, **stop);
  REQUIRE_FALSE(link.has_value());
  CHECK(link.error().text().starts_with("address resolution failed for 127.0.0.1:99999"));
}
