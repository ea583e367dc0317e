// SPDX-License-Identifier: Apache-2.0
//
// Migration addresses as values: what `uri` strings and `channels` objects mean (qmp.md 9.1,
// file-and-channels.md section 5). Parsing a URI is here; building one from the structured form is the QMP
// handlers' work, because JSON belongs to protocol/qmp.
#pragma once

#include "base/result.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace migrationd::transports {

struct InetAddress {
  std::string host;                   // may be empty when listening: any address
  std::string port;                   // number or service name
  std::optional<std::uint16_t> to{};  // listening only: try port..to
  std::optional<bool> ipv4{};
  std::optional<bool> ipv6{};
  bool keep_alive = false;
  bool mptcp = false;
};
struct UnixAddress {
  std::string path;
  bool abstract = false;
  bool tight = true;  // abstract only: the name has no padding to the full length
};
struct VsockAddress {
  std::string cid;
  std::string port;
};
// A descriptor named by getfd, or (incoming only) the number of one the process inherited.
struct FdAddress {
  std::string name;
};
struct ExecAddress {
  std::vector<std::string> argv;  // argv[0] is a path; no shell, no search
};
struct FileAddress {
  std::string path;  // "/dev/fdset/N" names a descriptor set
  std::uint64_t offset = 0;
};
struct RdmaAddress {
  InetAddress inet;
};

using Address = std::variant<InetAddress, UnixAddress, VsockAddress, FdAddress, ExecAddress, FileAddress, RdmaAddress>;

// Errors: ErrorKind::plan with QEMU 10.0's texts.
Result<Address> parse_uri(std::string_view uri);
// The address as a URI, for logs and events; not for parsing again (a path may hold commas).
std::string to_string(const Address& address);

}  // namespace migrationd::transports
