// SPDX-License-Identifier: Apache-2.0
// Addresses of the cache: unix:PATH, or HOST:PORT with a numeric IPv4 host.
#pragma once

#include <string>

namespace cache {

// Bound, not listening yet; nonblocking. -1 with errno.
int bound_socket(const std::string& address);
// Connected; blocking. -1 with errno.
int connected_socket(const std::string& address);

}  // namespace cache
