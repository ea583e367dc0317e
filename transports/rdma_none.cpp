// SPDX-License-Identifier: Apache-2.0
// A build without rdma-core: `rdma:` says so, everything else works.
#include "transports/rdma_link.hpp"

namespace migrationd::transports {

Result<std::unique_ptr<RdmaFabric>> make_rdma_fabric() {
  return plan_error("rdma: this daemon was built without RDMA (it needs libibverbs and librdmacm, see -Drdma)");
}

}  // namespace migrationd::transports
