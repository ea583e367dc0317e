// SPDX-License-Identifier: Apache-2.0
// A build without rdma-core, in a build that may have it: the file that stands in its place is tested by itself.
#include "tests/unit/catch.hpp"
#include "transports/rdma_link.hpp"

using namespace migrationd;

TEST_CASE("RdmaNone.an_rdma_address_is_refused_with_the_reason") {
  const auto fabric = transports::make_rdma_fabric();
  REQUIRE_FALSE(fabric.has_value());
  CHECK(fabric.error().kind() == ErrorKind::plan);
  CHECK(fabric.error().text() ==
        "rdma: this daemon was built without RDMA (it needs libibverbs and librdmacm, see -Drdma)");
}
